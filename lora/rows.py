"""Which adapter each row of a batch uses, and how strongly.

Separate from the layers of `lora/many.py`, which ask it in every pass: whoever changes the batch
needs only this. Shapes: B rows, n adapters, u of them in use, g the most rows of one of them, r
rank, K in, N out, T positions, t tokens with rows of their own, D model width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

MAX_SCALE = 4.0  # of a row's adapter; what it learned is at 1, and far above it is noise
BASE = -1  # the adapter number of a row that has none


@dataclass(frozen=True)
class Row:
    """What a row of a batch is computed with: an adapter's name, or None for the base alone.

    scale: 1 is the adapter as it was trained, 0 the base. Raises: ValueError outside [0, 4].
    """

    adapter: str | None = None
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.scale <= MAX_SCALE:
            raise ValueError(
                f"scale of an adapter: expected 0 to {MAX_SCALE:g}, got {self.scale}; give 1 for "
                "the adapter as it was trained"
            )


@dataclass(frozen=True)
class Grouping:
    """The rows of a batch put together by adapter; rows of the base are in no group."""

    used: tuple[int, ...]  # the adapters, ascending
    order: Tensor | None  # (u g,) rows of the batch; None where that is 0, 1, 2, ...
    scale: Tensor  # (u, g), 0 for what only fills a group up


class Operands(NamedTuple):
    """What the two products of a group of linears need for the rows of a batch."""

    a: Tensor  # (u, K, sum of r)
    share: Tensor  # (u, g, 1, sum of r), a row's scale times alpha / r
    ranks: list[int]
    b: list[Tensor]  # (u, r, N) of each linear


class Adapters:
    """The adapters of one model, and which of them each row of the next forward pass uses.

    Its layers ask it; `use` is called by whoever changes the batch.
    """

    def __init__(self, names: Sequence[str], device: torch.device) -> None:
        self.names, self.device = tuple(names), device
        self.grouping: Grouping | None = None
        # What layers make of the current rows, by layer: a batch stays the same for many steps.
        self.operands: dict[int, Operands] = {}
        self.token_rows: dict[int, Tensor] = {}
        self._parts: dict[int, Tensor] = {}
        self.use([Row()])

    def use(self, rows: Sequence[Row]) -> None:
        """Sets the rows of the coming passes, in the batch's order.

        Raises: KeyError for a name that is none.
        """
        self.rows = list(rows)
        numbers = {name: number for number, name in enumerate(self.names)}
        # An adapter at scale 0 is the base to the last bit, and costs nothing.
        chosen = [
            (numbers[row.adapter], row.scale) if row.adapter and row.scale else (BASE, 0.0)
            for row in rows
        ]
        # The one adapter and scale that all rows share: plain products then do.
        self.shared = chosen[0] if len(set(chosen)) == 1 else None
        self.index = torch.tensor([number for number, _ in chosen], device=self.device)  # (B,)
        self.scale = torch.tensor([scale for _, scale in chosen], device=self.device)  # (B,)
        before = self.grouping
        self.grouping = None if self.shared else _group(chosen, self.device)
        if before is None or self.grouping is None or before.used != self.grouping.used:
            self._parts.clear()
        self.operands.clear()
        self.token_rows.clear()

    def used(self, stack: Tensor) -> Tensor:
        """The entries of a stack (n, ...) that the batch uses, (u, ...): the stack itself if all.

        A part is copied once for as long as batches use the same adapters.
        """
        assert self.grouping is not None
        if len(self.grouping.used) == len(stack):
            return stack
        if id(stack) not in self._parts:
            self._parts[id(stack)] = stack[list(self.grouping.used)]
        return self._parts[id(stack)]


def _group(chosen: Sequence[tuple[int, float]], device: torch.device) -> Grouping:
    used = sorted({number for number, _ in chosen} - {BASE})
    members = [[row for row, (own, _) in enumerate(chosen) if own == number] for number in used]
    size = max(map(len, members))
    order = [row for group in members for row in group + [0] * (size - len(group))]
    scales = [[chosen[row][1] for row in group] + [0.0] * (size - len(group)) for group in members]
    # Sorted rows in groups of one size need no order, and so no copy of x and y.
    is_sorted = order == list(range(len(chosen)))
    places = None if is_sorted else torch.tensor(order, device=device)
    return Grouping(tuple(used), places, torch.tensor(scales, device=device))
