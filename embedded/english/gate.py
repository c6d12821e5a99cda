"""Exact accuracy on messages of a kind: a few share one list of tools, and none sees another.

Teacher-forced: an answer whose every token is the most likely one is the answer that greedy
decoding gives. The wish that a thought begins with and the wording of a sentence do not count;
names, arguments and values do. Shapes: B packs, T positions.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from random import Random

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from embedded.english.generate.corpus import HELD_OUT
from embedded.english.generate.pairs import two_turn
from embedded.english.generate.recipe import Recipe
from embedded.english.generate.thoughts import Document, Page, Segment
from embedded.english.generate.tool_documents import new_page
from embedded.english.generate.turns import missing_turn, one_turn, talk_turn, unfit_turn
from embedded.english.network import hidden_states
from embedded.english.packs import Placed, packs, to_batch
from model.transformer import Gemma2

COUNTED = ("pick", "args", "lack", "fill")
BRANCHES = 4  # messages about one list
KINDS: dict[str, Callable[[Page], list[Segment]]] = {
    "one": one_turn,
    "two": two_turn,
    "talk": talk_turn,
    "unfit": unfit_turn,
    "missing": missing_turn,
}
# Not asked for is what nobody could know: articles of values, keys that a list does not tell.
HELD = Recipe(
    HELD_OUT,
    apart=0.4,
    tidy=True,
    options=True,
    bare=True,
    keyed=True,
    talk=("talk2",),
    frames=("frames2",),
    joins=("joins2",),
    held=True,
)
SIZES = (2, 4, 6, 8)


def gate_documents(kind: str, recipe: Recipe, lists: int, seed: int = 1) -> Iterator[Document]:
    """Lists of two to eight tools in turn, each with a few messages of one kind."""
    rng = Random(seed)
    for number in range(lists):
        page, document = new_page(rng, recipe, SIZES[number % len(SIZES)])
        document.branches = [_first_turn(KINDS[kind](page)) for _ in range(BRANCHES)]
        yield document


def _first_turn(branch: list[Segment]) -> list[Segment]:
    """Without the result that may follow: it is another question."""
    ends = [i for i, (text, tag) in enumerate(branch) if tag == "user" and text == "\n"]
    return branch[: ends[0] + 1]


@torch.no_grad()
def gate(
    base: Gemma2,
    tokenizer: Tokenizer,
    trained: Recipe,
    *,
    rows: int,
    length: int,
    lists: int = 20,
) -> dict[str, float]:
    """Shares of messages without a mistake, by kind on what is held out.

    "known_one" is one call on the styles of the recipe `trained`, in whose form all are asked what
    is missing. `rows` and `length` are those of training: the blocks are compiled for them.
    """
    scores: dict[str, float] = {}
    held = replace(HELD, marked=trained.marked)
    known = replace(held, styles=trained.styles, held=False)
    asked = [(kind, kind, held) for kind in KINDS] + [("known_one", "one", known)]
    for name, kind, recipe in asked:
        found = list(packs(tokenizer, gate_documents(kind, recipe, lists), length))
        hits: dict[str, list[bool]] = {}
        done = 0
        for at in range(0, len(found), rows):
            some = found[at : at + rows]
            # A batch of fewer rows would be another shape and cost a compilation.
            filled = some + [some[-1]] * (rows - len(some))
            states = hidden_states(base, to_batch(filled, length))
            guesses = base.logits(states).argmax(-1).numpy()  # (B, T)
            for row, pack in enumerate(some):
                if done < lists * BRANCHES:
                    done += _score(pack, guesses[row], hits)
        shares = {f"{name}_{tag}": float(np.mean(values)) for tag, values in hits.items()}
        scores |= {tag: round(share, 3) for tag, share in shares.items()}
    return scores


def _score(pack: list[Placed], guesses: NDArray[np.int64], hits: dict[str, list[bool]]) -> int:
    """Adds to `hits`, by tag and for the whole, whether each branch was guessed without a mistake;
    returns their number.
    """
    at, count = 0, 0
    for placed in pack:
        at += len(placed.shared[0])
        for ids, tags in placed.branches:
            right = [True, *(guesses[at : at + len(ids) - 1] == ids[1:]).tolist()]
            for tag in {*tags} & {*COUNTED}:
                hits.setdefault(tag, []).append(
                    all(r for r, t in zip(right, tags, strict=True) if t == tag)
                )
            whole = all(r for r, t in zip(right, tags, strict=True) if t in COUNTED)
            hits.setdefault("whole", []).append(whole)
            at, count = at + len(ids), count + 1
    return count
