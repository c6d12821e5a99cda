"""LoRA on a linear layer, and the operator it computes with: all linears that read the same x.

Shapes: M rows, K in, N_i and r_i of linear i, R = sum of the ranks. With D = dropout, one mask for
the group, and D' = its backward, the same mask and factor 1 / (1 - p) on a gradient:

    forward    s    = c D(x) A^T                (M, R)     shrink: one read of x
               y_i  = x W_i^T + s_i B_i^T       (M, N_i)   expand_: added in place
    backward   ds_i = c_i dy_i B_i              (M, r_i)   expand_backward: one read of dy_i
               dB_i = dy_i^T s_i                (N_i, r_i)     for both
               dA   = ds^T D(x)                 (R, K)     shrink_backward_: the same mask again
               dx   = sum_i dy_i W_i + D'(ds A) (M, K)         for both

c holds the scaling of each rank. Saved for backward: x, the weights, A, B, s and the seed. Layer
and operator share this file; how each step is computed is in `lora/steps.py`, or with Triton in
`lora/kernels/steps.py`. Source: arXiv:2106.09685, equation 3; the split at s is that of LoRAFusion
(arXiv:2510.00206).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from common.products import add_product_, product, product_dtype
from lora import steps as plain_steps
from lora.implementations import resolve_impl
from lora.reference import lora_linear_reference
from lora.wrapped import WrappedLayer, add_delta_

# Rows of x up to which a pass without gradients is taken for decoding: a batch's, not a text's.
FEW_ROWS = 64


@dataclass(frozen=True)
class LowRank:
    """One linear of a group: its frozen weight (N, K) and, where LoRA adapts it, its factors.

    lora_a (r, K) and lora_b (N, r), float32.
    """

    weight: Tensor
    lora_a: Tensor | None = None
    lora_b: Tensor | None = None
    scaling: float = 0.0


class LoRALinear(WrappedLayer):
    """A frozen linear layer plus scaling * B A.

    A starts Kaiming-uniform and B at zero, so training starts from the base.

    lora_A (r, K) and lora_B (N, r) are float32 whatever the base's dtype. "auto" is resolved here,
    once, for the device and dtype of the base. Source: arXiv:2106.09685, section 4.1.
    """

    base: nn.Linear

    def __init__(
        self,
        base: nn.Linear,
        rank: int,
        scaling: float,
        dropout: float,
        generator: torch.Generator,
        impl: str = "auto",
    ) -> None:
        super().__init__()
        if impl == "auto":
            impl, _ = resolve_impl(impl, base.weight.device, base.weight.dtype)
        self.base, self.scaling, self.dropout, self.impl = base, scaling, dropout, impl
        # Kaiming-uniform with a = sqrt(5), as PEFT draws it: the gain sqrt(2 / (1 + 5)) and the
        # sqrt(3) of a uniform distribution leave 1 / sqrt(K).
        bound = 1.0 / math.sqrt(base.in_features)
        # Drawn on the CPU, then moved: every device starts from the same numbers.
        lora_a = torch.empty(rank, base.in_features).uniform_(-bound, bound, generator=generator)
        self.lora_A = nn.Parameter(lora_a.to(base.weight.device))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank, device=base.weight.device))

    def forward(self, x: Tensor) -> Tensor:
        p = self.dropout if self.training else 0.0
        if self._is_few(x, p):
            return few_rows(x, [self])[0]
        if self.impl != "reference":
            return fused_linears(x, [_low_rank(self)], p=p, impl=self.impl)[0]
        # The base, not F.linear: on a CPU without 16-bit products the model's own linear knows a
        # faster way.
        return lora_linear_reference(x, self.base(x), self.lora_A, self.lora_B, self.scaling, p)

    def forward_group(self, x: Tensor, linears: Sequence[nn.Module]) -> list[Tensor]:
        """The outputs of linears that read the same x, this one among them, in one pass over x.

        Fused ways share one dropout mask among the group; the reference draws one for each linear,
        as PEFT does.
        """
        adapted = [linear for linear in linears if isinstance(linear, LoRALinear)]
        modes = {(linear.dropout, linear.training) for linear in adapted}
        # One mask cannot serve two rates: linears that differ are computed one after the other.
        if self.impl == "reference" or len(modes) > 1:
            return [linear(x) for linear in linears]
        p = self.dropout if self.training else 0.0
        if self._is_few(x, p):
            return few_rows(x, linears)
        return fused_linears(x, [_low_rank(linear) for linear in linears], p=p, impl=self.impl)

    def _is_few(self, x: Tensor, p: float) -> bool:
        is_decoding = self.impl == "torch" and not p and not torch.is_grad_enabled()
        return is_decoding and x[..., 0].numel() <= FEW_ROWS

    def merged(self) -> nn.Linear:
        self.survived = add_delta_(self.base.weight, self.lora_B, self.lora_A, self.scaling)
        return self.base

    def peft_tensors(self, prefix: str) -> dict[str, nn.Parameter]:
        return {f"{prefix}.lora_A.weight": self.lora_A, f"{prefix}.lora_B.weight": self.lora_B}


def few_rows(x: Tensor, linears: Sequence[nn.Module]) -> list[Tensor]:
    """The outputs of linears that read the same few rows x (..., K), without dropout or gradients.

    The factors stay in float32, as they are stored: casting all of them at every decoded token, as
    the fused way casts them, costs more than their products with a few rows.
    """
    wide, outputs = x.float(), []
    for linear in linears:
        if not isinstance(linear, LoRALinear):
            outputs.append(linear(x))
            continue
        low = F.linear(wide, linear.lora_A)  # (..., r)
        delta = F.linear(low, linear.lora_B)  # (..., N), float32
        outputs.append(linear.base(x).add_(delta, alpha=linear.scaling))
    return outputs


def _low_rank(linear: nn.Module) -> LowRank:
    """What the operator needs of a linear, with LoRA or without."""
    if isinstance(linear, LoRALinear):
        return LowRank(linear.base.weight, linear.lora_A, linear.lora_B, linear.scaling)
    return LowRank(linear.get_parameter("weight"))


def fused_linears(x: Tensor, linears: Sequence[LowRank], *, p: float, impl: str) -> list[Tensor]:
    """x W_i^T + scaling_i dropout(x) A_i^T B_i^T for every linear i; one at least has LoRA.

    x (..., K) and weights (N_i, K) in one dtype, A and B float32 -> (..., N_i) each. `p` is the
    dropout rate of this call, 0 outside training; `impl` is "torch" or "triton".
    Raises: ValueError for a weight that requires a gradient, since none would reach it.
    """
    weights = [linear.weight for linear in linears]
    if any(weight.requires_grad for weight in weights):
        raise ValueError(
            f"lora impl: {impl} is for a frozen weight, but this one requires a gradient; "
            "use reference"
        )
    # One matrix for the group: x is read once for all ranks together. Autograd cuts dA apart again.
    a = torch.cat([linear.lora_a for linear in linears if linear.lora_a is not None])  # (R, K)
    # A linear without LoRA has rank 0: an empty B keeps the group's lists as long as one another.
    b = [
        weight.new_empty(weight.shape[0], 0, dtype=torch.float32)
        if linear.lora_b is None
        else linear.lora_b
        for linear, weight in zip(linears, weights, strict=True)
    ]
    # On the host, for a GPU too: drawn there it would be one launch more. It comes from PyTorch's
    # generator, whose state checkpointing puts back: a recomputed block repeats its mask.
    seed = torch.randint(2**62, (1,)) if p else torch.zeros(1, dtype=torch.int64)
    call = _Call(tuple(linear.scaling for linear in linears), p, impl)
    rows = x.reshape(-1, x.shape[-1])  # (M, K)
    # A compiler follows neither a generator's seed nor a kernel's launch. There a compiled caller
    # breaks its graph and the operator runs as it is; without dropout the plain steps are compiled
    # with everything around them.
    apply = _apply_untraced if p or impl == "triton" else _Fused.apply
    outputs = apply(rows, a, seed, call, *weights, *b)
    return [y.view(*x.shape[:-1], y.shape[-1]) for y in outputs]


@dataclass(frozen=True)
class _Call:
    """What the operator needs besides tensors: every scaling, the dropout rate, whose steps."""

    scalings: tuple[float, ...]
    p: float
    impl: str


class _Fused(torch.autograd.Function):
    """The group's products and their gradients, in the equations at the top of this file.

    An autograd.Function and not a `torch.library.custom_op`, whose dispatcher costs 0.1 ms a group,
    as much again as a whole small one (forward and backward of 64 -> 64 on 8 rows: 0.12 ms against
    0.23 ms on a CPU).
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, a: Tensor, seed: Tensor, call: _Call, *matrices: Tensor
    ) -> tuple[Tensor, ...]:
        count, steps = len(call.scalings), _steps(call.impl)
        weights, b = matrices[:count], matrices[count:]
        ranks = tuple(matrix.shape[1] for matrix in b)
        # Float32 where a CPU is slow in x's dtype: one copy for the group, and none is kept.
        wide = x.to(product_dtype(x))
        s = steps.shrink(wide, a, _per_rank(call.scalings, ranks, x.device), call.p, seed)  # (M, R)
        outputs = [product(wide, weight) for weight in weights]
        for y, matrix, part in zip(outputs, b, s.split(ranks, dim=1), strict=True):
            if matrix.shape[1]:
                # In place, before autograd sees y: a copy of M x N would cost as much as the whole
                # low-rank path.
                steps.expand_(y, part, matrix)
        ctx.call, ctx.ranks = call, ranks
        # x as it came, not dropped out and not in float32: the mask is made again from its seed.
        ctx.save_for_backward(x, a, seed, s, *matrices)
        return tuple(y.to(x.dtype) for y in outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *dys: Tensor) -> tuple[Any, ...]:
        x, a, seed, s, *matrices = ctx.saved_tensors
        call, steps = ctx.call, _steps(ctx.call.impl)
        weights, b = matrices[: len(dys)], matrices[len(dys) :]
        dtype = s.dtype  # that of the forward's products
        dys, wide = tuple(dy.to(dtype) for dy in dys), x.to(dtype)
        ds = torch.empty_like(s)  # (M, R), written part by part
        db: list[Tensor | None] = [None] * len(dys)
        pairs = zip(s.split(ctx.ranks, dim=1), ds.split(ctx.ranks, dim=1), strict=True)
        linears = zip(dys, b, pairs, call.scalings, strict=True)
        for i, (dy, matrix, (s_part, ds_part), scaling) in enumerate(linears):
            if matrix.shape[1]:
                _, db[i] = steps.expand_backward(dy, matrix, s_part, scaling, ds_part)
        # The first layer's x wants no gradient, which saves its N x K product.
        dx = _frozen_grad(dys, weights) if ctx.needs_input_grad[0] else None
        da = steps.shrink_backward_(dx, ds, wide, a, call.p, seed)
        dx = None if dx is None else dx.to(x.dtype)
        return dx, da, None, None, *(None for _ in weights), *db


_apply_untraced = torch.compiler.disable(_Fused.apply)


def _steps(impl: str) -> ModuleType:
    """The module that holds the five steps: `lora.steps`, or the Triton kernels' launchers."""
    if impl == "triton":
        from lora.kernels import steps  # only where it runs: there is no Triton on Mac and Windows

        return steps
    assert impl == "torch", impl
    return plain_steps


@cache
def _per_rank(scalings: tuple[float, ...], ranks: tuple[int, ...], device: torch.device) -> Tensor:
    """The scaling of each rank, (R,) float32.

    Cached, because a copy from the host would wait for the GPU in every layer.
    """
    values = [scaling for scaling, rank in zip(scalings, ranks, strict=True) for _ in range(rank)]
    return torch.tensor(values, dtype=torch.float32, device=device)


def _frozen_grad(dys: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """sum_i dy_i W_i (M, K), the later products added in place."""
    # No sum of separate products: each would need one more M x K matrix and a pass over it.
    dx = None
    for dy, weight in zip(dys, weights, strict=True):
        dx = add_product_(dx, dy, weight)
    assert dx is not None
    return dx
