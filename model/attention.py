"""Grouped-query attention with softcap, its masks, and the key-value cache.

Shapes: B batch, T query positions, S key positions, H query heads, Hkv key/value heads, d head width.
Source: arXiv:2408.00118, section 2 (softcap, alternating local and global attention, grouped queries).
"""

import torch
from torch import Tensor, nn

from model.config import Gemma2Config
from model.layers import Linear, has_fast_matmul, project, rotate, softcap

# Queries that are computed together: the keys after them are never read.
QUERY_TILE = 64


class KVCache:
    """Keys and values of every layer, (B, Hkv, max_length, d) each; an entry's index is its position.

    Rows of different lengths share one cache: right padding writes entries that the causal mask hides until the row's
    own next tokens overwrite them.
    """

    def __init__(
        self, config: Gemma2Config, batch: int, max_length: int, device: torch.device | str, dtype: torch.dtype
    ) -> None:
        shape = (batch, config.num_key_value_heads, max_length, config.head_dim)
        self.keys = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.num_hidden_layers)]
        self.values = [torch.zeros_like(keys) for keys in self.keys]
        self.max_length = max_length

    def update(self, layer: int, positions: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Writes keys and values (B, Hkv, T, d) at positions (B, T); returns everything up to the last one written."""
        end = int(positions.max()) + 1
        if end > self.max_length:
            raise ValueError(f"position {end - 1} does not fit a cache of {self.max_length} entries")
        index = positions[:, None, :, None].expand_as(keys)
        self.keys[layer].scatter_(2, index, keys)
        self.values[layer].scatter_(2, index, values)
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]


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


def attend_causal(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scale: float, cap: float | None) -> Tensor:
    """`attend` for T = S with keys in the order of the queries: each tile of queries reads the keys up to its own end."""
    tiles = [slice(start, start + QUERY_TILE) for start in range(0, query.shape[2], QUERY_TILE)]
    return torch.cat([attend(query[:, :, t], keys[:, :, : t.stop], values[:, :, : t.stop], mask[:, :, t, : t.stop],
                             scale, cap) for t in tiles], dim=2)  # fmt: skip


def attend(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scale: float, cap: float | None) -> Tensor:
    """softmax(mask(softcap(scale * q k^T))) v, softmax in float32.

    query (B, H, T, d), keys and values (B, Hkv, S, d), mask (B, 1, T, S) -> (B, H, T, d). The query heads of a group
    are folded into the rows, so that keys and values are never repeated in memory.
    """
    batch, heads, length, width = query.shape
    groups, dtype = keys.shape[1], query.dtype
    if not has_fast_matmul(query):
        query, keys, values = query.float(), keys.float(), values.float()
    folded = query.reshape(batch, groups, (heads // groups) * length, width)
    scores = softcap((folded @ keys.transpose(-1, -2)) * scale, cap)  # (B, Hkv, H / Hkv * T, S)
    scores = scores.view(batch, groups, heads // groups, length, -1)
    # The cap comes before the mask: the other way round a masked score would be -cap and leak.
    scores = scores.masked_fill(~mask[:, :, None], torch.finfo(scores.dtype).min)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    mixed = weights.view(batch, groups, -1, weights.shape[-1]) @ values
    return mixed.view(batch, heads, length, width).to(dtype)


class Attention(nn.Module):
    """Attention of one layer: (B, T, D) -> (B, T, D)."""

    def __init__(self, config: Gemma2Config, layer: int) -> None:
        super().__init__()
        width = config.head_dim
        self.layer, self.head_dim = layer, width
        self.scale = config.query_pre_attn_scalar**-0.5
        self.cap = config.attn_logit_softcapping
        self.q_proj = Linear(config.hidden_size, config.num_attention_heads * width)
        self.k_proj = Linear(config.hidden_size, config.num_key_value_heads * width)
        self.v_proj = Linear(config.hidden_size, config.num_key_value_heads * width)
        self.o_proj = Linear(config.num_attention_heads * width, config.hidden_size)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (B, T, H * d) -> (B, H, T, d)

    def forward(
        self, x: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor, positions: Tensor, cache: KVCache | None
    ) -> Tensor:
        query, keys, values = (self._heads(y) for y in project(x, self.q_proj, self.k_proj, self.v_proj))
        query, keys = rotate(query, *rotary), rotate(keys, *rotary)
        if cache is not None:
            keys, values = cache.update(self.layer, positions, keys, values)
        compute = attend_causal if cache is None else attend
        mixed = compute(query, keys, values, mask, self.scale, self.cap)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))  # (B, T, H * d) -> (B, T, D)
