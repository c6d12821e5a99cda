"""What the base can do on held-out documents: the exact accuracies that pretraining is judged by.

Shapes: B packs, T positions, V vocabulary.
"""

import random

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from embedded.generate.batches import Example, encode, pack, to_batch
from embedded.generate.documents import gate_document
from embedded.generate.values import MADE_UP, Source
from embedded.pretrain_model import hidden_states
from model.transformer import Gemma2

KINDS = ("fill", "double", "none", "coined", "everyday", "natural")
# What the model may word freely is not compared.
UNSCORED = frozenset(("", "user", "say"))
Hits = dict[str, list[bool]]


def _source(kind: str, seed: int) -> Source:
    """Held-out documents of a kind.

    "coined" has invented words alone, none of which the model has met; "everyday" asks mostly in
    idioms, "natural" in the forms of `embedded/generate/natural.py`, of which only the words are
    held out.
    """
    return Source(
        random.Random(seed),
        held=True,
        made_up=1.0 if kind == "coined" else MADE_UP,
        everyday=float(kind == "everyday"),
        natural=float(kind == "natural"),
    )


@torch.no_grad()
def gate(
    base: Gemma2,
    tokenizer: Tokenizer,
    *,
    rows: int,
    length: int,
    documents: int = 64,
    seed: int = 1,
) -> dict[str, float]:
    """Exact accuracy by kind and part: choice, field list, filled record, and the whole answer.

    Teacher-forced: if every token of an answer is the most likely one, greedy decoding gives this
    answer. One forward pass measures it without generating.
    """
    scores: dict[str, float] = {}
    for kind in KINDS:
        source = _source(kind, seed)
        made = [gate_document(source, kind) for _ in range(documents)]
        packs = pack(encode(tokenizer, made), length)
        # Whole batches, filled up with the last pack: another shape would cost a compilation.
        packs += [packs[-1]] * (-len(packs) % rows)
        hits: Hits = {}
        for i in range(0, len(packs), rows):
            group = packs[i : i + rows]
            states = hidden_states(base, to_batch(group, length, {}))
            guesses = base.logits(states).argmax(-1).cpu().numpy()  # (B, T, V) -> (B, T)
            for row, examples in enumerate(group):
                _score(examples, guesses[row], hits)
        for tag, right in hits.items():
            scores[f"{kind}_{tag}"] = round(float(np.mean(right)), 3)
    return scores


def _score(examples: list[Example], guesses: NDArray[np.int64], hits: Hits) -> None:
    """Adds to `hits`, by tag, whether each example of a pack was guessed without a mistake."""
    start = 0
    for ids, tags in examples:
        # The guess at a position is for the next one; <bos> is not guessed.
        right = [True, *(guesses[start : start + len(ids) - 1] == ids[1:]).tolist()]
        pairs = list(zip(right, tags, strict=True))
        scored = {*tags} - UNSCORED
        for tag in scored:
            hits.setdefault(tag, []).append(all(r for r, t in pairs if t == tag))
        hits.setdefault("whole", []).append(all(r for r, t in pairs if t in scored))
        start += len(ids)
