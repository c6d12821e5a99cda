"""What a chat consists of: ordinary text and control tokens.

Separate from `wire.py`, whose table of formats needs writers that need these.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Tag:
    """A control token, by its name. A type of its own, so that no string ever equals a tag."""

    name: str

    def __str__(self) -> str:
        return self.name


Piece = str | Tag
Body = str | Sequence[Piece]  # what lies between two marks


def join_texts(body: Iterable[Piece]) -> list[Piece]:
    """Return the pieces with neighbouring texts as one; a reply that streams cuts them anywhere."""
    pieces: list[Piece] = []
    for piece in body:
        if isinstance(piece, str) and pieces and isinstance(pieces[-1], str):
            pieces[-1] += piece
        elif piece != "":
            pieces.append(piece)
    return pieces
