"""Two pictures of the README (the third is of research/proxies.py), from a demo that has run:
`bash scripts/demo.sh && .venv/bin/python scripts/pictures.py`.

`.github/report.png`: the top of the page of task=report, by Chromium. `.github/curve.png`: what stands in W&B under
`charts/pydoc/mrr@10`: value and interval as now known, full-corpus values, and the uncorrected values.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib

from dr_validate.ledger.ledger import Ledger
from dr_validate.ledger.reports import revised

METRIC = "mrr@10"
ROOT = Path(__file__).resolve().parents[1]
STATE = ROOT / "runs" / "demo" / "state"
WIDTH, HEIGHT = 1200, 900  # pixels


def main() -> None:
    matplotlib.use("Agg")
    target = ROOT / ".github"
    draw_curve(target / "curve.png")
    shoot_page(target / "report.png")


def draw_curve(path: Path) -> None:
    from matplotlib import pyplot

    with Ledger(STATE / "ledger.db", read_only=True) as ledger:
        specs = ledger.specs()
        full = [report for spec, told in specs.items() if told["baseline"] for report in ledger.reports(spec, ["done"])]
        sampled = [report for spec, told in specs.items() if not told["baseline"] for report in ledger.reports(spec, ["done"])]
    sampled = revised(sampled, full)
    steps = [report.checkpoint.step for report in sampled]
    estimates = [report.metrics[METRIC] for report in sampled]
    figure, axes = pyplot.subplots(figsize=(7.2, 3.4), dpi=160)
    axes.fill_between(
        steps, [e.low for e in estimates], [e.high for e in estimates], alpha=0.2, label="95% interval of the full-corpus value"
    )
    axes.plot(steps, [e.value for e in estimates], marker="o", markersize=4, label="sampled, corrected")
    axes.plot(steps, [e.naive for e in estimates], linestyle=":", label="sampled, uncorrected")
    points = [(report.checkpoint.step, report.metrics[METRIC].value) for report in full]
    axes.scatter(*zip(*points, strict=True), marker="x", color="black", zorder=3, label="full corpus (baseline)")
    axes.set(xlabel="training step (train/global_step)", ylabel="MRR@10", ylim=(0, None))
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.tight_layout()
    figure.savefig(path)


def shoot_page(path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        sys.exit("the page is drawn by Chromium, which is not on this machine (apt-get install chromium)")
    with tempfile.TemporaryDirectory() as profile:
        options = ["--headless", "--no-sandbox", "--hide-scrollbars", f"--user-data-dir={profile}"]
        place = (STATE / "report.html").as_uri()
        shot = [browser, *options, f"--window-size={WIDTH},{HEIGHT}", f"--screenshot={path}", place]
        subprocess.run(shot, check=True, capture_output=True, timeout=120)


if __name__ == "__main__":
    main()
