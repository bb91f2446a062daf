"""BERT as it is saved: with the head of its training, with unusual settings, with a weight that is missing."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from dr_validate.encoder.auto import AutoEncoder
from dr_validate.errors import CheckpointError
from dr_validate.values import Float32

STATED: dict[str, Any] = {"pooling": "mean", "normalize": False}


def ours(folder: Path, texts: list[list[int]]) -> Float32:
    with AutoEncoder(**STATED).load(folder, "cpu") as model:
        return np.asarray(model.encode(model.tokenizer("document").tokenize(texts), "document"))


def theirs(folder: Path, texts: list[list[int]]) -> Float32:
    import transformers

    model: Any = transformers.AutoModel.from_pretrained(str(folder)).eval()
    with torch.inference_mode():
        return np.stack([model(input_ids=torch.tensor([ids])).last_hidden_state[0].mean(dim=0).numpy() for ids in texts])


TEXTS = [[0, 7, 8, 9, 2], [5, 6], list(range(3, 60))]


def test_a_checkpoint_saved_with_its_training_head_is_the_model_inside(bert: Path) -> None:
    expected = theirs(bert, TEXTS)
    weights = {f"bert.{name}": value for name, value in load_file(bert / "model.safetensors").items()}
    save_file({**weights, "cls.predictions.bias": torch.zeros(300)}, bert / "model.safetensors", metadata={"format": "pt"})
    assert np.abs(ours(bert, TEXTS) - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize(("key", "value"), [("hidden_act", "relu"), ("is_decoder", True)])
def test_an_unusual_bert_encodes_as_transformers_does(bert: Path, key: str, value: object) -> None:
    config = json.loads((bert / "config.json").read_text())
    (bert / "config.json").write_text(json.dumps({**config, key: value}))
    expected = theirs(bert, TEXTS)
    assert np.abs(ours(bert, TEXTS) - expected).max() < 1e-5 * np.abs(expected).max()


def test_a_missing_weight_is_named_as_ever(bert: Path) -> None:
    weights = load_file(bert / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, bert / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"random: encoder\.layer\.1\.output\.dense\.weight"):
        ours(bert, TEXTS)
