import logging
from pathlib import Path

import numpy as np
import pytest

from dr_validate.dataset.pydoc import FILES, MAX_QUERIES, PydocDataset, read_sources, training_pairs
from dr_validate.errors import DatasetError
from dr_validate.values import TestSet

pytestmark = pytest.mark.slow  # reads the whole standard library


@pytest.fixture(scope="module")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pydoc")


@pytest.fixture(scope="module")
def test_set(shared_cache: Path) -> TestSet:
    return PydocDataset().open(shared_cache)


@pytest.fixture(scope="module")
def pairs() -> list[tuple[str, str]]:
    return training_pairs(13)


def test_the_standard_library_is_a_collection_of_useful_size(test_set: TestSet) -> None:
    assert 8_000 <= len(test_set.corpus) <= 14_000
    assert len(test_set.query_ids) == len(test_set.qrels.documents) == 300
    assert test_set.name == "pydoc"


def test_a_query_is_the_summary_of_the_docstring_whose_remainder_is_judged(test_set: TestSet) -> None:
    documents = test_set.corpus.ids(test_set.qrels.documents)
    assert [f"{document}?" for document in documents] == list(test_set.query_ids)
    texts = test_set.corpus.texts(test_set.qrels.documents)
    assert not set(texts) & set(test_set.query_texts)


def test_no_text_is_there_twice(test_set: TestSet) -> None:
    texts = [str(text).lower() for text in test_set.corpus.texts(np.arange(len(test_set.corpus)))]
    assert len(set(texts)) == len(texts)
    assert not {str(query).lower() for query in test_set.query_texts} & set(texts)


def test_training_pairs_share_nothing_with_any_test_set(
    test_set: TestSet, pairs: list[tuple[str, str]], shared_cache: Path
) -> None:
    largest = PydocDataset(num_queries=MAX_QUERIES).open(shared_cache)
    assert set(test_set.query_ids) < set(largest.query_ids)
    train_queries = {query.lower() for query, _ in pairs}
    assert not train_queries & {str(query).lower() for query in largest.query_texts}
    assert not {text for _, text in pairs} & set(largest.corpus.texts(largest.qrels.documents))
    assert len(pairs) > 2_000


def test_training_pairs_are_the_same_for_the_same_seed_only(pairs: list[tuple[str, str]]) -> None:
    assert training_pairs(13) == pairs
    other = training_pairs(14)
    assert other != pairs
    assert sorted(other) == sorted(pairs)


def test_reopening_parses_nothing_and_damage_is_repaired(
    test_set: TestSet, shared_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert PydocDataset().open(shared_cache).fingerprint == test_set.fingerprint
    assert "collecting docstrings" not in caplog.text
    folder = min(shared_cache.glob("pydoc-*/"), key=lambda place: len((place / FILES["qrels"]).read_bytes()))
    (folder / FILES["corpus"]).write_text("{}\n")
    assert PydocDataset().open(shared_cache).fingerprint == test_set.fingerprint
    assert "damaged: making it again" in caplog.text


def test_sources_are_read_and_never_imported(tmp_path: Path) -> None:
    (tmp_path / "package" / "tests").mkdir(parents=True)
    source = (
        '"""About the module."""\nraise SystemExit  # not run\n# one\n# two\n'
        'class A:\n    def f(self):\n        """Do it.\n\n        In\n  two lines."""\n'
    )
    (tmp_path / "package" / "__init__.py").write_text(source)
    (tmp_path / "package" / "tests" / "test_a.py").write_text('"""Not this."""')
    (tmp_path / "broken.py").write_text("def (:")
    (tmp_path / "latin.py").write_bytes('# -*- coding: latin-1 -*-\n"""Größe."""\n'.encode("latin-1"))
    docstrings, comments = read_sources(tmp_path)
    assert docstrings == [
        ("latin", "Größe.", ""),
        ("package", "About the module.", ""),
        ("package.A.f", "Do it.", "In two lines."),
    ]
    assert ("package#3", "one two") in comments


def test_an_interpreter_without_sources_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no Python source files under"):
        read_sources(tmp_path)
