"""The parts of a document about tools: what a user types, what the model thinks, the record.

A piece is (text, tag): "page" and "user" are read; "wish", "pick", "args", "lack", "fill" and "say"
are what the model writes.
"""

import re
from dataclasses import dataclass, field
from random import Random

from embedded.english.generate.corpus import Scalar, Tool
from embedded.english.generate.entries import Entry
from embedded.english.generate.messages import Wish, frame_message, roughen
from embedded.english.generate.recipe import Recipe
from embedded.english.generate.sheets import Layout

Segment = tuple[str, str]
USER, MODEL, END = "<start_of_turn>user\n", "<start_of_turn>model\n", "<end_of_turn>"
# What the model thinks before it fills or answers; the fine-tune keeps these very phrases.
WISH, FITS, NEEDS, NOTHING = "{w}:", " {e} fits.", "It needs {fields}.", "It needs nothing."
LACKS, NONE_FITS, UNFIT = "{f} is missing.", "None fits.", " none fits."
MARK = " (missing)"


@dataclass
class Document:
    """`shared` is read once; each branch goes on from it by itself."""

    shared: list[Segment]
    branches: list[list[Segment]] = field(default_factory=list)


@dataclass(frozen=True)
class Page:
    """What the branches of one document have in common."""

    rng: Random
    entries: list[Entry]
    layout: Layout
    recipe: Recipe

    @property
    def tools(self) -> list[Tool]:
        return [e.tool for e in self.entries]


@dataclass(frozen=True)
class Asked:
    """A message with one wish or more; of each its entry and its opening words, in the order in
    which they are to be done. `lowered` where the values lost their capitals too.
    """

    text: str
    lowered: bool
    wishes: list[tuple[Entry, Wish, str]]


def opening(wish: Wish, lowered: bool) -> str:
    """The first words of a request as they are typed: where in the message the wish stands."""
    return first_words(wish.text.lower() if lowered else wish.text)


def first_words(text: str) -> str:
    """Its first four words, without marks at their ends."""
    words = [w for w in re.split(r"\s+", text.strip()) if w][:4]
    return " ".join(words).strip(" .,:;!?\"'`(/-")


def needed(entry: Entry, wish: Wish) -> list[str]:
    """The arguments to be filled, in the entry's order: the required ones and those that are
    mentioned.
    """
    return [a.name for a in entry.arguments if a.required or a.name in wish.values]


def thought(entry: Entry, wish: Wish, lead: str = "", opened: str = "") -> list[Segment]:
    names = [entry.names[n] for n in needed(entry, wish)]
    needs = NEEDS.format(fields=", ".join(names)) if names else NOTHING
    return [*_chosen(entry, lead, opened), (" " + needs, "args")]


def _chosen(entry: Entry, lead: str, opened: str) -> list[Segment]:
    return [(lead + WISH.format(w=opened), "wish"), (FITS.format(e=entry.name), "pick")]


def lacking_thought(entry: Entry, wish: Wish, opened: str, marked: bool) -> list[Segment]:
    """The thought about a wish that lacks a value, which it names after the list or, marked, within
    it: there whether a value is missing is asked of one argument at a time.
    """
    shown = entry.names[wish.missing]
    if not marked:
        return [*thought(entry, wish, opened=opened), (" " + LACKS.format(f=shown), "lack")]
    fields = [entry.names[n] for n in needed(entry, wish)]
    after = fields.index(shown) + 1
    start, end = NEEDS.split("{fields}")
    return [
        *_chosen(entry, "", opened),
        (f" {start}{', '.join(fields[:after])}", "args"),
        (MARK, "lack"),
        (", ".join(["", *fields[after:]]) + end, "args"),
    ]


def record(page: Page, entry: Entry, wish: Wish, lowered: bool) -> Segment:
    values: dict[str, Scalar] = {}
    enums = {a.name for a in entry.tool.arguments if a.enum} if page.recipe.options else set()
    for name in needed(entry, wish):
        said = wish.values[name]
        value = said.value
        if lowered and name not in enums and isinstance(value, str):
            is_part = page.recipe.bare and said.said.endswith(f" {value}")
            value = value.lower() if value == said.said or is_part else value
        values[entry.names[name]] = value
    return "\n" + page.layout.record(entry.name, values), "fill"


def calls(page: Page, asked: Asked) -> list[Segment]:
    """What the model writes for wishes that can be served: the thoughts first, then the records."""
    answer: list[Segment] = []
    for number, (entry, wish, opened) in enumerate(asked.wishes):
        answer += thought(entry, wish, " " if number else "", opened)
    return answer + [record(page, entry, wish, asked.lowered) for entry, wish, _ in asked.wishes]


def turn(message: str, answer: list[Segment], started: bool = True) -> list[Segment]:
    """A user's message and the model's answer; the first one of a branch goes on within the list's
    own turn.
    """
    text, tag = answer[-1]
    head = message if started else USER + message
    return [(f"{head}{END}\n{MODEL}", "user"), *answer[:-1], (text + END, tag), ("\n", "user")]


def typed(page: Page, wish: Wish, clause: bool) -> tuple[str, bool, str]:
    """The message of one wish, whether it is in lower case, and the wish's opening words as they
    stand there.
    """
    pieces = frame_message(page.rng, wish, clause, page.recipe)
    text, lowered = roughen(page.rng, pieces)
    return text, lowered, find_opening(text, wish, page.recipe.tidy)


def find_opening(message: str, wish: Wish, tidy: bool) -> str:
    """The opening as the message spells it: frames and slips may have changed its letters."""
    words = opening(wish, False)
    at = message.lower().find(words.lower())
    if at < 0 and tidy:
        words = words.replace("'", "")
        at = message.lower().find(words.lower())
    return message[at : at + len(words)] if at >= 0 else words


def pick(page: Page) -> Entry:
    return page.rng.choice(page.entries)
