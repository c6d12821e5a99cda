"""Token ids by the bytes that they write: which ids may come next where only some bytes may.

Built when the first id is refused, since a model that spells its names right needs none of it: a
vocabulary of 256,000 takes a second.
"""

import re
from bisect import bisect_left
from functools import cached_property, lru_cache

from data.tokenizer import Tokenizer

# What can end the state that a byte finds: structure, and the quotes around names
_SPECIAL = re.compile(rb"[\"'#{}\[\],:\\]")
_LEADING = re.compile(rb"[ \t\r\n]*(?:[\"'{}\[\],:]|$)")


class Vocabulary:
    """The ordinary ids of a tokenizer, found by their bytes; control ids apart."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.control_ids = tokenizer.control_ids
        self._spelled: dict[int, bytes | None] = {}

    def spelling(self, id: int) -> bytes | None:
        """The bytes of an id; None for a control id and for one that the tokenizer lacks."""
        if id not in self._spelled:
            self._spelled[id] = self.tokenizer.spelling(id)
        return self._spelled[id]

    @cached_property
    def ordinary(self) -> list[tuple[bytes, int]]:
        """(bytes, id), sorted: ids with a common beginning are neighbours."""
        every = ((self.spelling(id), id) for id in range(len(self.tokenizer)))
        return sorted((data, id) for data, id in every if data)

    @cached_property
    def _ids_of(self) -> dict[bytes, list[int]]:
        found: dict[bytes, list[int]] = {}  # a quote, for one, may be a piece and a byte token
        for data, id in self.ordinary:
            found.setdefault(data, []).append(id)
        return found

    @cached_property
    def special(self) -> list[tuple[bytes, int]]:
        """The ids with a quote or a bracket or the like somewhere in them."""
        return [(data, id) for data, id in self.ordinary if _SPECIAL.search(data)]

    @cached_property
    def plain(self) -> list[int]:
        """All others."""
        return [id for data, id in self.ordinary if not _SPECIAL.search(data)]

    @cached_property
    def leading(self) -> list[tuple[bytes, int]]:
        """The ids that begin with such a byte, after spaces or at once, and those of spaces."""
        return [(data, id) for data, id in self.ordinary if _LEADING.match(data)]

    def beginnings(self, text: bytes) -> list[tuple[bytes, int]]:
        """The ids whose bytes are the beginning of `text`, or all of it."""
        cuts = (text[:length] for length in range(1, len(text) + 1))
        return [(cut, id) for cut in cuts for id in self._ids_of.get(cut, ())]

    def continuations(self, text: bytes) -> list[tuple[bytes, int]]:
        """The ids whose bytes begin with all of `text` and go on."""
        found = []
        place = bisect_left(self.ordinary, (text, 1 << 62))
        while place < len(self.ordinary) and self.ordinary[place][0].startswith(text):
            found.append(self.ordinary[place])
            place += 1
        return found


vocabulary_of = lru_cache(maxsize=4)(Vocabulary)  # one for all rows and replies
