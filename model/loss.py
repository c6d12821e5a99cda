"""Cross-entropy on supervised positions only, in chunks, without ever keeping (B, T, V) logits.

Shapes: B batch, T positions, D model width, V vocabulary, n supervised positions, c rows of one chunk.
Gemma-2's head has 256,000 rows: at 1,500 tokens float32 logits are 1.5 GB, and autograd would keep three of them
(raw, capped, softmax). Here a chunk's gradient is taken in the forward pass and only (n, D) is kept.
Source: "Cut Your Losses in Large-Vocabulary Language Models" (arXiv:2411.09009) for the idea.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from model.transformer import Gemma2

IGNORE = -100
# Bytes of float32 logits that one chunk may hold: 128 rows of the 256,000-row head.
CHUNK_BYTES = 128 * 256_000 * 4


def chunk_loss_(logits: Tensor, targets: Tensor, cap: float | None) -> tuple[Tensor, Tensor]:
    """Summed cross-entropy of raw logits (c, V), float32, and its gradient with respect to them; overwrites `logits`.

    With y = cap * tanh(z / cap): d loss / d z = (softmax(y) - onehot) * (1 - (y / cap)^2).
    """
    if cap is not None:
        logits.div_(cap).tanh_()
    slope = None if cap is None else 1.0 - logits.square()
    if cap is not None:
        logits.mul_(cap)
    picked = logits.gather(1, targets[:, None])
    norm = logits.logsumexp(dim=1, keepdim=True)
    loss = (norm - picked).sum()
    gradient = logits.sub_(norm).exp_()  # softmax
    gradient.scatter_add_(1, targets[:, None], torch.full_like(picked, -1.0))
    return loss, gradient if slope is None else gradient.mul_(slope)


class _ChunkedLoss(torch.autograd.Function):
    """loss = sum over rows of CE(softcap(head(h))); gradients of h and of the head's parameters, made in forward.

    The head is any module or function (n, D) -> (n, V): plain, with replaced rows, or with LoRA. Its own linear maps
    are differentiated by autograd, which keeps no logits for them; softcap and cross-entropy by hand.
    """

    @staticmethod
    def forward(
        ctx: Any,
        head: Callable[[Tensor], Tensor],
        cap: float | None,
        rows: int,
        scale: float,
        needs_grad: bool,
        targets: Tensor,
        hidden: Tensor,
        *params: Tensor,
    ) -> Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        d_hidden, d_params = torch.empty_like(hidden), [torch.zeros_like(p) for p in params]
        for start in range(0, hidden.shape[0], rows):
            part = slice(start, start + rows)
            with torch.set_grad_enabled(needs_grad):
                h = hidden[part].detach().requires_grad_(needs_grad)
                raw = head(h)
            # In place even where .float() makes no copy: no linear map needs its own output for its backward.
            loss, d_raw = chunk_loss_(raw.detach().float(), targets[part], cap)
            total += loss
            if needs_grad:
                # Scaled before the cast: (softmax - onehot) / N underflows in fp16 without the loss scale.
                grads = torch.autograd.grad(raw, [h, *params], d_raw.mul_(scale).to(raw.dtype))
                d_hidden[part] = grads[0]
                for into, grad in zip(d_params, grads[1:], strict=True):
                    into += grad
        if needs_grad:
            ctx.scale = scale
            ctx.save_for_backward(d_hidden, *d_params)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        factor = grads[0] / ctx.scale
        return (None, None, None, None, None, None, *(d * factor.to(d.dtype) for d in ctx.saved_tensors))


def supervised_loss(model: Gemma2, hidden: Tensor, targets: Tensor, scale: float = 1.0) -> tuple[Tensor, int]:
    """Summed cross-entropy over the supervised positions, float32, and their number.

    hidden (B, T, D) from `model.model`; targets int64 (B, T), -100 where not supervised. `scale` is the factor that the
    caller will multiply the loss with before `backward` (a gradient scaler's): the stored 16-bit gradients carry it.
    Divide the sum by the whole step's number of supervised tokens, never by the micro-batch's.
    Gradients are exact for the hidden states and for every trainable parameter of the head. Differentiable once.
    """
    keep = targets != IGNORE
    rows = max(1, CHUNK_BYTES // (4 * model.config.vocab_size))
    params = [p for p in model.lm_head.parameters() if p.requires_grad]
    picked = hidden[keep]  # (n, D)
    cap = model.config.final_logit_softcapping
    # Asked here: inside a Function's forward gradients are always off, and an evaluation would pay for them.
    needs_grad = torch.is_grad_enabled() and (picked.requires_grad or bool(params))
    total = _ChunkedLoss.apply(model.lm_head, cap, rows, scale, needs_grad, targets[keep], picked, *params)
    return total, picked.shape[0]
