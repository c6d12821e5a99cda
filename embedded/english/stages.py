"""The recorded stages of the pretraining, and the documents of each: a stage that was trained on
never changes again.

Each goes on from the exported weights of an earlier one, with new optimizer state and a short
warm-up.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from random import Random

from embedded.english.generate.bound import bound_document
from embedded.english.generate.defined import defined_document
from embedded.english.generate.general import text_document, word_document
from embedded.english.generate.lookups import lookup_document
from embedded.english.generate.recipe import Recipe
from embedded.english.generate.thoughts import Document
from embedded.english.generate.tool_documents import tools_document
from embedded.generate.documents import new_document
from embedded.generate.values import Source


@dataclass(frozen=True)
class Stage:
    """What one stage is trained on, how long and how fast.

    mixture    shares of the documents: tools, the grammar of invented words, words, general text,
               lists of definitions, words looked up, values beside the words of their arguments
    decay      whether the rate falls to zero over the stage: a base to use, a dead end for training
    after      the stage whose weights it begins with; the first begins with embedded.pretrain's
    picks      weight of the tokens that choose a tool, 1 for the others that a model writes
    fields     weight of those that list its fields, and end there or say what is missing
    widens     whether whole words become pieces first, and all layers see far (words.py)
    batches    batches of a step, which as many processes can share
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
    picks: float = 3.0
    fields: float = 1.0
    widens: bool = False
    batches: int = 1


HAND_STYLES = (
    *("travel", "home", "work", "devops", "knowledge", "lookup"),
    *("phone", "shop", "life", "office", "town"),
)
# The choice of a tool is what comes last, and a small part of the tokens: a quarter of the messages
# are a choice alone.
BASIC = Recipe(
    HAND_STYLES,
    sizes=(1, 2, 2, 3, 3, 4, 4, 5, 6, 8),
    mates=0.2,
    schemas=0.06,
    apart=0.4,
    tidy=True,
    talk=("talk", "talk2"),
    frames=("frames", "frames2"),
    joins=("joins", "joins2"),
    turns=(41, 24, 6, 12, 10, 25),
)
LONG = replace(BASIC, branches=24)
# Four times as many tools, each with a few plain requests: what decides is how many different ones.
PLAIN_STYLES = ("everyday", "commerce", "science", "business", "civic")
PLAIN = replace(LONG, styles=(*HAND_STYLES, *PLAIN_STYLES * 3))
WORDS = replace(PLAIN, turns=(34, 18, 6, 14, 8, 30))
WORDS_MIX = (0.66, 0.1, 0.03, 0.05, 0.16)
LOOKS_MIX = (0.56, 0.07, 0.02, 0.04, 0.11, 0.2)
BINDS_MIX = (0.5, 0.05, 0.02, 0.03, 0.1, 0.18, 0.12)
NEARS = replace(WORDS, near=0.5)
NEARS_MIX = (0.45, 0.04, 0.02, 0.03, 0.1, 0.2, 0.16)
# Families of like tools, asked for in more ways and within more that is no request; values that
# suit the tools. What tells one wish from two is how the list of fields ends.
FAMILY_STYLES = ("errands", "desk", "systems", "learning", "roads", "apps", "services")
WAYS = replace(
    NEARS,
    styles=(*HAND_STYLES, *PLAIN_STYLES * 3, *FAMILY_STYLES * 2),
    sizes=(1, 2, 2, 3, 3, 3, 4, 4, 5, 6, 8),
    listed=0.5,
    mates=0.0,
    options=True,
    own=0.4,
    bare=True,
    keyed=True,
    talk=("talk", "talk2", "talk3"),
    frames=("frames", "frames2", "frames3"),
    joins=("joins", "joins2", "joins3"),
    turns=(46, 16, 6, 10, 6, 16),
)
WAYS_MIX = (0.68, 0.03, 0.02, 0.02, 0.06, 0.1, 0.09)
# Families as a whole, results of every tool, and more that cannot be served.
KIN = replace(
    WAYS,
    styles=(*HAND_STYLES, *PLAIN_STYLES * 2, *FAMILY_STYLES * 3),
    listed=0.7,
    close=0.35,
    results=True,
    turns=(40, 16, 6, 17, 14, 7),
)
# Talk on the subjects of the tools, one tool wanted twice, values left out; a longer decay.
DONE = replace(KIN, more=True, marked=True, turns=(38, 18, 10, 14, 13, 7))
KIN_MIX = (0.74, 0.02, 0.01, 0.02, 0.05, 0.08, 0.08)
STAGES = (
    Stage("warm", 7, 8_192_000, BASIC, (0.5, 0.22, 0.06, 0.06, 0.16), 0.01, 1.5e-3, True, "", 2.0),
    Stage("wide", 8, 5_017_600, LONG, (0.5, 0.16, 0.05, 0.05, 0.24), 0.01, 1.5e-3, False, "warm"),
    Stage("plain", 9, 13_312_000, PLAIN, (0.62, 0.12, 0.04, 0.04, 0.18), 0.015, 2e-3, True, "wide"),
    Stage("words", 10, 16_056_320, WORDS, WORDS_MIX, 0.006, 1e-3, False, "plain", widens=True),
    Stage("looks", 12, 7_053_312, WORDS, LOOKS_MIX, 0.006, 1e-3, False, "words", batches=2),
    Stage("binds", 14, 15_114_240, WORDS, BINDS_MIX, 0.006, 1e-3, False, "looks", batches=2),
    Stage("nears", 16, 42_319_872, NEARS, NEARS_MIX, 0.006, 1e-3, False, "binds", batches=2),
    Stage(
        "ways", 18, 20_152_320, WAYS, WAYS_MIX, 0.006, 1e-3, False, "nears", fields=2.0, batches=2
    ),
    Stage("end", 19, 12_042_240, WAYS, WAYS_MIX, 0.006, 1e-3, True, "ways", fields=2.0, batches=2),
    Stage("kin", 20, 11_083_776, KIN, KIN_MIX, 0.006, 1e-3, False, "ways", fields=2.0, batches=2),
    Stage("done", 21, 30_007_296, DONE, KIN_MIX, 0.006, 1e-3, True, "kin", fields=2.0, batches=2),
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
    kinds: tuple[Callable[[], Document], ...] = (
        lambda: tools_document(rng, stage.recipe),
        lambda: grammar_document(source),
        lambda: word_document(rng),
        lambda: text_document(rng),
        lambda: defined_document(rng, stage.recipe),
        lambda: lookup_document(rng, stage.recipe),
        lambda: bound_document(rng, stage.recipe),
    )
    while True:
        (make,) = rng.choices(kinds[: len(stage.mixture)], stage.mixture)
        yield make()
