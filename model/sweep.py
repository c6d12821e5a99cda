"""Loss and gradient of a frozen head in one pass over its weight, a block of the vocabulary a time.

Two forms of one method: with a softcap (Gemma-2), which bounds the logits, so that exp needs no
maximum taken off; and without (Gemma 3), where a running maximum does that. In both the target
stays out of the sums, for a confident prediction would drown in their rounding.

Shapes: D model width, V vocabulary, c rows of a chunk, m columns of a block.
Source: "Cut Your Losses in Large-Vocabulary Language Models" (arXiv:2411.09009) for the idea; the
running maximum is that of "Online normalizer calculation for softmax" (arXiv:1805.02867).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# Bytes of float32 logits of a block, which every pass over it should find in the cache.
BLOCK_BYTES = {"cpu": 2 << 20, "cuda": 32 << 20, "mps": 32 << 20}
# exp(2 cap) must not overflow when 256,000 of them are added in float32.
LARGEST_CAP = 35.0


@dataclass(frozen=True)
class Options:
    """What a loss needs besides tensors; `rows` is the number of positions in a chunk."""

    cap: float | None
    scale: float
    needs_grad: bool
    rows: int


class Block(NamedTuple):
    """Some rows of the head, from `start` on; `replaced` has (place in ids, place here) pairs."""

    start: int
    weight: Tensor  # (m, D)
    replaced: list[tuple[int, int]]


@dataclass(frozen=True)
class FrozenHead:
    """A frozen weight (V, D), whose rows `ids` trained ones (n_ids, D) may replace."""

    weight: Tensor
    ids: tuple[int, ...]

    def blocks(self, rows: Tensor | None, size: int) -> Iterator[Block]:
        """The weight with the trained rows in place, `size` rows at a time."""
        for start in range(0, self.weight.shape[0], size):
            block = self.weight[start : start + size]
            local = [(k, i - start) for k, i in enumerate(self.ids) if start <= i < start + size]
            if rows is not None and local:
                block = block.clone()  # the base's weight itself must stay as it is
                for k, i in local:
                    block[i] = rows[k]  # rounded to the head's dtype
            yield Block(start, block, local)

    def rows_of(self, targets: Tensor, rows: Tensor | None) -> Tensor:
        """The row of each target (c,), as `blocks` has it: (c, D), float32."""
        wanted = self.weight[targets].float()
        trained = () if rows is None else rows.to(self.weight.dtype).float()
        for i, row in zip(self.ids, trained, strict=True):
            wanted = torch.where(targets[:, None] == i, row, wanted)
        return wanted


class Sweep(torch.autograd.Function):
    """loss = sum over rows of CE(softcap(h W^T)), whose gradients are made in forward."""

    @staticmethod
    def forward(
        ctx: Any,
        head: FrozenHead,
        options: Options,
        targets: Tensor,
        hidden: Tensor,
        rows: Tensor | None,
    ) -> Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        d_hidden = torch.empty_like(hidden)
        d_rows = None if rows is None else torch.zeros_like(rows)
        sweep = _sweep_uncapped if options.cap is None else _sweep_capped
        for start in range(0, hidden.shape[0], options.rows):
            part = slice(start, start + options.rows)
            loss, d_h, d_r = sweep(hidden[part], targets[part], head, rows, options)
            total += loss
            if options.needs_grad:
                d_hidden[part] = d_h.mul_(options.scale)
                if d_rows is not None:
                    d_rows += d_r.mul_(options.scale)
        ctx.scale = options.scale
        if options.needs_grad:
            ctx.save_for_backward(d_hidden, *([] if d_rows is None else [d_rows]))
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        factor = grads[0] / ctx.scale
        d_hidden, *d_rows = (d * factor.to(d.dtype) for d in ctx.saved_tensors)
        return None, None, None, d_hidden, d_rows[0] if d_rows else None


def _start(h: Tensor, head: FrozenHead) -> tuple[int, list[Tensor]]:
    """Columns of a block, and zeros for: R (c, 1), the target's own value (c, 1), both gradients.

    The gradients are that of h (c, D), and the numerators of the trained rows alone (c, n_ids).
    """
    widths = (1, 1, h.shape[1], len(head.ids))
    size = max(1, BLOCK_BYTES[h.device.type] // (4 * h.shape[0]))
    return size, [torch.zeros(h.shape[0], width, device=h.device) for width in widths]


def _places(targets: Tensor, block: Block) -> tuple[Tensor, Tensor]:
    """The targets' columns in a block (c, 1), and whether they are there."""
    index = targets[:, None] - block.start
    inside = (index >= 0) & (index < block.weight.shape[0])
    # Where a row's target is no column of this block, an index that can be gathered instead.
    return index.clamp(0, block.weight.shape[0] - 1), inside


def _sweep_capped(
    h: Tensor, targets: Tensor, head: FrozenHead, rows: Tensor | None, options: Options
) -> tuple[Tensor, Tensor, Tensor]:
    """Summed loss of h (c, D), its gradient and that of the trained rows (n_ids, D), float32.

    With p = sigmoid(2 z / cap) a capped logit is y = cap tanh(z / cap) = 2 cap p - cap, and dy / dz
    = 4 p (1 - p). It cannot exceed the cap, so that e = exp(2 cap p), which is exp(y) times a
    constant, needs no maximum taken off, and the sum over the vocabulary may come after the
    numerators of the gradient. With x the target, R = sum_(v != x) e_v and S = R + e_x:

        loss = log S - log e_x = log(1 + R / e_x)
        dh   = sum_(v != x) e_v 4 p_v (1 - p_v) W_v / S - R / S 4 p_x (1 - p_x) W_x
    """
    cap = options.cap
    assert cap is not None  # `Sweep`
    size, (rest, picked, gradient, columns) = _start(h, head)
    for block in head.blocks(rows, size):
        p = (h @ block.weight.T).float().mul_(2.0 / cap).sigmoid_()  # (c, m)
        e = (p * (2.0 * cap)).exp_()
        index, inside = _places(targets, block)
        picked = torch.where(inside, p.gather(1, index), picked)
        # e_x = 0, and the others as they are: a boolean index would make a GPU wait for its size.
        e.scatter_(1, index, e.gather(1, index).masked_fill_(inside, 0.0))
        rest += e.sum(1, keepdim=True)
        if options.needs_grad:
            # Not divided by S yet, which is known after the last block; the 4 comes with it.
            e.mul_(p.addcmul_(p, p, value=-1.0))  # e (p - p p), over both
            gradient += e.to(h.dtype) @ block.weight
            for k, i in block.replaced:
                columns[:, k] = e[:, i]
    own = (2.0 * cap * picked).exp_()  # e_x, (c, 1)
    # log1p: with a confident prediction R / e_x is far below what 1 + R / e_x could show.
    loss = (rest / own).log1p_().sum()
    if not options.needs_grad:
        return loss, gradient, columns
    sums = rest + own
    slope = 4.0 * picked * (1.0 - picked) * (rest / sums)
    gradient.mul_(4.0 / sums).addcmul_(slope, head.rows_of(targets, rows), value=-1.0)
    columns.mul_(4.0 / sums)
    return loss, gradient, _row_gradient(h, targets, head, columns, slope)


def _sweep_uncapped(
    h: Tensor, targets: Tensor, head: FrozenHead, rows: Tensor | None, options: Options
) -> tuple[Tensor, Tensor, Tensor]:
    """The same without a cap, with M the largest logit but the target's so far, and e = exp(z - M).

    Where M grows, what was added up before shrinks by exp(old M - new M). With x the target and
    R = sum_(v != x) e_v, in which the largest logit alone is 1:

        t    = log R + M - z_x, so that exp(t) is the odds against the target
        loss = log(1 + exp(t))
        dh   = sigmoid(t) (sum_(v != x) e_v W_v / R - W_x)
    """
    size, (rest, own, gradient, columns) = _start(h, head)
    # Not -inf: the difference of two of them would be NaN.
    largest = torch.full_like(rest, torch.finfo(torch.float32).min)
    for block in head.blocks(rows, size):
        z = (h @ block.weight.T).float()  # (c, m)
        index, inside = _places(targets, block)
        own = torch.where(inside, z.gather(1, index), own)
        z.scatter_(1, index, z.gather(1, index).masked_fill_(inside, float("-inf")))  # e_x = 0
        larger = torch.maximum(largest, z.amax(1, keepdim=True))
        shrink = (largest - larger).exp_()
        largest = larger
        e = z.sub_(largest).exp_()
        rest.mul_(shrink).add_(e.sum(1, keepdim=True))
        if options.needs_grad:
            gradient.mul_(shrink).add_(e.to(h.dtype) @ block.weight)
            columns.mul_(shrink)
            for k, i in block.replaced:
                columns[:, k] = e[:, i]
    odds = rest.log() + (largest - own)  # t, (c, 1)
    loss = F.softplus(odds).sum()
    if not options.needs_grad:
        return loss, gradient, columns
    wrong = odds.sigmoid_()
    gradient.mul_(wrong / rest).addcmul_(wrong, head.rows_of(targets, rows), value=-1.0)
    columns.mul_(wrong / rest)
    return loss, gradient, _row_gradient(h, targets, head, columns, wrong)


def _row_gradient(
    h: Tensor, targets: Tensor, head: FrozenHead, columns: Tensor, slope: Tensor
) -> Tensor:
    """The gradient of the trained rows (n_ids, D), from their columns of that of the logits.

    `columns` (c, n_ids) lacks the target's own part, which `slope` (c, 1) is.
    """
    for k, i in enumerate(head.ids):
        columns[:, k : k + 1] -= slope * (targets[:, None] == i)
    return columns.T @ h.float()
