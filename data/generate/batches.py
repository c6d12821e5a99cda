"""Documents -> padded batches of token ids with a loss weight for each, never the same document twice.

Batches hold documents of like length, so that padding is small, no document mask is needed and the quadratic part of
attention stays short. Sequences are padded to one of a few lengths: each length is compiled once.
Shapes: B documents of a batch, T padded length.
"""

import random
from bisect import bisect_left
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from data.generate.documents import WEIGHTS, Segment, new_document
from data.generate.values import Source

LENGTHS = (64, 128, 192, 256, 320, 384, 448)
PAD, BOS = 0, 2
# Documents that are sorted by length together.
POOL = 640
Ids = NDArray[np.int64]
Weights = NDArray[np.float32]


def encode(tokenizer: Tokenizer, documents: list[list[Segment]]) -> list[tuple[list[int], list[str]]]:
    """Ids and tags of each document: a piece has the tag of the segment in which it ends; <bos> belongs to the user."""
    encodings = tokenizer.encode_batch(["".join(text for text, _ in document) for document in documents])
    examples = []
    for document, encoding in zip(documents, encodings, strict=True):
        ends = np.cumsum([len(text) for text, _ in document]).tolist()
        tags = [document[bisect_left(ends, end)][1] for _, end in encoding.offsets]
        examples.append(([BOS, *encoding.ids], ["user", *tags]))
    return examples


def pad(examples: list[tuple[list[int], list[str]]], length: int) -> tuple[Ids, Weights]:
    """Ids (B, T) and the loss weight of each id as a target (B, T); padding weighs nothing."""
    tokens = np.full((len(examples), length), PAD, dtype=np.int64)
    weights = np.zeros((len(examples), length), dtype=np.float32)
    for row, (ids, tags) in enumerate(examples):
        tokens[row, : len(ids)] = ids
        weights[row, : len(ids)] = [WEIGHTS[tag] for tag in tags]
    return tokens, weights


def batches(tokenizer: Tokenizer, seed: int, batch_tokens: int) -> Iterator[tuple[Ids, Weights]]:
    """Endless batches of about `batch_tokens` tokens, padding included, in random order of length."""
    source = Source(random.Random(seed))
    while True:
        examples = encode(tokenizer, [new_document(source) for _ in range(POOL)])
        by_length: dict[int, list[tuple[list[int], list[str]]]] = {length: [] for length in LENGTHS}
        for example in examples:
            if len(example[0]) <= LENGTHS[-1]:
                by_length[LENGTHS[bisect_left(LENGTHS, len(example[0]))]].append(example)
        made = []
        for length, group in by_length.items():
            size = batch_tokens // length
            # A rest that does not fill a batch is dropped: a new shape would cost a compilation.
            made += [pad(group[i : i + size], length) for i in range(0, len(group) - size + 1, size)]
        source.rng.shuffle(made)
        yield from made
