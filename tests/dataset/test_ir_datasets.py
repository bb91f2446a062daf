"""Collections of the package ir_datasets; one that is registered here, so that nothing is downloaded."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from dr_validate.dataset.ir_datasets import IrDatasetsDataset
from dr_validate.errors import DatasetError

ir_datasets = pytest.importorskip("ir_datasets", reason="ir_datasets is not installed")


@dataclass(frozen=True)
class Registered:
    """A collection whose part `dev` alone has queries and qrels."""

    folder: Path
    id: str  # of its own in each test, as the package forgets none

    @property
    def dataset(self) -> IrDatasetsDataset:
        return IrDatasetsDataset(id=f"{self.id}/dev")


@pytest.fixture
def registered(tmp_path: Path) -> Registered:
    (tmp_path / "docs.tsv").write_text("d1\tcompact memories\nd2\tein Stück\n")
    (tmp_path / "queries.tsv").write_text("q1\tmemories\nq2\tnever judged\n")
    (tmp_path / "qrels.txt").write_text("q1 0 d2 2\nq1 0 d1 0\n")
    names = {"docs_tsv": "docs.tsv", "queries_tsv": "queries.tsv", "qrels_trec": "qrels.txt"}
    files = {part: str(tmp_path / name) for part, name in names.items()}
    ir_datasets.registry.register(tmp_path.name, ir_datasets.create_dataset(files["docs_tsv"]))
    ir_datasets.registry.register(f"{tmp_path.name}/dev", ir_datasets.create_dataset(**files))
    return Registered(tmp_path, tmp_path.name)


def test_a_collection_is_what_the_package_says(registered: Registered, cache: Path) -> None:
    test_set = registered.dataset.open(cache)
    assert (test_set.name, test_set.query_ids, test_set.query_texts) == (f"{registered.id}-dev", ("q1",), ("memories",))
    assert test_set.corpus.texts(np.arange(2)) == ["compact memories", "ein Stück"]
    assert (test_set.corpus.ids(test_set.qrels.documents), test_set.qrels.gains.tolist()) == (["d2", "d1"], [2, 0])
    assert registered.dataset.open(cache).fingerprint == test_set.fingerprint


def test_what_has_changed_since_is_read_again(registered: Registered, cache: Path) -> None:
    before = registered.dataset.open(cache)
    (registered.folder / "qrels.txt").write_text("q1 0 d1 1\n")
    judged = registered.dataset.open(cache)
    assert (judged.corpus.ids(judged.qrels.documents), judged.corpus_key) == (["d1"], before.corpus_key)
    (registered.folder / "docs.tsv").write_text("d1\tanother text of another length\nd2\tein Stück\n")
    after = registered.dataset.open(cache)
    assert after.corpus.texts(np.arange(1)) == ["another text of another length"]
    assert len({before.fingerprint, judged.fingerprint, after.fingerprint}) == 3


def test_an_id_without_queries_or_judgements_names_those_that_have_them(registered: Registered, cache: Path) -> None:
    with pytest.raises(
        DatasetError, match=r"dataset\.id: (\w+) of ir_datasets has no queries and no qrels; part of it are \1/dev"
    ):
        IrDatasetsDataset(id=registered.id).open(cache)


def test_an_unknown_id_is_named(cache: Path) -> None:
    with pytest.raises(DatasetError, match=r"dataset\.id: ir_datasets has no 'vaswany'"):
        IrDatasetsDataset(id="vaswany").open(cache)


def test_what_the_package_cannot_read_is_told_with_the_reason(registered: Registered, cache: Path) -> None:
    (registered.folder / "qrels.txt").unlink()
    with pytest.raises(DatasetError, match=r"dataset\.id: ir_datasets cannot give '\w+/dev' \(FileNotFoundError: .*qrels\.txt"):
        registered.dataset.open(cache)
