"""How queries find keys: the plain formula, its masks, and the key-value cache of decoding.

`attend` is the definition. Three classes compute it, with one signature (`Attend`), and a forward
pass uses one of them in all its layers (`Decoder.choose_attention`):

- `MaskedAttention` (here): masks over all keys, for decoding with a cache;
- `TiledAttention` (`attention_tiles.py`): document by document, for packs and prompts, on a CPU,
  MPS, or an older GPU;
- `FlexAttention` (`attention_flex.py`): one Triton kernel, for packs on a GPU from sm_80 on.

Shapes: B batch, T query positions, S key positions, H query heads, Hkv key/value heads, d head
width. Source: arXiv:2408.00118, section 2 (softcap, alternating sliding and full attention, grouped
queries).
"""

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from common.products import has_fast_matmul
from model.config import Gemma2Config
from model.fused import softcap


def attend(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, *, scale: float, cap: float | None
) -> Tensor:
    """softmax(mask(softcap(scale * q k^T))) v, softmax in float32.

    query (B, T, H, d), keys and values (B, S, Hkv, d), mask (B, 1, T, S), True where a query sees
    a key -> (B, T, H, d).
    """
    batch, length, heads, width = query.shape
    groups, dtype = keys.shape[2], query.dtype
    if not has_fast_matmul(query):
        query, keys, values = query.float(), keys.float(), values.float()
    # The H / Hkv query heads of a group become rows of one matrix, so that its keys and values are
    # read as they are: repeating them for each head would copy the whole cache at every step.
    rows = query.transpose(1, 2).reshape(batch, groups, -1, width)  # (B, Hkv, H / Hkv * T, d)
    scores = softcap((rows @ keys.permute(0, 2, 3, 1)) * scale, cap)  # (B, Hkv, H / Hkv * T, S)
    scores = scores.view(batch, groups, heads // groups, length, -1)
    # The cap comes before the mask: the other way round a masked score would be -cap and leak.
    # Not -inf: the softmax of a row without any visible key would be NaN.
    scores = scores.masked_fill(~mask[:, :, None], torch.finfo(scores.dtype).min)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    mixed = weights.view(batch, groups, -1, weights.shape[-1]) @ values.transpose(1, 2)
    return mixed.view(batch, heads, length, width).transpose(1, 2).to(dtype)  # (B, T, H, d)


def attention_mask(
    query_positions: Tensor,
    key_positions: Tensor,
    query_documents: Tensor | None,
    key_documents: Tensor | None,
    window: int | None,
) -> Tensor:
    """True where a query may see a key: (B, 1, T, S).

    A key must not lie in the query's future, must be one of the last `window` keys (the query's own
    included) and must belong to the same document. Positions (B, T) and (B, S) restart in each
    document of a pack.

    Documents come from tests, benchmarks and pretraining (embedded/), where the mask is the plain
    definition. A pack that is fine-tuned meets no mask: `document_spans` and `tiles` of
    `attention_tiles.py` cut it at its documents, and in decoding a row is one document.
    """
    distance = query_positions[:, :, None] - key_positions[:, None, :]  # (B, T, S)
    allowed = distance >= 0
    if window is not None:
        allowed &= distance < window
    if query_documents is not None and key_documents is not None:
        allowed &= query_documents[:, :, None] == key_documents[:, None, :]
    return allowed[:, None]  # one mask for all heads


class Attend(Protocol):
    """A way to attend in one forward pass; `window` is None in the layers with full attention."""

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
        """query (B, T, H, d), keys and values (B, S, Hkv, d) -> (B, T, H, d)."""
        ...


@dataclass(frozen=True)
class MaskedAttention:
    """Attention through masks (B, 1, T, S) over all keys, one for each kind of layer."""

    full: Tensor
    sliding: Tensor

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
        mask = self.full if window is None else self.sliding
        return attend(query, keys, values, mask, scale=scale, cap=cap)


class KVCache:
    """Keys and values of every layer, (B, Hkv, max_length, d) each; an index is a position.

    Rows of different lengths share one cache: right padding writes entries that the causal mask
    hides until the row's own next tokens overwrite them.
    """

    def __init__(
        self,
        config: Gemma2Config,
        batch: int,
        max_length: int,
        device: torch.device | str,
        dtype: torch.dtype,
    ) -> None:
        # Heads before positions, as the products of `attend` read them: no copy at each step.
        shape = (batch, config.num_key_value_heads, max_length, config.head_dim)
        layers = range(config.num_hidden_layers)
        self.keys = [torch.zeros(shape, device=device, dtype=dtype) for _ in layers]
        self.values = [torch.zeros_like(keys) for keys in self.keys]
        self.rows = torch.arange(batch, device=device)[:, None]  # (B, 1)
        self.max_length, self.visible = max_length, 0

    def reserve(self, end: int, visible: int | None = None) -> None:
        """Checks, once for all layers, that positions below `end` fit; sets what `update` returns.

        That is the first `visible` entries, by default all: a part of them is not contiguous, and
        the products would copy it at every step. Raises: ValueError for an `end` past the cache's.
        """
        if end > self.max_length:
            raise ValueError(
                f"position {end - 1} does not fit a cache of {self.max_length} entries"
            )
        self.visible = self.max_length if visible is None else visible

    def update(
        self, layer: int, positions: Tensor, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Stores keys and values (B, T, Hkv, d) at positions (B, T); returns the visible entries.

        These are views (B, S, Hkv, d) of the cache: the next update changes them.
        """
        stored = self.keys[layer], self.values[layer]
        for cached, new in zip(stored, (keys, values), strict=True):
            # With a slice between two index tensors their own dimensions, (B, T), come first.
            cached[self.rows, :, positions] = new
        keys, values = (cached[:, :, : self.visible].transpose(1, 2) for cached in stored)
        return keys, values

    def grow(self, max_length: int) -> None:
        """Makes room for positions up to `max_length`; copies what is stored."""
        more = (0, 0, 0, max_length - self.max_length)  # none in d, the last dimension
        self.keys = [F.pad(keys, more) for keys in self.keys]
        self.values = [F.pad(values, more) for values in self.values]
        self.max_length = max_length

    def keep(self, rows: Tensor) -> None:
        """Forgets every row of the batch but these (int64, their indices)."""
        self.rows = self.rows[: len(rows)]
        self.keys = [keys[rows] for keys in self.keys]
        self.values = [values[rows] for values in self.values]
