"""Attention inside each document of a pack, tile by tile, with its own backward: no (T, T) mask, no scores kept.

Shapes: B batch, T positions, H query heads, Hkv key/value heads, d head width, and in a tile n queries and S keys.
For the devices without FlexAttention: CPU, MPS, and GPUs older than sm_80. A tile is some queries of one document with
the keys from the first that any of them may see to the last query's own. Backward computes the scores again. With
u = sigmoid(2 scale q k^T / cap) a capped score is cap tanh(scale q k^T / cap) = 2 cap u - cap, and softmax does not see
the constant; the sigmoid is what a CPU is fast at, and the slope of the cap is 4 u (1 - u). In float32 2 cap u is right
to 1e-5 at Gemma's cap of 50:

    p = softmax(2 cap u),  o = p v
    dv = p^T do,  dp = do v^T,  ds = p (dp - sum(do o)) 4 u (1 - u) scale,  dq = ds k,  dk = ds^T q

Source: "FlashAttention-2" (arXiv:2307.08691), section 3.1 and algorithm 2; the softcap is Gemma-2's (arXiv:2408.00118).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from common.device import has_fast_matmul

# Queries of a tile: its float32 scores should stay in the processor's cache.
TILE = 192
# Fewest keys before a tile's queries that a matrix of hidden places is made for, and then twice as many and so on: few
# sizes, so that they can be kept.
EARLIER = 512


@dataclass(frozen=True)
class Tile:
    """Queries start..stop of one row of the batch, and the first key that one of them sees."""

    row: int
    start: int
    stop: int
    first_key: int


def document_spans(documents: Tensor | None, batch: int, length: int) -> list[tuple[int, int, int]]:
    """(row, start, stop) of every run of equal document ids (B, T); without ids each row is one document.

    Reads the ids on the host: a caller on a GPU passes them as a CPU tensor, or waits.
    """
    if documents is None:
        return [(row, 0, length) for row in range(batch)]
    rows = documents.cpu()
    changes = rows[:, 1:] != rows[:, :-1]
    spans = []
    for row in range(batch):
        edges = [0, *(changes[row].nonzero()[:, 0] + 1).tolist(), length]
        spans += [(row, start, stop) for start, stop in zip(edges, edges[1:], strict=False)]
    return spans


def tiles(spans: list[tuple[int, int, int]], window: int | None) -> Iterator[Tile]:
    """Cuts documents into tiles; with a window the keys that no query of a tile sees are left out."""
    for row, start, stop in spans:
        for first in range(start, stop, TILE):
            low = start if window is None else max(start, first - window + 1)
            yield Tile(row, first, min(first + TILE, stop), low)


@lru_cache(maxsize=16)
def causal_bias(queries: int, earlier: int, window: int | None, device: torch.device) -> Tensor:
    """0 where a query sees a key, else -inf: (n, earlier + n), float32; the first key stands `earlier` before query 0."""
    own = torch.arange(queries, device=device)[:, None]
    key = torch.arange(-earlier, queries, device=device)
    is_hidden = (key > own) if window is None else (key > own) | (key <= own - window)
    return torch.zeros(is_hidden.shape, device=device).masked_fill_(is_hidden, float("-inf"))


class _DocumentAttention(torch.autograd.Function):
    """query (B, T, H, d), keys and values (B, T, Hkv, d) -> (B, T, H, d); saves the three and the result."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        spans: list[tuple[int, int, int]],
        window: int | None,
        scale: float,
        cap: float | None,
    ) -> Tensor:
        out = torch.empty_like(query, memory_format=torch.contiguous_format)
        for tile in tiles(spans, window):
            q, k, v = _read(query, tile, keys.shape[2]), _keys(keys, tile), _keys(values, tile)
            weights = _weights(_scores(q, k, scale, cap), tile.stop - tile.start, window, cap)
            _write(out, tile, weights.to(v.dtype) @ v)
        ctx.save_for_backward(query, keys, values, out)
        ctx.options = spans, window, scale, cap
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        query, keys, values, out = ctx.saved_tensors
        spans, window, scale, cap = ctx.options
        d_query = torch.empty_like(query, memory_format=torch.contiguous_format)
        d_keys, d_values = (
            torch.zeros(x.shape, dtype=torch.float32, device=x.device) for x in (keys, values)
        )
        delta = (grads[0].float() * out.float()).sum(-1, keepdim=True)  # (B, T, H, 1)
        for tile in tiles(spans, window):
            groups = keys.shape[2]
            q, d_out, shift = (_read(x, tile, groups) for x in (query, grads[0], delta))
            k, v = _keys(keys, tile), _keys(values, tile)
            scores = _scores(q, k, scale, cap)
            weights = _weights(scores, tile.stop - tile.start, window, cap)
            _slice(d_values, tile).add_(weights.to(d_out.dtype).transpose(1, 2) @ d_out)
            d_scores = (d_out @ v.transpose(1, 2)).float().sub_(shift).mul_(weights)
            if cap is None:
                d_scores.mul_(scale)
            else:
                d_scores.mul_(scores.addcmul_(scores, scores, value=-1.0)).mul_(4.0 * scale)
            d_scores = d_scores.to(q.dtype)
            _write(d_query, tile, d_scores @ k)
            _slice(d_keys, tile).add_(d_scores.transpose(1, 2) @ q)
        return d_query, d_keys.to(keys.dtype), d_values.to(values.dtype), None, None, None, None


def _read(x: Tensor, tile: Tile, groups: int) -> Tensor:
    """The tile's queries of x (B, T, H, d) by group of heads: (Hkv, H / Hkv * n, d)."""
    part = x[tile.row, tile.start : tile.stop].unflatten(1, (groups, -1))  # (n, Hkv, H / Hkv, d)
    return _operand(part.permute(1, 2, 0, 3).flatten(1, 2))


def _write(x: Tensor, tile: Tile, part: Tensor) -> None:
    """The inverse of `_read`: part (Hkv, H / Hkv * n, d) into the tile's queries of x (B, T, H, d)."""
    into = x[tile.row, tile.start : tile.stop].unflatten(1, (part.shape[0], -1))
    into.copy_(part.unflatten(1, (-1, tile.stop - tile.start)).permute(2, 0, 1, 3))


def _slice(x: Tensor, tile: Tile) -> Tensor:
    """The tile's keys of x (B, T, Hkv, d), a view (Hkv, S, d)."""
    return x[tile.row, tile.first_key : tile.stop].transpose(0, 1)


def _keys(x: Tensor, tile: Tile) -> Tensor:
    return _operand(_slice(x, tile))


def _operand(x: Tensor) -> Tensor:
    """x, in float32 where the device has no fast product for its own dtype."""
    return x if has_fast_matmul(x) else x.float()


def _scores(q: Tensor, k: Tensor, scale: float, cap: float | None) -> Tensor:
    """u = sigmoid(2 scale q k^T / cap), or scale q k^T without a cap: (Hkv, H / Hkv * n, S), float32."""
    scores = (q @ k.transpose(1, 2)).float()
    return scores.mul_(scale) if cap is None else scores.mul_(2.0 * scale / cap).sigmoid_()


def _weights(scores: Tensor, queries: int, window: int | None, cap: float | None) -> Tensor:
    """Attention weights (Hkv, H / Hkv * n, S), float32; the last query's own key is the last one."""
    earlier = scores.shape[-1] - queries
    size = EARLIER
    while size < earlier:
        size *= 2
    hidden = causal_bias(TILE, size, window, scores.device)[
        :queries, size - earlier : size + queries
    ]  # (n, S)
    # The cap comes before the mask: the other way round a masked score would be -cap and leak.
    factor = 1.0 if cap is None else 2.0 * cap
    capped = torch.add(
        hidden, scores.unflatten(1, (-1, queries)), alpha=factor
    )  # one pass over the scores for both
    return torch.softmax(capped, dim=-1).flatten(1, 2)


@dataclass(frozen=True)
class TiledAttention:
    """Causal attention inside the documents of a batch: spans (row, start, stop), in one of which each position lies."""

    spans: list[tuple[int, int, int]]

    def __call__(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        window: int | None,
        scale: float,
        cap: float | None,
    ) -> Tensor:
        """query (B, T, H, d), keys and values (B, T, Hkv, d) -> (B, T, H, d). Differentiable once."""
        mixed: Tensor = _DocumentAttention.apply(
            query, keys, values, self.spans, window, scale, cap
        )
        return mixed
