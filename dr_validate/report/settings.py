"""The keys of `report` in the configuration."""

from dr_validate.component import UserPath, component


@component
class ReportSettings:
    """`task=report`: where the page goes, `report.html` in the state_dir unless said otherwise."""

    out: UserPath | None = None
