"""Examples -> packs of at most `max_length` tokens -> batches of tensors with document ids.

Letters: B batch, T positions. Separate from `dataset.py` because it is pure arithmetic on lengths
and needs torch.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from common.constants import IGNORED
from data.chat import Example

PADDING_DOCUMENT = -1


@dataclass(frozen=True)
class Packing:
    """Packs of examples; `efficiency` is the share of the packs' room that is filled."""

    packs: list[list[Example]]
    num_tokens: int
    efficiency: float


@dataclass(frozen=True)
class Batch:
    """One micro-batch; every tensor is int64 of shape (B, T).

    tokens     <bos> a   b   c  <bos> d   e  <pad>
    positions    0   1   2   3    0   1   2    0
    documents    0   0   0   0    1   1   1   -1
    targets      a   b   c  -100  d   e  -100 -100

    A target is the next token where that token is trainable and of the same document, else -100: a
    document's first token is never asked of the document before it.
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    documents: torch.Tensor
    targets: torch.Tensor

    @property
    def num_supervised(self) -> int:
        """Targets that count towards the loss."""
        return int((self.targets != IGNORED).sum())


def pack_examples(examples: Sequence[Example], max_length: int) -> Packing:
    """Pack by first-fit decreasing: longest example first, each into the first pack that has room.

    Deterministic: examples of one length keep their order. O(n log n): a tree holds the room of the
    packs. Source: Johnson, "Near-optimal bin packing algorithms" (1973): at most 11/9 of the fewest
    packs, plus a constant.

    Raises: ValueError for an example longer than `max_length`.
    """
    for example in examples:
        if len(example.tokens) > max_length:
            raise ValueError(
                f"{example.where or 'example'}: expected at most {max_length} tokens, "
                f"got {len(example.tokens)}; drop or truncate it first"
            )
    # sorted is stable, so the packs are the same on every machine and rank
    order = sorted(range(len(examples)), key=lambda index: -len(examples[index].tokens))
    rooms = _RoomTree(len(examples), max_length)
    # One pack for each example is prepared, so there is always a place
    packs: list[list[Example]] = []
    for index in order:
        place = rooms.take_first(len(examples[index].tokens))
        if place == len(packs):
            packs.append([])
        packs[place].append(examples[index])
    num_tokens = sum(len(example.tokens) for example in examples)
    return Packing(packs, num_tokens, num_tokens / (len(packs) * max_length) if packs else 0.0)


class _RoomTree:
    """The room left in each pack, as a binary tree of maxima: a first fit takes O(log n) steps."""

    def __init__(self, num_packs: int, max_length: int) -> None:
        # A power of two of leaves, stored behind the inner nodes: node n has the children 2n and 2n
        # + 1
        self.width = 1 << max(0, num_packs - 1).bit_length()
        self.rooms = [max_length] * (2 * self.width)

    def take_first(self, length: int) -> int:
        """Take `length` from the first pack that has it, and return that pack's number."""
        node = 1
        # Down from the root, left wherever the left half has a pack with enough room: the first one
        while node < self.width:
            node = 2 * node if self.rooms[2 * node] >= length else 2 * node + 1
        place = node - self.width
        self.rooms[node] -= length
        # Back up: a parent has the larger room of its two children
        while node > 1:
            node //= 2
            self.rooms[node] = max(self.rooms[2 * node], self.rooms[2 * node + 1])
        return place


def collate(packs: Sequence[Sequence[Example]], pad_id: int, length: int | None = None) -> Batch:
    """Lay packs out as the rows of one batch.

    `length` is T; None pads to the longest pack.

    Raises: ValueError for no packs, or one longer than `length`.
    """
    longest = max((sum(len(example.tokens) for example in pack) for pack in packs), default=0)
    width = longest if length is None else length
    if not packs or longest > width:
        raise ValueError(
            f"expected packs of at most {width} tokens, "
            f"got {len(packs)} packs, the longest of {longest}"
        )
    rows = [_lay_out(pack, pad_id, width) for pack in packs]
    columns = zip(*rows, strict=True)
    return Batch(*(torch.tensor(column, dtype=torch.int64) for column in columns))  # each (B, T)


def _lay_out(
    pack: Sequence[Example], pad_id: int, width: int
) -> tuple[list[int], list[int], list[int], list[int]]:
    """Return tokens, positions, documents and targets of one pack, padded to `width`."""
    tokens: list[int] = []
    positions: list[int] = []
    documents: list[int] = []
    targets: list[int] = []
    for document, example in enumerate(pack):
        tokens += example.tokens
        positions += range(len(example.tokens))
        documents += [document] * len(example.tokens)
        # Shifted inside the document: its last token has no target, and none crosses to the next
        following = zip(example.tokens[1:], example.trainable[1:], strict=True)
        targets += [token if is_trained else IGNORED for token, is_trained in following] + [IGNORED]
    # Padding is a document of its own, to which no example's token attends
    padding = width - len(tokens)
    return (
        tokens + [pad_id] * padding,
        positions + [0] * padding,
        documents + [PADDING_DOCUMENT] * padding,
        targets + [IGNORED] * padding,
    )


def epoch_order(num_packs: int, seed: int, epoch: int) -> list[int]:
    """Return the order of the packs in an epoch; the same on every machine and rank."""
    # Seeded by seed and epoch alone: a resumed run needs no saved state for it
    order = list(range(num_packs))
    random.Random(f"epoch {seed} {epoch}").shuffle(order)
    return order
