"""Attention in the documents of a pack, tile by tile: no (T, T) mask, and no scores kept.

For the devices without FlexAttention: CPU, MPS, and GPUs older than sm_80. A tile is some queries
of one document with the keys from the first that any of them may see to the last query's own.
Backward computes the scores again.

With u = sigmoid(2 scale q k^T / cap) a capped score is cap tanh(scale q k^T / cap), which is
2 cap u - cap, and softmax does not see the constant. The sigmoid is what a CPU is fast at, and the
slope of the cap is 4 u (1 - u). In float32 2 cap u is right to 1e-5 at Gemma's cap of 50:

    p = softmax(2 cap u),  o = p v
    dv = p^T do,  dp = do v^T,  ds = p (dp - sum(do o)) 4 u (1 - u) scale,  dq = ds k,  dk = ds^T q

Shapes: B batch, T positions, H query heads, Hkv key/value heads, d head width; in a tile n queries,
S keys, and H / Hkv * n rows, since the query heads of a group share their keys (`attend`).
Source: "FlashAttention-2" (arXiv:2307.08691), section 3.1 and algorithm 2; the softcap is Gemma-2's
(arXiv:2408.00118).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Queries of a tile. On a CPU its float32 scores should stay in the processor's cache; on a GPU it
# is thirty launches whatever its size.
TILE = {"cpu": 192, "mps": 192, "cuda": 512}
# The fewest keys before a tile's queries that a bias matrix is made for, and then twice as many and
# so on: few sizes, so that they can be kept.
EARLIER = 512

Span = tuple[int, int, int]  # row of the batch, start, stop


@dataclass(frozen=True)
class TiledAttention:
    """Causal attention inside documents: `spans`, in one of which each position lies.

    `dtype` is that of the products, by default the queries'.
    """

    spans: list[Span]
    dtype: torch.dtype | None = None

    def __call__(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        *,
        window: int | None,
        scale: float,
        cap: float | None,
    ) -> Tensor:
        """query (B, T, H, d), keys and values (B, T, Hkv, d) -> (B, T, H, d).

        Differentiable once.
        """
        rule = _Rule(window, scale, cap, self.dtype or query.dtype)
        mixed: Tensor = _TiledAttention.apply(query, keys, values, self.spans, rule)
        return mixed


def document_spans(documents: Tensor | None, batch: int, length: int) -> list[Span]:
    """The runs of equal document ids (B, T); without ids each row is one document.

    Reads the ids on the host: a caller on a GPU passes them as a CPU tensor, or waits.
    """
    if documents is None:
        return [(row, 0, length) for row in range(batch)]
    rows = documents.cpu()
    changes = rows[:, 1:] != rows[:, :-1]  # (B, T - 1)
    spans = []
    for row in range(batch):
        edges = [0, *(changes[row].nonzero()[:, 0] + 1).tolist(), length]
        spans += [(row, start, stop) for start, stop in zip(edges, edges[1:], strict=False)]
    return spans


@dataclass(frozen=True)
class Tile:
    """Queries start..stop of one row of the batch, and the first key that one of them sees."""

    row: int
    start: int
    stop: int
    first_key: int


def tiles(spans: list[Span], window: int | None, size: int) -> Iterator[Tile]:
    """Cuts documents into tiles of at most `size` queries.

    A window leaves out the keys that no query of a tile sees.
    """
    for row, start, stop in spans:
        for first in range(start, stop, size):
            low = start if window is None else max(start, first - window + 1)
            yield Tile(row, first, min(first + size, stop), low)


@dataclass(frozen=True)
class _Rule:
    """How the tiles of one layer are computed; `dtype` is that of the products."""

    window: int | None
    scale: float
    cap: float | None
    dtype: torch.dtype


class _TiledAttention(torch.autograd.Function):
    """query (B, T, H, d), keys and values (B, T, Hkv, d) -> (B, T, H, d).

    Saves these three and the result, nothing of the size of the scores.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, keys: Tensor, values: Tensor, spans: list[Span], rule: _Rule
    ) -> Tensor:
        out = torch.empty_like(query, memory_format=torch.contiguous_format)
        for tile in tiles(spans, rule.window, TILE[query.device.type]):
            q = _queries(query, tile, keys.shape[2]).to(rule.dtype)
            k, v = (_keys(x, tile).to(rule.dtype) for x in (keys, values))
            weights = _weights(_scores(q, k, rule), tile, rule)
            _write(out, tile, weights.to(rule.dtype) @ v)
        ctx.save_for_backward(query, keys, values, out)
        ctx.spans, ctx.rule = spans, rule
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        query, keys, values, out = ctx.saved_tensors
        rule, groups = ctx.rule, keys.shape[2]
        d_query = torch.empty_like(query, memory_format=torch.contiguous_format)
        # Summed over tiles, so in float32; each query lies in one tile alone.
        d_keys, d_values = (torch.zeros(x.shape, device=x.device) for x in (keys, values))
        # sum(do o) is sum(p dp) without the scores: one number for each query and head.
        delta = (grads[0].float() * out.float()).sum(-1, keepdim=True)  # (B, T, H, 1)
        for tile in tiles(ctx.spans, rule.window, TILE[query.device.type]):
            q, d_out = (_queries(x, tile, groups).to(rule.dtype) for x in (query, grads[0]))
            k, v = (_keys(x, tile).to(rule.dtype) for x in (keys, values))
            scores = _scores(q, k, rule)
            weights = _weights(scores, tile, rule)
            _keys(d_values, tile).add_(weights.to(rule.dtype).transpose(1, 2) @ d_out)
            d_scores = (d_out @ v.transpose(1, 2)).float()
            d_scores.sub_(_queries(delta, tile, groups)).mul_(weights)
            if rule.cap is None:
                d_scores.mul_(rule.scale)
            else:
                # u - u u in place of u, which nothing reads after this.
                d_scores.mul_(scores.addcmul_(scores, scores, value=-1.0)).mul_(4.0 * rule.scale)
            d_scores = d_scores.to(rule.dtype)
            _write(d_query, tile, d_scores @ k)
            _keys(d_keys, tile).add_(d_scores.transpose(1, 2) @ q)
        return d_query, d_keys.to(keys.dtype), d_values.to(values.dtype), None, None


def _queries(x: Tensor, tile: Tile, groups: int) -> Tensor:
    """The tile's queries of x (B, T, H, d) by group of heads: (Hkv, H / Hkv * n, d)."""
    part = x[tile.row, tile.start : tile.stop].unflatten(1, (groups, -1))  # (n, Hkv, H / Hkv, d)
    return part.permute(1, 2, 0, 3).flatten(1, 2)


def _write(x: Tensor, tile: Tile, part: Tensor) -> None:
    """The inverse of `_queries`: part (Hkv, H / Hkv * n, d) into its place in x (B, T, H, d)."""
    into = x[tile.row, tile.start : tile.stop].unflatten(1, (part.shape[0], -1))
    into.copy_(part.unflatten(1, (-1, tile.stop - tile.start)).permute(2, 0, 1, 3))


def _keys(x: Tensor, tile: Tile) -> Tensor:
    """The tile's keys of x (B, T, Hkv, d): (Hkv, S, d), a view, which sums can be added to."""
    return x[tile.row, tile.first_key : tile.stop].transpose(0, 1)


def _scores(q: Tensor, k: Tensor, rule: _Rule) -> Tensor:
    """u, or without a cap scale q k^T itself: (Hkv, H / Hkv * n, S), float32."""
    scale = rule.scale
    if q.dtype == torch.float16:
        # q k^T alone may exceed 65,504. The largest power of two in the scale, which for Gemma-2-2B
        # is the scale, comes off q first, and is exact there.
        power = 2.0 ** math.floor(math.log2(scale))
        q, scale = q * power, scale / power
    scores = (q @ k.transpose(1, 2)).float()
    if rule.cap is None:
        return scores.mul_(scale)
    return scores.mul_(2.0 * scale / rule.cap).sigmoid_()


def _weights(scores: Tensor, tile: Tile, rule: _Rule) -> Tensor:
    """Attention weights p from `_scores`, of the same shape, float32."""
    queries = tile.stop - tile.start
    earlier = tile.start - tile.first_key
    size = EARLIER
    while size < earlier:
        size *= 2
    # Only the distance from a query to a key matters, so a part of one large matrix fits each tile.
    bias = causal_bias(TILE[scores.device.type], size, rule.window, scores.device)
    bias = bias[:queries, size - earlier : size + queries]  # (n, S)
    # One pass over the scores for cap and mask. The cap comes before the mask: the other way round
    # a masked score would be -cap and leak.
    factor = 1.0 if rule.cap is None else 2.0 * rule.cap
    capped = torch.add(bias, scores.unflatten(1, (-1, queries)), alpha=factor)
    return torch.softmax(capped, dim=-1).flatten(1, 2)


@lru_cache(maxsize=16)
def causal_bias(queries: int, earlier: int, window: int | None, device: torch.device) -> Tensor:
    """0 where a query sees a key, else -inf: (queries, earlier + queries), float32.

    The first `earlier` keys come before query 0, and every query has a key of its own.
    """
    query = torch.arange(queries, device=device)[:, None]
    key = torch.arange(-earlier, queries, device=device)
    distance = query - key  # (queries, earlier + queries)
    is_hidden = distance < 0
    if window is not None:
        is_hidden |= distance >= window
    return torch.zeros(distance.shape, device=device).masked_fill_(is_hidden, float("-inf"))
