"""What the programs print: text of any origin, to a stream that may be closed or know few letters.

Separate because rows, file names and replies all reach the terminal, and none of them may steer it
or end the program.
"""

import io
import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from common.cli import printable


def open_standard_streams() -> None:
    """Opens the null device in place of a standard stream that the caller has closed.

    Otherwise the next file that is opened gets its number, and what some library prints is written
    into that file.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number: this one


class Stream(io.TextIOBase):
    """Standard output or error, as it is at the moment of writing; a failure silences it."""

    def __init__(self, is_error: bool = False) -> None:
        self.is_error, self.is_lost = is_error, False

    def _target(self) -> Any:
        stream: Any = sys.stderr if self.is_error else sys.stdout
        # A progress bar of rich puts a stream in place of this one that would print through it.
        return getattr(stream, "rich_proxied_file", stream)

    @property
    def encoding(self) -> str:  # type: ignore[override]  # rich draws plainer where it is ASCII
        return str(getattr(self._target(), "encoding", None) or "utf-8")

    def isatty(self) -> bool:
        target = self._target()
        return target is not None and not target.closed and bool(target.isatty())

    def fileno(self) -> int:
        target = self._target()
        if target is None:
            raise io.UnsupportedOperation("fileno")
        return int(target.fileno())

    def write(self, text: str) -> int:
        """Writes what the stream's encoding has, and backslash escapes for the rest."""
        target = self._target()
        if target is None or self.is_lost:
            return len(text)
        try:
            target.write(text)
        except UnicodeEncodeError:
            encoding = self.encoding
            return self.write(text.encode(encoding, "backslashreplace").decode(encoding))
        except (OSError, ValueError):  # a reader that has gone, a full disk, a closed stream
            self._silence(target)
        return len(text)

    def flush(self) -> None:
        target = self._target()
        if target is None or self.is_lost:
            return
        try:
            target.flush()
        except (OSError, ValueError):
            self._silence(target)

    def _silence(self, target: Any) -> None:
        self.is_lost = True
        # What the stream still holds is flushed when Python ends, and would fail once more.
        with suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, target.fileno())
            os.close(null)


def has_colour(console: Console) -> bool:
    """False for NO_COLOR, a dumb terminal and a pipe, which all have to do with marks."""
    return console.is_terminal and console.color_system is not None and not console.no_color


class Screen(Console):
    """A console for text of any origin.

    No markup: to rich "[bold]" in a file's name would be a command. A stream that is closed while
    the program runs costs the text, not the program.
    """

    is_plain = False  # True: nothing that only a terminal is for, as a log wants it

    def __init__(self, is_error: bool = False) -> None:
        stream = Stream(is_error)
        super().__init__(file=stream, highlight=False, markup=False, emoji=False)  # type: ignore[arg-type]

    @property
    def is_terminal(self) -> bool:
        """False where `is_plain` says so, too."""
        return not self.is_plain and super().is_terminal

    def say(self, sentence: str) -> None:
        """Prints a sentence, whose lines the terminal breaks: it can be copied, and searched."""
        self.print(sentence, soft_wrap=True)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """As rich does, with another character for each that would steer the terminal."""
        for segment in super().render(renderable, options):
            # rich's own commands (cursor up, clear the line) are segments of their own kind.
            if segment.control:
                yield segment
            else:
                yield Segment(printable(segment.text), segment.style)
