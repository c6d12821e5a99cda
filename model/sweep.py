"""Loss and gradient of a frozen head in one pass over its weight, a block of the vocabulary a time.

Two forms of one method: with a softcap (Gemma-2), which bounds the logits, so that exp needs no
maximum taken off; and without (Gemma 3), where a running maximum does that. In both the target
stays out of the sums, for a confident prediction would drown in their rounding. Each is two
products and one pass over a block between them, which a CPU makes in place and CUDA in one kernel.

Shapes: D model width, V vocabulary, c rows of a chunk, m columns of a block.
Source: "Cut Your Losses in Large-Vocabulary Language Models" (arXiv:2411.09009) for the idea; the
running maximum is that of "Online normalizer calculation for softmax" (arXiv:1805.02867).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from common.device import send
from common.products import product_dtype
from model.fused import fused

# Bytes of float32 logits of a block. On a CPU every pass over them should find them in the cache;
# CUDA passes over their 16-bit form once, and few blocks are few launches.
BLOCK_BYTES = {"cpu": 2 << 20, "cuda": 256 << 20, "mps": 32 << 20}
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
    """Some rows of the head, from `start` on."""

    start: int
    weight: Tensor  # (m, D)
    replaced: list[tuple[int, int]]  # pairs of a place in ids and one here


@dataclass(frozen=True)
class FrozenHead:
    """A frozen weight (V, D), whose rows `ids` trained ones (n_ids, D) may replace."""

    weight: Tensor
    ids: tuple[int, ...]

    @property
    def dtype(self) -> torch.dtype:
        """That of the products with it."""
        return product_dtype(self.weight)

    def blocks(self, rows: Tensor | None, size: int) -> Iterator[Block]:
        """The weight with the trained rows in place, `size` rows at a time, as it is multiplied."""
        for start in range(0, self.weight.shape[0], size):
            block = self.weight[start : start + size]
            local = [(k, i - start) for k, i in enumerate(self.ids) if start <= i < start + size]
            if rows is not None and local:
                block = block.clone()  # the base's weight itself must stay as it is
                k, i = (send(torch.tensor(part), block.device) for part in zip(*local, strict=True))
                block.index_copy_(0, i, rows[k].to(block.dtype))
            yield Block(start, block.to(self.dtype), local)

    def rows_of(self, targets: Tensor, rows: Tensor | None) -> Tensor:
        """The row of each target (c,), as `blocks` has it: (c, D), float32."""
        wanted = self.weight[targets].float()
        if rows is None or not self.ids:
            return wanted
        is_trained = self.matches(targets)
        trained = rows.to(self.weight.dtype).float()[is_trained.int().argmax(1)]
        return torch.where(is_trained.any(1, keepdim=True), trained, wanted)

    def matches(self, targets: Tensor) -> Tensor:
        """Which of the ids each target (c,) is: bool (c, n_ids)."""
        return targets[:, None] == send(torch.tensor(self.ids), targets.device)


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


def _start(h: Tensor, head: FrozenHead) -> tuple[Tensor, int, list[Tensor]]:
    """h as it is multiplied, columns of a block, and what starts at zero.

    That is R (c, 1), the target's own value (c, 1), and both gradients: that of h (c, D), and the
    numerators of the trained rows alone (c, n_ids).
    """
    widths = (1, 1, h.shape[1], len(head.ids))
    size = max(1, BLOCK_BYTES[h.device.type] // (4 * h.shape[0]))
    zeros = [torch.zeros(h.shape[0], width, device=h.device) for width in widths]
    return h.to(head.dtype), size, zeros


def _take_own_(values: Tensor, e: Tensor, places: Tensor, without: float) -> Tensor:
    """Each row's value (c, 1) in its target's column, where `e` becomes `without`.

    values and e (c, m); places (c, 1) are the targets' columns. 0 where that is in another block.
    """
    inside = (places >= 0) & (places < e.shape[1])
    # Where a row's target is no column of this block, an index that can be gathered instead.
    index = places.clamp(0, e.shape[1] - 1)
    own = values.gather(1, index).masked_fill_(~inside, 0.0)
    # The others as they are: a boolean index would make a GPU wait for its size.
    e.scatter_(1, index, e.gather(1, index).masked_fill_(inside, without))
    return own


def _is_own(z: Tensor, places: Tensor) -> Tensor:
    """True in the targets' columns: (c, m). For one kernel, which needs no index."""
    return torch.arange(z.shape[1], device=z.device) == places


def _add_product_(total: Tensor, e: Tensor, weight: Tensor) -> None:
    """total (c, D) float32 += e (c, m) weight (m, D), the product in the weight's dtype."""
    if total.is_cuda and weight.dtype != torch.float32:
        # Summed in float32 where it is: no 16-bit product between, and no pass to add it.
        torch.addmm(total, e, weight, out_dtype=torch.float32, out=total)
    else:
        total += e.to(weight.dtype) @ weight


CappedPass = Callable[[Tensor, Tensor], tuple[Tensor | None, Tensor, Tensor]]


def _capped_pass_(cap: float, needs_grad: bool) -> CappedPass:
    """The pass over a block's z (c, m), in place: e p (1 - p), the sum of e (c, 1), and p_x."""

    def run(z: Tensor, places: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        p = z.float().mul_(2.0 / cap).sigmoid_()
        e = (p * (2.0 * cap)).exp_()
        own = _take_own_(p, e, places, without=0.0)
        sums = e.sum(1, keepdim=True)
        # Not divided by S yet, which is known after the last block; the 4 comes with it.
        return e.mul_(p.addcmul_(p, p, value=-1.0)) if needs_grad else None, sums, own

    return run


@cache
def _capped_kernel(cap: float, needs_grad: bool) -> CappedPass:
    """`_capped_pass_` as one kernel, in which the targets' columns are compared, not gathered."""

    def run(z: Tensor, places: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        is_own = _is_own(z, places)
        p = torch.sigmoid(z.float() * (2.0 / cap))
        e = torch.where(is_own, 0.0, torch.exp(p * (2.0 * cap)))
        own = torch.where(is_own, p, 0.0).sum(1, keepdim=True)
        numerators = (e * (p - p * p)).to(z.dtype) if needs_grad else None
        return numerators, e.sum(1, keepdim=True), own

    return fused(run, sizes_vary=True)


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
    wide, size, (rest, picked, gradient, columns) = _start(h, head)
    make_pass = _capped_kernel if h.is_cuda else _capped_pass_
    run = make_pass(cap, options.needs_grad)
    for block in head.blocks(rows, size):
        e, sums, own = run(wide @ block.weight.T, targets[:, None] - block.start)
        rest += sums
        picked += own
        if e is not None:
            _add_product_(gradient, e, block.weight)
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


def _uncapped_pass_(
    z: Tensor, places: Tensor, largest: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The pass over z (c, m), in place: e = exp(z - M), its sum, z_x, and M (c, 1)."""
    z = z.float()
    own = _take_own_(z, z, places, without=float("-inf"))  # e_x = 0
    largest = torch.maximum(largest, z.amax(1, keepdim=True))
    e = z.sub_(largest).exp_()
    return e, e.sum(1, keepdim=True), own, largest


def _uncapped_one(
    z: Tensor, places: Tensor, largest: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    is_own, wide = _is_own(z, places), z.float()
    own = torch.where(is_own, wide, 0.0).sum(1, keepdim=True)
    others = torch.where(is_own, float("-inf"), wide)
    largest = torch.maximum(largest, others.amax(1, keepdim=True))
    e = torch.exp(others - largest)
    return e.to(z.dtype), e.sum(1, keepdim=True), own, largest


_uncapped_kernel = fused(_uncapped_one, sizes_vary=True)


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
    wide, size, (rest, own, gradient, columns) = _start(h, head)
    run = _uncapped_kernel if h.is_cuda else _uncapped_pass_
    # Not -inf: the difference of two of them would be NaN.
    largest = torch.full_like(rest, torch.finfo(torch.float32).min)
    for block in head.blocks(rows, size):
        before = largest
        places = targets[:, None] - block.start
        e, sums, own_here, largest = run(wide @ block.weight.T, places, before)
        own += own_here
        shrink = (before - largest).exp_()
        rest.mul_(shrink).add_(sums)
        if options.needs_grad:
            _add_product_(gradient.mul_(shrink), e, block.weight)
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
    if head.ids:
        columns -= slope * head.matches(targets)
    return columns.T @ h.float()
