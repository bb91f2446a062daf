"""HTML and SVG that cannot be broken by what is written into it: everything is escaped that is not `Markup` already.

And of it a table that can be sorted, from typed cells.
"""

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass

# A page is XML as well as HTML, so that any parser can read it; what neither can hold is shown as a replacement character.
_UNWRITABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_VOID = frozenset({"meta", "br", "col"})
Attribute = str | float | None


class Markup(str):
    """Text that is markup already and is not escaped again."""

    __slots__ = ()


def escaped(text: str) -> Markup:
    """`text` as it should be read, in an element or in a quoted attribute."""
    return text if isinstance(text, Markup) else Markup(html.escape(_UNWRITABLE.sub("\ufffd", text)))


def join(*parts: str | None) -> Markup:
    """The parts one after the other; None is nothing."""
    return Markup("".join(escaped(part) for part in parts if part is not None))


def el(name: str, /, *children: str | None, **attributes: Attribute) -> Markup:
    """One element. `class_` stands for class, `stroke_width` for stroke-width; an attribute that is None is left out."""
    pairs = ((key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items() if value is not None)
    opening = "".join(f' {key}="{_attribute(value)}"' for key, value in pairs)
    if name in _VOID:
        assert not children, f"<{name}> has no content"
        return Markup(f"<{name}{opening}/>")
    return Markup(f"<{name}{opening}>{join(*children)}</{name}>")


def _attribute(value: str | float) -> str:
    if isinstance(value, str):
        return escaped(value)
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


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
