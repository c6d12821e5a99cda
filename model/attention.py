"""Grouped-query attention with softcap, its masks, and the key-value cache.

Shapes: B batch, T query positions, S key positions, H query heads, Hkv key/value heads, d head width.
Source: arXiv:2408.00118, section 2 (softcap, alternating local and global attention, grouped queries).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common.device import has_fast_matmul
from model.config import Gemma2Config
from model.fused import rotate
from model.layers import Linear, project, softcap


class KVCache:
    """Keys and values of every layer, (B, Hkv, max_length, d) each, as products read them; an index is a position.

    Rows of different lengths share one cache: right padding writes entries that the causal mask hides until the row's
    own next tokens overwrite them.
    """

    def __init__(
        self,
        config: Gemma2Config,
        batch: int,
        max_length: int,
        device: torch.device | str,
        dtype: torch.dtype,
    ) -> None:
        shape = (batch, config.num_key_value_heads, max_length, config.head_dim)
        self.keys = [
            torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.num_hidden_layers)
        ]
        self.values = [torch.zeros_like(keys) for keys in self.keys]
        self.rows = torch.arange(batch, device=device)[:, None]
        self.max_length, self.visible = max_length, 0

    def reserve(self, end: int, visible: int | None = None) -> None:
        """Says, once for all layers, that what is about to be stored ends before `end`. Raises: ValueError past the end.

        `update` then returns the first `visible` entries, by default all: a product would have to copy a part of them.
        """
        if end > self.max_length:
            raise ValueError(
                f"position {end - 1} does not fit a cache of {self.max_length} entries"
            )
        self.visible = self.max_length if visible is None else visible

    def update(
        self, layer: int, positions: Tensor, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Writes keys and values (B, T, Hkv, d) at positions (B, T); returns what `reserve` has announced, (B, S, Hkv, d)."""
        kept = self.keys[layer], self.values[layer]
        for cached, new in zip(kept, (keys, values), strict=True):
            cached[self.rows, :, positions] = new
        return kept[0][:, :, : self.visible].transpose(1, 2), kept[1][
            :, :, : self.visible
        ].transpose(1, 2)

    def keep(self, rows: Tensor) -> None:
        """Forgets every row of the batch but these (int64, their indices)."""
        self.rows = self.rows[: len(rows)]
        self.keys = [keys[rows] for keys in self.keys]
        self.values = [values[rows] for values in self.values]


def attention_mask(
    query_positions: Tensor,
    key_positions: Tensor,
    query_documents: Tensor | None,
    key_documents: Tensor | None,
    window: int | None,
) -> Tensor:
    """True where a query may see a key: (B, 1, T, S).

    A key must not lie in the query's future, must be one of the last `window` keys (the query's own included)
    and must belong to the same document. Positions (B, T) and (B, S) restart in each document of a pack.
    """
    distance = query_positions[:, :, None] - key_positions[:, None, :]  # (B, T, S)
    allowed = distance >= 0
    if window is not None:
        allowed &= distance < window
    if query_documents is not None and key_documents is not None:
        allowed &= query_documents[:, :, None] == key_documents[:, None, :]
    return allowed[:, None]


def attend(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scale: float, cap: float | None
) -> Tensor:
    """softmax(mask(softcap(scale * q k^T))) v, softmax in float32.

    query (B, T, H, d), keys and values (B, S, Hkv, d), mask (B, 1, T, S) -> (B, T, H, d). The query heads of a group are
    folded into the rows, so that keys and values are never repeated in memory.
    """
    batch, length, heads, width = query.shape
    groups, dtype = keys.shape[2], query.dtype
    if not has_fast_matmul(query):
        query, keys, values = query.float(), keys.float(), values.float()
    folded = query.transpose(1, 2).reshape(batch, groups, (heads // groups) * length, width)
    scores = softcap((folded @ keys.permute(0, 2, 3, 1)) * scale, cap)  # (B, Hkv, H / Hkv * T, S)
    scores = scores.view(batch, groups, heads // groups, length, -1)
    # The cap comes before the mask: the other way round a masked score would be -cap and leak.
    scores = scores.masked_fill(~mask[:, :, None], torch.finfo(scores.dtype).min)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    mixed = weights.view(batch, groups, -1, weights.shape[-1]) @ values.transpose(1, 2)
    return mixed.view(batch, heads, length, width).transpose(1, 2).to(dtype)


@dataclass(frozen=True)
class MaskedAttention:
    """Attention through masks (B, 1, T, S) over all keys: for decoding with a cache."""

    wide: Tensor
    narrow: Tensor

    def __call__(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        window: int | None,
        scale: float,
        cap: float | None,
    ) -> Tensor:
        return attend(query, keys, values, self.wide if window is None else self.narrow, scale, cap)


# (query (B, T, H, d), keys and values (B, S, Hkv, d), window, scale, cap) -> (B, T, H, d)
Attend = Callable[[Tensor, Tensor, Tensor, int | None, float, float | None], Tensor]


class Attention(nn.Module):
    """Attention of one layer: (B, T, D) -> (B, T, D), times `shrink` where float16 might overflow."""

    def __init__(self, config: Gemma2Config, layer: int) -> None:
        super().__init__()
        width = config.head_dim
        self.layer, self.head_dim = layer, width
        self.window = config.sliding_window if config.is_sliding(layer) else None
        self.scale = config.query_pre_attn_scalar**-0.5
        self.cap = config.attn_logit_softcapping
        self.q_proj = Linear(config.hidden_size, config.num_attention_heads * width)
        self.k_proj = Linear(config.hidden_size, config.num_key_value_heads * width)
        self.v_proj = Linear(config.hidden_size, config.num_key_value_heads * width)
        self.o_proj = Linear(config.num_attention_heads * width, config.hidden_size)

    def forward(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor],
        look: Attend,
        positions: Tensor,
        cache: KVCache | None,
        shrink: float = 1.0,
    ) -> Tensor:
        projected = project(x, self.q_proj, self.k_proj, self.v_proj)
        query, keys, values = (
            y.unflatten(-1, (-1, self.head_dim)) for y in projected
        )  # (B, T, H or Hkv, d)
        query, keys = rotate(query, *rotary), rotate(keys, *rotary)
        if cache is not None:
            keys, values = cache.update(self.layer, positions, keys, values)
        mixed = look(query, keys, values, self.window, self.scale, self.cap)
        mixed = mixed.flatten(2)  # (B, T, H * d)
        return self.o_proj(mixed if shrink == 1.0 else mixed * shrink)
