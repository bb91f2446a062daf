"""The keys of `report` in the configuration."""

from pathlib import Path

from dr_validate.component import component


@component
class ReportSettings:
    """`task=report`: where the page goes, `report.html` in the state_dir unless said otherwise."""

    out: Path | None = None
