"""What a chat consists of: ordinary text and control tokens.

Separate from `wire.py`, whose table of formats needs writers that need these.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Tag:
    """A control token, by its name. A type of its own, so that no string ever equals a tag."""

    name: str

    def __str__(self) -> str:
        return self.name


Piece = str | Tag
Body = str | Sequence[Piece]  # what lies between two marks
