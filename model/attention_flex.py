"""Attention in the documents of a pack by FlexAttention: one Triton kernel that skips empty blocks.

Shapes: B batch, T positions, H query heads, Hkv key/value heads, d head width.
For GPUs whose shared memory holds the tiles of Gemma-2's 256-wide heads. Separate because
FlexAttention needs a compiler, and is imported only where it is used.
Source: "Flex Attention" (arXiv:2412.05496); the order of Gemma-2 is cap, then mask.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

# Bytes of shared memory that a block of threads can have on sm_80 (163 KB) and sm_90 (227 KB), but
# not on sm_86 (99 KB).
MIN_SHARED_MEMORY = 160 * 1024


@cache
def can_run(device: torch.device) -> bool:
    """True on a GPU with tensor cores for bf16 and room for the tiles."""
    if device.type != "cuda":
        return False
    properties = torch.cuda.get_device_properties(device)
    shared = getattr(properties, "shared_memory_per_block_optin", 0)
    return properties.major >= 8 and shared >= MIN_SHARED_MEMORY


@dataclass(frozen=True)
class FlexAttention:
    """Attention through block masks, one for each kind of layer, made once for a batch."""

    full: BlockMask
    sliding: BlockMask
    is_compiled: bool = True

    @classmethod
    def of(cls, documents: Tensor, window: int, is_compiled: bool = True) -> "FlexAttention":
        """Masks for packs with document ids (B, T), on the ids' device."""
        full = block_mask(documents, None)
        # A window that covers the whole pack hides nothing more.
        sliding = block_mask(documents, window) if window < documents.shape[1] else full
        return cls(full, sliding, is_compiled)

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
        """query (B, T, H, d), keys and values (B, T, Hkv, d) -> (B, T, H, d)."""
        mixed = _attention(self.is_compiled)(
            *(x.transpose(1, 2) for x in (query, keys, values)),  # heads before positions
            score_mod=None if cap is None else _softcap(cap),
            block_mask=self.full if window is None else self.sliding,
            scale=scale,
            enable_gqa=True,
        )
        return mixed.transpose(1, 2)


def block_mask(documents: Tensor, window: int | None) -> BlockMask:
    """Causal, inside a document, and with a window among the last `window` keys."""

    # The names of the parameters are FlexAttention's convention: batch, head, query, key.
    def sees(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        near = query >= key if window is None else (query >= key) & (query - key < window)
        return near & (documents[b, query] == documents[b, key])

    batch, length = documents.shape
    return create_block_mask(sees, batch, None, length, length, device=documents.device)


@cache
def _attention(is_compiled: bool) -> Callable[..., Any]:
    attention: Callable[..., Any] = flex_attention
    # One graph for one length: packs are padded to a fixed length where this is used.
    return torch.compile(attention, dynamic=False) if is_compiled else attention


@cache
def _softcap(cap: float) -> Callable[..., Tensor]:
    # Cached: the compiled kernel belongs to the function object, not to its text.
    def score(value: Tensor, b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return cap * torch.tanh(value / cap)

    return score
