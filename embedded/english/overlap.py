"""What a choice by words alone gets right: the yardstick for the gate's `pick`.

    python -m embedded.english.overlap

Each word of a tool's name, description and arguments takes the cosine of its vector and the nearest
word's of the request, to the third power, so that near ones count; the tool with the highest mean,
rare words first, is chosen. Nothing is trained. A model that chooses worse has not learned to hold
a request against a list.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from random import Random

import numpy as np

from embedded.english.gate import HELD, SIZES
from embedded.english.generate.entries import Entry, spoken
from embedded.english.generate.recipe import Recipe
from embedded.english.generate.tool_documents import new_page
from embedded.english.generate.turns import ask_one
from embedded.english.words import Floats, read_words

LISTS, MESSAGES = 200, 3  # lists of tools, and messages about each
Vectors = dict[str, tuple[Floats, float]]


def word_vectors() -> Vectors:
    """Each lower-case word's unit vector and weight: the rarer, the heavier."""
    words, vectors = read_words()
    rows = zip(words, vectors, strict=True)
    return {w: (v, math.log(10 + rank)) for rank, (w, v) in enumerate(rows) if w.islower()}


def known_words(text: str, vectors: Vectors) -> list[str]:
    return [w for w in re.findall(r"[a-z]+", text.lower()) if w in vectors]


def likeness(request: Sequence[str], entry: Entry, vectors: Vectors) -> float:
    """How like an entry's words are to those of a request, 0 to 1."""
    names = " ".join(spoken(name) for name in (entry.name, *entry.names.values()))
    found = [vectors[w] for w in known_words(f"{names} {entry.description}", vectors)]
    if not request or not found:
        return 0.0
    table = np.stack([vector for vector, _ in found])
    cosines = (table @ np.stack([vectors[w][0] for w in request]).T).clip(0).max(1) ** 3
    return float(np.average(cosines, weights=[weight for _, weight in found]))


def chosen_share(recipe: Recipe, lists: int = LISTS, seed: int = 3) -> float:
    """The share of right choices on lists of two to eight tools."""
    rng, vectors, right = Random(seed), word_vectors(), 0
    for number in range(lists):
        page, _ = new_page(rng, recipe, SIZES[number % len(SIZES)])
        for _ in range(MESSAGES):
            asked = ask_one(page)
            request = known_words(asked.text, vectors)
            best = max(page.entries, key=lambda entry: likeness(request, entry, vectors))
            right += best is asked.wishes[0][0]
    return right / (lists * MESSAGES)


if __name__ == "__main__":
    for styles in (("apart",), ("leisure", "money")):
        print(f"{', '.join(styles)}: {chosen_share(replace(HELD, styles=styles)):.0%}")
