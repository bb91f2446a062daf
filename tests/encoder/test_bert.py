"""BERT-shaped checkpoints without transformers' model code; unusual ones with it."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from dr_validate.encoder.auto import AutoEncoder
from dr_validate.encoder.bert import load_bert
from dr_validate.encoder.contract import read_contract
from dr_validate.encoder.forward import OwnPacked
from dr_validate.encoder.spec import EncoderSpec
from dr_validate.encoder.transformer import TransformerModel
from dr_validate.errors import CheckpointError
from dr_validate.values import Float32

STATED: dict[str, Any] = {"pooling": "mean", "normalize": False}


def is_ours(folder: Path) -> bool:
    contract = read_contract(folder, EncoderSpec(**STATED))
    return load_bert(contract.document, torch.float32) is not None


def ours(folder: Path, texts: list[list[int]]) -> Float32:
    with AutoEncoder(**STATED).load(folder, "cpu") as model:
        return np.asarray(model.encode(model.tokenizer("document").tokenize(texts), "document"))


def theirs(folder: Path, texts: list[list[int]]) -> Float32:
    import transformers

    model: Any = transformers.AutoModel.from_pretrained(str(folder)).eval()
    with torch.inference_mode():
        return np.stack([model(input_ids=torch.tensor([ids])).last_hidden_state[0].mean(dim=0).numpy() for ids in texts])


TEXTS = [[0, 7, 8, 9, 2], [5, 6], list(range(3, 60))]


@pytest.mark.parametrize(("name", "usual"), [("BertConfig", True), ("XLMRobertaConfig", True), ("ElectraConfig", False)])
def test_which_checkpoints_are_loaded_without_transformers(make_model: Callable[[str], Path], name: str, usual: bool) -> None:
    assert is_ours(make_model(name)) == usual


def test_a_checkpoint_saved_with_its_training_head_is_the_model_inside(bert: Path) -> None:
    expected = theirs(bert, TEXTS)
    weights = {f"bert.{name}": value for name, value in load_file(bert / "model.safetensors").items()}
    save_file({**weights, "cls.predictions.bias": torch.zeros(300)}, bert / "model.safetensors", metadata={"format": "pt"})
    assert is_ours(bert)
    assert np.abs(ours(bert, TEXTS) - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("pooling", ["cls", "last", "mean"])
def test_where_pooling_takes_one_token_the_last_layer_is_spared_the_others(bert: Path, pooling: Any) -> None:
    texts = [[0, *range(5, 40), 2]] * 9
    rows: list[int] = []
    with AutoEncoder(pooling=pooling, normalize=False).load(bert, "cpu") as model:
        assert isinstance(model, TransformerModel)
        own: Any = model._towers["document"]._forward
        assert isinstance(own, OwnPacked)
        layers: Any = own._model.encoder["layer"]
        for layer in layers:
            layer.intermediate["dense"].register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
        vectors = np.asarray(model.encode(model.tokenizer("document").tokenize(texts), "document"))
    assert rows == [384, 384 if pooling == "mean" else 64]  # 333 tokens and 9 texts, both filled up
    assert np.isfinite(vectors).all()
    assert np.ptp(vectors, axis=0).max() < 1e-5  # equal texts


@pytest.mark.parametrize(("key", "value"), [("hidden_act", "relu"), ("is_decoder", True)])
def test_an_unusual_bert_is_left_to_transformers(bert: Path, key: str, value: object) -> None:
    import json

    config = json.loads((bert / "config.json").read_text())
    (bert / "config.json").write_text(json.dumps({**config, key: value}))
    assert not is_ours(bert)
    expected = theirs(bert, TEXTS)
    assert np.abs(ours(bert, TEXTS) - expected).max() < 1e-5 * np.abs(expected).max()


def test_a_missing_weight_is_named_as_ever(bert: Path) -> None:
    weights = load_file(bert / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, bert / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"random: encoder\.layer\.1\.output\.dense\.weight"):
        ours(bert, TEXTS)


def test_transformers_models_are_not_imported_for_it(bert: Path) -> None:
    code = f"""if True:
        import sys
        from pathlib import Path
        from dr_validate.encoder.auto import AutoEncoder
        with AutoEncoder(pooling="mean", normalize=True).load(Path({str(bert)!r}), "cpu") as model:
            model.encode(model.tokenizer("document").tokenize(["a text"]), "document")
        slow = {{"transformers.modeling_utils", "sympy", "scipy", "pandas", "torch._dynamo"}} & set(sys.modules)
        assert not slow, slow
    """
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


def test_real_weights_load_without_transformers(minilm: Path) -> None:
    code = f"""if True:
        import sys
        from pathlib import Path
        from dr_validate.encoder.auto import AutoEncoder
        with AutoEncoder(pooling="mean", normalize=True).load(Path({str(minilm)!r}), "cpu") as model:
            model.encode(model.tokenizer("document").tokenize(["a text"]), "document")
        assert "transformers" not in sys.modules
    """
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
