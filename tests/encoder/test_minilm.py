"""Vectors must be those of sentence-transformers, whose weights and modules these are."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dr_validate.encoder.auto import AutoEncoder
from dr_validate.values import Float32, Side

CLOSE = 1e-5


def encode(encoder: AutoEncoder, folder: Path, texts: list[str], side: Side = "document") -> Float32:
    with encoder.load(folder, "cpu") as model:
        return np.asarray(model.encode(model.tokenizer(side).tokenize(texts), side))


def library(folder: Path) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu", local_files_only=True)


@pytest.fixture
def variant(bert: Path, tmp_path: Path) -> Callable[..., Path]:
    """A small BERT saved by sentence-transformers with other modules after it, which are what counts here."""

    def build(*modules: Any, **settings: Any) -> Path:
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import Transformer

        path = tmp_path / "variant"
        model = SentenceTransformer(modules=[Transformer(str(bert)), *modules], device="cpu", **settings)
        model.save(str(path), create_model_card=False)
        return path

    return build


@pytest.mark.parametrize("budget", [None, 300])
def test_vectors_are_those_of_sentence_transformers_whatever_the_batches(
    minilm: Path, texts: list[str], budget: int | None
) -> None:
    expected = library(minilm).encode(texts)
    assert np.abs(encode(AutoEncoder(max_tokens_per_batch=budget), minilm, texts) - expected).max() < CLOSE


def test_a_text_alone_has_the_vector_it_has_among_others(minilm: Path, short: list[str]) -> None:
    with AutoEncoder().load(minilm, "cpu") as model:
        tokenize = model.tokenizer("document").tokenize
        together = np.asarray(model.encode(tokenize(short), "document"))
        alone = np.concatenate([np.asarray(model.encode(tokenize([text]), "document")) for text in short[:3]])
    assert np.abs(alone - together[:3]).max() < CLOSE


@pytest.mark.parametrize("mode", ["cls", "max", "mean", "lasttoken", "weightedmean", "mean_sqrt_len_tokens", ("cls", "mean")])
def test_every_pooling_is_that_of_sentence_transformers(variant: Callable[..., Path], short: list[str], mode: Any) -> None:
    from sentence_transformers.sentence_transformer.modules import Pooling

    folder = variant(Pooling(32, mode), similarity_fn_name="dot")
    assert np.abs(encode(AutoEncoder(), folder, short) - library(folder).encode(short)).max() < CLOSE


@pytest.mark.parametrize(("activation", "residual"), [("Tanh", False), ("Identity", True), ("ReLU", False), ("GELU", True)])
def test_dense_norm_and_prompts_are_those_of_sentence_transformers(
    variant: Callable[..., Path], short: list[str], activation: str, residual: bool
) -> None:
    import torch
    from sentence_transformers.sentence_transformer.modules import Dense, LayerNorm, Normalize, Pooling

    torch.manual_seed(3)
    dense = Dense(32, 16, bias=not residual, activation_function=getattr(torch.nn, activation)(), use_residual=residual)
    prompts = {"query": "Represent the question: ", "document": "passage: "}
    folder = variant(Pooling(32, "mean"), dense, LayerNorm(16), Normalize(), prompts=prompts)
    expected = library(folder)
    assert np.abs(encode(AutoEncoder(), folder, short, "query") - expected.encode_query(short)).max() < CLOSE
    assert np.abs(encode(AutoEncoder(), folder, short) - expected.encode_document(short)).max() < CLOSE


@pytest.mark.parametrize("mode", ["cls", "mean", "weightedmean", "max", "lasttoken"])
def test_a_prompt_that_is_not_pooled_is_left_out_of_pooling_only(
    variant: Callable[..., Path], short: list[str], mode: Any
) -> None:
    from sentence_transformers.sentence_transformer.modules import Pooling

    prompts = {"query": "Represent the question: "}
    folder = variant(Pooling(32, mode, include_prompt=False), prompts=prompts, similarity_fn_name="dot")
    some = [text for text in short if text]
    assert np.abs(encode(AutoEncoder(), folder, some, "query") - library(folder).encode_query(some)).max() < CLOSE


def test_a_model_compared_by_cosine_gives_unit_vectors_without_a_normalize_module(
    variant: Callable[..., Path], short: list[str]
) -> None:
    from sentence_transformers.sentence_transformer.modules import Pooling

    folder = variant(Pooling(32, "mean"), similarity_fn_name="cosine")
    expected = library(folder).encode(short, normalize_embeddings=True)
    assert np.abs(encode(AutoEncoder(), folder, short) - expected).max() < CLOSE


def test_truncated_dimensions_are_compared_by_cosine(variant: Callable[..., Path], short: list[str]) -> None:
    from sentence_transformers.sentence_transformer.modules import Pooling

    folder = variant(Pooling(32, "mean"), truncate_dim=8)
    expected = library(folder).encode(short, normalize_embeddings=True)
    assert np.abs(encode(AutoEncoder(), folder, short) - expected).max() < CLOSE


def test_what_is_stated_wins_over_what_the_checkpoint_says(minilm: Path, short: list[str]) -> None:
    stated = AutoEncoder(pooling="cls", normalize=False, query_prefix="q: ", query_max_length=16)
    with stated.load(minilm, "cpu") as model:
        vectors = np.asarray(model.encode(model.tokenizer("query").tokenize(short), "query"))
        assert model.tokenizer("query").tokenize(short).lengths.max() == 16
        assert model.contract["query"]["max_length_from"] == "encoder.query_max_length"
    reference = library(minilm)
    reference[0].max_seq_length = 16
    tokens = reference.encode(["q: " + text for text in short], output_value="token_embeddings")
    assert np.abs(vectors - np.stack([rows[0].numpy() for rows in tokens])).max() < CLOSE


def test_bfloat16_comes_close_and_comes_out_as_float32(minilm: Path, short: list[str]) -> None:
    vectors = encode(AutoEncoder(dtype="bfloat16"), minilm, short)
    assert vectors.dtype == np.float32
    exact = encode(AutoEncoder(), minilm, short)
    assert 0 < np.abs(1 - (vectors * exact).sum(axis=1)).max() < 1e-2


def test_token_ids_that_came_with_the_collection_pass_through(minilm: Path, short: list[str]) -> None:
    with AutoEncoder(document_max_length=12).load(minilm, "cpu") as model:
        tokenizer = model.tokenizer("document")
        block = tokenizer.tokenize([[101, 7592, 102], list(range(1000, 1040))])
        assert block.ids[:3].tolist() == [101, 7592, 102]
        assert block.lengths.tolist() == [3, 12]
        assert np.asarray(model.encode(block, "document")).shape == (2, model.dim)
