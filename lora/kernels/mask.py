"""The dropout mask, made from a seed wherever it is needed and never stored.

Element (row, column) takes 16 random bits of Philox4x32-7 with counter (column // 8, row, 0, 0) and key `seed`: word
(column % 8) // 2 of the four, low half for an even column, high half for an odd one. The element is kept where those
bits are at least p * 65536. So the mask depends on the seed and the position alone: not on tiles, splits, M or K, and no
index can overflow. Eight elements for one call and seven rounds: at four elements and ten rounds, the integer arithmetic
would cost more than twice the time of reading x. The price is that p is met to 1/131072.
Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011): 7 rounds pass BigCrush.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

ROUNDS = tl.constexpr(7)


@triton.jit
def kept(seed: tl.tensor, rows: tl.tensor, first_col: int, threshold: int, COLS: tl.constexpr) -> tl.tensor:
    """The mask (rows, COLS) of the columns from `first_col` (a multiple of 8) on; `seed` points to one int64."""
    groups = first_col // 8 + tl.arange(0, COLS // 8)
    zero = tl.zeros((1, 1), tl.int32)
    a, b, c, d = tl.philox(tl.load(seed), groups[None, :], rows[:, None], zero, zero, ROUNDS)  # (rows, COLS / 8) each
    words = tl.join(tl.join(a, c), tl.join(b, d))  # (rows, COLS / 8, 2, 2): a, b, c, d in this order when flattened
    limit = threshold.to(tl.uint32)
    keep = tl.join((words & 0xFFFF) >= limit, (words >> 16) >= limit)  # (rows, COLS / 8, 2, 2, 2)
    return tl.reshape(keep, (rows.shape[0], COLS))


@triton.jit(do_not_specialize=["M", "threshold"])
def keep_mask_kernel(
    out: tl.tensor, seed: tl.tensor, M: int, K: int, threshold: int, ROWS: tl.constexpr, COLS: tl.constexpr
) -> None:
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    first_col = tl.program_id(1) * COLS
    cols = first_col + tl.arange(0, COLS)
    inside = (rows < M)[:, None] & (cols < K)[None, :]
    keep = kept(seed, rows, first_col, threshold, COLS)
    tl.store(out + rows[:, None].to(tl.int64) * K + cols[None, :], keep, mask=inside)


def drop_threshold(p: float) -> int:
    """The 16-bit value below which an element is dropped. Raises: ValueError for p outside [0, 1)."""
    if not 0.0 <= p < 1.0:
        raise ValueError(f"dropout: expected a probability in [0, 1), got {p}")
    return min(round(p * 65536), 65535)


def keep_mask(M: int, K: int, p: float, seed: Tensor, rows: int = 32, cols: int = 128) -> Tensor:
    """The mask that the kernels make: bool (M, K), True where an element is kept; seed is one int64 on the device."""
    out = torch.empty(M, K, dtype=torch.bool, device=seed.device)
    if out.numel():
        grid = (triton.cdiv(M, rows), triton.cdiv(K, cols))
        with torch.cuda.device_of(seed):
            keep_mask_kernel[grid](out, seed, M, K, drop_threshold(p), ROWS=rows, COLS=cols, num_warps=4)
    return out
