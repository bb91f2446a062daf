"""The table of what validation costs a training, of two rounds made by hand."""

from typing import Any

from scripts.research.beside_training import table


def measured(wall_s: float, step_s: float, losses: list[str], **more: Any) -> dict[str, Any]:
    rest: dict[str, Any] = {"blocked_s": 0.0, "waited_s": 0.0, "delays_s": [], "cpu_s": 1.0, "beside_cpu_s": 0.0, "values": {}}
    return {"wall_s": wall_s, "step_s": step_s, "losses": losses, **rest, **more}


def test_ratios_are_of_one_round_and_equal_losses_are_counted() -> None:
    beside = {"blocked_s": 4.5, "waited_s": 4.25, "delays_s": [3.0, 5.0], "beside_cpu_s": 8.0, "values": {"20": 0.5}}
    blocking = {"blocked_s": 20.0, "delays_s": [9.0, 11.0], "values": {"20": 0.4375}}
    rounds = [
        {
            "alone": measured(wall_s, step_s, ["a"]),
            "asynchronous": measured(1.5 * wall_s, 1.25 * step_s, ["a"], **beside),
            "blocking": measured(3 * wall_s, step_s, [last], **blocking),
        }
        for wall_s, step_s, last in ((10.0, 0.5, "a"), (30.0, 1.5, "b"))
    ]
    lines = table(rounds).splitlines()
    assert lines[2] == "| no validation | 20.0 | 1.00 | 1.000 | 1.00 | 0.00 | 0.0 |  | 1.0 | 0.0 | 2 of 2 |"
    assert lines[3] == "| `AsyncValidation` | 30.0 | 1.50 | 1.250 | 1.25 | 0.25 | 4.2 | 4.0 (3.0 to 5.0) | 1.0 | 8.0 | 2 of 2 |"
    assert lines[4].startswith(
        "| sentence-transformers' evaluator | 60.0 | 3.00 | 1.000 | 1.00 | 20.00 | 0.0 | 10.0 (9.0 to 11.0) |"
    )
    assert lines[4].endswith("| 1 of 2 |")
    # What differs after that is the training, not its validation.
    known = "ndcg@10 of 1 checkpoints that both validations met with equal losses until then"
    assert lines[-1] == f"{known}; largest difference of the two values 0.062."
