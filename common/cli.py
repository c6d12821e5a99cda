"""The command line: a parser that complains in one sentence, numbers with a range, and which
errors are the user's."""

import argparse
import math
from collections.abc import Callable, Mapping
from typing import NoReturn

from common.screen import visible

# What a wrong input raises; a program that meets one of them ends with exit code 2.
USER_ERRORS = (
    ValueError,
    FileNotFoundError,
    FileExistsError,
    NotADirectoryError,
    IsADirectoryError,
    PermissionError,
)


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

    def error(self, message: str) -> NoReturn:
        """Ends the program with exit code 2."""
        self.exit(2, f"{self.prog}: {visible(shorten(message))}; see --help\n")


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
