"""Documents -> packed batches of token ids with a loss weight for each.

A pack holds documents one after the other. In a document the branches follow the shared part; a
branch sees the shared part and itself, and its positions go on from the shared part's, as if it
stood there alone. Shapes: B packs of a batch, T pack length.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from embedded.english.generate.thoughts import Document, Segment

PAD, BOS = 0, 2
MOST_BRANCHES = 64
# A pack with less room than this is closed: hardly a branch or a paragraph would fit.
SCRAP = 48
WEIGHTS = {"page": 0.0, "user": 0.1, "say": 0.5, "text": 0.4}
Coded = tuple[list[int], list[str]]


@dataclass(frozen=True)
class Batch:
    """Ids, positions and groups (B, T), int64, and each id's loss weight as a target, float32.

    tokens     2 a b c d e f 0        (2 is <bos>, 0 padding)
    positions  0 1 2 3 4 3 4 0        (two branches after a shared part of three)
    groups     64 64 64 65 65 66 66 0 (document * 64 + branch, 0 for what is shared)
    weights    0 p p u m 0 m 0        (p the list's, u a user's, m a model's)

    The first id of a later branch is no target: the one before it belongs to another branch.
    """

    tokens: NDArray[np.int64]
    positions: NDArray[np.int64]
    groups: NDArray[np.int64]
    weights: NDArray[np.float32]


@dataclass
class Placed:
    """A document as it stands in a pack, and the branches that had room."""

    shared: Coded
    branches: list[Coded]


def encode(tokenizer: Tokenizer, parts: list[list[Segment]]) -> list[Coded]:
    """Ids and tags: a piece has the tag of the segment in which it ends."""
    coded = []
    for part, encoding in zip(
        parts, tokenizer.encode_batch(["".join(t for t, _ in p) for p in parts]), strict=True
    ):
        ends = np.cumsum([len(text) for text, _ in part]).tolist()
        coded.append(
            (list(encoding.ids), [part[bisect_left(ends, end)][1] for _, end in encoding.offsets])
        )
    return coded


def place(tokenizer: Tokenizer, document: Document) -> Placed:
    shared, *branches = encode(tokenizer, [document.shared, *document.branches])
    return Placed(([BOS, *shared[0]], ["", *shared[1]]), branches)


def packs(
    tokenizer: Tokenizer, documents: Iterable[Document], length: int
) -> Iterator[list[Placed]]:
    """Fills packs in the documents' own order: of each as many branches as there is room for.

    The rest of a document is dropped, and at the end of a stream the pack that is not full.
    """
    pack: list[Placed] = []
    room = length
    for document in documents:
        whole = place(tokenizer, document)
        size = len(whole.shared[0])
        fitting: list[Coded] = []
        for branch in whole.branches:
            if size + len(branch[0]) <= room and len(fitting) < MOST_BRANCHES - 1:
                fitting.append(branch)
                size += len(branch[0])
        if fitting:
            pack.append(Placed(whole.shared, fitting))
            room -= size
        if pack and (room < SCRAP or not fitting):
            yield pack
            pack, room = [], length


def to_batch(
    rows: list[list[Placed]], length: int, weights: dict[str, float] | None = None
) -> Batch:
    """Lays packs out as arrays; a tag without a weight of its own has 1."""
    weights = WEIGHTS if weights is None else weights
    tokens = np.full((len(rows), length), PAD, dtype=np.int64)
    positions, groups = np.zeros_like(tokens), np.zeros_like(tokens)
    targets = np.zeros(tokens.shape, dtype=np.float32)
    for row, pack in enumerate(rows):
        at = 0
        for number, placed in enumerate(pack, start=1):
            first = len(placed.shared[0])
            for branch, (ids, tags) in enumerate([placed.shared, *placed.branches]):
                part, start = slice(at, at + len(ids)), first if branch else 0
                tokens[row, part], groups[row, part] = ids, number * MOST_BRANCHES + branch
                positions[row, part] = range(start, start + len(ids))
                targets[row, part] = [weights.get(tag, 1.0) if tag else 0.0 for tag in tags]
                if branch > 1:
                    targets[row, at] = 0.0  # the token before it belongs to another branch
                at = part.stop
    return Batch(tokens, positions, groups, targets)


def branch_mask(positions: Tensor, groups: Tensor, window: int | None) -> Tensor:
    """True where a query may see a key, (B, 1, T, T): earlier, near enough, in its own branch or in
    what is shared.
    """
    distance = positions[:, :, None] - positions[:, None, :]
    documents, branches = groups // MOST_BRANCHES, groups % MOST_BRANCHES
    own = groups[:, :, None] == groups[:, None, :]
    shared = (documents[:, :, None] == documents[:, None, :]) & (branches == 0)[:, None, :]
    allowed = (distance >= 0) & (own | shared)
    if window is not None:
        allowed &= distance < window
    return allowed[:, None]


def tensors(batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    arrays = (batch.tokens, batch.positions, batch.groups, batch.weights)
    tokens, positions, groups, weights = (torch.from_numpy(array) for array in arrays)
    return tokens, positions, groups, weights
