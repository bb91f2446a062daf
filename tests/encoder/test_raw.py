"""Checkpoints that are no plain encoder: state dicts of modules of one's own, heads, DPR; and what is stated against them."""

import dataclasses
import json
import logging
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from dr_validate.encoder.auto import AutoEncoder
from dr_validate.encoder.modules import TRANSFORMER_FILES
from dr_validate.errors import CheckpointError, ConfigError
from dr_validate.source.completeness import is_wanted
from dr_validate.source.folder import FolderSource
from dr_validate.values import Float32, Side
from tests.factories import built

TEXTS = ["thin films", "dense retrieval", "naive cafe with more words"]
STATED: dict[str, Any] = {"pooling": "mean", "normalize": True}


def vectors_of(folder: Path, side: Side = "document", **settings: Any) -> Float32:
    with AutoEncoder(**settings).load(folder, "cpu") as model:
        return np.asarray(model.encode(model.tokenizer(side).tokenize(TEXTS), side))


def refusal(folder: Path, **settings: Any) -> str:
    with pytest.raises(CheckpointError) as caught, AutoEncoder(**settings).load(folder, "cpu"):
        pass
    return str(caught.value)


def contract_of(folder: Path, **settings: Any) -> Mapping[str, Any]:
    found: Mapping[str, Any] = AutoEncoder(**settings).read(folder)["contract"]
    return found


def key_of(folder: Path, **settings: Any) -> str:
    return str(AutoEncoder(**settings).read(folder)["vectors"])


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps((json.loads(path.read_text()) if path.is_file() else {}) | changes))


def bare(folder: Path, model: Path, rename: Callable[[str], str], **more: torch.Tensor) -> Path:
    """What the Trainer leaves of a module of one's own: weights under names of their own, and its state."""
    folder.mkdir(parents=True)
    weights = {rename(name): weight for name, weight in load_file(model / "model.safetensors").items()}
    save_file(weights | more, folder / "model.safetensors")
    (folder / "trainer_state.json").write_text('{"global_step": 100}')
    return folder


@pytest.mark.parametrize("prefix", ["encoder.", "0.model.", "lm_q.", "model.bert."])
def test_a_bare_state_dict_encodes_as_the_model_that_it_is(bert: Path, tmp_path: Path, prefix: str) -> None:
    raw = bare(tmp_path / "raw", bert, lambda name: prefix + name)
    given: dict[str, Any] = {"config": str(bert), "tokenizer": str(bert), "weights_prefix": prefix}
    assert np.array_equal(vectors_of(raw, **given, **STATED), vectors_of(bert, **STATED))
    as_file = {**given, "config": str(bert / "config.json")}
    assert np.array_equal(vectors_of(raw, **as_file, **STATED), vectors_of(bert, **STATED))
    assert "warnings" not in contract_of(raw, **given, **STATED)


def test_a_bare_state_dict_without_settings_names_them_in_source_and_encoder(bert: Path, tmp_path: Path) -> None:
    raw = bare(tmp_path / "out/checkpoint-100", bert, lambda name: f"encoder.{name}")
    (part,) = FolderSource(path=tmp_path / "out").list(tmp_path / "state").incomplete
    for said in (part.lacks, refusal(raw, **STATED)):
        assert re.search("encoder.config.*encoder.tokenizer.*encoder.weights_prefix", said)


def test_a_source_takes_bare_state_dicts_where_the_encoder_is_given_a_config(bert: Path, tmp_path: Path) -> None:
    raw = bare(tmp_path / "out/checkpoint-100", bert, lambda name: f"encoder.{name}")
    stated = ["dataset=pydoc", f"source.path={tmp_path / 'out'}", f"encoder.config={bert}", f"encoder.tokenizer={bert}"]
    source = built(*stated, "encoder.weights_prefix=encoder.").source
    (one,) = source.list(tmp_path / "state").checkpoints
    assert (one.name, one.step) == ("checkpoint-100", 100)
    (tmp_path / "into").mkdir()
    source.fetch(one, tmp_path / "into")
    assert [path.name for path in (tmp_path / "into").iterdir()] == ["model.safetensors"]
    content = (raw / "model.safetensors").read_bytes()
    (raw / "model.safetensors").write_bytes(content[:-1])  # its weights must be whole all the same
    assert not source.list(tmp_path / "state").checkpoints


def test_what_is_outside_the_prefix_is_counted_and_said_where_it_may_make_the_vector(
    bert: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    head = {"proj.weight": torch.ones(8, 32), "loss.scale": torch.ones(1)}
    raw = bare(tmp_path / "raw", bert, lambda name: f"encoder.{name}", **head)
    given: dict[str, Any] = {"config": str(bert), "tokenizer": str(bert), "weights_prefix": "encoder."}
    with caplog.at_level(logging.INFO):
        assert np.array_equal(vectors_of(raw, **given, **STATED), vectors_of(bert, **STATED))
    assert re.search(r"39 of 41 weights begin with encoder\., the others are left out", caplog.text)
    (said,) = contract_of(raw, **given, **STATED)["warnings"]
    assert said.endswith("leaves out 1 weights that may make the vector: proj.weight")


def test_a_prefix_that_does_not_fit_is_told_with_those_that_are_there(bert: Path, tmp_path: Path) -> None:
    raw = bare(tmp_path / "raw", bert, lambda name: f"encoder.{name}")
    given: dict[str, Any] = {"config": str(bert), "tokenizer": str(bert)}
    assert "got 'encodr.', but no weight" in (said := refusal(raw, weights_prefix="encodr.", **given, **STATED))
    assert "what they begin with: encoder." in said
    assert "begin with encoder., set encoder.weights_prefix" in refusal(raw, **given, **STATED)
    change = load_file(raw / "model.safetensors")
    del change["encoder.encoder.layer.1.output.dense.weight"]
    save_file(change, raw / "model.safetensors")
    missing = refusal(raw, weights_prefix="encoder.", **given, **STATED)
    assert "random: encoder.layer.1.output.dense.weight" in missing


def test_two_encoders_in_one_state_dict_are_not_taken_for_one(bert: Path, tmp_path: Path) -> None:
    same = {f"lm_p.{name}": weight.clone() for name, weight in load_file(bert / "model.safetensors").items()}
    given: dict[str, Any] = {"config": str(bert), "tokenizer": str(bert), "weights_prefix": "lm_q."}
    tied = bare(tmp_path / "tied", bert, lambda name: f"lm_q.{name}", **same)
    assert np.array_equal(vectors_of(tied, **given, **STATED), vectors_of(bert, **STATED))
    same["lm_p.encoder.layer.1.output.dense.bias"] += 1
    untied = bare(tmp_path / "untied", bert, lambda name: f"lm_q.{name}", **same)
    assert re.search(r"another encoder under lm_p\..*query_model/ and passage_model/", refusal(untied, **given, **STATED))


def test_files_that_are_stated_belong_to_the_spec_by_their_content(bert: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bert, tmp_path / "copy"))
    plain = AutoEncoder(config=bert).fingerprint()
    assert AutoEncoder(config=copy / "config.json").fingerprint() == plain
    edit(copy / "config.json", layer_norm_eps=1e-5)
    assert AutoEncoder(config=copy).fingerprint() != plain
    with pytest.raises(ConfigError, match=r"encoder.config: no such folder .*got 'gone'"):
        AutoEncoder(config=Path("gone")).fingerprint()


def test_code_in_a_stated_config_is_never_run(bert: Path, tmp_path: Path) -> None:
    raw = bare(tmp_path / "raw", bert, lambda name: name)
    edit(bert / "config.json", auto_map={"AutoModel": "evil.Model"})
    (tmp_path / "config").mkdir()
    (bert / "config.json").rename(tmp_path / "config/config.json")
    said = refusal(raw, config=str(tmp_path / "config"), tokenizer=str(bert), **STATED)
    assert re.search("auto_map.*never run", said)


def add(folder: Path, **weights: torch.Tensor) -> None:
    path = folder / "model.safetensors"
    save_file(load_file(path) | weights, path, metadata={"format": "pt"})


@pytest.mark.parametrize("model", ["BertConfig", "RobertaConfig", "DistilBertConfig"])
@pytest.mark.parametrize("name", ["projection.weight", "norm.weight", "linear.weight", "classifier.dense.weight"])
def test_a_head_that_may_make_the_vector_is_never_left_out(make_model: Callable[[str], Path], model: str, name: str) -> None:
    folder = make_model(model)
    add(folder, **{name: torch.ones(16, 32)})
    said = refusal(folder, **STATED)
    assert f"{name} (16, 32)" in said
    assert "a Dense module" in said and "encoder.weights_prefix" in said


def test_an_own_head_beside_a_prefixed_backbone_is_refused_until_that_is_stated(
    make_model: Callable[[str], Path], tmp_path: Path
) -> None:
    plain = make_model("RobertaConfig")
    ance = Path(shutil.copytree(plain, tmp_path / "ance"))
    weights = {f"roberta.{name}": weight for name, weight in load_file(ance / "model.safetensors").items()}
    head = {"projection.weight": torch.ones(16, 32), "projection.bias": torch.ones(16), "norm.weight": torch.ones(16)}
    save_file(weights | head, ance / "model.safetensors", metadata={"format": "pt"})
    assert "3 weights of the file: norm.weight (16,), projection.bias (16,), projection.weight (16, 32)" in refusal(
        ance, **STATED
    )
    alone = vectors_of(ance, weights_prefix="roberta.", **STATED)
    assert np.allclose(alone, vectors_of(plain, **STATED), atol=1e-6)
    (said,) = contract_of(ance, weights_prefix="roberta.", **STATED)["warnings"]
    assert "norm.weight, projection.bias, projection.weight" in said


def test_layers_that_the_config_does_not_count_are_not_left_out(bert: Path) -> None:
    edit(bert / "config.json", num_hidden_layers=1)
    assert "encoder.layer.1." in refusal(bert, **STATED)


@pytest.mark.parametrize("name", ["cls.predictions.bias", "lm_head.dense.weight", "pooler.dense.weight", "loss.log_scale"])
def test_what_makes_no_vector_is_left_out(bert: Path, name: str) -> None:
    whole = vectors_of(bert, **STATED)
    add(bert, **{name: torch.ones(1) if name == "loss.log_scale" else torch.ones(32, 32)})
    assert np.array_equal(vectors_of(bert, **STATED), whole)


def dpr(folder: Path, kind: str, tokenizer: Path, projection: int) -> Path:
    import transformers

    sizes: dict[str, Any] = {
        "vocab_size": 300,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
    }
    torch.manual_seed(len(kind))
    model = getattr(transformers, kind)(
        transformers.DPRConfig(**sizes, projection_dim=projection, pad_token_id=1, initializer_range=0.3)
    )
    model.save_pretrained(folder)
    for path in tokenizer.iterdir():
        shutil.copy(path, folder)
    return folder


def theirs(folder: Path, kind: str, tokenizer: Path) -> Float32:
    import transformers

    model = getattr(transformers, kind).from_pretrained(folder).eval()
    batch = transformers.AutoTokenizer.from_pretrained(tokenizer)(TEXTS, return_tensors="pt", padding=True)
    with torch.inference_mode():
        vectors: Float32 = model(**batch).pooler_output.numpy()
    return vectors


@pytest.mark.parametrize("projection", [0, 16])
def test_dpr_encodes_as_its_classes_say(tmp_path: Path, tokenizer_folder: Path, projection: int) -> None:
    kinds: dict[Side, str] = {"query": "DPRQuestionEncoder", "document": "DPRContextEncoder"}
    places: dict[Side, str] = {"query": "query_model", "document": "passage_model"}
    for side, kind in kinds.items():
        dpr(tmp_path / "dpr" / places[side], kind, tokenizer_folder, projection)
    for side, kind in kinds.items():
        found = vectors_of(tmp_path / "dpr", side)
        assert found.shape[1] == (projection or 32)
        assert np.allclose(found, theirs(tmp_path / "dpr" / places[side], kind, tokenizer_folder), atol=1e-5)
    contract = contract_of(tmp_path / "dpr")
    assert (contract["query"]["pooling"], contract["query"]["normalize"]) == ("cls", False)
    assert contract_of(tmp_path / "dpr", **STATED)["warnings"] == [
        "encoder.pooling=mean is used, though the checkpoint says cls",
        "encoder.normalize=true is used, though the checkpoint says false",
    ]


@pytest.mark.parametrize("kind", ["DPRQuestionEncoder", "DPRContextEncoder"])
def test_one_encoder_of_dpr_is_no_retriever(tmp_path: Path, tokenizer_folder: Path, kind: str) -> None:
    said = refusal(dpr(tmp_path / "alone", kind, tokenizer_folder, 0))
    assert re.search("DPRQuestionEncoder into query_model/ and the DPRContextEncoder into passage_model/", said)


def as_modules(folder: Path, **library: Any) -> Path:
    """The folder in sentence-transformers' form, with mean pooling."""
    (folder / "1_Pooling").mkdir()
    edit(folder / "1_Pooling/config.json", pooling_mode_mean_tokens=True)
    names = [("", "Transformer"), ("1_Pooling", "Pooling")]
    entries = [{"idx": n, "path": path, "type": f"sentence_transformers.models.{name}"} for n, (path, name) in enumerate(names)]
    (folder / "modules.json").write_text(json.dumps(entries))
    edit(folder / "config_sentence_transformers.json", **{"similarity_fn_name": "cosine", **library})
    edit(folder / "sentence_bert_config.json", max_seq_length=40)
    return folder


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"pooling": "cls"}, "encoder.pooling=cls is used, though the checkpoint says mean"),
        ({"normalize": False}, "encoder.normalize=false is used, though the checkpoint says true"),
        ({"query_prefix": ""}, 'encoder.query_prefix="" is used, though the checkpoint says "query: " (prompts)'),
        (
            {"document_max_length": 16},
            "encoder.document_max_length=16 is used, though the checkpoint says 40 (max_seq_length of "
            "sentence_bert_config.json)",
        ),
        ({"pooling": "mean", "normalize": True, "query_prefix": "query: ", "query_max_length": 40}, None),
        ({"document_prefix": "passage: "}, None),
    ],
)
def test_what_is_stated_against_the_checkpoint_is_a_warning_and_in_the_report(
    bert: Path, caplog: pytest.LogCaptureFixture, settings: Mapping[str, Any], said: str | None
) -> None:
    folder = as_modules(bert, prompts={"query": "query: ", "document": ""})
    encoder = AutoEncoder(**settings)
    for _ in range(2):
        with encoder.load(folder, "cpu") as model:
            assert model.contract.get("warnings") == ([said] if said else None)
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == ([said] if said else [])


def test_more_tokens_than_the_tokenizer_takes_are_a_warning_and_fewer_are_not(bert: Path) -> None:
    assert "warnings" not in contract_of(bert, **STATED, document_max_length=20)
    (said,) = contract_of(bert, **STATED, document_max_length=65)["warnings"]
    assert said.startswith("encoder.document_max_length=65 is used, though the checkpoint says 64")


def test_vectors_are_kept_by_the_effect_of_settings_and_not_by_how_they_were_stated(bert: Path, tmp_path: Path) -> None:
    folder = as_modules(bert, prompts={"query": "query: "})
    plain = key_of(folder)
    copy = Path(shutil.copytree(bert, tmp_path / "copy"))
    for same in (
        {"pooling": "mean"},
        {"normalize": True},
        {"query_prefix": "query: ", "document_prefix": ""},
        {"query_max_length": 40, "document_max_length": 40},
        {"tokenizer": str(copy)},
        {"config": str(copy)},
        {"max_tokens_per_batch": 7},
    ):
        assert key_of(folder, **same) == plain, same
    edit(copy / "tokenizer_config.json", model_max_length=63)  # another tokenizer, whatever that changes
    others = {key_of(folder, **settings) for settings in (*ANOTHER, {"tokenizer": str(copy)})}
    assert len(others | {plain}) == len(ANOTHER) + 2


ANOTHER: list[dict[str, Any]] = [
    {"pooling": "cls"},
    {"normalize": False},
    {"query_prefix": ""},
    {"document_prefix": "passage: "},
    {"query_max_length": 20},
    {"document_max_length": 20},
    {"dtype": "bfloat16"},
    {"append_eos": True},
    {"append_eos": False},
]


def test_no_setting_of_the_encoder_is_without_effect_on_the_key_of_kept_vectors(bert: Path, tmp_path: Path) -> None:
    tried = {key for settings in ANOTHER for key in settings} | {"tokenizer"}  # by the test above
    other = Path(shutil.copytree(bert, tmp_path / "other"))
    edit(other / "config.json", layer_norm_eps=1e-3)
    assert key_of(bert, config=str(other), **STATED) != key_of(bert, **STATED)
    tied = bare(tmp_path / "tied", bert, lambda name: f"a.{name}", **{"b.x": torch.ones(1), "b.encoder.x": torch.ones(1)})
    given: dict[str, Any] = {"config": str(bert), "tokenizer": str(bert), **STATED}
    assert key_of(tied, weights_prefix="a.", **given) != key_of(tied, weights_prefix="b.", **given)
    adapter = tmp_path / "adapter"
    shutil.copytree(bert, adapter / "base")
    edit(adapter / "adapter_config.json", peft_type="LORA", base_model_name_or_path="base")
    save_file({"x": torch.ones(1)}, adapter / "adapter_model.safetensors")
    plain = key_of(adapter, **STATED)
    assert key_of(adapter, base_model=str(bert), **STATED) == plain
    assert key_of(adapter, base_model=str(other), **STATED) != plain
    tried |= {"config", "weights_prefix", "base_model"}
    assert {field.name for field in dataclasses.fields(AutoEncoder)} - tried == {"max_tokens_per_batch", "native"}


def test_a_fetched_copy_is_encoded_as_the_original(bert: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out/checkpoint-5"
    shutil.copytree(as_modules(bert, prompts={"query": "query: "}), folder)
    for name in ("modules.json", "config_sentence_transformers.json"):
        assert (folder / name).is_file()
    source = FolderSource(path=tmp_path / "out")
    (tmp_path / "copy").mkdir()
    (one,) = source.list(tmp_path / "state").checkpoints
    source.fetch(one, tmp_path / "copy")
    assert AutoEncoder().read(tmp_path / "copy") == AutoEncoder().read(folder)
    assert np.array_equal(vectors_of(tmp_path / "copy"), vectors_of(folder))


@pytest.mark.parametrize("name", TRANSFORMER_FILES)
def test_every_file_that_says_a_length_is_in_the_copy(bert: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "out/checkpoint-5"
    shutil.copytree(as_modules(bert), folder)
    (folder / "sentence_bert_config.json").rename(folder / name)
    (tmp_path / "copy").mkdir()
    source = FolderSource(path=tmp_path / "out")
    source.fetch(source.list(tmp_path / "state").checkpoints[0], tmp_path / "copy")
    assert contract_of(tmp_path / "copy")["document"]["max_length"] == contract_of(folder)["document"]["max_length"] == 40


def test_every_file_that_changes_the_contract_is_wanted(bert: Path, tmp_path: Path) -> None:
    """Whatever lies in a checkpoint: take one file away, and either nothing changes or the copy would have had it."""
    folder = as_modules(bert, prompts={"query": "query: "})
    (folder / "2_Dense").mkdir()
    entries = json.loads((folder / "modules.json").read_text())
    entries.append({"idx": 2, "path": "2_Dense", "type": "sentence_transformers.models.Dense"})
    (folder / "modules.json").write_text(json.dumps(entries))
    edit(folder / "2_Dense/config.json", in_features=32, out_features=8)
    save_file({"linear.weight": torch.ones(8, 32), "linear.bias": torch.ones(8)}, folder / "2_Dense/model.safetensors")
    (folder / "vocab.txt").write_text("a")
    for name in ("added_tokens.json", "special_tokens_map.json", "README.json", "generation_config.json"):
        edit(folder / name)
    whole = AutoEncoder().read(folder)
    needed = set()
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        name, content = path.relative_to(folder).as_posix(), path.read_bytes()
        path.unlink()
        try:
            changed = AutoEncoder().read(folder) != whole
        except CheckpointError:
            changed = True
        path.write_bytes(content)
        if changed:
            needed.add(name)
    assert {"sentence_bert_config.json", "tokenizer_config.json", "2_Dense/config.json", "model.safetensors"} <= needed
    assert not [name for name in needed if not is_wanted(name)]
