"""The best checkpoint, kept with its Report in a folder of the user's."""

import json
import signal
import sys
from pathlib import Path

import pytest

from dr_validate.cli.doctor import check_start
from dr_validate.errors import SetupError
from dr_validate.ledger.reports import report_to_json
from dr_validate.store.best import REPORT, keep_alone
from dr_validate.store.checkpoints import CheckpointStore
from dr_validate.values import Checkpoint
from tests import warm
from tests.factories import built, report

DIGESTS = {report(step).checkpoint.digest for step in (100, 200, 300)}


def fetch(one: Checkpoint, into: Path) -> None:
    (into / "part").mkdir()
    (into / "part" / "weights").write_bytes(one.digest.encode())


def keep(root: Path, folder: Path, step: int, spec: str = "s1") -> None:
    store, one = CheckpointStore(keep_best=folder), report(step, spec=spec)
    store.take(one.checkpoint, fetch, root)
    store.link_best(one.checkpoint, report_to_json(one), DIGESTS, root)


def told(folder: Path) -> tuple[int, bytes]:
    """Step of the Report and weights that FOLDER/best leads to."""
    place = folder / "best"
    assert place.is_symlink()
    return json.loads((place / REPORT).read_text())["checkpoint"]["step"], (place / "part" / "weights").read_bytes()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


def test_best_leads_to_the_newest_best_alone_and_its_files_take_no_room_of_their_own(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    for step in (100, 200, 200):
        keep(tmp_path, folder, step)
        assert told(folder) == (step, f"sha256:{step:04x}".encode())
    assert names(folder) == ["best", "checkpoint-200-v3"]
    copy = tmp_path / "checkpoints" / "sha256-00c8" / "part" / "weights"
    assert (folder / "best" / "part" / "weights").samefile(copy)


def test_it_stays_when_the_store_lets_its_copy_go(tmp_path: Path) -> None:
    keep(tmp_path, tmp_path / "kept", 100)
    store = CheckpointStore(max_gib=1e-9)
    assert store.make_room(10, (), (), tmp_path)
    assert store.digests(tmp_path) == set()
    assert told(tmp_path / "kept") == (100, b"sha256:0064")


def test_what_is_not_of_this_training_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    (folder / "checkpoint-100-v3").mkdir(parents=True)
    (folder / "checkpoint-100-v3" / "mine").write_text("by hand")
    keep(tmp_path, folder, 100)
    keep(tmp_path, folder, 500)  # of another training: its digest is none of DIGESTS
    keep(tmp_path, folder, 100, spec="s2")
    keep(tmp_path, folder, 200)
    assert told(folder)[0] == 200
    assert (folder / "checkpoint-100-v3" / "mine").read_text() == "by hand"
    steps = [json.loads(path.read_text())["checkpoint"]["step"] for path in folder.glob(f"*-v3*/{REPORT}")]
    assert sorted(steps) == [100, 200, 500]


def test_a_checkpoint_whose_name_another_one_has_gets_its_own_weights(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    digests = {"sha256:a", "sha256:b"}
    for digest in ("sha256:a", "sha256:b"):
        copy = tmp_path / digest
        copy.mkdir()
        (copy / "weights").write_text(digest)
        made = report_to_json(report(100))
        made["checkpoint"]["digest"] = digest
        keep_alone(copy, "best", made, digests, folder)  # as a trainer may call it
        assert (folder / "best" / "weights").read_text() == digest


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[4])
from test_best import keep
step, root = int(sys.argv[2]), Path(sys.argv[3])
count = 0
def audit(event, arguments):
    global count
    if event in ("os.link", "os.rename", "os.symlink", "shutil.rmtree", "os.mkdir", "os.remove") and "kept" in str(arguments):
        count += 1
        if count == int(sys.argv[1]):
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(audit)
keep(root, root / "kept", step)
"""


def test_a_kill_at_any_moment_leaves_a_whole_best_and_the_next_one_clears_up(tmp_path: Path) -> None:
    for moment in range(1, 100):
        root, folder = tmp_path / str(moment), tmp_path / str(moment) / "kept"
        keep(root, folder, 100)
        command = [sys.executable, "-c", KILLED, str(moment), "200", str(root), str(Path(__file__).parent)]
        code = warm.run(command, cwd=Path(__file__).parents[2]).returncode
        step, weights = told(folder)
        assert step in (100, 200) and weights == f"sha256:{step:04x}".encode()
        keep(root, folder, 200)
        assert names(folder) == ["best", "checkpoint-200-v3"]
        if code == 0:
            assert moment > 4
            return
        assert code == -signal.SIGKILL
    raise AssertionError("it never ended")


@pytest.mark.parametrize("kind", ["a file", "nowhere", "taken", "the source", "in the source", "among the copies"])
def test_a_folder_that_cannot_be_used_is_refused_at_the_start(kind: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "taken" / "best").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    places = {
        "a file": tmp_path / "file",
        "nowhere": "/proc/nowhere",
        "taken": tmp_path / "taken",
        "the source": tmp_path / "out",
        "in the source": tmp_path / "out" / "new" / "best",
        "among the copies": tmp_path / "state" / "checkpoints",
    }
    run = built(
        "dataset=pydoc",
        "tracker=none",
        f"source.path={tmp_path}/out",
        f"state_dir={tmp_path}/state",
        f"store.keep_best={places[kind]}",
    )
    with pytest.raises(SetupError, match=r"store\.keep_best: "):
        check_start(run)
    assert not list((tmp_path / "out").iterdir())
