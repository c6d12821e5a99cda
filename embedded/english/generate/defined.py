"""Lists whose entries are words and their definitions, and messages that one of them serves.

Separate because this choice cannot be learnt by heart: WordNet has tens of thousands of meanings,
and a message names its entry by a synonym, by an example sentence or by words of the definition.
"""

import re
from random import Random

from embedded.english.generate.corpus import Tool, tools, wordings
from embedded.english.generate.entries import Entry, split_name, styled
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
from embedded.english.generate.wordnet import Sense, plain_senses

VAGUE = frozenset("something someone there during used that with from this which into have".split())
MISSING = 0.12  # of the messages are about a meaning that is not on the list


def defined_document(rng: Random, recipe: Recipe) -> Document:
    """A list of meanings, and a message about one of them in each branch."""
    entries = new_entries(rng, recipe, rng.choice(recipe.sizes))
    layout = new_layout(rng, recipe)
    document = Document([(USER + list_text(rng, layout, [e for e, _ in entries]), "page")])
    document.branches = [_turn(rng, entries) for _ in range(recipe.branches)]
    return document


def new_entries(rng: Random, recipe: Recipe, count: int) -> list[tuple[Entry, Sense]]:
    """Meanings as entries under one of their words, with the arguments of some tool."""
    entries: dict[str, tuple[Entry, Sense]] = {}
    while len(entries) < count:
        sense = rng.choice(plain_senses())
        if not ask(rng, sense, ""):
            continue
        word = rng.choice(sense.words)
        name = styled(rng, split_name(re.sub(r"\W+", "_", word)) or ["entry"], 0.4)
        like = rng.choice(tools(rng.choice(recipe.styles)))
        tool = Tool("words", name, sense.gloss, like.arguments[:2], (), (), ())
        entries[name] = (
            Entry(tool, name, sense.gloss, {a.name: a.name for a in tool.arguments}),
            sense,
        )
    return list(entries.values())


def ask(rng: Random, sense: Sense, name: str) -> str:
    """A message about a meaning, if possible without its word `name`; "" where there is none."""
    others = [w for w in sense.words if w.lower() != name.lower()]
    content = [w for w in re.findall(r"\b[a-z]{4,}\b", sense.gloss) if w not in VAGUE]
    forms = []
    if others:
        forms.append(rng.choice(wordings("about a word")).format(w=rng.choice(others)))
    if sense.examples:
        forms.append(rng.choice(sense.examples))
    if len(content) > 3:
        a, b = rng.sample(content, 2)
        forms.append(rng.choice(wordings("about two words")).format(a=a, b=b))
    return rng.choice(forms) if forms else ""


def _turn(rng: Random, entries: list[tuple[Entry, Sense]]) -> list[Segment]:
    entry, sense = rng.choice(entries)
    is_missing = rng.random() < MISSING
    while is_missing and any(sense is one for _, one in entries):
        sense = rng.choice(plain_senses())
    said = ask(rng, sense, "" if is_missing else entry.name)
    text, _ = roughen(rng, [(said or sense.gloss, False)], values=False)
    choice = UNFIT if is_missing else FITS.format(e=entry.name)
    return turn(text, [(WISH.format(w=first_words(text)), "wish"), (choice, "pick")])
