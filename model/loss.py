"""Cross-entropy on supervised positions only, without ever keeping (B, T, V) logits.

Gemma-2's head has 256,000 rows: at 1,500 tokens float32 logits are 1.5 GB, and autograd would keep
three of them (raw, capped, softmax). Here the gradient is taken in the forward pass and only (n, D)
is kept, in one of two ways:

- a frozen head that is not multiplied in float16: by blocks of the vocabulary, each read once
  (`sweep.py`);
- any other head: by chunks of rows with all their logits (`_ByRows`).

Shapes: B batch, T positions, D model width, V vocabulary, n supervised positions, c rows of a
chunk.
Source: "Cut Your Losses in Large-Vocabulary Language Models" (arXiv:2411.09009) for the idea.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from common.constants import IGNORED
from common.device import send
from common.products import product_dtype
from model.fused import tanh_
from model.layers import TokenHead
from model.sweep import LARGEST_CAP, FrozenHead, Options, Sweep
from model.transformer import Gemma2

# Bytes of float32 logits that one chunk of rows may hold: 128 rows of the 256,000-row head.
CHUNK_BYTES = 128 * 256_000 * 4
# Rows of a sweep. On CUDA all that a batch may have: each sweep reads the whole head.
SWEEP_ROWS = {"cpu": 512, "mps": 512, "cuda": 8192}


class Supervised(NamedTuple):
    """Where a batch is supervised, as indices into its B * T positions, and with which tokens."""

    places: Tensor  # (n,)
    tokens: Tensor  # (n,)


def find_supervised(targets: Tensor, device: torch.device) -> Supervised:
    """The places in targets int64 (B, T) that are not -100, and the tokens there, on `device`.

    Best from targets on the host, before the forward pass: looking places up on a GPU waits for it.
    """
    flat = targets.flatten()
    places = (flat != IGNORED).nonzero()[:, 0]
    return Supervised(send(places, device), send(flat[places], device))


def supervised_loss(
    model: Gemma2, hidden: Tensor, targets: Tensor | Supervised, scale: float = 1.0
) -> tuple[Tensor, int]:
    """Summed cross-entropy over the supervised positions, float32, and their number.

    hidden (B, T, D) from `model.hidden`; targets as for `find_supervised`, or what that found.
    `scale` is the factor that the caller will multiply the loss with before `backward` (a gradient
    scaler's): the stored 16-bit gradients carry it.
    Divide the sum by the whole step's number of supervised tokens, never by the micro-batch's.
    Gradients are exact for the hidden states and for every trainable parameter of the head.
    Differentiable once.
    """
    if isinstance(targets, Tensor):
        targets = find_supervised(targets, hidden.device)
    picked = hidden.flatten(0, 1).index_select(0, targets.places)  # (n, D)
    head, cap = model.lm_head, model.config.final_logit_softcapping
    params = [p for p in head.parameters() if p.requires_grad]
    # Decided here: inside a Function's forward gradients are always off, and an evaluation would
    # pay for them.
    needs_grad = torch.is_grad_enabled() and (picked.requires_grad or bool(params))
    replaced = _replaced_rows(head)
    if replaced is not None and _can_sweep(head.weight, cap, hidden):
        ids, rows = replaced
        options = Options(cap, scale, needs_grad, SWEEP_ROWS[hidden.device.type])
        total = Sweep.apply(FrozenHead(head.weight, ids), options, targets.tokens, picked, rows)
    else:
        chunk = max(1, CHUNK_BYTES // (4 * model.config.vocab_size))
        options = Options(cap, scale, needs_grad, chunk)
        total = _ByRows.apply(head, options, targets.tokens, picked, *params)
    return total, picked.shape[0]


def _replaced_rows(head: nn.Module) -> tuple[tuple[int, ...], Tensor | None] | None:
    """The ids and the trained rows that replace some of a frozen head's; None for LoRA on it."""
    if isinstance(head, nn.Linear):
        return (), None
    return head.replaced_rows() if isinstance(head, TokenHead) else None


def _can_sweep(weight: Tensor, cap: float | None, hidden: Tensor) -> bool:
    if (cap is not None and cap > LARGEST_CAP) or weight.requires_grad:
        return False
    # Numerators up to exp(2 cap) fit into bfloat16, whose exponents are float32's, but not into
    # float16.
    return product_dtype(hidden) in (torch.float32, torch.bfloat16)


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
        options: Options,
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
