"""Documents about tools: one list, then many messages that are each answered as if it were the
first.

A list costs tokens and teaches little, so it is shared: a document is the list, and branches that
see the list and themselves but not one another.
"""

import json
from collections.abc import Callable
from random import Random

from embedded.english.generate.entries import choose_tools, new_entries
from embedded.english.generate.pairs import two_turn
from embedded.english.generate.recipe import Recipe
from embedded.english.generate.sheets import list_text, new_layout
from embedded.english.generate.thoughts import USER, Document, Page, Segment
from embedded.english.generate.turns import missing_turn, one_turn, only_turn, talk_turn, unfit_turn

Build = Callable[[Page], list[Segment]]
TURNS: tuple[Build, ...] = (one_turn, two_turn, talk_turn, unfit_turn, missing_turn, only_turn)


def new_page(rng: Random, recipe: Recipe, count: int) -> tuple[Page, Document]:
    entries = new_entries(rng, choose_tools(rng, recipe, count), recipe.own)
    layout = new_layout(rng, recipe)
    page = Page(rng, entries, layout, recipe)
    return page, Document([(USER + list_text(rng, layout, entries), "page")])


def tools_document(rng: Random, recipe: Recipe) -> Document:
    """A list of tools and more messages than a pack has room for."""
    page, document = new_page(rng, recipe, rng.choice(recipe.sizes))
    document.branches = [rng.choices(TURNS, recipe.turns)[0](page) for _ in range(recipe.branches)]
    return document


def show(document: Document) -> str:
    """A document as text, for reading."""
    branches = ["".join(text for text, _ in branch) for branch in document.branches]
    return (
        json.dumps("".join(t for t, _ in document.shared), ensure_ascii=False)
        + "\n"
        + "\n----\n".join(branches)
    )
