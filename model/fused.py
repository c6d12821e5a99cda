"""The operators of a block that do almost no arithmetic, with their backward passes: RMSNorm, rotary embedding, GeGLU.

What they cost is passes over memory. Each pass is one plain function here; on CUDA torch.compile makes one kernel of it,
elsewhere it runs as it stands. Shapes: B batch, T positions, H heads, D model width, F MLP width, d head width.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def fused(function: Callable[P, R]) -> Callable[P, R]:
    """`function` of tensors without gradients, as one kernel where a training pass runs it on a CUDA device."""
    compiled: list[Callable[..., R]] = []

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> R:
        first = args[0]
        # Inside a larger compiled region the function is only a part of it.
        if not (isinstance(first, Tensor) and _can_compile(first)) or torch.compiler.is_compiling():
            return function(*args, **kwargs)
        if not compiled:
            compiled.append(torch.compile(function))
        # Gradients are by hand here; whether one is wanted must not be a reason to compile again.
        detached = [arg.detach() if isinstance(arg, Tensor) else arg for arg in args]
        return compiled[0](*detached, **kwargs)

    return cast(Callable[P, R], run)


def tanh_(x: Tensor) -> Tensor:
    """tanh of a float32 x, in place. On a CPU as 2 sigmoid(2 x) - 1: PyTorch's own takes six times as long as its sigmoid.

    Within 2e-7, two units in the last place below 1; near 0 this is an absolute error, as logits take it.
    """
    return x.mul_(2.0).sigmoid_().mul_(2.0).sub_(1.0) if x.device.type == "cpu" else x.tanh_()


def _can_compile(x: Tensor) -> bool:
    """True for activations (B, T, ...) of a pass over a text, on a GPU that Triton supports; decoding is one token long."""
    return (
        x.is_cuda
        and x.dim() > 1
        and x.shape[1] > 1
        and torch.cuda.get_device_capability(x.device) >= (7, 0)
    )


@fused
def _norm(
    x: Tensor, weight: Tensor, residual: Tensor | None, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    wide = x.float()
    rstd = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)  # (..., 1)
    normed = (wide * rstd).mul_(1.0 + weight.float()).to(dtype)
    return normed if residual is None else residual + normed, rstd


@fused
def _norm_backward(dy: Tensor, x: Tensor, weight: Tensor, rstd: Tensor) -> Tensor:
    # In place on new tensors: outside a compiled kernel each float32 copy is memory that the cache has to fetch.
    g, normed = dy * (1.0 + weight.float()), x * rstd  # at least float32, as the factors are
    along = (g * normed).mean(-1, keepdim=True)  # (..., 1)
    return g.sub_(normed.mul_(along)).mul_(rstd).to(x.dtype)


class _RMSNorm(torch.autograd.Function):
    """y = residual + n (1 + w) with n = x rstd, rstd = 1 / sqrt(mean(x^2) + eps), in float32. Saves x in its dtype, rstd.

    With g = dy (1 + w):  dx = rstd (g - n mean(g n)),  dw = sum over rows of dy n.
    Autograd would keep two float32 copies of x for each of a block's four norms; `benchmarks/LOG.md` has the effect.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, residual: Tensor | None, eps: float, dtype: torch.dtype
    ) -> Tensor:
        y, rstd = _norm(x, weight, residual, eps, dtype)
        ctx.save_for_backward(x, weight, rstd)
        ctx.residual_dtype = None if residual is None else residual.dtype
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        x, weight, rstd = ctx.saved_tensors
        d_x = _norm_backward(grads[0], x, weight, rstd) if ctx.needs_input_grad[0] else None
        d_weight = None
        if ctx.needs_input_grad[1]:
            d_weight = (
                (grads[0].float() * x.float() * rstd).sum_to_size(weight.shape).to(weight.dtype)
            )
        return (
            d_x,
            d_weight,
            None if ctx.residual_dtype is None else grads[0].to(ctx.residual_dtype),
            None,
            None,
        )


def rms_norm(
    x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype, residual: Tensor | None = None
) -> Tensor:
    """x / rms(x) * (1 + w) in `dtype`, added to `residual` where there is one: x (..., D), weight (D,).

    Source: "Root Mean Square Layer Normalization" (arXiv:1910.07467), equation 4; the (1 + w) is Gemma's.
    """
    y: Tensor = _RMSNorm.apply(x, weight, residual, eps, dtype)
    return y


@fused
def _rotated(x: Tensor, cos: Tensor, sin: Tensor, sign: float) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return x * cos.to(x.dtype) + turned * (sin * sign).to(x.dtype)


class _Rotation(torch.autograd.Function):
    """A rotation by the positions' angles; its transpose is the rotation back. Saves the tables only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin, 1.0)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotated(grads[0], cos, sin, -1.0), None, None


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The rotary embedding of x (B, T, H, d); tables (B, T, 1, d), float32, cast to x's dtype first, as Gemma does."""
    y: Tensor = _Rotation.apply(x, cos, sin)
    return y


@fused
def _geglu(gate: Tensor, up: Tensor) -> Tensor:
    return F.gelu(gate, approximate="tanh").mul_(up)


@fused
def _geglu_backward(dy: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    d_gate = torch.ops.aten.gelu_backward(dy * up, gate, approximate="tanh")
    return d_gate, F.gelu(gate, approximate="tanh").mul_(dy)


class _GeGLU(torch.autograd.Function):
    """gelu_tanh(gate) * up, of which only gate and up are saved: gelu is computed again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return _geglu(gate, up)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, Tensor]:
        return _geglu_backward(grads[0], *ctx.saved_tensors)


def geglu(gate: Tensor, up: Tensor) -> Tensor:
    """gelu_tanh(gate) * up, (..., F). Source: "GLU Variants" (arXiv:2002.05202), equation 6."""
    y: Tensor = _GeGLU.apply(gate, up)
    return y
