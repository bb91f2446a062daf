"""What is refused, and that the message names the place and the way out; what is found where."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from dr_validate.encoder.auto import AutoEncoder
from dr_validate.errors import CheckpointError, ConfigError
from dr_validate.values import Float32

STATED: dict[str, Any] = {"pooling": "mean", "normalize": True}


def refusal(folder: Path, **settings: Any) -> str:
    with pytest.raises(CheckpointError) as caught, AutoEncoder(**settings).load(folder, "cpu"):
        pass
    return str(caught.value)


def vectors_of(encoder: AutoEncoder, folder: Path, side: Any = "document") -> Float32:
    with encoder.load(folder, "cpu") as model:
        return np.asarray(model.encode(model.tokenizer(side).tokenize(["thin films", "dense retrieval"]), side))


def edit(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(content | changes))


@pytest.fixture
def modules(bert: Path) -> Path:
    """The random BERT as a sentence-transformers folder in the form of version 2, with dot products."""
    (bert / "1_Pooling").mkdir()
    edit(
        bert / "1_Pooling/config.json", word_embedding_dimension=32, pooling_mode_cls_token=True, pooling_mode_mean_tokens=False
    )
    names = [("", "Transformer"), ("1_Pooling", "Pooling")]
    entries = [{"idx": i, "path": path, "type": f"sentence_transformers.models.{name}"} for i, (path, name) in enumerate(names)]
    (bert / "modules.json").write_text(json.dumps(entries))
    edit(bert / "config_sentence_transformers.json", similarity_fn_name="dot")
    return bert


def test_a_plain_folder_is_not_guessed_at(bert: Path) -> None:
    assert re.search("set encoder.pooling and encoder.normalize", refusal(bert))
    assert re.search("set encoder.normalize", refusal(bert, pooling="cls"))


def test_the_old_form_of_pooling_flags_is_read(modules: Path) -> None:
    with AutoEncoder().load(modules, "cpu") as model:
        assert model.contract["document"]["pooling"] == "cls"
        assert model.contract["document"]["normalize"] is False


def test_a_folder_without_tokenizer_names_the_key_and_takes_a_stated_one(bert: Path, tokenizer_folder: Path) -> None:
    whole = vectors_of(AutoEncoder(**STATED), bert)
    for path in tokenizer_folder.iterdir():
        (bert / path.name).unlink()
    assert "encoder.tokenizer" in refusal(bert, **STATED)
    assert np.array_equal(vectors_of(AutoEncoder(tokenizer=tokenizer_folder, **STATED), bert), whole)


def test_a_bare_state_dict_points_to_the_version_to_use(bert: Path) -> None:
    (bert / "config.json").unlink()
    assert re.search("final_model.*checkpoint_global_step_N", refusal(bert, **STATED))


def test_a_missing_pooling_folder_points_to_the_version_to_use(modules: Path) -> None:
    (modules / "1_Pooling/config.json").unlink()
    assert re.search("unusable.*checkpoint_global_step_N", refusal(modules))


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_code_in_a_checkpoint_is_never_run(bert: Path, name: str) -> None:
    (bert / "evil.py").write_text("raise SystemExit('this ran')")
    edit(bert / name, auto_map={"AutoModel": "evil.Model", "AutoTokenizer": ["evil.Tokenizer", None]})
    assert re.search("auto_map.*never run", refusal(bert, **STATED))


def test_a_module_from_elsewhere_is_never_imported(modules: Path) -> None:
    entries = json.loads((modules / "modules.json").read_text())
    (modules / "modules.json").write_text(json.dumps([*entries, {"idx": 2, "path": "", "type": "os.path.Evil"}]))
    assert re.search("os.path.Evil.*never run", refusal(modules))


def test_a_module_we_do_not_know_is_named(modules: Path) -> None:
    entries = json.loads((modules / "modules.json").read_text())
    entries.append({"idx": 2, "path": "2_LSTM", "type": "sentence_transformers.models.LSTM"})
    (modules / "modules.json").write_text(json.dumps(entries))
    assert "module LSTM is not supported" in refusal(modules)


def test_a_module_path_must_stay_in_the_folder(modules: Path) -> None:
    entries = json.loads((modules / "modules.json").read_text())
    entries[1]["path"] = "../elsewhere"
    (modules / "modules.json").write_text(json.dumps(entries))
    assert "inside the checkpoint folder" in refusal(modules)


@pytest.mark.parametrize("similarity", ["euclidean", "manhattan"])
def test_a_distance_is_refused(modules: Path, similarity: str) -> None:
    edit(modules / "config_sentence_transformers.json", similarity_fn_name=similarity)
    assert re.search(f"{similarity}.*'cosine' or 'dot'", refusal(modules))


def test_an_unsaid_similarity_is_not_guessed_at(modules: Path) -> None:
    edit(modules / "config_sentence_transformers.json", similarity_fn_name=None)
    assert "set encoder.normalize" in refusal(modules)
    assert np.linalg.norm(vectors_of(AutoEncoder(normalize=True), modules), axis=1) == pytest.approx([1, 1])


def test_a_default_prompt_alone_is_not_guessed_at(modules: Path) -> None:
    edit(modules / "config_sentence_transformers.json", prompts={"own": "own: "}, default_prompt_name="own")
    assert "set encoder.query_prefix" in refusal(modules)
    with AutoEncoder(query_prefix="own: ", document_prefix="").load(modules, "cpu") as model:
        assert (model.contract["query"]["prefix"], model.contract["document"]["prefix"]) == ("own: ", "")


@pytest.mark.parametrize(
    ("prompts", "query", "document"),
    [
        ({"query": "q: ", "document": "d: "}, "q: ", "d: "),
        ({"query": "q: ", "passage": "p: "}, "q: ", "p: "),
        ({"query": "q: ", "passage": "p: ", "document": ""}, "q: ", ""),
        ({"corpus": "c: "}, "", "c: "),
    ],
)
def test_prompts_are_taken_by_their_names(modules: Path, prompts: dict[str, str], query: str, document: str) -> None:
    edit(modules / "config_sentence_transformers.json", prompts=prompts)
    with AutoEncoder().load(modules, "cpu") as model:
        assert (model.contract["query"]["prefix"], model.contract["document"]["prefix"]) == (query, document)


def test_pickled_weights_are_refused_with_advice(bert: Path) -> None:
    torch.save(load_file(bert / "model.safetensors"), bert / "pytorch_model.bin")
    (bert / "model.safetensors").unlink()
    assert re.search("pytorch_model.bin.*never loaded.*save_pretrained", refusal(bert, **STATED))


def test_two_sets_of_weights_are_refused_and_both_named(bert: Path, tmp_path: Path) -> None:
    transformers.AutoModel.from_pretrained(bert).save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    for path in (tmp_path / "sharded").iterdir():
        (bert / path.name).write_bytes(path.read_bytes())
    assert re.search(r"model.safetensors and model-00001-of-000\d\d.safetensors to .*delete", refusal(bert, **STATED))
    (bert / "model.safetensors").unlink()
    assert vectors_of(AutoEncoder(**STATED), bert).shape == (2, 32)


def test_a_link_out_of_the_folder_is_refused(bert: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("secret")
    (bert / "vocab.txt").symlink_to(tmp_path / "elsewhere")
    assert "leaves the checkpoint folder" in refusal(bert, **STATED)


def test_a_missing_weight_is_named_instead_of_made_up(bert: Path) -> None:
    change_weights(bert, lambda weights: weights.pop("encoder.layer.1.output.dense.weight"))
    assert "random: encoder.layer.1.output.dense.weight" in refusal(bert, **STATED)


def test_a_missing_pooler_does_no_harm(bert: Path) -> None:
    whole = vectors_of(AutoEncoder(**STATED), bert)
    change_weights(bert, lambda weights: [weights.pop(key) for key in list(weights) if key.startswith("pooler.")])
    assert np.array_equal(vectors_of(AutoEncoder(**STATED), bert), whole)


def test_a_weight_of_the_wrong_shape_is_named(bert: Path) -> None:
    change_weights(bert, lambda weights: weights.update({"embeddings.LayerNorm.weight": torch.ones(31)}))
    assert "embeddings.LayerNorm.weight (file (31,), model (32,))" in refusal(bert, **STATED)


def test_a_truncated_weights_file_is_a_checkpoint_error(bert: Path) -> None:
    content = (bert / "model.safetensors").read_bytes()
    (bert / "model.safetensors").write_bytes(content[: len(content) // 2])
    assert "cannot load" in refusal(bert, **STATED)


def test_an_encoder_decoder_is_refused(bert: Path) -> None:
    edit(bert / "config.json", is_encoder_decoder=True, model_type="bart")
    assert "encoder-decoder" in refusal(bert, **STATED)


def test_an_empty_folder_is_no_model(tmp_path: Path) -> None:
    assert "not a model" in refusal(tmp_path, **STATED)


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


def test_each_side_of_two_towers_has_its_own_weights(make_model: Callable[[str], Path], tmp_path: Path) -> None:
    single = AutoEncoder(**STATED)
    bert, roberta = make_model("BertConfig"), make_model("DistilBertConfig")
    expected = {"query": vectors_of(single, bert), "document": vectors_of(single, roberta)}
    for name in ("passage_model", "document_model"):
        folder = tmp_path / f"towers with {name}"
        folder.mkdir()
        for path, side in ((bert, "query_model"), (roberta, name)):
            (folder / side).mkdir()
            for file in path.iterdir():
                (folder / side / file.name).write_bytes(file.read_bytes())
        for side, vectors in expected.items():
            assert np.array_equal(vectors_of(single, folder, side), vectors)


def test_one_tower_of_two_is_refused(bert: Path, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    bert.rename(tmp_path / "one/query_model")
    assert "passage_model or document_model" in refusal(tmp_path / "one", **STATED)


def test_the_fingerprint_follows_what_changes_a_vector_and_nothing_else(tokenizer_folder: Path, tmp_path: Path) -> None:
    plain = AutoEncoder().fingerprint()
    assert AutoEncoder(max_tokens_per_batch=5).fingerprint() == plain
    assert AutoEncoder(dtype="bfloat16").fingerprint() != plain
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in tokenizer_folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    stated = AutoEncoder(tokenizer=tokenizer_folder).fingerprint()
    assert stated != plain
    assert AutoEncoder(tokenizer=copy).fingerprint() == stated
    edit(copy / "tokenizer_config.json", model_max_length=7)
    assert AutoEncoder(tokenizer=copy).fingerprint() != stated


def test_a_stated_folder_that_does_not_exist_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"encoder.tokenizer: no such folder \(got 'gone'\)"):
        AutoEncoder(tokenizer=Path("gone")).fingerprint()
