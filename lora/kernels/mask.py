"""The dropout mask, made from a seed wherever it is needed and never stored.

Element (row, column) takes 16 random bits of Philox4x32-7 with counter (column // 8, row, 0, 0) and
key `seed`: word (column % 8) // 2 of the four, low half for an even column, high half for an odd
one. The element is kept where those bits are at least p * 65536. So the mask depends on the seed
and the position alone: not on tiles, splits, M or K, and no index can overflow. Eight elements for
one call and seven rounds: at four elements and ten rounds, the integer arithmetic would cost more
than twice the time of reading x. The price is that p is met to 1/131072.
Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011): 7 rounds pass BigCrush.
"""

from typing import TYPE_CHECKING

import triton
import triton.language as tl

ROUNDS = tl.constexpr(7)
# Triton takes a plain `int` for 32 bits, and what is small for less.
if TYPE_CHECKING:
    Seed = int
else:
    Seed = tl.int64


@triton.jit
def kept(
    seed: Seed, rows: tl.tensor, first_col: int, threshold: int, COLS: tl.constexpr
) -> tl.tensor:
    """The mask (rows, COLS) of the columns from `first_col` on, a multiple of 8."""
    groups = first_col // 8 + tl.arange(0, COLS // 8)
    zero = tl.zeros((1, 1), tl.int32)
    # Four words of (rows, COLS / 8) each.
    a, b, c, d = tl.philox(seed, groups[None, :], rows[:, None], zero, zero, ROUNDS)
    # (rows, COLS / 8, 2, 2): a, b, c, d in this order when flattened.
    words = tl.join(tl.join(a, c), tl.join(b, d))
    limit = tl.cast(threshold, tl.uint32)
    keep = tl.join((words & 0xFFFF) >= limit, (words >> 16) >= limit)  # (rows, COLS / 8, 2, 2, 2)
    return tl.reshape(keep, (rows.shape[0], COLS))


@triton.jit(do_not_specialize=["M", "threshold", "seed"])
def keep_mask_kernel(
    out: tl.tensor,
    seed: Seed,
    M: int,
    K: int,
    threshold: int,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
) -> None:
    """out (M, K): the mask itself, for tests and to compare with another implementation."""
    first_row, first_col = tl.program_id(0) * ROWS, tl.program_id(1) * COLS
    rows, cols = tl.arange(0, ROWS), first_col + tl.arange(0, COLS)
    keep = kept(seed, first_row + rows, first_col, threshold, COLS)
    out += first_row.to(tl.int64) * K
    inside = (first_row + rows < M)[:, None] & (cols < K)[None, :]
    tl.store(out + rows[:, None] * K + cols[None, :], keep, mask=inside)


def drop_threshold(p: float) -> int:
    """The 16-bit value below which an element is dropped.

    Raises: ValueError for p outside [0, 1).
    """
    if not 0.0 <= p < 1.0:
        raise ValueError(f"dropout: expected a probability in [0, 1), got {p}")
    return min(round(p * 65536), 65535)
