"""What is recorded of how results were made: enough to make them again, and no secret."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig

from dr_validate.config import conf_dir
from dr_validate.ledger.made import command_line, presentable, versions
from dr_validate.ledger.per_query import Retrieved, read_query_texts, read_top, write_queries, write_ranking, write_top
from dr_validate.values import Checkpoint, Estimate, Qrels, Ranking, Report, TestSet


def typed(monkeypatch: pytest.MonkeyPatch, *overrides: str) -> list[str]:
    """The words of the recorded command, as a shell hands them over."""
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        config = compose("config", list(overrides), return_hydra_config=True)
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)
    HydraConfig.instance().set_config(config)
    shell = ["sh", "-c", f"printf '%s\\n' {command_line()}"]
    return subprocess.run(shell, capture_output=True, text=True, check=True).stdout.splitlines()


def test_the_command_is_the_one_that_was_typed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home of mine"))
    overrides = ["sampler=random", "sampler.fraction=0.1", "metrics=[mrr@10,ndcg@10]", "source.path='a folder; here'"]
    assert typed(monkeypatch, *overrides) == ["python", "-m", "dr_validate", *overrides]


def test_the_home_folder_is_left_to_the_shell_and_is_nobody_elses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    words = typed(monkeypatch, "source.path='/home/me/runs/a b$c'", "state_dir=/home/mean/state")
    assert words[3:] == ["source.path='/home/me/runs/a b$c'", "state_dir=/home/mean/state"]
    assert "/home/me/" not in command_line() and "$HOME/runs" in command_line()
    assert presentable({"path": "/home/me/data", "other": "/srv/home/me/data"}) == {
        "path": "~/data",
        "other": "/srv/home/me/data",
    }


def test_without_a_command_line_there_is_no_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)
    assert command_line() == ""


def test_no_secret_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    words = typed(monkeypatch, "+tracker.api_key=abc123", "source.path=https://me:abc123@host/x", "++a={password: abc123}")
    assert "abc123" not in " ".join(words)
    assert words[3:] == ["+tracker.api_key=***", "source.path=https://***@host/x", "++a=***"]
    assert presentable({"auth_token": "abc123", "urls": ["s3://me:abc123@host"]}) == {
        "auth_token": "***",
        "urls": ["s3://***@host"],
    }


def test_versions_are_those_of_this_process() -> None:
    assert versions()["numpy"] == np.__version__
    assert {"python", "dr_validate", "torch", "transformers", "ranx"} <= versions().keys()


class Letters:
    """A corpus of documents a, b, c ..."""

    tie_rank = np.arange(26)
    id_hash = np.arange(26, dtype=np.uint64)

    def __len__(self) -> int:
        return 26

    def ids(self, ordinals: np.ndarray) -> list[str]:
        return [chr(ord("a") + int(ordinal)) for ordinal in ordinals]

    def texts(self, ordinals: np.ndarray) -> list[str]:
        return self.ids(ordinals)

    def find(self, ids: object) -> np.ndarray:
        raise NotImplementedError  # nothing here looks ids up


def collection(texts: tuple[str, ...] | tuple[list[int], ...] = ("first", "second")) -> TestSet:
    """Of q1 document a has grade 2 and b grade 0; of q2 document z has grade 1."""
    qrels = Qrels(offsets=np.array([0, 2, 3]), documents=np.array([0, 1, 25]), gains=np.array([2, 0, 1]))
    return TestSet(
        name="letters",
        corpus=Letters(),
        query_ids=("q1", "q2"),
        query_texts=texts,
        qrels=qrels,
        own_documents=np.full(2, -1),
        fingerprint="f1",
    )


def test_the_first_three_documents_of_each_query_are_kept_with_what_they_were_judged(tmp_path: Path) -> None:
    documents = np.array([[1, 4, 0, 3], [5, -1, -1, -1]])
    scores = np.array([[4, 3, 2, 1], [1, -np.inf, -np.inf, -np.inf]], dtype=np.float32)
    checkpoint = Checkpoint(name="c", version="c", digest="sha256:1", step=1, step_from="", created_at="", uri="")
    metrics = {"mrr@10": Estimate(value=0.5, low=0.5, high=0.5, naive=0.5)}
    report = Report(
        checkpoint=checkpoint, dataset="letters", sampler="full", spec="spec", status="done", at="", metrics=metrics
    )
    assert read_top(tmp_path, report, ["q1"]) == {}  # an older version kept none
    write_top(tmp_path / "top" / "spec" / "sha256-1.parquet", collection(), Ranking(documents=documents, scores=scores))
    assert read_top(tmp_path, report, ["q1", "q2"]) == {
        "q1": [Retrieved(document="b", gain=0), Retrieved(document="e", gain=None), Retrieved(document="a", gain=2)],
        "q2": [Retrieved(document="f", gain=None)],
    }
    assert list(read_top(tmp_path, report, ["q2", "q3"])) == ["q2"]


def test_a_run_file_has_a_line_for_each_hit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = np.array([[1, 4, 0], [5, -1, -1]])
    scores = np.array([[1 / 3, 0.25, -2], [1e-9, -np.inf, -np.inf]], dtype=np.float32)
    monkeypatch.setattr("dr_validate.ledger.per_query.LINES_AT_ONCE", 3)
    write_ranking(tmp_path / "r.trec", collection(), Ranking(documents=documents, scores=scores), "step 5")
    lines = ["q1 Q0 b 1 0.333333343 step_5", "q1 Q0 e 2 0.25 step_5", "q1 Q0 a 3 -2 step_5", "q2 Q0 f 1 9.99999972e-10 step_5"]
    assert (tmp_path / "r.trec").read_text().splitlines() == lines


def test_texts_of_queries_are_kept_by_test_set(tmp_path: Path) -> None:
    write_queries(tmp_path, collection())
    assert read_query_texts(tmp_path, "f1", ["q2", "q9"]) == {"q2": "second"}
    assert read_query_texts(tmp_path, "f2", ["q2"]) == {}


def test_queries_that_came_as_token_ids_have_no_text_to_keep(tmp_path: Path) -> None:
    write_queries(tmp_path, collection(([1, 2], [3])))
    assert read_query_texts(tmp_path, "f1", ["q1"]) == {}
