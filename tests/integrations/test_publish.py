"""A checkpoint that is published in one line is whole, and says itself how it is encoded."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dr_validate.encoder.auto import AutoEncoder
from dr_validate.errors import CheckpointError, ConfigError
from dr_validate.integrations.publish import publish
from dr_validate.source.folder import FolderSource

TEXTS = ["compiler socket number 3", "queue archive"]


def vectors(encoder: AutoEncoder, folder: Path, side: Any = "document") -> Any:
    with encoder.load(folder, "cpu") as model:
        return model.encode(model.tokenizer(side).tokenize(TEXTS), side)


def test_a_transformers_model_is_encoded_as_publish_was_told_with_nothing_stated(bert: Any, tmp_path: Path) -> None:
    model, tokenizer = bert
    told = {"pooling": "cls", "normalize": True, "query_prefix": "number ", "query_max_length": 8}
    folder = publish(model, 70, tmp_path / "out", tokenizer=tokenizer, **told)
    assert folder == tmp_path / "out" / "checkpoint-70"
    stated = AutoEncoder(pooling="cls", normalize=True, query_prefix="number ", query_max_length=8)
    (folder / "dr_validate.json").rename(tmp_path / "kept.json")
    expected = [vectors(stated, folder, side) for side in ("query", "document")]
    (tmp_path / "kept.json").rename(folder / "dr_validate.json")
    for side, want in zip(("query", "document"), expected, strict=True):
        assert np.array_equal(vectors(AutoEncoder(), folder, side), want)
    read = AutoEncoder().read(folder)["contract"]
    assert (read["query"]["prefix"], read["query"]["max_length"], read["document"]["prefix"]) == ("number ", 8, "")


def test_the_command_line_wins_over_the_contract_and_says_so(bert: Any, tmp_path: Path) -> None:
    model, tokenizer = bert
    folder = publish(model, 1, tmp_path, tokenizer=tokenizer, pooling="cls", normalize=True)
    contract = AutoEncoder(pooling="mean").read(folder)["contract"]
    assert contract["document"]["pooling"] == "mean"
    assert contract["warnings"] == ["encoder.pooling=mean is used, though the checkpoint says cls (dr_validate.json)"]


def test_a_sentence_transformer_needs_nothing_said_and_gives_the_vectors_of_its_library(
    sentence_transformer: Any, tmp_path: Path
) -> None:
    folder = publish(sentence_transformer, 5, tmp_path / "out")
    for side, encode in (("query", "encode_query"), ("document", "encode_document")):
        want = getattr(sentence_transformer, encode)(TEXTS, normalize_embeddings=True)
        np.testing.assert_allclose(vectors(AutoEncoder(), folder, side), want, atol=1e-6)


def test_the_source_lists_what_is_published_with_its_step_and_the_contract_as_part_of_it(bert: Any, tmp_path: Path) -> None:
    model, tokenizer = bert
    out, told = tmp_path / "out", {"tokenizer": tokenizer, "normalize": True}
    publish(model, 10, out, pooling="mean", **told)
    publish(model, 20, out, pooling="cls", **told)
    listing = FolderSource(path=out).list(tmp_path / "state")
    assert [one.step for one in listing.checkpoints] == [10, 20]
    assert not listing.incomplete
    assert len({one.digest for one in listing.checkpoints}) == 2  # the same weights, but other vectors


def test_publishing_a_step_again_replaces_it_and_leaves_nothing_beside(bert: Any, tmp_path: Path) -> None:
    model, tokenizer = bert
    for pooling in ("cls", "mean"):
        folder = publish(model, 10, tmp_path / "out", tokenizer=tokenizer, pooling=pooling, normalize=True)
    assert json.loads((folder / "dr_validate.json").read_text())["pooling"] == "mean"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["checkpoint-10"]


def test_what_is_lacking_is_named_all_at_once_before_anything_is_written(bert: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        publish(bert[0], 10, tmp_path / "out")
    assert [problem.split(":")[1].strip() for problem in caught.value.problems] == ["pooling", "normalize", "tokenizer"]
    with pytest.raises(ConfigError, match="no such key"):
        publish(bert[0], 10, tmp_path / "out", tokenizer=bert[1], pooling="cls", normalize=True, prefix="query: ")
    with pytest.raises(ConfigError, match="no save_pretrained"):
        publish(object(), 10, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", ['{"pooling": "men"}', '{"normalize": "yes"}', '{"query_max_length": 0}', '{"eos": true}'])
def test_a_contract_file_that_is_not_understood_is_refused(bert: Any, tmp_path: Path, content: str) -> None:
    folder = publish(bert[0], 10, tmp_path, tokenizer=bert[1], pooling="cls", normalize=True)
    (folder / "dr_validate.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"dr_validate\.json: \w+: "):
        AutoEncoder().read(folder)


def test_tevatrons_encoder_is_saved_from_within_with_its_own_pooling(bert: Any, tmp_path: Path) -> None:
    class EncoderModel:  # its layout: the transformer under `encoder`, and what it does with its vectors
        encoder, pooling, normalize = bert[0], "eos", True

    folder = publish(EncoderModel(), 3, tmp_path, tokenizer=bert[1], query_prefix="query: ")
    content = json.loads((folder / "dr_validate.json").read_text())
    assert (content["pooling"], content["normalize"], content["query_prefix"]) == ("last", True, "query: ")
    assert vectors(AutoEncoder(), folder).shape == (2, 32)
