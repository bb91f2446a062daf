"""A small correct BEIR folder that tests then spoil."""

from collections.abc import Callable
from pathlib import Path

import pytest

CORPUS = """\
{"_id": "d1", "title": "Sockets", "text": "open a connection"}
{"_id": "d2", "title": "", "text": "parse a decimal"}
{"_id": "d3", "text": "read an archive"}
"""
QUERIES = """\
{"_id": "q1", "text": "how to connect"}
{"_id": "q2", "text": "decimal numbers"}
{"_id": "q3", "text": "never judged"}
"""
QRELS = "query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td3\t0\nq2\td2\t1\n"

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write `corpus`, `queries` and `qrels` (text or bytes) as a BEIR folder named `tiny`; what is not given is correct."""

    def writer(corpus: str | bytes = CORPUS, queries: str | bytes = QUERIES, qrels: str | bytes = QRELS) -> Path:
        folder = tmp_path / "tiny"
        (folder / "qrels").mkdir(parents=True, exist_ok=True)
        for name, content in (("corpus.jsonl", corpus), ("queries.jsonl", queries), ("qrels/test.tsv", qrels)):
            (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
        return folder

    return writer


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Where data sets are converted to."""
    return tmp_path / "state" / "datasets"
