"""Random small models of each family against one text at a time through transformers alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from dr_validate.encoder.auto import AutoEncoder
from dr_validate.encoder.forward import LARGEST_CHECKED_WINDOW
from dr_validate.values import Float32
from tests.encoder.models import save_model, small_config

Pooling = Literal["cls", "mean", "max", "last", "weighted_mean"]
FAMILIES = {  # and how their texts go through them
    "BertConfig": "packed",
    "RobertaConfig": "packed",
    "XLMRobertaConfig": "packed",
    "DistilBertConfig": "packed",
    "ElectraConfig": "packed",
    "MPNetConfig": "padded",  # attention of its own, with relative positions
    "ModernBertConfig": "packed",
    "Qwen2Config": "packed",
    "Qwen3Config": "packed",
    "MistralConfig": "packed",
    "LlamaConfig": "packed",
    "T5Config": "padded",
}


def unit(vectors: Float32) -> Float32:
    rows: Float32 = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return rows


def one_at_a_time(folder: Path, texts: list[str], pooling: Pooling, dtype: torch.dtype = torch.float32) -> Float32:
    import transformers

    family: Any = transformers.T5EncoderModel if folder.name == "T5Config" else transformers.AutoModel
    model = family.from_pretrained(str(folder), dtype=dtype).eval()
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(str(folder))
    rows = []
    for text in texts:
        ids = tokenizer(text, truncation=True, max_length=64, return_tensors="pt")
        with torch.inference_mode():
            hidden = model(input_ids=ids["input_ids"], attention_mask=ids["attention_mask"]).last_hidden_state[0].float()
        weights = torch.arange(1, len(hidden) + 1).float()[:, None]
        pooled = {
            "cls": hidden[0],
            "mean": hidden.mean(dim=0),
            "max": hidden.max(dim=0).values,
            "last": hidden[-1],
            "weighted_mean": (hidden * weights).sum(dim=0) / weights.sum(),
        }[pooling]
        rows.append(pooled.numpy())
    return np.stack(rows)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_vectors_are_those_of_one_text_at_a_time(
    make_model: Callable[[str], Path], texts: list[str], family: str, pooling: Pooling
) -> None:
    folder = make_model(family)
    expected = one_at_a_time(folder, texts, pooling)
    with AutoEncoder(pooling=pooling, normalize=False, max_tokens_per_batch=256).load(folder, "cpu") as model:
        vectors = np.asarray(model.encode(model.tokenizer("document").tokenize(texts), "document"))
        assert model.contract["batches"] == FAMILIES[family]
    scale = np.abs(expected).max()
    assert np.abs(vectors - expected).max() < 1e-5 * max(1.0, float(scale))


@pytest.mark.parametrize("family", ["BertConfig", "ModernBertConfig", "Qwen3Config", "MPNetConfig"])
def test_bfloat16_vectors_are_as_far_from_float32_as_those_of_transformers(
    make_model: Callable[[str], Path], texts: list[str], family: str
) -> None:
    folder = make_model(family)
    exact = unit(one_at_a_time(folder, texts, "mean"))
    theirs = unit(one_at_a_time(folder, texts, "mean", torch.bfloat16))
    with AutoEncoder(pooling="mean", normalize=True, dtype="bfloat16").load(folder, "cpu") as model:
        ours = np.asarray(model.encode(model.tokenizer("document").tokenize(texts), "document"))
        assert (model.contract["batches"], model.contract["dtype"]) == (FAMILIES[family], "bfloat16")
    assert 0 < np.abs(ours - exact).max() < 2 * np.abs(theirs - exact).max()


def test_padding_that_stands_in_a_text_is_numbered_as_roberta_numbers_it(make_model: Callable[[str], Path]) -> None:
    import transformers

    folder = make_model("RobertaConfig")
    texts = [[0, 7, 1, 8, 2], [1, 1, 9], [5, 6, 7, 8, 9, 2]]
    plain: Any = transformers.AutoModel.from_pretrained(str(folder), dtype=torch.float32).eval()
    with torch.inference_mode():
        expected = [plain(input_ids=torch.tensor([ids])).last_hidden_state[0].mean(dim=0).numpy() for ids in texts]
    with AutoEncoder(pooling="mean", normalize=False).load(folder, "cpu") as model:
        vectors = np.asarray(model.encode(model.tokenizer("document").tokenize(texts), "document"))
        assert model.contract["batches"] == "packed"
    assert np.abs(vectors - np.stack(expected)).max() < 1e-5 * np.abs(vectors).max()


def test_a_window_too_large_to_be_checked_at_loading_is_kept(tmp_path: Path, tokenizer_folder: Path) -> None:
    import transformers

    config = small_config("MistralConfig")
    config.sliding_window, config.max_position_embeddings = LARGEST_CHECKED_WINDOW + 88, 1400
    folder = save_model(tmp_path / "mistral", tokenizer_folder, config)
    texts = [[*range(3, 150)] * 8, [5, 6, 7]]
    family: Any = transformers.AutoModel
    found = []
    for window in (config.sliding_window, config.sliding_window + 1):  # one more or less would show
        plain = family.from_pretrained(str(folder), dtype=torch.float32, sliding_window=window).eval()
        with torch.inference_mode():
            found.append(np.stack([plain(input_ids=torch.tensor([ids])).last_hidden_state[0, -1].numpy() for ids in texts]))
    expected, wrong = found
    with AutoEncoder(pooling="last", normalize=False, document_max_length=1300).load(folder, "cpu") as model:
        vectors = np.asarray(model.encode(model.tokenizer("document").tokenize(texts), "document"))
        assert model.contract["batches"] == "packed"
    scale = float(np.abs(expected).max())
    assert np.abs(vectors - expected).max() < 1e-5 * scale < np.abs(wrong - expected).max()


@pytest.mark.parametrize("pooling", ["cls", "max", "weighted_mean"])
def test_the_other_poolings_are_those_of_one_text_at_a_time(bert: Path, texts: list[str], pooling: Pooling) -> None:
    expected = one_at_a_time(bert, texts, pooling)
    with AutoEncoder(pooling=pooling, normalize=False).load(bert, "cpu") as model:
        vectors = np.asarray(model.encode(model.tokenizer("query").tokenize(texts), "query"))
    assert np.abs(vectors - expected).max() < 1e-5 * float(np.abs(expected).max())


def test_texts_longer_than_the_position_table_are_cut_to_it(make_model: Callable[[str], Path]) -> None:
    with AutoEncoder(pooling="cls", normalize=True, document_max_length=500).load(make_model("RobertaConfig"), "cpu") as model:
        block = model.tokenizer("document").tokenize(["films " * 300])
        assert block.lengths.tolist() == [64]  # 66 rows, the first two of which RoBERTa never uses
        assert np.isfinite(np.asarray(model.encode(block, "document"))).all()
        assert model.contract["document"]["max_length_from"].startswith("cut from 500")


def test_a_text_without_tokens_is_the_zero_vector(bert: Path) -> None:
    with AutoEncoder(pooling="mean", normalize=True).load(bert, "cpu") as model:
        vectors = np.asarray(model.encode(model.tokenizer("document").tokenize([[], [5, 6]]), "document"))
    assert not vectors[0].any()
    assert np.linalg.norm(vectors[1]) == pytest.approx(1)
