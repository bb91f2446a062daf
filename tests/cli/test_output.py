"""What is printed: brackets are text, and a table never decides how a run ends."""

import io
import logging
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from dr_validate.cli.status import outcome_table
from dr_validate.process import OneLine, ProgressBar, Stream, new_console, printable, say_error
from dr_validate.values import Estimate
from tests.factories import valued_report as report

BRACKETS = "pip install 'dr_validate[cpu]' [red]x[/] :smile: [/nothing]"


def test_brackets_and_colons_in_a_message_are_text(capsys: pytest.CaptureFixture[str]) -> None:
    new_console(200).print(BRACKETS)
    assert capsys.readouterr().out == f"{BRACKETS}\n"


def test_brackets_in_a_table_are_text(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.table import Table

    table = Table(title=BRACKETS)
    table.add_column(BRACKETS)
    table.add_row(BRACKETS)
    new_console(200).print(table)
    assert capsys.readouterr().out.count(BRACKETS) == 3


class Broken(io.StringIO):
    """A pipe that nobody reads any more."""

    def write(self, text: str) -> int:
        raise BrokenPipeError


@pytest.mark.parametrize("stream", [None, Broken()], ids=["closed", "broken"])
def test_what_nobody_reads_is_dropped(stream: Any) -> None:
    output = Stream(stream)
    for _ in range(2):
        assert output.write("a line\n") == 7
        output.flush()
    assert not output.isatty()


def test_a_stream_that_has_been_closed_is_no_error() -> None:
    closed = io.StringIO()
    closed.close()
    assert Stream(closed).write("a line\n") == 7


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_what_an_encoding_lacks_is_replaced(encoding: str) -> None:
    content = io.BytesIO()
    stream = Stream(io.TextIOWrapper(content, encoding=encoding))
    stream.write("\u22120.5 ± 1 ██│ 日本 \udcff\n")
    stream.flush()
    said = content.getvalue().decode(encoding)
    assert said.endswith("\n")
    assert encoding == "utf-8" or (said.startswith("-0.5 +/- 1 ") and "##|" in said)


def test_a_log_without_utf8_shows_no_escapes() -> None:
    content = io.BytesIO()
    stream = Stream(io.TextIOWrapper(content, encoding="ascii", errors="backslashreplace"))
    stream.write("by \u22120.5\n")
    stream.flush()
    assert content.getvalue() == b"by -0.5\n"


@pytest.mark.parametrize("width", [1, 2, 5, 10, 20, 40, 80])
def test_a_narrow_terminal_gets_a_table_too(width: int, capsys: pytest.CaptureFixture[str]) -> None:
    estimate = Estimate(value=0.1063, low=0.0774, high=0.1351, naive=0.1981)
    reports = [report(100, "s", estimate), report(200, "s", None)]
    new_console(width).print(outcome_table(reports, [], "mrr@10"))
    assert capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--help"], ["task=status"], ["--version"]], ids=" ".join)
@pytest.mark.parametrize("stream", ["nobody reads", "full", "ascii"])
def test_the_exit_code_is_that_of_the_work(arguments: list[str], stream: str, tmp_path: Path) -> None:
    (tmp_path / ".dr_validate").mkdir()
    reader, writer = os.pipe()
    os.close(reader)
    target = os.open("/dev/full", os.O_WRONLY) if stream == "full" else writer if stream == "nobody reads" else subprocess.PIPE
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "dr_validate", *arguments]
    result = subprocess.run(
        command, stdout=target, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=environment, check=False
    )
    os.close(writer)
    assert (result.returncode, result.stderr) == (0, "")


def test_the_version_is_that_of_this_program(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dr_validate", "--version"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert result.stdout.startswith("dr_validate ")


HOSTILE = "checkpoint-5\n2026-11-26 21:00:00,000 INFO    forged\x1b]0;title\x07\x1b[31m\r\x9b\u2028\u202e\ud800"
SECRET = "https://user:pa:ss@host/path?x=a@b"


@pytest.mark.parametrize("kind", ["message", "error"])
def test_nothing_in_a_name_or_an_error_forges_a_line_or_steers_a_terminal(kind: str) -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(OneLine("%(levelname)s %(message)s"))
    log = logging.Logger("hostile")
    log.addHandler(handler)
    if kind == "message":
        log.warning("%s: %s", HOSTILE, SECRET)
    else:
        try:
            raise ValueError(f"{HOSTILE} {SECRET}")
        except ValueError:
            log.exception("failed")
    said = stream.getvalue()
    assert said.encode().decode().replace("\n", "").isprintable()
    assert not [line for line in said.splitlines() if line.startswith("2026")]
    assert kind == "error" or said.count("\n") == 1
    assert "checkpoint-5" in said and "pa:ss" not in said and "https://***@host/path?x=a@b" in said


def test_nothing_in_a_name_steers_the_terminal_from_a_table_or_the_last_message(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.table import Table

    table = Table(HOSTILE, title=HOSTILE)
    table.add_row(HOSTILE)
    new_console(300).print(table)
    new_console(300).print(HOSTILE)
    say_error(f"first\nsecond {HOSTILE} {SECRET}")
    out, err = capsys.readouterr()
    assert out.replace("\n", "").isprintable() and err.replace("\n", "").isprintable()
    assert err.startswith("first\nsecond ") and "pa:ss" not in err


def test_nothing_in_a_name_steers_the_terminal_from_a_progress_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "300")
    shown = ProgressBar()
    shown.begin(HOSTILE)
    shown.show({"phase": HOSTILE, "done": 1, "total": 2})
    shown.end()
    assert isinstance(sys.stderr, io.StringIO)
    said = sys.stderr.getvalue()
    assert "checkpoint-5" in said and "forged\\x1b]0;title\\x07" in said
    assert "2026" not in [line[:4] for line in said.splitlines()]
    assert not {"\x1b]", "\x07", "\x9b", "\u2028", "\u202e", "\ud800"} & {*said, *(a + b for a, b in pairwise(said))}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://api:sesame@host/graphql", "https://***@host/graphql"),
        ("GET /x?api_key=sesame&b=1: refused", "GET /x?api_key=***&b=1: refused"),
        ("(https://h/f?X-Amz-Signature=sesame)", "(https://h/f?X-Amz-Signature=***)"),
        ("https://h/f?sv=2&sig=sesame%3D next", "https://h/f?sv=2&sig=*** next"),
        ("https://h/f?page=2&x=a@b", "https://h/f?page=2&x=a@b"),
    ],
)
def test_logins_and_keys_in_addresses_are_hidden(text: str, shown: str) -> None:
    assert printable(text) == shown == printable(shown)
