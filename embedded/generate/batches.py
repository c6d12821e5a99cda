"""Documents -> packed batches of token ids, each with a loss weight; no document comes twice.

A pack holds whole documents: the document ids keep attention inside each, and positions restart.
Every batch has one shape, so that a compiled model is compiled once.
Shapes: B packs of a batch, T pack length.
"""

import random
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from embedded.generate.documents import Segment, new_document
from embedded.generate.values import Source

PAD, BOS = 0, 2
# Documents that are packed together: enough that nearly every pack is filled.
POOL = 256
# The ids of a document and the tag of each.
Example = tuple[list[int], list[str]]


@dataclass(frozen=True)
class Batch:
    """Ids, positions, document ids and the loss weight of each id as a target, all (B, T).

    tokens     2 a b 2 c d e 0        (2 is <bos>, 0 padding)
    positions  0 1 2 0 1 2 3 0
    documents  1 1 1 2 2 2 2 0
    weights    0 u m 0 u u m 0        (u a user's token, m a model's)
    """

    tokens: NDArray[np.int64]
    positions: NDArray[np.int64]
    documents: NDArray[np.int64]
    weights: NDArray[np.float32]


def encode(tokenizer: Tokenizer, documents: list[list[Segment]]) -> list[Example]:
    """Ids and tags of each document: a piece has the tag of the segment in which it ends."""
    texts = ["".join(text for text, _ in document) for document in documents]
    encodings = tokenizer.encode_batch(texts)
    examples = []
    for document, encoding in zip(documents, encodings, strict=True):
        ends = np.cumsum([len(text) for text, _ in document]).tolist()
        tags = [document[bisect_left(ends, end)][1] for _, end in encoding.offsets]
        examples.append(([BOS, *encoding.ids], ["", *tags]))  # nothing is predicted before <bos>
    return examples


def pack(examples: list[Example], length: int) -> list[list[Example]]:
    """Groups examples into packs of at most `length` tokens; longer examples are dropped.

    First-fit decreasing: longest first, each into the first pack with room.
    """
    packs: list[list[Example]] = []
    room: list[int] = []
    for example in sorted(examples, key=lambda e: -len(e[0])):
        size = len(example[0])
        if size > length:
            continue
        i = next((i for i, free in enumerate(room) if free >= size), len(packs))
        if i == len(packs):  # no pack has room
            packs.append([])
            room.append(length)
        packs[i].append(example)
        room[i] -= size
    return packs


def to_batch(packs: list[list[Example]], length: int, weights_: dict[str, float]) -> Batch:
    """Lays packs out as arrays; a tag that `weights_` does not name has weight 1.

    A short pack ends in padding: id, position, document and weight 0.
    """
    tokens = np.full((len(packs), length), PAD, dtype=np.int64)
    positions, documents = np.zeros_like(tokens), np.zeros_like(tokens)
    weights = np.zeros(tokens.shape, dtype=np.float32)
    for row, examples in enumerate(packs):
        start = 0
        for number, (ids, tags) in enumerate(examples, start=1):
            part = slice(start, start + len(ids))
            tokens[row, part], positions[row, part] = ids, range(len(ids))
            documents[row, part] = number
            weights[row, part] = [weights_.get(tag, 1.0) if tag else 0.0 for tag in tags]
            start = part.stop
    return Batch(tokens, positions, documents, weights)


def batches(
    tokenizer: Tokenizer, seed: int, rows: int, length: int, weights: dict[str, float]
) -> Iterator[Batch]:
    """Endless batches of `rows` packs, in random order."""
    source = Source(
        random.Random(seed), fluent=True, everyday=0.35, verbless=0.35, shared=0.4, natural=0.3
    )
    while True:
        packs = pack(encode(tokenizer, [new_document(source) for _ in range(POOL)]), length)
        source.rng.shuffle(packs)
        # A rest that does not fill a batch is dropped: another shape would cost a compilation.
        for i in range(0, len(packs) - rows + 1, rows):
            yield to_batch(packs[i : i + rows], length, weights)
