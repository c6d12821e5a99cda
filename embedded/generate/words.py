"""The vocabulary: plain lists of English words and names, and the syllables of made-up ones.

Separate from the grammar so that the lists can grow without touching it. Every word and every value belongs to exactly one
side of the split, which a checksum decides, so that training and held-out rows of the grammar share no content word.
"""

from functools import cache
from typing import TypeVar
from zlib import crc32

from embedded.generate.domains import NOUNS as NOUNS
from embedded.generate.domains import VERBS as VERBS
from embedded.generate.lists import entries

Item = TypeVar("Item")

# One word of the lists in this many is held out, one other value, and one sentence template.
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

# Syllables of invented words: a frequent sound is listed more than once, and most syllables end in a vowel.
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
    return tuple(
        word
        for word in dict.fromkeys(words)
        if (crc32(word.lower().encode()) % HELD_WORDS == 0) == held
    )


@cache
def templates(texts: tuple[Item | None, ...], held: bool) -> tuple[Item, ...]:
    """The sentence templates of one side: every fifth place is held out, so that each list has some on both sides."""
    last = HELD_TEMPLATES - 1
    return tuple(
        text
        for i, text in enumerate(texts)
        if text is not None and (i % HELD_TEMPLATES == last) == held
    )
