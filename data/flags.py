"""Numbers on the command line: argparse types that refuse a value outside its range with a sentence."""

import argparse
import math
from collections.abc import Callable


def whole(least: int) -> Callable[[str], int]:
    """A type for argparse: a whole number of at least `least`."""

    def read(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"expected at least {least}, got {value}")
        return value

    read.__name__ = "whole number"  # argparse names it when int() fails
    return read


def real(least: float, below: float = math.inf) -> Callable[[str], float]:
    """A type for argparse: a number in [least, below), never infinite or NaN."""
    limits = f"at least {least:g}" + (f" and below {below:g}" if below < math.inf else "")

    def read(text: str) -> float:
        value = float(text)
        if not least <= value < below:
            raise argparse.ArgumentTypeError(f"expected {limits}, got {text}")
        return value

    read.__name__ = "number"
    return read
