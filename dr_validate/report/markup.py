"""HTML and SVG that cannot be broken by what is written into it: everything is escaped that is not `Markup` already."""

import html
import re

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
