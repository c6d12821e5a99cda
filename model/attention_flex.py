"""Attention in the documents of a pack by FlexAttention: one Triton kernel that skips empty blocks.

Shapes: B batch, T positions, H query heads, Hkv key/value heads, d head width.
For 16-bit models on GPUs whose shared memory holds the tiles of Gemma-2's 256-wide heads. Separate
because FlexAttention needs a compiler, and is imported only where it is used.

A query at t sees the keys from `first[t]` to t, an interval whose two ends never move back. So a
block of queries sees an interval of keys too, and which blocks of keys lie in it follows from the
block's first and last query alone: the masks are made on the host, without a (T, T) matrix.
Source: "Flex Attention" (arXiv:2412.05496); the order of Gemma-2 is cap, then mask.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from common.device import send

# Bytes of shared memory that a block of threads can have on sm_80 (163 KB) and sm_90 (227 KB), but
# not on sm_86 (99 KB).
MIN_SHARED_MEMORY = 160 * 1024
BLOCK = 128  # queries, and keys, of a block of the mask


def tile_options(forward: tuple[int, ...], backward: tuple[int, ...]) -> Mapping[str, int]:
    """FlexAttention's names for tiles of (queries, keys, warps, stages).

    In the backward pass a program holds `keys` keys and passes over the queries for dk and dv; for
    dq it holds as many queries and passes over the keys.
    """
    names = ("BLOCK_M", "BLOCK_N", "num_warps", "num_stages")
    options = {f"fwd_{name}": n for name, n in zip(names, forward, strict=True)}
    step, held, warps, stages = backward
    options |= {"bwd_BLOCK_M1": step, "bwd_BLOCK_N1": held}
    options |= {"bwd_BLOCK_M2": held, "bwd_BLOCK_N2": step}
    options |= {"bwd_num_warps": warps, "bwd_num_stages": stages}
    # Below 128 queries there is another kernel, for decoding, which these tiles do not fit.
    return MappingProxyType(options | {"FORCE_USE_FLEX_ATTENTION": True})


# By major compute capability and head width, where PyTorch's own tiles spill: the default backward
# pass at 256 keeps 2,000 bytes a thread in memory on sm_90, and 9,000 on sm_80. Chosen by the
# compiler's report; `python -m benchmarks.gpu` times them.
OPTIONS: Mapping[tuple[int, int], Mapping[str, int]] = MappingProxyType(
    {
        (9, 256): tile_options((128, 64, 8, 2), (32, 32, 4, 2)),
        (8, 256): tile_options((64, 32, 4, 3), (32, 32, 8, 2)),
    }
)


@cache
def can_run(device: torch.device, dtype: torch.dtype) -> bool:
    """True on a GPU with tensor cores for bf16 and room for the tiles, for a 16-bit dtype.

    In float32 the kernels take ten minutes to compile at 256-wide heads, and spill.
    """
    if device.type != "cuda" or dtype.itemsize > 2:
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
    def of(
        cls, documents: Tensor, window: int, device: torch.device, is_compiled: bool = True
    ) -> "FlexAttention":
        """Masks for packs with document ids (B, T), on `device`.

        Reads the ids on the host: a caller on a GPU passes them as a CPU tensor, or waits.
        """
        documents = documents.cpu()
        full = block_mask(first_keys(documents, None), device)
        # A window that covers the whole pack hides nothing more.
        is_whole = window >= documents.shape[1]
        sliding = full if is_whole else block_mask(first_keys(documents, window), device)
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
            kernel_options=_options(query.device, query.shape[-1]),
        )
        return mixed.transpose(1, 2)


def first_keys(documents: Tensor, window: int | None) -> Tensor:
    """The first key that each query sees, int32 (B, T): its document's, or the window's.

    A document is a run of equal ids in documents (B, T), on the host.
    """
    place = torch.arange(documents.shape[1])
    starts = torch.zeros_like(documents)
    is_start = documents[:, 1:] != documents[:, :-1]  # (B, T - 1)
    starts[:, 1:] = torch.where(is_start, place[1:], 0)
    first = starts.cummax(1).values
    if window is not None:
        first = torch.maximum(first, place - (window - 1))
    return first.int()


def block_mask(first: Tensor, device: torch.device) -> BlockMask:
    """Causal from the first key on that each query sees: `first` (B, T) on the host."""
    length = first.shape[1]
    seen, whole = _blocks(first)
    parts = {"kv": seen & ~whole, "full_kv": whole}
    parts |= {name.replace("kv", "q"): part.transpose(1, 2) for name, part in parts.items()}
    tensors: dict[str, Tensor] = {}
    for name, part in parts.items():
        # How many blocks a block meets, and which: their indices in front, in order.
        tensors[f"{name}_num_blocks"] = part.sum(-1)[:, None].int()
        order = part.byte().argsort(dim=-1, descending=True, stable=True)
        tensors[f"{name}_indices"] = order[:, None].int().contiguous()
    on_device: dict[str, Any] = {name: send(tensor, device) for name, tensor in tensors.items()}
    first = send(first, device)

    # The names of the parameters are FlexAttention's convention: batch, head, query, key.
    def sees(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (key >= first[b, query])

    size = (BLOCK, BLOCK)
    return BlockMask(seq_lengths=(length, length), **on_device, BLOCK_SIZE=size, mask_mod=sees)


def _blocks(first: Tensor) -> tuple[Tensor, Tensor]:
    """Which blocks of keys a block of queries sees in part, and which as a whole: twice (B, Q, K).

    Q and K number the blocks, of which the last may be short.
    """
    length = first.shape[1]
    start = torch.arange(0, length, BLOCK)  # of queries, and of keys
    stop = start + BLOCK
    last = stop.clamp(max=length) - 1
    causal = start[None, :] <= last[:, None]
    seen = (first[:, start, None] < stop) & causal
    # All see all: the first query comes after the last key, the last one still sees the first key.
    whole = (first[:, last, None] <= start) & (start[:, None] >= stop)
    return seen, whole & (stop <= length)[:, None]


@cache
def _options(device: torch.device, head_width: int) -> dict[str, int] | None:
    """What the kernels are compiled with; None where PyTorch's own choice is good."""
    if device.type != "cuda":
        return None
    major = torch.cuda.get_device_capability(device)[0]
    options = OPTIONS.get((major, head_width))
    return None if options is None else dict(options)


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
