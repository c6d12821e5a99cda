"""Cross-entropy on supervised positions only, without ever keeping (B, T, V) logits.

Gemma-2's head has 256,000 rows: at 1,500 tokens float32 logits are 1.5 GB, and autograd would keep
three of them (raw, capped, softmax). Here the gradient is taken in the forward pass and only (n, D)
is kept, in one of two ways:

- a frozen head with a softcap, in float32 or bfloat16: by blocks of the vocabulary (`_Sweep`), each
  read once;
- any other head: by chunks of rows with all their logits (`_ByRows`).

Shapes: B batch, T positions, D model width, V vocabulary, n supervised positions, c rows of a
chunk, m columns of a block.
Source: "Cut Your Losses in Large-Vocabulary Language Models" (arXiv:2411.09009) for the idea.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from common.constants import IGNORED
from common.device import has_fast_matmul
from model.fused import tanh_
from model.layers import TokenHead
from model.transformer import Gemma2

# Bytes of float32 logits that one chunk of rows may hold: 128 rows of the 256,000-row head.
CHUNK_BYTES = 128 * 256_000 * 4
# Rows of a sweep, and bytes of float32 logits of one of its blocks, which every pass over it should
# find in the cache.
SWEEP_ROWS = 512
BLOCK_BYTES = {"cpu": 2 << 20, "cuda": 32 << 20, "mps": 32 << 20}
# exp(2 cap) must not overflow when 256,000 of them are added in float32.
LARGEST_CAP = 35.0


def supervised_loss(
    model: Gemma2, hidden: Tensor, targets: Tensor, scale: float = 1.0
) -> tuple[Tensor, int]:
    """Summed cross-entropy over the supervised positions, float32, and their number.

    hidden (B, T, D) from `model.hidden`; targets int64 (B, T), -100 where not supervised, best on
    the host: their places are looked up on the targets' device, and a GPU would have to be waited
    for. `scale` is the factor that the caller will multiply the loss with before `backward` (a
    gradient scaler's): the stored 16-bit gradients carry it.
    Divide the sum by the whole step's number of supervised tokens, never by the micro-batch's.
    Gradients are exact for the hidden states and for every trainable parameter of the head.
    Differentiable once.
    """
    flat = targets.flatten()
    places = (flat != IGNORED).nonzero()[:, 0]  # (n,)
    # Only CUDA copies what it was given before it returns: elsewhere a freed source could be
    # overwritten first.
    is_cuda = hidden.device.type == "cuda"
    wanted, places = (t.to(hidden.device, non_blocking=is_cuda) for t in (flat[places], places))
    picked = hidden.flatten(0, 1).index_select(0, places)  # (n, D)
    head, cap = model.lm_head, model.config.final_logit_softcapping
    params = [p for p in head.parameters() if p.requires_grad]
    # Decided here: inside a Function's forward gradients are always off, and an evaluation would
    # pay for them.
    needs_grad = torch.is_grad_enabled() and (picked.requires_grad or bool(params))
    replaced = _replaced_rows(head)
    if replaced is not None and _can_sweep(head.weight, cap, hidden):
        ids, rows = replaced
        options = _Options(cap, scale, needs_grad, SWEEP_ROWS)
        total = _Sweep.apply(head.weight, ids, options, wanted, picked, rows)
    else:
        chunk = max(1, CHUNK_BYTES // (4 * model.config.vocab_size))
        options = _Options(cap, scale, needs_grad, chunk)
        total = _ByRows.apply(head, options, wanted, picked, *params)
    return total, picked.shape[0]


def _replaced_rows(head: nn.Module) -> tuple[tuple[int, ...], Tensor | None] | None:
    """The ids and the trained rows that replace some of a frozen head's; None for LoRA on it."""
    if isinstance(head, nn.Linear):
        return (), None
    return head.replaced_rows() if isinstance(head, TokenHead) else None


def _can_sweep(weight: Tensor, cap: float | None, hidden: Tensor) -> bool:
    if cap is None or cap > LARGEST_CAP or weight.requires_grad:
        return False
    # Numerators up to exp(2 cap) fit into bfloat16, whose exponents are float32's, but not into
    # float16.
    return hidden.dtype in (torch.float32, torch.bfloat16) and has_fast_matmul(hidden)


@dataclass(frozen=True)
class _Options:
    """What both ways need besides tensors; `rows` is the number of positions in a chunk."""

    cap: float | None
    scale: float
    needs_grad: bool
    rows: int


def chunk_loss_(logits: Tensor, targets: Tensor, cap: float | None) -> tuple[Tensor, Tensor]:
    """Summed cross-entropy of raw float32 logits (c, V), and their gradient, which overwrites them.

    With y = cap * tanh(z / cap): d loss / d z = (softmax(y) - onehot) * (1 - (y / cap)^2).
    """
    slope = None
    if cap is not None:
        tanh_(logits.div_(cap))
        slope = 1.0 - logits.square()  # (c, V), the one copy that is made
        logits.mul_(cap)
    picked = logits.gather(1, targets[:, None])  # (c, 1)
    norm = logits.logsumexp(dim=1, keepdim=True)  # (c, 1)
    loss = (norm - picked).sum()
    gradient = logits.sub_(norm).exp_()  # softmax
    gradient.scatter_add_(1, targets[:, None], torch.full_like(picked, -1.0))
    return loss, gradient if slope is None else gradient.mul_(slope)


class _ByRows(torch.autograd.Function):
    """loss = sum over rows of CE(softcap(head(h))), whose gradients are made in forward.

    They are those of h and of the head's parameters. The head is any module or function (n, D) ->
    (n, V): plain, with replaced rows, or with LoRA. Its own linear maps are differentiated by
    autograd, which keeps no logits for them; softcap and cross-entropy by hand.
    """

    @staticmethod
    def forward(
        ctx: Any,
        head: Callable[[Tensor], Tensor],
        options: _Options,
        targets: Tensor,
        hidden: Tensor,
        *params: Tensor,
    ) -> Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        d_hidden, d_params = torch.empty_like(hidden), [torch.zeros_like(p) for p in params]
        for start in range(0, hidden.shape[0], options.rows):
            part = slice(start, start + options.rows)
            with torch.set_grad_enabled(options.needs_grad):
                h = hidden[part].detach().requires_grad_(options.needs_grad)  # (c, D)
                raw = head(h)  # (c, V)
            # In place even where .float() makes no copy: no linear map needs its own output for its
            # backward.
            loss, d_raw = chunk_loss_(raw.detach().float(), targets[part], options.cap)
            total += loss
            if options.needs_grad:
                # Scaled before the cast: (softmax - onehot) / N underflows in fp16 without the loss
                # scale.
                d_raw = d_raw.mul_(options.scale).to(raw.dtype)
                d_hidden[part], *grads = torch.autograd.grad(raw, [h, *params], d_raw)
                for into, grad in zip(d_params, grads, strict=True):
                    into += grad
        if options.needs_grad:
            ctx.scale = options.scale
            ctx.save_for_backward(d_hidden, *d_params)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        factor = grads[0] / ctx.scale  # the scaler's factor is in the stored gradients already
        return None, None, None, *(d * factor.to(d.dtype) for d in ctx.saved_tensors)


class _Sweep(torch.autograd.Function):
    """The same for a frozen weight (V, D) whose rows `ids` trained ones (n_ids, D) may replace."""

    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        ids: tuple[int, ...],
        options: _Options,
        targets: Tensor,
        hidden: Tensor,
        rows: Tensor | None,
    ) -> Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        d_hidden = torch.empty_like(hidden)
        d_rows = None if rows is None else torch.zeros_like(rows)
        for start in range(0, hidden.shape[0], options.rows):
            part = slice(start, start + options.rows)
            loss, d_h, d_r = _sweep(hidden[part], targets[part], weight, ids, rows, options)
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
        return None, None, None, None, d_hidden, d_rows[0] if d_rows else None


def _sweep(
    h: Tensor,
    targets: Tensor,
    weight: Tensor,
    ids: tuple[int, ...],
    rows: Tensor | None,
    options: _Options,
) -> tuple[Tensor, Tensor, Tensor]:
    """Summed loss of h (c, D), its gradient and that of the trained rows (n_ids, D), float32.

    One pass over W. With p = sigmoid(2 z / cap) a capped logit is y = cap tanh(z / cap) = 2 cap p -
    cap, and dy / dz = 4 p (1 - p). It cannot exceed the cap, so that e = exp(2 cap p), which is
    exp(y) times a constant, needs no maximum taken off, and the sum over the vocabulary may come
    after the numerators of the gradient. The target x stays out of both, for a confident prediction
    would drown in its rounding. With R = sum_(v != x) e_v and S = R + e_x:

        loss = log S - log e_x = log(1 + R / e_x)
        dh   = sum_(v != x) e_v 4 p_v (1 - p_v) W_v / S - R / S 4 p_x (1 - p_x) W_x
    """
    cap = options.cap
    assert cap is not None  # `_can_sweep`
    size = max(1, BLOCK_BYTES[h.device.type] // (4 * h.shape[0]))
    rest, picked = (torch.zeros(h.shape[0], 1, device=h.device) for _ in range(2))
    gradient = torch.zeros(h.shape, dtype=torch.float32, device=h.device)
    # e_v 4 p_v (1 - p_v) of the trained rows alone, (c, n_ids), for their own gradient.
    columns = torch.zeros(h.shape[0], len(ids), device=h.device)
    for start in range(0, weight.shape[0], size):
        block = weight[start : start + size]
        local = [(k, i - start) for k, i in enumerate(ids) if start <= i < start + size]
        if rows is not None and local:
            block = block.clone()  # the base's weight itself must stay as it is
            for k, i in local:
                block[i] = rows[k]  # rounded to the head's dtype
        p = (h @ block.T).float().mul_(2.0 / cap).sigmoid_()  # (c, m)
        e = (p * (2.0 * cap)).exp_()
        # Where a row's target is no column of this block, an index that can be gathered instead.
        index = targets[:, None] - start  # (c, 1)
        inside = (index >= 0) & (index < block.shape[0])
        index = index.clamp(0, block.shape[0] - 1)
        picked = torch.where(inside, p.gather(1, index), picked)
        # e_x = 0, and the others as they are: a boolean index would make a GPU wait for its size.
        e.scatter_(1, index, e.gather(1, index).masked_fill_(inside, 0.0))
        rest += e.sum(1, keepdim=True)
        if options.needs_grad:
            # Not divided by S yet, which is known after the last block; the 4 comes with it.
            e.mul_(p.addcmul_(p, p, value=-1.0))  # e (p - p p), over both
            gradient += e.to(h.dtype) @ block
            for k, i in local:
                columns[:, k] = e[:, i]
    own = (2.0 * cap * picked).exp_()  # e_x, (c, 1)
    # log1p: with a confident prediction R / e_x is far below what 1 + R / e_x could show.
    loss = (rest / own).log1p_().sum()
    if not options.needs_grad:
        return loss, gradient, columns
    sums = rest + own
    slope = 4.0 * picked * (1.0 - picked) * (rest / sums)
    wanted = weight[targets].float()  # (c, D)
    for i, row in zip(ids, () if rows is None else rows.to(weight.dtype).float(), strict=True):
        wanted = torch.where(targets[:, None] == i, row, wanted)
    gradient.mul_(4.0 / sums).addcmul_(slope, wanted, value=-1.0)
    columns.mul_(4.0 / sums)
    for k, i in enumerate(ids):
        columns[:, k : k + 1] -= slope * (targets[:, None] == i)
    return loss, gradient, columns.T @ h.float()
