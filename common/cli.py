"""The command line: a parser that complains in one sentence, numbers with a range, text without
control codes, and which errors are the user's."""

import argparse
import io
import math
import re
import sys
from collections.abc import Callable, Mapping
from typing import NoReturn

# What a wrong input raises; a program that meets one of them ends with exit code 2.
USER_ERRORS = (
    ValueError,
    FileNotFoundError,
    FileExistsError,
    NotADirectoryError,
    IsADirectoryError,
    PermissionError,
)

# Codes that could move a terminal's cursor, change its state or turn the order of letters around;
# line ends and tabs may stay.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """Text that a terminal shows and does not obey, for names of files and contents of rows."""
    return CONTROL.sub("\ufffd", text)


def tolerate_encodings() -> None:
    """Lets no character end the program: one that cannot be shown becomes "?".

    A byte of the input that is no text becomes half a surrogate pair, which the tokenizer refuses.
    """
    for stream, errors in (
        (sys.stdin, "surrogateescape"),
        (sys.stdout, "replace"),
        (sys.stderr, "replace"),
    ):
        if isinstance(
            stream, io.TextIOWrapper
        ):  # None where it is closed; a test puts others there
            stream.reconfigure(errors=errors)


class ShowDefaults(argparse.HelpFormatter):
    """Appends each flag's default to its help, unless the text names it or there is none.

    `described` has the words for flags whose default depends on others, by destination.
    """

    def __init__(self, prog: str, described: Mapping[str, str]) -> None:
        super().__init__(prog)
        self.described = described

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = action.help or ""
        if action.dest in self.described:
            return f"{text} (default: {self.described[action.dest]})"
        # `is`, because 0 == False in Python, and 0 is a default worth showing.
        absent = any(action.default is value for value in (None, False, argparse.SUPPRESS))
        if absent or "default" in text:
            return text
        return f"{text} (default: %(default)s)".strip()


class Parser(argparse.ArgumentParser):
    """argparse without the block of usage in front of an error, which hides the sentence."""

    def __init__(self, description: str, defaults: Mapping[str, str] | None = None) -> None:
        """`defaults` describes those that depend on other flags, by destination, for --help."""

        def formatter(*, prog: str) -> ShowDefaults:
            return ShowDefaults(prog, defaults or {})

        super().__init__(description=description, formatter_class=formatter)
        self.where = ""  # the file that the flags are read from, as "FILE: "

    def error(self, message: str) -> NoReturn:
        """Ends the program with exit code 2."""
        message = f"{self.where}{shorten(message)}"
        self.exit(2, printable(f"{self.prog}: {message}; see --help\n"))


def shorten(message: str, most: int = 400) -> str:
    """At most about so many letters, the middle left out: a flag's value may be of any length."""
    half = most // 2
    return message if len(message) <= most else f"{message[:half]} ... {message[-half:]}"


def int_at_least(least: int, most: int = 10**9) -> Callable[[str], int]:
    """A type for argparse: a whole number from `least` to `most`.

    There is always a limit: counts are multiplied with one another and become floats.
    """

    def read(text: str) -> int:
        value = int(text)
        if not least <= value <= most:
            limit = f"at least {least}" if value < least else f"at most {most:,}"
            raise argparse.ArgumentTypeError(f"expected {limit}, got {text}")
        return value

    read.__name__ = "whole number"  # argparse names it when int() fails
    return read


def float_in(least: float, below: float = math.inf) -> Callable[[str], float]:
    """A type for argparse: a number in [least, below), never infinite or NaN."""
    limits = f"at least {least:g}" + (f" and below {below:g}" if below < math.inf else "")

    def read(text: str) -> float:
        value = float(text)
        # Written so that NaN, which compares as false with everything, is refused too.
        if not least <= value < below:
            raise argparse.ArgumentTypeError(f"expected {limits}, got {text}")
        return value

    read.__name__ = "number"
    return read
