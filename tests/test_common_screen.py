"""What is printed: nothing steers the terminal, and no stream ends the program."""

import io
import os
import subprocess
import sys
from typing import Any

import pytest
from rich.table import Table
from rich.text import Text

from common.cli import printable
from common.screen import Screen


class Target(io.StringIO):
    """A stream whose writes fail, or that knows ASCII only."""

    def __init__(self, error: Exception | None = None, encoding: str = "utf-8") -> None:
        super().__init__()
        self.error, self.name_of_encoding, self.tries = error, encoding, 0

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self.name_of_encoding

    def write(self, text: str) -> int:
        self.tries += 1
        if self.error:
            raise self.error
        text.encode(self.encoding)
        return super().write(text)


@pytest.mark.parametrize(
    "printed",
    ["a\x1b[2Jb\x07", Text("a\x1b[2Jb\x07", style="bold green"), Table("a\x1b[2Jb\x07")],
    ids=["sentence", "styled", "table"],
)
def test_escape_sequences_become_visible(printed: Any, capsys: pytest.CaptureFixture[str]) -> None:
    Screen().print(printed)
    text = capsys.readouterr().out
    assert "a\ufffd[2J" in text and "\x1b" not in text and "\x07" not in text


def test_everything_that_steers_and_nothing_else() -> None:
    kept = "\n\tö☃ [bold]:smile:"
    assert printable(kept) == kept
    steering = "\r\x08\x1b\x7f\x9b\u202e\u2066"
    assert len(printable(steering)) == len(steering) and not set(steering) & set(
        printable(steering)
    )


def test_styles_still_reach_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    Screen().print(Text("x", style="bold green"))
    assert "\x1b[1;32mx\x1b[0m" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["[/nothing]", "[red]x[/red]", ":smile:"])
def test_brackets_are_no_commands(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    Screen(is_error=True).say(text)
    assert capsys.readouterr().err == text + "\n"


def test_a_letter_that_the_stream_has_not_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    target = Target(encoding="ascii")
    monkeypatch.setattr(sys, "stdout", target)
    Screen().say("snow ☃, half \udc80")
    assert target.getvalue() == "snow \\u2603, half \\udc80\n"


@pytest.mark.parametrize("error", [BrokenPipeError(), OSError(28, "full"), ValueError("closed")])
def test_a_stream_that_fails_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    target, screen = Target(error), Screen()
    monkeypatch.setattr(sys, "stdout", target)
    for _ in range(3):
        screen.say("x")
    assert target.tries == 1


def test_without_a_stream_there_is_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    Screen().say("x")


def test_a_closed_standard_stream_gives_its_number_to_no_file() -> None:
    code = (
        "import os; from common.screen import open_standard_streams as o; o();"
        "print(os.open('/dev/null', os.O_RDONLY), file=__import__('sys').stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        stderr=subprocess.PIPE,
        preexec_fn=lambda: os.closerange(0, 2),
        check=True,
        timeout=60,
    )
    assert int(done.stderr) > 2
