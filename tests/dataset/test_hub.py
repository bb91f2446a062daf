"""The `datasets` library on local folders of the hub's form; no network."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dr_validate.dataset.hub import HubDataset
from dr_validate.errors import DatasetError
from tests.factories import built

CONFIGS = """---
configs:
- config_name: corpus
  data_files:
  - split: corpus
    path: corpus/*.parquet
- config_name: queries
  data_files:
  - split: queries
    path: queries/*.parquet
---
"""
JUDGEMENTS = "query-id\tcorpus-id\tscore\n1\ta\t1\n2\tb\t2\n"


def table(file: Path, **columns: list[str] | list[int]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), file)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """`tiny` with configs corpus and queries, and `tiny-qrels` beside it, as BeIR's repositories are."""
    folder = tmp_path / "tiny"
    table(folder / "corpus" / "0.parquet", _id=["a", "b"], title=["", "T"], text=["one", "two"])
    table(folder / "corpus" / "1.parquet", _id=["c"], title=[""], text=["three"])
    table(folder / "queries" / "0.parquet", _id=["1", "2", "3"], text=["q one", "q two", "q three"])
    (folder / "README.md").write_text(CONFIGS)
    (tmp_path / "tiny-qrels").mkdir()
    (tmp_path / "tiny-qrels" / "test.tsv").write_text(JUDGEMENTS)
    (tmp_path / "tiny-qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\n3\tc\t1\n")
    return folder


def test_configs_and_a_qrels_repository_beside_them_are_a_test_set(repository: Path, cache: Path) -> None:
    test_set = HubDataset(id=str(repository)).open(cache)
    assert (test_set.name, test_set.query_ids) == ("tiny", ("1", "2"))
    assert test_set.corpus.texts(np.arange(3)) == ["one", "T two", "three"]
    assert test_set.qrels.gains.tolist() == [1, 2]
    assert HubDataset(id=str(repository)).open(cache).fingerprint == test_set.fingerprint
    assert HubDataset(id=str(repository), qrels_split="train").open(cache).query_ids == ("3",)


def test_a_changed_repository_is_another_test_set(repository: Path, cache: Path) -> None:
    before = HubDataset(id=str(repository)).open(cache)
    table(repository / "corpus" / "1.parquet", _id=["c"], title=[""], text=["changed"])
    after = HubDataset(id=str(repository)).open(cache)
    assert after.corpus.texts(np.array([2])) == ["changed"]
    assert after.fingerprint != before.fingerprint


def test_judgements_may_be_a_config_of_the_repository(repository: Path, cache: Path) -> None:
    table(repository / "judged" / "test.parquet", query_id=["3"], corpus_id=["c"], score=[1])
    config = "- config_name: default\n  data_files:\n  - split: test\n    path: judged/test.parquet\n---\n"
    (repository / "README.md").write_text(CONFIGS.removesuffix("---\n") + config)
    assert HubDataset(id=str(repository)).open(cache).query_ids == ("3",)
    assert HubDataset(id=str(repository), qrels_id=f"{repository}-qrels").open(cache).query_ids == ("1", "2")


def test_a_plain_folder_of_files_works_without_configs(tmp_path: Path, cache: Path) -> None:
    folder = tmp_path / "plain"
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.csv").write_text('id,contents\na,"one, two"\nb,three\n')
    (folder / "queries.jsonl").write_text(json.dumps({"id": 1, "text": "q"}) + "\n")
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n1\tb\t1\n")
    (folder / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\n9\tb\t1\n")
    test_set = HubDataset(id=str(folder)).open(cache)
    assert test_set.corpus.texts(np.arange(2)) == ["one, two", "three"]
    assert test_set.query_ids == ("1",)


def test_own_files_may_stand_in_for_a_part(repository: Path, cache: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("3 0 a 1\n")
    (tmp_path / "mine.jsonl").write_text('{"_id": "3", "text": "mine"}\n')
    dataset = HubDataset(id=str(repository), qrels=str(tmp_path / "mine.txt"), queries=str(tmp_path / "mine.jsonl"))
    assert dataset.open(cache).query_texts == ("mine",)


def test_a_wrong_config_or_split_is_named_with_those_that_exist(repository: Path, cache: Path) -> None:
    with pytest.raises(
        DatasetError, match=r"dataset\.corpus: .* has no config or data file 'passages', only the configs \['corpus'"
    ):
        HubDataset(id=str(repository), corpus="passages").open(cache)
    with pytest.raises(DatasetError, match=r"qrels_split: got 'dev', but .*-qrels has the splits \['test', 'train'\]"):
        HubDataset(id=str(repository), qrels_split="dev").open(cache)


def test_rows_without_the_columns_are_named(repository: Path, cache: Path) -> None:
    table(repository / "corpus" / "0.parquet", name=["a"], abstract=["one"])
    table(repository / "corpus" / "1.parquet", name=["b"], abstract=["two"])
    with pytest.raises(DatasetError, match=r"tiny\[corpus\], row 1: no document id: got the fields \['abstract', 'name'\]"):
        HubDataset(id=str(repository)).open(cache)


@pytest.mark.parametrize("what", ["hub.HubDataset(id='nobody/nothing')", "msmarco.MsmarcoDataset(hub='nobody/nothing')"])
def test_an_unreachable_hub_is_one_clear_message(what: str, tmp_path: Path) -> None:
    module = what.partition(".")[0]
    code = f"""
from pathlib import Path
from dr_validate.dataset import {module}
from dr_validate.errors import DatasetError
try:
    {what}.open(Path("cache"))
except DatasetError as error:
    print(error)
"""
    package = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf"), "PYTHONPATH": package}
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path, env=environment)
    key = "id" if module == "hub" else "hub"
    assert f"dataset.{key}: cannot load 'nobody/nothing'" in result.stdout
    assert "HF_HUB_OFFLINE is set: download it where there is a network first" in result.stdout
    assert len(result.stdout.splitlines()) == 1


def test_a_data_file_of_the_repository_may_be_a_part(repository: Path, cache: Path) -> None:
    table(repository / "more" / "judged.parquet", qid=["2"], pid=["c"], label=[1])
    dataset = HubDataset(id=str(repository), qrels="more/judged.parquet", corpus="corpus/*.parquet")
    assert dataset.open(cache).query_ids == ("2",)
    with pytest.raises(DatasetError, match=r"dataset\.qrels: .* has no config or data file 'nowhere'"):
        HubDataset(id=str(repository), qrels="nowhere").open(cache)


def test_members_of_nanobeir_are_read_as_the_hub_lays_them_out(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three configs of one split, train; judgements without grades; local folders of the same names stand for the hub's."""
    monkeypatch.chdir(tmp_path)
    members = built("+run=nanobeir", "source=folder", "source.path=x", "tracker=none").members
    for number, member in enumerate(members.values()):
        folder = Path(member.raw["dataset"]["id"])
        table(folder / "corpus" / "train-0.parquet", _id=["a", f"b{number}"], text=["one", "two"])
        table(folder / "queries" / "train-0.parquet", _id=["1"], text=["q"])
        table(folder / "qrels" / "train-0.parquet", **{"query-id": ["1"], "corpus-id": [f"b{number}"]})
        configs = "".join(
            f"- config_name: {part}\n  data_files:\n  - split: train\n    path: {part}/train-*\n"
            for part in ("corpus", "queries", "qrels")
        )
        (folder / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    opened = {name: member.dataset.open(cache) for name, member in list(members.items())[::6]}
    assert len(members) == 13 and list(opened) == ["NanoArguAna", "NanoMSMARCO", "NanoTouche2020"]
    for name, test_set in opened.items():
        assert (test_set.name, test_set.query_ids, test_set.qrels.gains.tolist()) == (name, ("1",), [1])


def test_judgements_to_train_on_are_never_taken_for_those_to_test_on(repository: Path, cache: Path) -> None:
    (Path(f"{repository}-qrels") / "test.tsv").unlink()
    with pytest.raises(DatasetError, match=r"qrels_split: got 'test', but .*-qrels has the splits \['train'\]"):
        HubDataset(id=str(repository)).open(cache)
