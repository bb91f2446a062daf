"""What W&B gets beside the rows: the verdict and the tables of the page, whole after a restart."""

import logging
from dataclasses import replace
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from dr_validate.config import ReportSettings
from dr_validate.ledger.ledger import Ledger
from dr_validate.report.page import write_report
from dr_validate.values import Agreement, Estimate, Report
from tests.processes import wait_for
from tests.tracker.watching import RUN, Start, report, steps, table, undelivered, wait_for_rows
from tests.wandb_server.fixture import ServerHandle

NOTES = {"estimate": {"outranking": {"mrr@10": 12.5}, "population": {"mrr@10": [0.125, 0.5]}}}
AGREEMENT = Agreement(metric="mrr@10", checkpoints=2, kendall_tau=1.0, rmse=0.25, bias=0.0, regret=0.0)


def sampled(step: int, value: float, second: int) -> Report:
    estimate = Estimate(value=value, low=value - 0.125, high=value + 0.125, naive=0.9)
    return replace(report(step, second=second), metrics={"mrr@10": estimate}, notes=NOTES)


def full(step: int, value: float, second: int) -> Report:
    estimate = Estimate(value=value, low=value, high=value, naive=value)
    corpus = {"documents": 11429, "encoded": 11429, "fraction": 1.0}
    return replace(report(step, second=second), spec="full", sampler="full", metrics={"mrr@10": estimate}, corpus=corpus)


def another_strategy(state_dir: Path, encoded: object = 2286) -> None:
    """One that another job on the same state_dir has tried."""
    with Ledger(state_dir / "ledger.db") as ledger:
        names = {"dataset": "vaswani", "full_spec": "full", "sampler": "run_pool", "documents": 11429, "encoded": encoded}
        ledger.register_spec("s2", names, "2026-11-21T03:00:00Z")
        bound = Estimate(value=0.5, low=0.0, high=0.5, naive=0.5)
        ledger.finish(replace(report(500), spec="s2", sampler="run_pool", metrics={"mrr@10": bound}))


def values_per_query(state_dir: Path, given: Report, *values: float) -> None:
    path = state_dir / "queries" / given.spec / f"{given.checkpoint.digest.replace(':', '-')}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {"query_id": ["q1", "q2", "q3"], "metric": ["mrr@10"] * 3, "value": [*values]}
    pyarrow.parquet.write_table(pyarrow.table(columns), path)


def test_the_verdict_and_the_tables_of_the_page_are_there_and_whole_after_a_restart(
    server: ServerHandle, start: Start, state_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    another_strategy(state_dir)
    three = [sampled(500, 0.25, 1), sampled(1000, 0.5, 2), sampled(1500, 0.375, 3)]
    for one, values in zip(three[1:], ((0.5, 0.5, 0.5), (1.0, 0.125, 0.5)), strict=True):
        values_per_query(state_dir, one, *values)
    watcher = start()
    watcher.send(*three)
    wait_for_rows(server, 3)
    wait_for(lambda: "Best of 3 checkpoints" in server.run(RUN).summary.get("verdict", ""))  # not only at the end
    watcher.send(full(500, 0.5, 4), replace(full(1000, 0.5, 5), agreement=AGREEMENT))
    watcher.close()
    watcher = start()
    watcher.send(replace(full(1500, 0.4375, 6), agreement=replace(AGREEMENT, checkpoints=3)))
    watcher.close()

    pairs = table(server, "sampled_against_full")
    columns = ("step", "checkpoint", "metric", "sampled", "low", "high", "naive", "full", "difference", "inside")
    assert [tuple(pair[name] for name in columns) for pair in pairs] == [
        (500, "checkpoint-500:v3", "mrr@10", 0.25, 0.125, 0.375, 0.9, 0.5, -0.25, False),
        (1000, "checkpoint-1000:v3", "mrr@10", 0.5, 0.375, 0.625, 0.9, 0.5, 0.0, True),
        (1500, "checkpoint-1500:v3", "mrr@10", 0.375, 0.25, 0.5, 0.9, 0.4375, -0.0625, True),
    ]
    first, second, third = table(server, "error_and_cost")
    assert [row["strategy"] for row in (first, second, third)] == ["random 10%", "run_pool 20%", "full corpus"]
    assert (first["checkpoints"], first["covered"], first["with_interval"], first["documents"]) == (3, 2, 3, 1143)
    assert first["bias"] == pytest.approx(-0.3125 / 3) and first["median_s"] == 22.0 and first["regret"] == 0.0
    assert (second["checkpoints"], second["covered"], second["with_interval"], second["bias"]) == (1, 0, 0, 0.0)
    assert third["validated"] == 3 and third["bias"] is None
    assert [(row["step"], row["checkpoints"]) for row in table(server, "fidelity")] == [(1000, 2), (1500, 3)]
    assert [(row["query_id"], row["change"]) for row in table(server, "queries")] == [("q2", -0.375), ("q1", 0.5)]
    (row, *_) = table(server, "checkpoints")
    details = ("low", "high", "population_low", "population_high", "naive", "outranking")
    assert [row[f"mrr@10/{name}"] for name in details] == [0.125, 0.375, 0.125, 0.5, 0.9, 12.5] and row["lag/seconds"] == 181

    summary = server.run(RUN).summary
    with caplog.at_level(logging.INFO):
        write_report(state_dir, ReportSettings())
    assert f"vaswani: {summary['verdict']}" in caplog.messages
    assert "2 of 3 of the 95% intervals hold the full-corpus value" in summary["verdict"]
    begin = "mrr@10, random 10%, from step 1,000 to 1,500. Of 3 queries 1 gained, 1 lost and 1 stayed the same"
    assert summary["verdict/queries"].startswith(begin)


def test_what_cannot_be_summed_up_keeps_no_row_waiting(server: ServerHandle, start: Start, state_dir: Path) -> None:
    another_strategy(state_dir, encoded="some")  # as no version of ours writes it
    watcher = start()
    watcher.send(sampled(500, 0.25, 1))
    assert "no verdict and no tables" in watcher.close()
    assert steps(server) == [500] and undelivered(state_dir) == 0
    assert len(table(server, "checkpoints")) == 1 and "verdict" not in server.run(RUN).summary
