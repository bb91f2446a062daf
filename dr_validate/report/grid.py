"""A table that can be sorted, from typed cells."""

from collections.abc import Sequence
from dataclasses import dataclass

from dr_validate.report.markup import Markup, el


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """What a cell shows and what its column is sorted by; numbers stand to the right."""

    shown: str
    sort: float | str | None = None
    look: str | None = None

    @property
    def markup(self) -> Markup:
        kind = "number" if isinstance(self.sort, (int, float)) else None
        classes = " ".join(part for part in (kind, self.look) if part) or None
        return el("td", self.shown, class_=classes, data_sort=None if self.sort is None else str(self.sort))


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """`name` in the head; `number` columns have it to the right; `group` stands over neighbours that share it."""

    name: str
    number: bool = True
    group: str = ""


Row = Sequence[Cell]
EMPTY = Cell(shown="")


def table(columns: Sequence[Column], rows: Sequence[Row], caption: str) -> Markup:
    """Sortable by its heads; columns without a single value are left out."""
    kept = [place for place in range(len(columns)) if any(row[place].shown for row in rows)]
    shown = [columns[place] for place in kept]
    body = [el("tr", *(row[place].markup for place in kept)) for row in rows]
    heads = [el("th", column.name, scope="col", class_="number" if column.number else None) for column in shown]
    groups = _groups(shown)
    head = el("thead", groups, el("tr", *heads, class_="names"))
    whole = el("table", el("caption", caption), head, el("tbody", *body), class_="sortable")
    return el("div", whole, class_="wide", tabindex="0", role="region", aria_label=caption)


def _groups(columns: Sequence[Column]) -> Markup | None:
    if not any(column.group for column in columns):
        return None
    runs: list[list[Column]] = []
    for column in columns:
        if runs and runs[-1][0].group == column.group:
            runs[-1].append(column)
        else:
            runs.append([column])
    cells = [
        el("th", run[0].group, scope="colgroup", colspan=str(len(run)), class_="group" if run[0].group else None)
        for run in runs
    ]
    return el("tr", *cells)


def text(shown: str | None, look: str | None = None) -> Cell:
    return Cell(shown=shown or "", sort=shown or "", look=look)


def numeric(value: float | None, shown: str, look: str | None = None) -> Cell:
    """Empty where there is no value."""
    return Cell(shown=shown, sort=value, look=look) if value is not None and shown else EMPTY
