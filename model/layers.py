"""The small modules of a block: linear, embedding, RMSNorm, gated MLP; softcap and the rotary tables.

Shapes: B batch, T positions, H heads, D model width, F MLP width, d head width.
Source of the numerics: Gemma's reference implementation, github.com/google/gemma_pytorch, gemma/model.py.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.device import has_fast_matmul
from model.fused import geglu, rms_norm
from model.recompute import recomputed

# Rows of a weight upcast at a time: bounds the float32 copy of the 256,000-row head to 75 MB at D = 2304.
UPCAST_ROWS = 8192
# Below this many rows of x a 16-bit product is a memory-bound matrix-vector product that PyTorch does well everywhere.
UPCAST_MIN_ROWS = 32


class _UpcastLinear(torch.autograd.Function):
    """y = x W^T for a frozen 16-bit W on a CPU without 16-bit matrix units: float32 products, W in row slices.

    dx = dy W. Nothing in float32 is saved; W gets no gradient.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        wide = x.float()
        parts = [(wide @ part.float().T).to(x.dtype) for part in weight.split(UPCAST_ROWS)]
        # No view: callers may write into the result, which autograd forbids for views made in here.
        return torch.cat(parts, dim=-1)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        (weight,) = ctx.saved_tensors
        dy = grads[0].reshape(-1, weight.shape[0])
        dx = torch.zeros(dy.shape[0], weight.shape[1], dtype=torch.float32)
        for part, slice_dy in zip(
            weight.split(UPCAST_ROWS), dy.split(UPCAST_ROWS, dim=1), strict=True
        ):
            dx.addmm_(slice_dy.float(), part.float())
        return dx.to(dy.dtype).view(*grads[0].shape[:-1], weight.shape[1]), None


class Linear(nn.Linear):
    """y = x W^T without bias: x (..., K), weight (N, K) -> (..., N), in x's dtype."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if has_fast_matmul(x) or self.weight.requires_grad or x[..., 0].numel() < UPCAST_MIN_ROWS:
            return F.linear(x, self.weight)
        return _UpcastLinear.apply(x, self.weight)


def project(x: Tensor, *linears: nn.Module) -> list[Tensor]:
    """The outputs of linears that read the same x. One that knows a joint way for all (`forward_group`) computes them."""
    for linear in linears:
        joint = getattr(linear, "forward_group", None)
        if joint is not None:
            outputs: list[Tensor] = joint(x, linears)
            return outputs
    return [linear(x) for linear in linears]


class Embedding(nn.Embedding):
    """Token ids (B, T) -> vectors (B, T, D) times sqrt(D), the factor rounded to the weight's dtype as Gemma does."""

    @property
    def scale(self) -> Tensor:
        # A fill on the device: torch.tensor would copy from the host at every call.
        return torch.full(
            (), self.embedding_dim**0.5, dtype=self.weight.dtype, device=self.weight.device
        )

    def forward(self, tokens: Tensor) -> Tensor:
        return F.embedding(tokens, self.weight) * self.scale


class RMSNorm(nn.Module):
    """x / rms(x) * (1 + w), in float32, cast back after the product. x (..., D). See `rms_norm`."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(dim))
        self.eps = eps

    def forward(
        self,
        x: Tensor,
        dtype: torch.dtype | None = None,
        shrunk: float = 1.0,
        residual: Tensor | None = None,
    ) -> Tensor:
        """The norm in `dtype`, by default x's own, of x before it was multiplied by `shrunk`; plus `residual`."""
        return rms_norm(x, self.weight, self.eps * shrunk**2, dtype or x.dtype, residual)


def softcap(logits: Tensor, cap: float | None) -> Tensor:
    """cap * tanh(logits / cap), or the logits themselves without a cap. Source: arXiv:2408.00118, section 2."""
    return logits if cap is None else cap * torch.tanh(logits / cap)


def rotary_tables(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin (B, T, 1, d) in float32 for positions (B, T).

    Source: "RoFormer" (arXiv:2104.09864), section 3.4.2, with the half-split layout of Gemma's checkpoints.
    """
    exponents = (
        torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim
    )
    angles = positions[:, :, None, None].float() * (1.0 / theta**exponents)  # (B, T, 1, d / 2)
    angles = torch.cat((angles, angles), dim=-1)  # (B, T, 1, d)
    return angles.cos(), angles.sin()


class MLP(nn.Module):
    """down(gelu_tanh(gate(x)) * up(x)): (..., D) -> (..., D), times `shrink` where float16 might overflow."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = Linear(hidden_size, intermediate_size)
        self.up_proj = Linear(hidden_size, intermediate_size)
        self.down_proj = Linear(intermediate_size, hidden_size)

    def forward(self, x: Tensor, shrink: float = 1.0, selective: bool = False) -> Tensor:
        gate, up = project(x, self.gate_proj, self.up_proj)
        if shrink != 1.0:
            up = up * shrink
        product = geglu(gate, up)
        if not selective:
            return self.down_proj(product)
        gate, up = gate.detach(), up.detach()
        with recomputed(product, lambda: geglu(gate, up)):
            return self.down_proj(product)
