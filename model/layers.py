"""The layers inside a block: linear maps, attention with its projections, the gated MLP.

Shapes: B batch, T query positions, S key positions, H query heads, Hkv key/value heads, d head
width, D model width, F MLP width; in a linear map K in, N out.
Source of the numerics: Gemma's reference implementation, github.com/google/gemma_pytorch,
gemma/model.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.products import add_product_, has_fast_matmul, product
from model.attention import Attend, KVCache
from model.config import Gemma2Config
from model.fused import FP16_SHRINK, RMSNorm, geglu, rotate
from model.recompute import recomputed

# Below this many rows of x a 16-bit product is a memory-bound matrix-vector product that PyTorch
# does well everywhere.
UPCAST_MIN_ROWS = 32


@dataclass(frozen=True)
class Pass:
    """What the blocks of one forward pass share; `Decoder.forward` makes it."""

    attend: Attend
    # cos and sin, (B, T, 1, d) each, float32; in Gemma-2 both kinds of layers have the same.
    full_rotary: tuple[Tensor, Tensor]
    sliding_rotary: tuple[Tensor, Tensor]
    positions: Tensor  # (B, T), where a cache stores the new keys and values
    cache: KVCache | None
    recompute: bool  # True: backward computes the norms and the gated product again


@runtime_checkable
class JointLinear(Protocol):
    """A linear that can compute several linears of the same x at once, as LoRA's does."""

    def forward_group(self, x: Tensor, linears: Sequence[nn.Module]) -> list[Tensor]:
        """The outputs of all `linears`, of which this is one, in their order."""
        ...


@runtime_checkable
class TokenHead(Protocol):
    """A frozen head in which trained rows replace those of some tokens."""

    def replaced_rows(self) -> tuple[tuple[int, ...], Tensor]:
        """The tokens' ids and their rows (n, D)."""
        ...


class Linear(nn.Linear):
    """y = x W^T without bias: x (..., K), weight (N, K) -> (..., N), in x's dtype."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if x.numel() == x.shape[-1] and x.device.type == "cpu" and not torch.is_grad_enabled():
            return _one_row(x, self.weight)
        if has_fast_matmul(x) or self.weight.requires_grad or x[..., 0].numel() < UPCAST_MIN_ROWS:
            return F.linear(x, self.weight)
        return _UpcastLinear.apply(x, self.weight)


def _one_row(x: Tensor, weight: Tensor) -> Tensor:
    """x W^T for x (..., K) of one row, by PyTorch's own loop, which reads W as it lies.

    oneDNN, its choice for 16 bits, puts W into another order first, at every product: 17.7 GB/s on
    a core that reads 38, against 27.2 by the loop (9216 x 2304, bf16). Both sum in float32.
    """
    before = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
    try:
        return F.linear(x, weight)
    finally:
        torch.backends.mkldnn.enabled = before


class _UpcastLinear(torch.autograd.Function):
    """y = x W^T for a frozen 16-bit W on a CPU without fast 16-bit products: in float32.

    dx = dy W. Nothing in float32 is saved; W gets no gradient.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        # No view: callers may write into the result, which autograd forbids for views made in here.
        y = x.new_empty(*x.shape[:-1], weight.shape[0])
        y.flatten(0, -2).copy_(product(x.float().flatten(0, -2), weight))
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        (weight,) = ctx.saved_tensors
        dy = grads[0].reshape(-1, weight.shape[0])  # (M, N)
        dx = add_product_(None, dy.float(), weight).to(dy.dtype)
        return dx.view(*grads[0].shape[:-1], weight.shape[1]), None


def project(x: Tensor, *linears: nn.Module) -> list[Tensor]:
    """The outputs of linears that read the same x, at once if one of them knows how."""
    for linear in linears:
        # Any of them: LoRA may be on the values alone, and it knows how to compute plain ones too.
        if isinstance(linear, JointLinear):
            return linear.forward_group(x, linears)
    return [linear(x) for linear in linears]


class Attention(nn.Module):
    """Grouped-query attention: x (B, T, D) -> (B, T, D), in float16 times FP16_SHRINK."""

    def __init__(self, config: Gemma2Config, layer: int) -> None:
        super().__init__()
        width = config.head_dim
        self.layer, self.head_dim = layer, width
        self.window = config.sliding_window if config.is_sliding(layer) else None
        # Not always head_dim: in the 27B model it is hidden_size / num_attention_heads.
        self.scale = config.query_pre_attn_scalar**-0.5
        self.cap = config.attn_logit_softcapping
        self.q_proj = Linear(config.hidden_size, config.num_attention_heads * width)
        self.k_proj = Linear(config.hidden_size, config.num_key_value_heads * width)
        self.v_proj = Linear(config.hidden_size, config.num_key_value_heads * width)
        self.o_proj = Linear(config.num_attention_heads * width, config.hidden_size)
        self.has_norms = config.has_qk_norms
        if self.has_norms:
            self.q_norm = RMSNorm(width, config.rms_norm_eps)
            self.k_norm = RMSNorm(width, config.rms_norm_eps)

    def forward(self, x: Tensor, call: Pass) -> Tensor:
        projected = project(x, self.q_proj, self.k_proj, self.v_proj)
        # (B, T, H, d), and twice (B, T, Hkv, d).
        query, keys, values = (y.unflatten(-1, (-1, self.head_dim)) for y in projected)
        if self.has_norms:  # in place of Gemma-2's softcap, which bounds the scores after them
            query, keys = self.q_norm(query), self.k_norm(keys)
        rotary = call.full_rotary if self.window is None else call.sliding_rotary
        # Before the cache: a stored key never turns again, only distances to it matter.
        query, keys = rotate(query, keys, *rotary)
        if call.cache is not None:
            keys, values = call.cache.update(self.layer, call.positions, keys, values)
        window, scale, cap = self.window, self.scale, self.cap
        mixed = call.attend(query, keys, values, window=window, scale=scale, cap=cap)
        mixed = mixed.flatten(2)  # (B, T, H * d)
        if mixed.dtype == torch.float16:
            mixed = mixed * FP16_SHRINK
        return self.o_proj(mixed)  # (B, T, D)


class MLP(nn.Module):
    """down(gelu_tanh(gate(x)) * up(x)): (..., D) -> (..., D), in float16 times FP16_SHRINK."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = Linear(hidden_size, intermediate_size)
        self.up_proj = Linear(hidden_size, intermediate_size)
        self.down_proj = Linear(intermediate_size, hidden_size)

    def forward(self, x: Tensor, call: Pass) -> Tensor:
        gate, up = project(x, self.gate_proj, self.up_proj)  # (B, T, F) each
        if up.dtype == torch.float16:
            up = up * FP16_SHRINK
        product = geglu(gate, up)
        if not call.recompute:
            return self.down_proj(product)  # (B, T, D)
        # geglu keeps gate and up anyway; the product, as large as each of them, need not be kept.
        gate, up = gate.detach(), up.detach()
        with recomputed(product, lambda: geglu(gate, up)):
            return self.down_proj(product)
