"""The thread that polls the source and takes copies, against sources that rotate, fail, hang and lie."""

import errno
import logging
import threading
import time
from pathlib import Path

import pytest

from dr_validate.config import Watch
from dr_validate.errors import CheckpointDeleted, CheckpointError, Outage, SetupError, TimedOut
from dr_validate.watcher import polling
from tests.processes import LIMIT_S, wait_for
from tests.watcher.polled import KIB, Source, checkpoint, polled


def test_everything_listed_is_taken_newest_first_and_outlives_its_source(tmp_path: Path) -> None:
    with polled(tmp_path, Source(100, 200, 300)) as made:
        made.until(lambda: len(made.copies()) == 3)
        assert made.source.fetched == [300, 200, 100]
        made.source.there = [checkpoint(400)]
        made.poll()
        made.until(lambda: 400 in made.copies())
        assert made.exist() == [100, 200, 300, 400]
    with polled(tmp_path, Source()) as made:  # the next day
        assert made.exist() == [100, 200, 300, 400]
        assert all(made.poller.has_copy(c) for c in made.poller.listing.checkpoints)


def test_an_outage_that_two_threads_meet_in_one_moment_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    class Slow(set[str]):
        def __contains__(self, text: object) -> bool:
            found = super().__contains__(text)
            time.sleep(0.1)  # so that the other thread asks before this one has answered
            return found

    backoffs = [polling.Backoff(Watch(), said) for said in [Slow()] for _ in range(2)]
    threads = [threading.Thread(target=backoff.failed, args=(Outage("it cannot be reached"),)) for backoff in backoffs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [record.levelno for record in caplog.records].count(logging.WARNING) == 1


def test_copies_of_another_source_are_not_its_own(tmp_path: Path) -> None:
    with polled(tmp_path, Source(100)) as made:
        made.until(lambda: made.copies() == [100])
    other = Source()
    other.identity = lambda: {"source": "another"}  # type: ignore[method-assign]  # of this one source only
    with polled(tmp_path, other) as made:
        made.poll()
        assert made.exist() == []


def test_without_room_the_ones_validated_go_first_then_those_whose_turn_comes_last(tmp_path: Path) -> None:
    room_for_two = 2.5 * KIB / 2**30
    with polled(tmp_path, Source(100, 200, 300), max_gib=room_for_two) as made:
        made.until(lambda: made.copies() == [200, 300])
        made.until(lambda: "no room for its copy (store.max_gib=" in str(made.poller.reason(checkpoint(100))))
        assert made.source.fetched == [300, 200]  # 100 waits for room at its source; nothing is fetched in vain
        made.source.there = [checkpoint(400)]
        made.poll()
        made.until(lambda: made.copies() == [300, 400])
        made.until(lambda: "let go for room" in str(made.poller.reason(checkpoint(200))))
        made.until(lambda: made.exist() == [300, 400])
        assert [c.step for c in made.poller.let_go()] == [200]
        made.validated.add(checkpoint(400).digest)
        made.source.there = [checkpoint(400), checkpoint(250)]
        made.poll()
        made.until(lambda: made.copies() == [250, 300])


def test_what_was_let_go_is_known_after_a_restart_with_the_reason(tmp_path: Path) -> None:
    room_for_one = 1.5 * KIB / 2**30
    with polled(tmp_path, Source(100), max_gib=room_for_one) as made:
        made.until(lambda: made.copies() == [100])
        made.source.there = [checkpoint(200)]
        made.poll()
        made.until(lambda: made.copies() == [200])
    with polled(tmp_path, Source()) as made:
        assert [c.step for c in made.poller.let_go()] == [100]
        assert "let go for room" in str(made.poller.reason(checkpoint(100)))
    with polled(tmp_path, Source(100)) as made:  # its source has it again
        made.until(lambda: made.copies() == [100, 200])
        assert made.poller.let_go() == []


def test_what_another_run_still_needs_goes_after_what_nobody_needs(tmp_path: Path) -> None:
    with polled(tmp_path, Source(100, 200)) as made:
        made.until(lambda: made.copies() == [100, 200])
    room_for_two = 2.5 * KIB / 2**30
    both = [checkpoint(100).digest, checkpoint(200).digest]
    with polled(tmp_path, Source(300), max_gib=room_for_two, others=both[:1], done=both) as made:
        made.until(lambda: made.copies() == [100, 300])


def test_a_fetch_that_hangs_or_fails_costs_no_other_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dr_validate.watcher.polling.ANOTHER_AFTER_S", 0.05)
    monkeypatch.setattr("dr_validate.watcher.polling.MAX_BACKOFF_S", 0.05)
    source = Source(100, 200, 300)
    release = threading.Event()
    source.trouble = {300: release, 200: Outage("its file answers 500")}
    with polled(tmp_path, source) as made:
        made.until(lambda: made.copies() == [100])
        assert not made.poller.is_ready(checkpoint(300)) and not made.poller.is_ready(checkpoint(200))
        assert not made.poller.is_imminent(checkpoint(300)) and not made.poller.is_imminent(checkpoint(200))
        assert made.poller.is_fetching and not made.poller.has_failed
        release.set()
        made.until(lambda: made.copies() == [100, 300])
        del source.trouble[200]
        made.until(lambda: made.copies() == [100, 200, 300])  # by itself, after its own pause


@pytest.mark.parametrize(
    "error", [CheckpointError("a link leaves the folder"), OSError(errno.EACCES, "denied"), CheckpointDeleted("away")]
)
def test_why_there_is_no_copy_is_told_once_to_whoever_validates(tmp_path: Path, error: Exception) -> None:
    source = Source(100)
    source.trouble[100] = error
    with polled(tmp_path, source) as made:
        made.until(lambda: made.poller.is_ready(checkpoint(100)))
        assert not made.poller.has_copy(checkpoint(100))
        source.trouble.clear()
        assert made.poller.failure(checkpoint(100)) is error
        assert made.poller.failure(checkpoint(100)) is None
        made.poll()
        made.until(lambda: made.copies() == [100])  # the next poll tries again


def test_the_next_one_in_order_is_waited_for_while_its_fetch_is_young(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dr_validate.watcher.polling.ANOTHER_AFTER_S", LIMIT_S)
    source, release = Source(100, 200), threading.Event()
    source.trouble[200] = release
    with polled(tmp_path, source) as made:
        made.until(lambda: made.poller.is_fetching)
        assert made.poller.is_imminent(checkpoint(200)) and made.poller.is_imminent(checkpoint(100))
        release.set()
        made.until(lambda: made.copies() == [100, 200])
        assert not made.poller.is_imminent(checkpoint(200)) and not made.poller.is_imminent(checkpoint(300))


def test_what_is_gone_is_asked_for_no_more_than_the_source_lists_it(tmp_path: Path) -> None:
    source = Source(100)
    source.trouble[100] = CheckpointDeleted("away")
    with polled(tmp_path, source, mode="once") as made:
        made.until(lambda: made.poller.is_ready(checkpoint(100)))
        polls = made.poller.polls
        source.there = []
        assert isinstance(made.poller.failure(checkpoint(100)), CheckpointDeleted)
        made.until(lambda: made.poller.polls > polls)
        made.until(lambda: made.exist() == [])
        assert source.fetched == [100]


def test_a_finite_run_gives_a_checkpoint_up_that_never_comes(tmp_path: Path) -> None:
    source = Source(100, 200)
    source.trouble[200] = Outage("its file answers 500")
    with polled(tmp_path, source, mode="once", poll_s=0.01) as made:
        made.until(lambda: made.poller.is_given_up(checkpoint(200)))
        assert made.copies() == [100] and not made.poller.has_failed
        assert "5 times in a row" in str(made.poller.failure(checkpoint(200)))


def test_an_outage_of_the_source_leaves_what_there_are_copies_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dr_validate.watcher.polling.MAX_BACKOFF_S", 0.05)
    with polled(tmp_path, Source(100)) as made:
        made.until(lambda: made.copies() == [100])
    source = Source(100, 200)
    source.list_trouble = Outage("no route")
    with polled(tmp_path, source) as made:
        made.poll()
        assert made.poller.is_out_of_reach and made.exist() == [100]
        source.list_trouble = None
        made.until(lambda: made.copies() == [100, 200])
        assert not made.poller.is_out_of_reach


@pytest.mark.parametrize("error", [SetupError("the key is rejected"), OSError(errno.ENOSPC, "full"), RuntimeError("a bug")])
def test_what_the_thread_cannot_mend_is_raised_by_the_watcher(tmp_path: Path, error: Exception) -> None:
    source = Source(100)
    source.list_trouble = error
    with polled(tmp_path, source) as made:
        made.until(lambda: made.poller.has_failed)
        with pytest.raises(type(error)) as caught:
            made.poller.check()
        assert caught.value is error
        made.poller.check()
        source.list_trouble = None
        made.poll()
        made.until(lambda: made.copies() == [100])


def test_a_disk_that_is_full_of_waiting_copies_is_waited_for_and_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(polling, "NO_ROOM_S", 0.01)
    source = Source(100, 200, 300)
    source.trouble = dict.fromkeys((100, 200), OSError(errno.ENOSPC, "no space"))
    with polled(tmp_path, source) as made:
        made.until(lambda: source.fetched.count(200) > 2)  # newest first: there is a copy of 300
        assert made.copies() == [300] and not made.poller.has_failed
        source.trouble.clear()
        made.validated.add("sha256:012c")
        made.until(lambda: made.copies() == [100, 200, 300])
        assert caplog.text.count("no room for another copy") == 1
        source.there.append(checkpoint(400))
        source.trouble[400] = OSError(errno.ENOSPC, "no space")
        made.validated |= {one.digest for one in source.there[:3]}
        made.poll()
        made.until(lambda: made.poller.has_failed)  # nothing waits that would make room
        with pytest.raises(OSError, match="no space"):
            made.poller.check()


def test_what_was_missing_at_the_first_poll_is_one_line_and_what_is_missing_later_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    for _ in range(2):  # a restart says nothing more
        with polled(tmp_path, Source(200, 400)) as made:
            made.until(lambda: made.copies() == [200, 400])
            assert made.poller.never_seen({}) == []
    assert caplog.text.count("deleted before the first poll, so never validated: checkpoint-100, checkpoint-300\n") == 1
    with polled(tmp_path, Source(600, 800)) as made:  # while nobody polled
        made.until(lambda: made.copies() == [200, 400, 600, 800])
        assert [part.name for part in made.poller.never_seen({"checkpoint-700": 700})] == ["checkpoint-500"]


def test_a_first_poll_that_finds_nothing_leaves_nothing_out_later(tmp_path: Path) -> None:
    source = Source()
    with polled(tmp_path, source) as made:
        made.poll()
        source.there = [checkpoint(300)]
        made.poll()
        assert [part.name for part in made.poller.never_seen({})] == ["checkpoint-100", "checkpoint-200"]


def running(name: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == name]


def test_the_end_of_a_run_ends_its_fetches_and_its_look_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    source = Source(100)
    source.trouble[100] = threading.Event()
    with polled(tmp_path, source) as made:
        made.until(lambda: source.fetched == [100] and any((tmp_path / "checkpoints").glob(".sha256-*/half")))
        source.list_trouble = threading.Event()
        made.poller.poll_again()
        made.until(lambda: source.is_listing)
        assert running("fetch") and running("poll")
    wait_for(lambda: not running("fetch") and not running("poll"))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [".locks"]
    assert not made.poller.has_failed and not made.poller.is_ready(checkpoint(100))


def test_a_fetch_that_takes_longer_than_a_checkpoint_may_is_ended_and_counts_as_an_attempt(tmp_path: Path) -> None:
    source = Source(200)
    source.trouble[200] = threading.Event()
    with polled(tmp_path, source, timeout_s=0.05) as made:
        made.until(lambda: made.poller.is_ready(checkpoint(200)))
        assert isinstance(made.poller.failure(checkpoint(200)), TimedOut)
        assert not made.poller.is_out_of_reach and not made.poller.is_fetching
