"""A series as its command makes it, tiny: a few modules of the standard library, a small BERT, a dozen steps."""

import json
import shutil
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel

from dr_validate.encoder.auto import AutoEncoder
from dr_validate.errors import SetupError
from dr_validate.files import sha256_of_file
from dr_validate.source.folder import FolderSource
from dr_validate.values import Float32
from scripts.research.make_series import parse
from scripts.research.series.docstrings import Docstrings, collect, draw
from scripts.research.series.make import make
from scripts.research.series.train import Recipe, train
from scripts.research.study.collection import read_collection
from scripts.research.study.encoded import in_folder, read_stored

PACKAGES = ["logging", "json"]
TINY = ["--dtype", "float32", "--documents", "150", "--queries", "20", "--batch-size", "8", "--packages", *PACKAGES]


@pytest.fixture(scope="module")
def base(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MiniLM's tokenizer with six small layers of random weights."""
    folder = tmp_path_factory.mktemp("base")
    config = BertConfig(hidden_size=32, num_hidden_layers=6, num_attention_heads=2, intermediate_size=64, vocab_size=30522)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(minilm / name, folder)
    return folder


@pytest.fixture(scope="module")
def series(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`minilm3/` and `static/`, each with its vectors, and `table.md` in each."""
    folder = tmp_path_factory.mktemp("series")
    for model, steps in (("minilm3", "0,4"), ("static", "4,40")):
        out = folder / model
        arguments = [
            "--model",
            model,
            "--steps",
            steps,
            "--base",
            str(base),
            "--out",
            str(out),
            "--vectors",
            str(out / "vectors"),
        ]
        table = make(parse([*TINY, *arguments, "--strong"]))
        (out / "table.md").write_text(table)
    return folder


def encoded(checkpoint: Path, texts: list[str]) -> Float32:
    """By what the folder says alone."""
    with AutoEncoder().load(checkpoint, "cpu") as model:
        return np.asarray(model.encode(model.tokenizer("query").tokenize(texts), "query"))


@pytest.mark.parametrize("model", ["minilm3", "static"])
def test_the_table_says_what_the_stored_vectors_give(series: Path, model: str) -> None:
    folder = series / model / "vectors"
    collection = json.loads((folder / "coll.json").read_text())
    gold = np.array(collection["gold"])
    rows = [line.strip("| ").split("|") for line in (series / model / "table.md").read_text().splitlines()[2:]]
    assert [row[0].strip() for row in rows] == ["c00", "c01", "strong"]
    for name, *_, mrr in rows:
        queries, documents = (np.load(folder / f"{name.strip()}.{side}.npy").astype(np.float32) for side in "qd")
        scores = queries @ documents.T
        own = scores[np.arange(len(gold)), gold][:, None]
        ranks = [(scores >= own - 1e-6).sum(1), 1 + (scores > own + 1e-6).sum(1)]  # ties may go either way
        bounds = [float(np.where(rank <= 10, 1 / rank, 0).mean()) for rank in ranks]
        assert bounds[0] - 1e-4 <= float(mrr) <= bounds[1] + 1e-4
        assert bounds[1] - bounds[0] < 0.02, "nearly all documents have a vector of their own"


@pytest.mark.parametrize("model", ["minilm3", "static"])
def test_watcher_and_study_read_what_was_written(series: Path, model: str, tmp_path: Path) -> None:
    listing = FolderSource(path=series / model / "checkpoints").list(tmp_path)
    assert not listing.incomplete
    assert [checkpoint.step for checkpoint in listing.checkpoints] == ([0, 4] if model == "minilm3" else [4, 40])
    folder = series / model / "vectors"
    test_set = read_collection(folder / "coll.json")
    assert in_folder(folder, "") == ["c00", "c01", "strong"]
    assert read_stored(folder, "c01", "", test_set).queries.shape == (20, 32)
    rows = [json.loads(line) for line in (series / model / "beir" / "corpus.jsonl").read_text().splitlines()]
    assert [row["text"] for row in rows] == test_set.corpus.texts(np.arange(150))
    judged = (series / model / "beir" / "qrels" / "test.tsv").read_text().splitlines()[1:]
    assert [int(line.split("\t")[1]) for line in judged] == test_set.qrels.documents.tolist()
    best = [line.split() for line in (series / model / "strong.trec").read_text().splitlines() if line.split()[3] == "1"]
    assert len(best) == 20 and all(0 <= int(cells[2]) < 150 for cells in best)


def test_a_checkpoint_of_three_layers_encodes_as_it_was_trained(series: Path) -> None:
    folder = series / "minilm3" / "checkpoints" / "checkpoint-4"
    text = "Return the handler that belongs to this name."
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    assert model.config.num_hidden_layers == 3
    with torch.inference_mode():
        mean = model(**tokenizer([text], return_tensors="pt")).last_hidden_state.mean(1)
    assert np.allclose(encoded(folder, [text]), torch.nn.functional.normalize(mean).numpy(), atol=1e-5)
    with AutoEncoder().load(folder, "cpu") as loaded:
        lengths = [int(loaded.tokenizer(side).tokenize(["word " * 99]).lengths[0]) for side in ("query", "document")]
    assert lengths == [24, 32]


def test_a_static_checkpoint_is_the_mean_of_its_words_whatever_their_order(series: Path) -> None:
    folder = series / "static" / "checkpoints" / "checkpoint-40"
    parts = ["open", "file", "read"]
    first, second, *alone = encoded(folder, ["open file read", "read open file", *parts])
    assert np.allclose(first, second, atol=1e-6)
    weights = load_file(folder / "model.safetensors")
    table = weights["embeddings.word_embeddings.weight"]
    words = table[AutoTokenizer.from_pretrained(folder)(" ".join(parts), add_special_tokens=False)["input_ids"]]
    for vector, word in zip(alone, words, strict=True):  # what is alone keeps its direction, around its mean
        centred = (word - word.mean()).numpy()
        assert np.allclose(vector, centred / np.linalg.norm(centred), atol=1e-5)
    assert not any("encoder.layer" in name for name in weights)
    losses = [row["loss"] for row in json.loads((series / "static" / "series.json").read_text())["checkpoints"]]
    assert losses[1] < losses[0], "it learns"


def test_looking_at_checkpoints_does_not_change_the_training(base: Path, series: Path, tmp_path: Path) -> None:
    found = collect(PACKAGES[::-1], signatures=False)
    collection = draw(found, 150, 20, 0)
    recipe = Recipe(
        kind="minilm3",
        base=base,
        steps=(0, 4),
        noise=0.6,
        learning_rate=2e-4,
        batch_size=8,
        warmup_steps=20,
        lengths=(24, 32),
        seed=0,
    )
    allowed = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        for _ in train(recipe, collection, tmp_path):
            torch.rand(7)
            assert torch.get_num_threads() == 2, "training takes one and gives the others back"
    finally:
        torch.set_num_threads(allowed)
    before = series / "minilm3" / "checkpoints" / "checkpoint-4" / "model.safetensors"
    assert sha256_of_file(tmp_path / "checkpoint-4" / "model.safetensors") == sha256_of_file(before)


def test_nothing_of_the_test_is_trained_on() -> None:
    found = collect(PACKAGES, signatures=False)
    collection = draw(found, 10_000, 20, 5)
    assert list(collection.documents) == found.documents, "where there are fewer, all are taken"
    test, training = set(collection.test), set(collection.training)
    assert len(test) == 20 and test | training == set(found.pairs)
    for part in (0, 1):
        assert not {pair[part] for pair in test} & {pair[part] for pair in training}
    assert draw(found, 10_000, 20, 6).test != collection.test


def test_a_first_line_is_a_query_and_each_text_counts_once() -> None:
    rest = "A file may be a path or an open stream, and is closed."
    found = Docstrings(signatures=True)
    found.add(f"Read all of a file.\n\n   {rest}", "read(path, *, limit=3)")
    found.add(f"Another first line for it.\n{rest.upper()}", "load(path)")
    found.add("Read all of a file.\n\nThis time with another remainder, which is a document.", "class Reader")
    found.add("A short one that has no remainder.", "")
    found.add("Too short.", "short()")
    assert found.pairs == [("Read all of a file.", 0)]
    assert found.documents == [
        f"read(path, *, limit=3) {rest}",
        "class Reader This time with another remainder, which is a document.",
        "A short one that has no remainder.",
    ]


def test_folders_wheels_sdists_and_installed_packages_are_read_alike(tmp_path: Path) -> None:
    installed = Path(sysconfig.get_path("stdlib")) / "json"
    folder, wheel, sdist = tmp_path / "json", tmp_path / "json-1.whl", tmp_path / "json-1.tar.gz"
    shutil.copytree(installed, folder)
    (folder / "broken.py").write_text("def (:")
    with zipfile.ZipFile(wheel, "w") as archive, tarfile.open(sdist, "w:gz") as tar:
        for path in sorted(installed.glob("*.py"), reverse=True):
            archive.write(path, f"json/{path.name}")
            tar.add(path, f"json-1/json/{path.name}")
    texts = [collect([str(place)], signatures=True).documents for place in ("json", folder, wheel, sdist)]
    assert len(texts[0]) > 10 and texts[0] == texts[1] == texts[2] == texts[3]


def test_what_cannot_be_used_is_refused_with_the_way_out(base: Path, tmp_path: Path) -> None:
    (tmp_path / "full" / "old").mkdir(parents=True)
    (tmp_path / "no_package").mkdir()
    cases = {
        "is not empty": ["--base", str(base), "--out", str(tmp_path / "full")],
        "has no config.json": ["--base", str(tmp_path), "--out", str(tmp_path / "new")],
        "expected a folder, a file that ends in": [
            "--base",
            str(base),
            "--out",
            str(tmp_path / "new"),
            "--packages",
            "no_such",
        ],
        "no Python source files": [
            "--base",
            str(base),
            "--out",
            str(tmp_path / "new"),
            "--packages",
            str(tmp_path / "no_package"),
        ],
        "fewer --queries": ["--base", str(base), "--out", str(tmp_path / "new"), "--queries", "5000"],
    }
    for message, arguments in cases.items():
        with pytest.raises(SetupError, match=message):
            make(parse([*TINY, *arguments]))
    assert not (tmp_path / "new").exists()
