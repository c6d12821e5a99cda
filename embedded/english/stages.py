"""The recorded stages of the pretraining, and the documents of each: a stage that was trained on
never changes again.

Each goes on from the exported weights of an earlier one, with new optimizer state and a short
warm-up.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from random import Random

from embedded.english.generate.defined import defined_document
from embedded.english.generate.general import text_document, word_document
from embedded.english.generate.recipe import Recipe
from embedded.english.generate.thoughts import Document
from embedded.english.generate.tool_documents import tools_document
from embedded.generate.documents import new_document
from embedded.generate.values import Source


@dataclass(frozen=True)
class Stage:
    """What one stage is trained on, how long and how fast.

    mixture    shares of the documents: tools, the grammar of invented words, words, general text,
               lists of definitions
    decay      whether the rate falls to zero over the stage: a base to use, a dead end for training
    after      the stage whose weights it begins with, none for the first
    picks      weight of the tokens that choose a tool, 1 for the others that a model writes
    """

    name: str
    seed: int
    tokens: int
    recipe: Recipe
    mixture: tuple[float, ...]
    muon_rate: float
    adam_rate: float
    decay: bool
    after: str = ""
    picks: float = 1.0


FIRST_STYLES = ("travel", "home", "work", "devops", "knowledge", "lookup", "phone", "shop")
TEN_STYLES = (*FIRST_STYLES, "life", "office")
SECOND = Recipe(
    TEN_STYLES,
    sizes=(1, 2, 2, 3, 3, 4, 4, 5, 6, 8),
    mates=0.2,
    schemas=0.06,
    turns=(41, 24, 6, 12, 10, 7),
)
# As the second, with one style, talk, frames and joins more; more of the tools and less of the
# rest: what a fine-tune begins with.
LAST = replace(
    SECOND,
    styles=(*TEN_STYLES, "town"),
    apart=0.4,
    tidy=True,
    talk=("talk", "talk2"),
    frames=("frames", "frames2"),
    joins=("joins", "joins2"),
)
# The choice of a tool is what comes last, and a small part of the tokens.
THIRD = replace(LAST, turns=(41, 24, 6, 12, 10, 25))
# Many short choices from one short list: four times as many choices in a token.
CHOOSE = replace(THIRD, turns=(14, 10, 3, 8, 4, 70), sizes=(2, 2, 3, 3, 4, 5), branches=40)
# A choice that cannot be learnt by heart: a third of the lists are words and their definitions.
DEFINED = replace(THIRD, branches=24)
MEANINGS = (0.42, 0.02, 0.08, 0.08, 0.4)
STAGES = (
    Stage("first", 0, 843_776, Recipe(FIRST_STYLES), (0.42, 0.1, 0.2, 0.28), 0.02, 3e-3, False),
    Stage("second", 1, 4_608_000, SECOND, (0.4, 0.06, 0.28, 0.26), 0.02, 3e-3, False, "first"),
    Stage("second-end", 2, 1_925_120, LAST, (0.55, 0.05, 0.2, 0.2), 0.02, 3e-3, True, "second"),
    Stage("third", 3, 4_014_080, THIRD, (0.6, 0.04, 0.2, 0.16), 0.02, 3e-3, False, "second", 3.0),
    Stage("choose", 4, 6_144_000, CHOOSE, (0.8, 0.03, 0.1, 0.07), 0.02, 3e-3, False, "third", 3.0),
    Stage("last", 5, 6_144_000, THIRD, (0.7, 0.03, 0.15, 0.12), 0.02, 3e-3, True, "choose", 3.0),
    Stage("defined", 6, 20_480_000, DEFINED, MEANINGS, 0.02, 3e-3, False, "choose", 3.0),
)


def grammar_document(source: Source) -> Document:
    """One of the earlier grammar, whose words are mostly invented: copying and look-up that nothing
    can be known for.
    """
    return Document([], [new_document(source)])


def documents(stage: Stage, seed: int | None = None) -> Iterator[Document]:
    """The stage's endless documents, always the same ones."""
    rng = Random(stage.seed if seed is None else seed)
    source = Source(
        Random(rng.random()), fluent=True, everyday=0.35, verbless=0.35, shared=0.4, natural=0.3
    )
    while True:
        kind = rng.choices(range(len(stage.mixture)), stage.mixture)[0]
        if kind == 0:
            yield tools_document(rng, stage.recipe)
        elif kind == 1:
            yield grammar_document(source)
        elif kind == 2:
            yield word_document(rng)
        elif kind == 3:
            yield text_document(rng)
        else:
            yield defined_document(rng, stage.recipe)
