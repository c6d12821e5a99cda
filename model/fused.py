"""What a block computes with almost no arithmetic: RMSNorm, rotary embedding, GeGLU, softcap.

Their cost is memory traffic, so each has its backward pass by hand, which saves less than autograd
would and reads it fewer times. Each pass is one plain function; on CUDA torch.compile makes one
kernel of it, elsewhere it runs as written.
Shapes: B batch, T positions, H heads, D model width, F MLP width, d head width.
"""

from collections.abc import Callable
from functools import cache, wraps
from typing import Any, ParamSpec, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

P = ParamSpec("P")
R = TypeVar("R")

# The outputs of o_proj and down_proj of a trained Gemma-2 exceed 65,504, where float16 ends. In
# float16 their inputs are therefore multiplied by this (`Attention`, `MLP`), a power of two, so
# exactly, and the norm that follows (`ResidualNorm`) takes the factor out again.
FP16_SHRINK = 2.0**-6


def fused(function: Callable[P, R], sizes_vary: bool | None = None) -> Callable[P, R]:
    """`function` of tensors without gradients, one kernel where a pass over a text runs on CUDA.

    `sizes_vary`: True compiles for all sizes at once; by default that comes with the second size.
    """
    # Filled at the first call on a GPU: compiling at import would slow every start.
    compiled: list[Callable[..., R]] = []

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> R:
        first = args[0]
        # Inside a larger compiled region the function is only a part of it.
        if not (isinstance(first, Tensor) and _can_compile(first)) or torch.compiler.is_compiling():
            return function(*args, **kwargs)
        if not compiled:
            compiled.append(torch.compile(function, dynamic=sizes_vary))
        # Gradients are by hand here; whether one is wanted must not be a reason to compile again.
        detached = [arg.detach() if isinstance(arg, Tensor) else arg for arg in args]
        return compiled[0](*detached, **kwargs)

    return cast(Callable[P, R], run)


def _can_compile(x: Tensor) -> bool:
    """True for activations (B, T, ...) with T > 1, so not in decoding, on a GPU with Triton."""
    return x.is_cuda and x.dim() >= 2 and x.shape[1] >= 2 and _has_triton(x.device)


@cache
def _has_triton(device: torch.device) -> bool:
    # Cached: asked before every pass, it would cost a fifth of what the pass costs the host.
    return torch.cuda.get_device_capability(device) >= (7, 0)


@fused
def _norm(
    x: Tensor, weight: Tensor, residual: Tensor | None, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    x = x.float()
    rstd = torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)  # (..., 1)
    # Gemma multiplies by the weight in float32 and rounds after that; Llama rounds first.
    normed = (x * rstd).mul_(1.0 + weight.float()).to(dtype)
    return normed if residual is None else residual + normed, rstd


@fused
def _norm_backward(dy: Tensor, x: Tensor, weight: Tensor, rstd: Tensor) -> Tensor:
    # In place on new tensors: outside a compiled kernel the cache has to fetch each float32 copy.
    g, normed = dy * (1.0 + weight.float()), x * rstd  # float32, as one factor of each is
    along = (g * normed).mean(-1, keepdim=True)  # (..., 1)
    return g.sub_(normed.mul_(along)).mul_(rstd).to(x.dtype)


class _RMSNorm(torch.autograd.Function):
    """y = residual + n (1 + w) with n = x rstd, rstd = 1 / sqrt(mean(x^2) + eps), in float32.

    With g = dy (1 + w):  dx = rstd (g - n mean(g n)),  dw = sum over rows of dy n.
    Saves x in its own dtype and rstd. Autograd would keep two float32 copies of x for each of a
    block's four norms; `benchmarks/LOG.md` has the effect.
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
        (dy,) = grads
        x, weight, rstd = ctx.saved_tensors
        d_x = d_weight = d_residual = None
        if ctx.needs_input_grad[0]:
            d_x = _norm_backward(dy, x, weight, rstd)
        if ctx.needs_input_grad[1]:  # never in a LoRA run, where the norms are frozen
            d_weight = (dy.float() * x.float() * rstd).sum_to_size(weight.shape).to(weight.dtype)
        if ctx.residual_dtype is not None:
            d_residual = dy.to(ctx.residual_dtype)
        return d_x, d_weight, d_residual, None, None


def rms_norm(
    x: Tensor,
    weight: Tensor,
    *,
    eps: float,
    dtype: torch.dtype | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """x / rms(x) * (1 + w), computed in float32, in `dtype`, plus `residual`: x (..., D), w (D,).

    `dtype` is by default the weight's, not that of x: float16 keeps its residual stream in float32.
    Source: "Root Mean Square Layer Normalization" (arXiv:1910.07467), equation 4; the (1 + w) is
    Gemma's.
    """
    if not torch.is_grad_enabled():  # decoding: autograd's own bookkeeping costs as much again
        return _norm(x, weight, residual, eps, dtype or weight.dtype)[0]
    y: Tensor = _RMSNorm.apply(x, weight, residual, eps, dtype or weight.dtype)
    return y


class RMSNorm(nn.Module):
    """The norm before a branch, and the last one: x (..., D) -> (..., D) in the weight's dtype."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, eps=self.eps)


class ResidualNorm(RMSNorm):
    """The norm after a branch, and the sum with the residual stream: two (..., D) -> (..., D)."""

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:  # type: ignore[override]
        # A float16 x comes multiplied by FP16_SHRINK. With c x and c^2 eps the norm is that of x
        # with eps; with eps as it is, rows with a small mean square would come out too small.
        eps = self.eps * FP16_SHRINK**2 if x.dtype == torch.float16 else self.eps
        return rms_norm(x, self.weight, eps=eps, dtype=residual.dtype, residual=residual)


def rotary_tables(
    positions: Tensor, head_dim: int, theta: float, factor: float = 1.0
) -> tuple[Tensor, Tensor]:
    """cos and sin (B, T, 1, d) in float32 for positions (B, T), divided by `factor`.

    Source: "RoFormer" (arXiv:2104.09864), section 3.4.2, with the half-split layout of Gemma's
    checkpoints: component i turns together with i + d / 2, not with i + 1 as in the paper.
    """
    even = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32)  # (d / 2,)
    rates = 1.0 / theta ** (even / head_dim) / factor
    angles = positions[:, :, None, None].float() * rates
    angles = torch.cat((angles, angles), dim=-1)  # (B, T, 1, d)
    return angles.cos(), angles.sin()


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)  # (B, T, H, d / 2) each
    return x * cos.to(x.dtype) + torch.cat((-second, first), dim=-1) * sin.to(x.dtype)


@fused
def _rotated(
    query: Tensor, keys: Tensor, cos: Tensor, sin: Tensor, sign: float
) -> tuple[Tensor, Tensor]:
    sin = sin * sign
    return _turned(query, cos, sin), _turned(keys, cos, sin)


class _Rotation(torch.autograd.Function):
    """A rotation by the positions' angles; its transpose is the rotation back. Saves the tables."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, keys: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        return _rotated(query, keys, cos, sin, 1.0)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        grad_query, grad_keys = grads
        return *_rotated(grad_query, grad_keys, cos, sin, -1.0), None, None


def rotate(query: Tensor, keys: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """The rotary embedding of queries (B, T, H, d) and keys (B, T, Hkv, d).

    The float32 tables are cast to their dtype first. Both at once: on a card a pass costs the host
    more than it costs the card. Source of the cast: Gemma's reference implementation.
    """
    if not torch.is_grad_enabled():
        return _rotated(query, keys, cos, sin, 1.0)
    turned: tuple[Tensor, Tensor] = _Rotation.apply(query, keys, cos, sin)
    return turned


@fused
def _geglu(gate: Tensor, up: Tensor) -> Tensor:
    return F.gelu(gate, approximate="tanh").mul_(up)


@fused
def _geglu_backward(dy: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    d_gate = torch.ops.aten.gelu_backward(dy * up, gate, approximate="tanh")
    return d_gate, F.gelu(gate, approximate="tanh").mul_(dy)


class _GeGLU(torch.autograd.Function):
    """gelu_tanh(gate) * up; saves gate and up alone, and backward computes the gelu again."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return _geglu(gate, up)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, Tensor]:
        return _geglu_backward(grads[0], *ctx.saved_tensors)


def geglu(gate: Tensor, up: Tensor) -> Tensor:
    """gelu_tanh(gate) * up, (..., F). Source: "GLU Variants" (arXiv:2002.05202), equation 6."""
    if not torch.is_grad_enabled():
        return _geglu(gate, up)
    y: Tensor = _GeGLU.apply(gate, up)
    return y


def softcap(logits: Tensor, cap: float | None) -> Tensor:
    """cap * tanh(logits / cap); without a cap the logits. Source: arXiv:2408.00118, section 2."""
    return logits if cap is None else cap * torch.tanh(logits / cap)


def tanh_(x: Tensor) -> Tensor:
    """tanh of a float32 x, in place, within 2e-7: three units in the last place below 1.

    Near 0 that is an absolute error, which logits can take.
    """
    if x.device.type != "cpu":
        return x.tanh_()
    # 2 sigmoid(2 x) - 1: on a CPU PyTorch's tanh takes six times as long as its sigmoid.
    return x.mul_(2.0).sigmoid_().mul_(2.0).sub_(1.0)
