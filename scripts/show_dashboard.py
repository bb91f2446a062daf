"""What the W&B project of `scripts/demo.sh --wandb` shows: runs, curves, artifacts, lineage; read by W&B's public API."""

import os

import wandb
from rich.console import Console
from rich.table import Table

METRIC = "val/pydoc/mrr@10"


def main() -> None:
    console = Console(width=110)
    api = wandb.Api()
    project = f"{os.environ['WANDB_ENTITY']}/{os.environ['WANDB_PROJECT']}"
    for run in api.runs(project):
        console.print(f"run {run.name} (job_type {run.job_type}, group {run.group}, {run.state})", highlight=False)
        rows = [row for row in run.scan_history() if row.get(METRIC) is not None]
        if rows:
            console.print(curve(rows))
    for collection in api.artifact_type("model", project).collections():
        for version in collection.artifacts():
            used = ", ".join(str(user.name) for user in version.used_by())
            size = f"{version.size / 2**20:.1f} MiB"
            console.print(
                f"artifact {version.name} ({size}, {', '.join(version.aliases)}) used by: {used}",
                highlight=False,
                soft_wrap=True,
            )


def curve(rows: list[dict[str, float]]) -> Table:
    table = Table(title=f"{METRIC} on train/global_step", title_justify="left", show_edge=False)
    for name in ("step", "value", "low", "high", ""):
        table.add_column(name, justify="left" if not name else "right")
    highest = max(row[METRIC] for row in rows)
    for row in sorted(rows, key=lambda row: row["train/global_step"]):
        numbers = [f"{row[key]:.4f}" for key in (METRIC, f"{METRIC}/low", f"{METRIC}/high")]
        table.add_row(str(int(row["train/global_step"])), *numbers, "█" * round(24 * row[METRIC] / highest))
    return table


if __name__ == "__main__":
    main()
