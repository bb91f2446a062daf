"""The table at the end of a run."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from dr_validate.cli.status import agreements, outcome_table, suite_tables
from dr_validate.ledger.reports import of_training
from dr_validate.values import Estimate, Report
from tests.factories import built
from tests.factories import valued_report as report


def shown(sampled: Sequence[Report], full: Sequence[Report]) -> list[str]:
    """The lines that a reader sees, without frames."""
    console = Console(width=110)
    with console.capture() as capture:
        console.print(outcome_table(sampled, full, "mrr@10"))
    return [" ".join(line.replace("│", " ").replace("┃", " ").split()) for line in capture.get().splitlines()]


def by_collection(collections: Mapping[str, Sequence[Report]], means: Sequence[Report]) -> list[list[str]]:
    """The lines of each table, without frames."""
    console, found = Console(width=110), []
    for table in suite_tables(collections, means, "mrr@10"):
        with console.capture() as capture:
            console.print(table)
        found.append([" ".join(line.replace("│", " ").replace("┃", " ").split()) for line in capture.get().splitlines()])
    return found


def exactly(value: float) -> Estimate:
    return Estimate(value=value, low=value, high=value, naive=value)


def test_a_sampled_value_comes_with_its_interval_and_the_full_one_where_there_is_one() -> None:
    estimate = Estimate(value=0.1063, low=0.0774, high=0.1351, naive=0.1981)
    sampled = [report(100, "s", estimate), report(200, "s", estimate), report(300, "s", None)]
    lines = shown(sampled, [report(100, "f", exactly(0.0871))])
    assert lines[1] == "step sampled 95% interval full difference documents seconds sampled, to scale"
    assert lines[3] == f"100 0.1063 0.0774 to 0.1351 0.0871 +0.0192 1,078 2.4 {'█' * 18}"
    assert lines[4].startswith("200 0.1063 0.0774 to 0.1351 1,078 2.4 ")
    assert lines[5].startswith("300 checkpoint-300:v3 skipped:")


def test_a_value_that_is_only_an_upper_bound_says_so() -> None:
    lines = shown([report(100, "s", Estimate(value=0.1063, low=0.0, high=0.1063, naive=0.1063))], [])
    assert lines[3].startswith("100 0.1063 at most 0.1063 1,078 2.4 ")


def test_the_full_corpus_is_not_compared_with_itself() -> None:
    reports = [report(100, "f", exactly(0.0871))]
    lines = shown(reports, reports)
    assert lines[1] == "step full documents seconds full, to scale"
    assert lines[3] == f"100 0.0871 1,078 2.4 {'█' * 18}"


def test_two_trainings_in_one_state_dir_do_not_hide_each_other() -> None:
    one, other = report(100, "s", exactly(0.5)), report(100, "s", exactly(0.25))
    other = replace(other, checkpoint=replace(other.checkpoint, training_run="B", digest="sha256:b"))
    assert not any(line.startswith("training") for line in shown([one], []))
    both = [replace(one, checkpoint=replace(one.checkpoint, training_run="A")), other]
    lines = shown(both, [])
    assert any(line.startswith("training step sampled") for line in lines)
    assert [line.split()[:3] for line in lines if line[:2] in ("A ", "B ")] == [["A", "100", "0.5000"], ["B", "100", "0.2500"]]


def test_each_training_has_its_own_sentence_on_how_far_the_sample_was_off() -> None:
    def of(training: str, spec: str, error: float) -> list[Report]:
        made = [report(step, spec, exactly(step / 1000 + error)) for step in (100, 200)]
        return [
            replace(one, checkpoint=replace(one.checkpoint, training_run=training, digest=f"sha256:{training}{number}"))
            for number, one in enumerate(made)
        ]

    run = built("dataset=pydoc", "source=folder", "source.path=x", "source.name=A")
    sampled, full = [*of("A", "s", 0.25), *of("B", "s", 0.5)], [*of("A", "f", 0), *of("B", "f", 0)]
    assert [sentence.partition(", RMSE")[0] for sentence in agreements(run, sampled, full)] == [
        "Sampled against full corpus over 2 checkpoints of A, mrr@10: bias +0.2500",
        "Sampled against full corpus over 2 checkpoints of B, mrr@10: bias +0.5000",
    ]
    (alone,) = agreements(run, sampled[:2], full)
    assert alone.startswith("Sampled against full corpus over 2 checkpoints, mrr@10: bias +0.2500")
    assert alone.endswith("Kendall tau 1.00 (too few checkpoints to say), regret 0.0000.")


def test_a_sample_that_is_too_small_to_correct_by_is_said_at_the_end_of_a_run() -> None:
    run, notes = built("dataset=pydoc", "source.path=x"), {"estimate": {"outranking": {"mrr@10": 2}}}
    (only,) = agreements(run, [replace(report(100, "s", exactly(0.5)), notes=notes)], [])
    assert only.endswith("only 2, in all queries together, at the last step. Corrected values are extrapolation, not evidence.")


def test_the_step_that_says_how_small_a_sample_is_is_the_last_whichever_was_validated_last() -> None:
    run = built("dataset=pydoc", "source.path=x")
    few, many = ({"estimate": {"outranking": {"mrr@10": number}}} for number in (2, 50))
    first, last = replace(report(100, "s", exactly(0.5)), notes=few), replace(report(200, "s", exactly(0.5)), notes=many)
    assert agreements(run, [last, first], []) == []


def test_a_checkpoint_that_was_written_anew_is_compared_once_as_the_table_shows_it() -> None:
    run = built("dataset=pydoc", "source.path=x")

    def written(step: int, spec: str, value: float, digest: str, at: str) -> Report:
        made = report(step, spec, exactly(value))
        return replace(made, checkpoint=replace(made.checkpoint, digest=digest), at=at)

    sampled, full = (
        [written(step, spec, step / 1000 + error * (at == "1"), f"sha256:{step}{at}", at) for step in (100, 200) for at in "12"]
        for spec, error in (("s", 0.5), ("f", 0))
    )
    (only,) = agreements(run, sampled, full)
    assert only.startswith("Sampled against full corpus over 2 checkpoints, mrr@10: bias +0.0000")


def test_from_five_checkpoints_on_tau_has_an_interval() -> None:
    run = built("dataset=pydoc", "source.path=x")
    sampled, full = ([report(100 * n, spec, exactly(n / 10)) for n in range(1, 7)] for spec in ("s", "f"))
    (only,) = agreements(run, sampled, full)
    assert only.endswith("Kendall tau 1.00 (0.38 to 1.00), regret 0.0000.")


def test_a_training_without_a_name_in_another_folder_has_a_sentence_of_its_own() -> None:
    run = built("dataset=pydoc", "source=folder", "source.path=/x/cold", "source.name=cold")
    sampled, full = (
        [
            replace(one, checkpoint=replace(one.checkpoint, uri=f"/x/{folder}/{step}", digest=f"sha256:{folder}{step}"))
            for folder, error in (("cold", 0.25 * is_sample), ("output", 0.5 * is_sample))
            for step in (100, 200)
            for one in [report(step, "s" if is_sample else "f", exactly(step / 1000 + error))]
        ]
        for is_sample in (True, False)
    )
    assert [sentence.partition(", RMSE")[0] for sentence in agreements(run, sampled, full)] == [
        "Sampled against full corpus over 2 checkpoints of cold, mrr@10: bias +0.2500",
        "Sampled against full corpus over 2 checkpoints of output, mrr@10: bias +0.5000",
    ]


def test_a_checkpoint_that_is_a_link_is_of_the_folder_that_holds_the_link_and_one_further_down_is_not(tmp_path: Path) -> None:
    for name in ("cold/nested", "disk"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "cold" / "100").symlink_to(tmp_path / "disk")
    places = [tmp_path / "cold" / "100", tmp_path / "cold" / "200", tmp_path / "cold", tmp_path / "cold" / "nested" / "100"]
    one = report(100, "s", exactly(0.5))
    history = [replace(one, checkpoint=replace(one.checkpoint, uri=str(place), training_run="")) for place in places]
    names = [of_training(each, history, "cold", str(tmp_path / "cold"))[0] for each in history]
    assert names == ["cold", "cold", "cold", "nested"]


def test_a_mean_has_an_interval_and_each_collection_a_row() -> None:
    wide = Estimate(value=0.25, low=0.125, high=0.375, naive=0.25)
    means = [replace(report(100 * n, "m", wide if n != 3 else exactly(0.5)), notes={"collections": {}}) for n in range(1, 9)]
    lines = shown(means, means)
    assert lines[0] == "mean of collections, mrr@10 by training step"
    assert lines[1] == "step full 95%, any queries documents seconds full, to scale"
    assert lines[3].startswith("100 0.2500 0.1250 to 0.3750 1,078 ")
    collections = {
        "a": [report(100 * n, "a", exactly(n / 16)) for n in range(1, 9)],
        "b": [report(100 * n, "b", exactly(n / 32) if n < 8 else None) for n in range(1, 9)],
    }
    (lines,) = by_collection(collections, means)
    assert lines[1] == "collection 300 (best mean) 400 500 600 700 800"
    assert lines[3] == "a 0.1875 0.2500 0.3125 0.3750 0.4375 0.5000"
    assert lines[4] == "b 0.0938 0.1250 0.1562 0.1875 0.2188 skipped"


def test_two_trainings_with_the_same_steps_have_a_table_of_collections_each() -> None:
    def of(training: str, spec: str, step: int, value: float) -> Report:
        made = report(step, spec, exactly(value))
        return replace(made, checkpoint=replace(made.checkpoint, training_run=training, digest=f"sha256:{training}{step}"))

    values = {("cold", 100): 0.5, ("cold", 200): 0.25, ("warm", 100): 0.125, ("warm", 200): 0.375}
    means = [of(training, "m", step, value) for (training, step), value in values.items()]
    collections = {"a": [of(training, "a", step, value / 2) for (training, step), value in values.items()]}
    cold, warm = by_collection(collections, means)
    assert " ".join(cold[:3]) == "mrr@10 by collection and training step, cold collection 100 (best mean) 200"
    assert " ".join(warm[:3]) == "mrr@10 by collection and training step, warm collection 100 200 (best mean)"
    assert (cold[4], warm[4]) == ("a 0.2500 0.1250", "a 0.0625 0.1875")
