"""Whatever is written into it, the markup holds."""

from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from dr_validate.report.markup import Markup, el, join

HOSTILE = "</script><script>alert('1')</script> \"&amp;\" <b x='"


def test_hostile_text_is_read_as_text() -> None:
    made = el("p", HOSTILE, title=HOSTILE)
    parsed = ElementTree.fromstring(made)
    assert (parsed.text, parsed.get("title"), len(parsed)) == (HOSTILE, HOSTILE, 0)
    assert "<script" not in made


@given(st.text(st.characters(exclude_categories=[]), max_size=40))
def test_any_text_gives_a_file_that_can_be_written_and_parsed(text: str) -> None:
    made = el("p", text, title=text).encode()
    assert len(ElementTree.fromstring(made)) == 0


def test_markup_is_not_escaped_again_and_nothing_is_nothing() -> None:
    assert join(el("b", "x"), None, "<") == "<b>x</b>&lt;"
    assert isinstance(join(), Markup)
    assert el("td", class_="a", data_sort=None, stroke_width=1.50) == '<td class="a" stroke-width="1.5"></td>'
