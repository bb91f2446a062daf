import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dr_validate.dataset.corpus import BATCH_ROWS, ArrowCorpus, open_corpus
from dr_validate.dataset.read import Problems
from dr_validate.dataset.records import DOCUMENT, entry_part

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30) | st.sampled_from(["a\tb", "a\nb", "\u2028", "\x00", "𝔘"])
DOCUMENTS = st.dictionaries(TEXT.filter(bool), TEXT, min_size=1, max_size=25)


def converted(documents: dict[str, str] | dict[str, list[int]], folder: Path) -> ArrowCorpus:
    file = folder / "corpus.jsonl"
    file.write_text("".join(json.dumps({"_id": key, "text": text}) + "\n" for key, text in documents.items()))
    problems = Problems("test")
    corpus = open_corpus(entry_part([file], DOCUMENT), folder / "made", problems)
    problems.stop_if_any()
    assert corpus is not None
    return corpus


@settings(max_examples=40)
@given(documents=DOCUMENTS)
def test_ids_and_texts_come_back_as_they_were(documents: dict[str, str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        corpus = converted(documents, Path(folder))
        everything = np.arange(len(corpus))
        assert corpus.ids(everything) == list(documents)
        assert corpus.texts(everything) == list(documents.values())
        assert corpus.texts(everything[::-1]) == list(documents.values())[::-1]
        assert corpus.find(list(documents)).tolist() == everything.tolist()


@settings(max_examples=40)
@given(documents=DOCUMENTS)
def test_ties_are_ranked_as_python_sorts_the_bytes_downwards(documents: dict[str, str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        corpus = converted(documents, Path(folder))
        downwards = sorted((key.encode() for key in documents), reverse=True)
        assert corpus.tie_rank.tolist() == [downwards.index(key.encode()) for key in documents]
        assert corpus.tie_rank.dtype == np.int64


def test_the_hash_of_an_id_is_blake2b(tmp_path: Path) -> None:
    corpus = converted({"d1": "a", "ü": "b"}, tmp_path)
    expected = [int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little") for key in ("d1", "ü")]
    assert corpus.id_hash.tolist() == expected
    assert corpus.id_hash.dtype == np.uint64


def test_nothing_asked_for_is_nothing_returned(tmp_path: Path) -> None:
    corpus = converted({"d1": "a"}, tmp_path)
    nothing = np.array([], dtype=np.int64)
    assert (corpus.ids(nothing), corpus.texts(nothing), corpus.find([]).tolist()) == ([], [], [])


def test_an_id_asked_for_twice_is_found_twice(tmp_path: Path) -> None:
    corpus = converted({"d1": "a", "d2": "b"}, tmp_path)
    assert corpus.find(["d2", "absent", "d2", "d1"]).tolist() == [1, -1, 1, 0]


def test_documents_are_found_in_every_part_of_a_large_file(tmp_path: Path) -> None:
    corpus = converted({f"d{number}": "" for number in range(2 * BATCH_ROWS + 5)}, tmp_path)
    wanted = [2 * BATCH_ROWS + 4, 0, 2 * BATCH_ROWS, 7, BATCH_ROWS - 1]
    assert corpus.find([*(f"d{number}" for number in wanted), "absent"]).tolist() == [*wanted, -1]
    assert corpus.ids(np.array(wanted)) == [f"d{number}" for number in wanted]


def test_asking_does_not_import_pandas(tmp_path: Path) -> None:
    converted({"d1": "a", "d2": "b"}, tmp_path)
    (folder,) = {file.parent for file in tmp_path.rglob("documents.arrow")}
    code = (
        "import sys, pathlib; import numpy as np; from dr_validate.dataset.corpus import ArrowCorpus\n"
        "corpus = ArrowCorpus(pathlib.Path(sys.argv[1]))\n"
        "assert corpus.texts(corpus.find(['d2'])) == ['b']\n"
        "assert 'pyarrow' in sys.modules and 'pandas' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True)


def test_token_ids_come_back_as_lists(tmp_path: Path) -> None:
    corpus = converted({"d1": [101, 7, 102], "d2": [], "d3": [2**31 - 1]}, tmp_path)
    assert corpus.tokenized
    assert corpus.texts(np.array([2, 0, 1])) == [[2**31 - 1], [101, 7, 102], []]
