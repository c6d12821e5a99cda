"""The fused low-rank path of one linear, or of several that read the same x, as one operator with its own backward.

Shapes: M rows, K in, N_i and r_i of linear i, R = sum of the ranks. With D = dropout of x, one mask for the group:

    s    = c D(x) A^T                       (M, R)  one read of x; c holds each rank's scaling
    y_i  = x W_i^T + s_i B_i^T              (M, N_i)
    ds_i = c_i dy_i B_i,  dB_i = dy_i^T s_i          one read of dy_i
    dA   = ds^T D(x)                        (R, K)  the mask again, from its seed
    dx   = sum_i dy_i W_i + D'(ds A)        (M, K)

Saved for backward: x, the weights, A, B, s and the seed. Source: arXiv:2106.09685, equation 3; the split at s is that of
LoRAFusion (arXiv:2510.00206).
"""

from collections.abc import Sequence
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lora import steps


def backend(name: str) -> ModuleType:
    """The module that holds the five steps: `lora.steps`, or the Triton kernels' launchers."""
    if name == "triton":
        from lora.kernels import (
            steps as kernel_steps,
        )  # imported only when chosen: Triton is there only on Linux

        return kernel_steps
    return steps


def _compute(
    x: Tensor,
    weights: Sequence[Tensor],
    a: Tensor,
    b: Sequence[Tensor],
    scalings: Sequence[float],
    p: float,
    seed: Tensor,
    impl: str,
) -> list[Tensor]:
    """[y_1 .. y_n, s] for x (M, K), weights (N_i, K), a (R, K), b (N_i, r_i); r_i = 0 is a linear without LoRA."""
    steps = backend(impl)
    ranks = [matrix.shape[1] for matrix in b]
    s = steps.shrink(x, a, _per_rank(tuple(scalings), tuple(ranks), x.device), p, seed)
    outputs = [x @ weight.T for weight in weights]
    for y, matrix, part in zip(outputs, b, s.split(ranks, dim=1), strict=True):
        if matrix.shape[1]:
            steps.expand_(y, part, matrix)
    return [*outputs, s]


@torch.library.custom_op("gemma_lora::forward", mutates_args=())
def _forward(
    x: Tensor,
    weights: list[Tensor],
    a: Tensor,
    b: list[Tensor],
    scalings: list[float],
    p: float,
    seed: Tensor,
    impl: str,
) -> list[Tensor]:
    return _compute(x, weights, a, b, scalings, p, seed, impl)


@_forward.register_fake
def _(
    x: Tensor,
    weights: list[Tensor],
    a: Tensor,
    b: list[Tensor],
    scalings: list[float],
    p: float,
    seed: Tensor,
    impl: str,
) -> list[Tensor]:
    return [
        *(x.new_empty(x.shape[0], weight.shape[0]) for weight in weights),
        x.new_empty(x.shape[0], a.shape[0]),
    ]


def _gradients(
    dys: Sequence[Tensor],
    x: Tensor,
    weights: Sequence[Tensor],
    a: Tensor,
    b: Sequence[Tensor],
    s: Tensor,
    scalings: Sequence[float],
    p: float,
    seed: Tensor,
    impl: str,
    needs_dx: bool,
) -> list[Tensor]:
    """[dx, da, db_1 .. db_n]; dx is empty where it is not needed."""
    steps = backend(impl)
    ranks = [matrix.shape[1] for matrix in b]
    ds = torch.empty_like(s)
    db = [torch.zeros_like(matrix) for matrix in b]
    parts = zip(dys, b, scalings, s.split(ranks, dim=1), ds.split(ranks, dim=1), strict=True)
    for index, (dy, matrix, scaling, s_part, ds_part) in enumerate(parts):
        if matrix.shape[1]:
            d_low, db[index] = steps.expand_backward(dy, matrix, s_part, scaling)
            ds_part.copy_(d_low)
    dx = _frozen_grad(dys, weights) if needs_dx else None
    da = steps.shrink_backward_(dx, ds, x, a, p, seed)
    return [x.new_empty(0) if dx is None else dx, da, *db]


@torch.library.custom_op("gemma_lora::backward", mutates_args=())
def _backward(
    dys: list[Tensor],
    x: Tensor,
    weights: list[Tensor],
    a: Tensor,
    b: list[Tensor],
    s: Tensor,
    scalings: list[float],
    p: float,
    seed: Tensor,
    impl: str,
    needs_dx: bool,
) -> list[Tensor]:
    return _gradients(dys, x, weights, a, b, s, scalings, p, seed, impl, needs_dx)


@_backward.register_fake
def _(
    dys: list[Tensor],
    x: Tensor,
    weights: list[Tensor],
    a: Tensor,
    b: list[Tensor],
    s: Tensor,
    scalings: list[float],
    p: float,
    seed: Tensor,
    impl: str,
    needs_dx: bool,
) -> list[Tensor]:
    dx = torch.empty_like(x) if needs_dx else x.new_empty(0)
    return [dx, torch.empty_like(a), *(torch.empty_like(matrix) for matrix in b)]


@cache
def _per_rank(scalings: tuple[float, ...], ranks: tuple[int, ...], device: torch.device) -> Tensor:
    """The scaling of each rank, (R,) float32. Kept, because a copy from the host would wait for the GPU in every layer."""
    values = [scaling for scaling, rank in zip(scalings, ranks, strict=True) for _ in range(rank)]
    return torch.tensor(values, dtype=torch.float32, device=device)


def _frozen_grad(dys: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """sum_i dy_i W_i, the later products added in place."""
    dx = dys[0] @ weights[0]
    for dy, weight in zip(dys[1:], weights[1:], strict=True):
        dx.addmm_(dy, weight)
    return dx


def _save(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    x, weights, a, b, ctx.scalings, ctx.p, seed, ctx.impl = inputs
    ctx.count = len(weights)
    ctx.save_for_backward(x, a, seed, output[-1], *weights, *b)


def _differentiate(ctx: Any, grads: list[Tensor | None]) -> tuple[Any, ...]:
    x, a, seed, s, *rest = ctx.saved_tensors
    weights, b = rest[: ctx.count], rest[ctx.count :]
    dys = [
        x.new_zeros(x.shape[0], weight.shape[0]) if grad is None else grad
        for grad, weight in zip(grads, weights, strict=False)
    ]
    dx, da, *db = _backward(
        dys, x, weights, a, b, s, ctx.scalings, ctx.p, seed, ctx.impl, ctx.needs_input_grad[0]
    )
    return (
        (dx if ctx.needs_input_grad[0] else None),
        [None] * ctx.count,
        da,
        db,
        None,
        None,
        None,
        None,
    )


_forward.register_autograd(_differentiate, setup_context=_save)


class _Fused(torch.autograd.Function):
    """The operator without PyTorch's dispatcher, which outside a compiler costs more than the small products."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        a: Tensor,
        seed: Tensor,
        scalings: Sequence[float],
        p: float,
        impl: str,
        *matrices: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.count = len(scalings)
        weights, b = matrices[: ctx.count], matrices[ctx.count :]
        *outputs, s = _compute(x, weights, a, b, scalings, p, seed, impl)
        ctx.scalings, ctx.p, ctx.impl = scalings, p, impl
        ctx.save_for_backward(x, a, seed, s, *matrices)
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *dys: Tensor) -> tuple[Any, ...]:
        x, a, seed, s, *matrices = ctx.saved_tensors
        weights, b = matrices[: ctx.count], matrices[ctx.count :]
        needs_dx = ctx.needs_input_grad[0]
        dx, da, *db = _gradients(
            dys, x, weights, a, b, s, ctx.scalings, ctx.p, seed, ctx.impl, needs_dx
        )
        return (dx if needs_dx else None), da, None, None, None, None, *(None for _ in weights), *db


def fused_linears(
    x: Tensor,
    weights: Sequence[Tensor],
    lora_a: Sequence[Tensor | None],
    lora_b: Sequence[Tensor | None],
    scalings: Sequence[float],
    p: float,
    impl: str,
) -> list[Tensor]:
    """x W_i^T + scaling_i dropout(x) A_i^T B_i^T for every linear i; None stands for a linear without LoRA.

    x (..., K) and weights (N_i, K) in one dtype; lora_a (r_i, K), lora_b (N_i, r_i) float32 -> (..., N_i) each. `p` is
    the dropout rate of this call: 0 outside training. At least one linear must have LoRA.
    """
    a = torch.cat([matrix for matrix in lora_a if matrix is not None])
    b = [
        weight.new_empty(weight.shape[0], 0, dtype=torch.float32) if matrix is None else matrix
        for matrix, weight in zip(lora_b, weights, strict=True)
    ]
    # Drawn from PyTorch's generator, so that recomputation under checkpointing repeats it; on a GPU it stays there.
    seed = (
        torch.randint(2**62, (1,), device=x.device if impl == "triton" else "cpu")
        if p
        else _no_seed(x, impl)
    )
    rows = x.reshape(-1, x.shape[-1])  # (M, K)
    if torch.compiler.is_compiling():
        *outputs, _ = _forward(rows, list(weights), a, b, list(scalings), p, seed, impl)
    else:
        outputs = list(_Fused.apply(rows, a, seed, scalings, p, impl, *weights, *b))
    return [y.view(*x.shape[:-1], y.shape[-1]) for y in outputs]


def _no_seed(x: Tensor, impl: str) -> Tensor:
    return torch.zeros(1, dtype=torch.int64, device=x.device if impl == "triton" else "cpu")
