"""The vocabulary (words/vocabulary.txt), and which words, values and templates are held out.

Separate from the grammar so that the lists can grow without touching it. A checksum puts each word
and each value on one side, so that training and held-out rows share no content word.
"""

from functools import cache
from typing import TypeVar
from zlib import crc32

from embedded.generate.domains import NOUNS as NOUNS
from embedded.generate.domains import VERBS as VERBS
from embedded.generate.lists import entries

Item = TypeVar("Item")

# One in this many is held out: of the words of the lists, of other values, of sentence templates.
HELD_WORDS, HELD_VALUES, HELD_TEMPLATES = 3, 6, 5

ADJECTIVES = entries("vocabulary", "adjectives")
PHRASAL = entries("vocabulary", "two-word verbs")
STREETS = entries("vocabulary", "streets")
NAMES = entries("vocabulary", "names")
SURNAMES = entries("vocabulary", "surnames")
CITIES = entries("vocabulary", "cities")
PRODUCTS = entries("vocabulary", "products")
TOPICS = entries("vocabulary", "topics")
WEEKDAYS = entries("vocabulary", "weekdays")
MONTHS = entries("vocabulary", "months")
OPTIONS = entries("vocabulary", "options")
FLAGS = entries("vocabulary", "flags")
DOMAINS = entries("vocabulary", "mail domains")
ENDINGS = entries("vocabulary", "mail endings")

# Syllables of invented words: frequent sounds are listed twice, and many syllables have no coda.
ONSETS = entries("vocabulary", "onsets")
VOWELS = entries("vocabulary", "vowels")
CODAS = ("",) * 14 + entries("vocabulary", "codas")


def _all_words() -> tuple[str, ...]:
    """Every word of the lists in lower case, to make new words of."""
    lists = (ADJECTIVES, NAMES, SURNAMES, CITIES, PRODUCTS, TOPICS, OPTIONS, FLAGS, NOUNS, VERBS)
    parts = [part for words in lists for word in words for part in word.lower().split("_")]
    return tuple(dict.fromkeys(part for part in parts if len(part) > 2))


ALL = _all_words()


@cache
def side(text: str) -> bool:
    """True where a value (a number, a date, an invented word) belongs to the held-out side."""
    return crc32(text.lower().encode()) % HELD_VALUES == 0


@cache
def mine(words: tuple[str, ...], held: bool) -> tuple[str, ...]:
    """The words of one side; may be none where the list is short."""
    # crc32 and not hash(): hash() of a string differs from one Python process to the next.
    is_held = {word: crc32(word.lower().encode()) % HELD_WORDS == 0 for word in words}
    return tuple(word for word in is_held if is_held[word] == held)


@cache
def templates(texts: tuple[Item | None, ...], held: bool) -> tuple[Item, ...]:
    """The sentence templates of one side.

    By place and not by checksum: a list of five must have one that is held out.
    """
    last = HELD_TEMPLATES - 1
    own = [text for i, text in enumerate(texts) if (i % HELD_TEMPLATES == last) == held]
    return tuple(text for text in own if text is not None)
