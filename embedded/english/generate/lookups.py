"""Lists, and messages of a few words that one entry has, or that are near to one of its words.

Holding the words of a message against those of a list is the skill that a choice needs, and here it
is alone: short messages, 29 choices in a pack where tools have 11, about any words at all.
What is near is what GloVe's vectors say (`overlap.py` chooses by them alone).
"""

import re
from functools import cache
from random import Random

import numpy as np
from numpy.typing import NDArray

from embedded.english.generate.corpus import wordings
from embedded.english.generate.defined import VAGUE
from embedded.english.generate.defined import new_entries as new_senses
from embedded.english.generate.entries import (
    COMMON,
    LITTLE,
    Entry,
    choose_tools,
    new_entries,
    spoken,
)
from embedded.english.generate.messages import roughen
from embedded.english.generate.recipe import Recipe
from embedded.english.generate.sheets import list_text, new_layout
from embedded.english.generate.thoughts import (
    FITS,
    UNFIT,
    USER,
    WISH,
    Document,
    Segment,
    first_words,
    turn,
)
from embedded.english.words import read_words

BRANCHES = 40
SENSES, NEAR, MISSING = 0.5, 0.5, 0.12  # lists of meanings; messages of near words; without entry
# Cosines: of a near word at least, of a word that no entry has at most, nearer to its own entry.
CLOSE, STRANGE, MARGIN = 0.55, 0.3, 0.1
NEAREST = 8  # of the words near to one, the most that are used
TRIES = 300  # most draws for the branches of a list whose words say little


@cache
def _centred() -> tuple[dict[str, int], NDArray[np.int64], NDArray[np.float64]]:
    """Lower-case words, their vectors without the mean of all, and the lengths. Whole numbers: a
    product of them is the same on every machine.
    """
    words, vectors = read_words()
    rows = [i for i, word in enumerate(words) if word.islower()]
    whole = np.rint(vectors[rows] * 127).astype(np.int64)
    whole -= np.rint(whole.mean(0)).astype(np.int64)
    places = {words[row]: i for i, row in enumerate(rows)}
    return places, whole, np.sqrt((whole**2).sum(1))


def nearest_cosine(word: str, others: list[str]) -> float:
    """The cosine of a word and the nearest of the others; words without a vector do not count."""
    places, vectors, lengths = _centred()
    at = [places[other] for other in others if other in places]
    if word not in places or not at:
        return 0.0
    one = places[word]
    return float((vectors[at] @ vectors[one] / (lengths[at] * lengths[one])).max())


@cache
def near_words(word: str) -> tuple[str, ...]:
    """The nearest words that begin otherwise; none for a word without a vector."""
    places, vectors, lengths = _centred()
    if word not in places:
        return ()
    cosines = vectors @ vectors[places[word]] / (lengths * lengths[places[word]])
    listed = list(places)
    nearest = [listed[i] for i in np.argsort(-cosines, kind="stable")[1 : NEAREST + 1]]
    return tuple(w for w in nearest if w[:4] != word[:4] and cosines[places[w]] > CLOSE)


def content_words(entry: Entry) -> list[str]:
    """The telling words of a name, a description and argument names, each once."""
    names = [spoken(name) for name in (entry.name, *entry.names.values())]
    found = re.findall(r"[a-z]{4,}", " ".join([*names, entry.description]).lower())
    telling = [word for word in found if word not in VAGUE | LITTLE and word[:5] not in COMMON]
    return list(dict.fromkeys(telling))


def lookup_document(rng: Random, recipe: Recipe) -> Document:
    """A list of tools or of meanings, and messages of one to three words."""
    count = rng.choice(recipe.sizes)
    if rng.random() < SENSES:
        entries = [entry for entry, _ in new_senses(rng, recipe, count)]
    else:
        entries = new_entries(rng, choose_tools(rng, recipe, count))
    document = Document([(USER + list_text(rng, new_layout(rng, recipe), entries), "page")])
    listed = [content_words(entry) for entry in entries]
    for _ in range(TRIES):
        if len(document.branches) < BRANCHES and (branch := _turn(rng, entries, listed)):
            document.branches.append(branch)
    if not document.branches:  # entries that share all their words
        document.branches.append(_answered(rng, "", UNFIT))
    return document


def _turn(rng: Random, entries: list[Entry], listed: list[list[str]]) -> list[Segment]:
    """A message and its choice; nothing where no words are the entry's alone."""
    if rng.random() < MISSING:
        word = rng.choice([*_centred()[0]])
        every = [other for words in listed for other in words]
        strange = nearest_cosine(word, every) < STRANGE and not _shares(word, every)
        return _answered(rng, word, UNFIT) if strange else []
    at = rng.randrange(len(entries))
    others = [word for i, words in enumerate(listed) if i != at for word in words]
    own = [word for word in listed[at] if not _shares(word, others)]
    said = rng.sample(own, min(len(own), rng.choice((1, 1, 2, 2, 3))))
    if rng.random() < NEAR:
        said = [near for word in said if (near := _near(rng, word, others))]
    return _answered(rng, " ".join(said), FITS.format(e=entries[at].name)) if said else []


def _shares(word: str, others: list[str]) -> bool:
    return any(word[:5] == other[:5] for other in others)


def _near(rng: Random, word: str, others: list[str]) -> str:
    """A word near to one of an entry's and less near to those of the others, or ""."""
    fitting = [
        near
        for near in near_words(word)
        if nearest_cosine(near, others) + MARGIN < nearest_cosine(near, [word])
        and not _shares(near, others)
    ]
    return rng.choice(fitting) if fitting else ""


def _answered(rng: Random, said: str, choice: str) -> list[Segment]:
    words = said.split()
    form = rng.choice(wordings("about a word")).format(w=said)
    if len(words) == 2 and rng.random() < 0.5:
        form = rng.choice(wordings("about two words")).format(a=words[0], b=words[1])
    text, _ = roughen(rng, [(form if len(words) < 3 else said, False)], values=False)
    return turn(text, [(WISH.format(w=first_words(text)), "wish"), (choice, "pick")])
