"""The low-rank path of a batch whose rows have different adapters: each reads its own factors.

Letters: B rows, T positions, K in, N out, n adapters, R the rank of a layer's stack of factors.

    s    = scale * scaling x A[index]^T     (B T, R)    gathered_shrink_kernel
    y   += s B[index]                       (B T, N)    gathered_expand_kernel, in place

A program works on positions of one row of the batch, so one adapter is enough for it. index, scale
and the scalings are read where they lie: neither a copy of the factors nor a wait of the host.
Rows of the base (index -1) read no factors and change no y. Products accumulate in float32, as in
`lora/kernels/lowrank.py`. Source: Punica (arXiv:2310.18547), section 4.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lora.kernels.launch import launch
from lora.kernels.lowrank import product
from lora.kernels.steps import constants, readable, sum_parts
from lora.kernels.tiles import (
    FEW_ROWS,
    FLOAT32,
    Tile,
    bucket,
    capability_of,
    padded,
    split_columns,
    tile_for,
)


# T and M change with every batch: Triton would compile anew for 1 and for multiples of 16
@triton.jit(do_not_specialize=["T", "M"])
def gathered_shrink_kernel(
    x: tl.tensor,
    a: tl.tensor,
    index: tl.tensor,
    scale: tl.tensor,
    scalings: tl.tensor,
    out: tl.tensor,
    T: int,
    M: int,
    K: int,
    R: int,
    x_stride: int,
    RANK: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    STEPS: tl.constexpr,
    UPCAST: tl.constexpr,
) -> None:
    """out (splits, M, R) = scale[b] * scalings[i] * x a[i]^T over each split's columns.

    i = index[b]; x (B, T, K) with rows x_stride apart, a (n, R, K), index, scale (B), scalings (n).
    """
    blocks = tl.cdiv(T, ROWS)
    row, split = tl.program_id(0) // blocks, tl.program_id(1)
    rows, ranks = (tl.program_id(0) % blocks) * ROWS + tl.arange(0, ROWS), tl.arange(0, RANK)
    number = tl.load(index + row)
    # A row of the base has rank 0: it reads no factors and leaves zeros for the other kernel.
    own, own_rank = tl.maximum(number, 0), tl.where(number >= 0, R, 0)
    row_inside = (rows < T)[:, None]
    # In 64 bits: a batch, or the factors of many adapters, may pass 2^31 elements
    x += row.to(tl.int64) * T * x_stride
    a += own.to(tl.int64) * R * K
    total = tl.zeros((ROWS, RANK), tl.float32)
    for step in range(STEPS):
        cols = (split * STEPS + step) * COLS + tl.arange(0, COLS)
        x_tile = tl.load(
            x + rows[:, None] * x_stride + cols[None, :],
            mask=row_inside & (cols < K)[None, :],
            other=0.0,
        )
        a_tile = tl.load(
            a + ranks[None, :] * K + cols[:, None],
            mask=(cols < K)[:, None] & (ranks < own_rank)[None, :],
            other=0.0,
        )
        total = product(x_tile, a_tile.to(x_tile.dtype), total, UPCAST)
    # In float32, before the sum is rounded for the first time.
    factor = tl.load(scale + row) * tl.load(scalings + own)
    out += (split.to(tl.int64) * M + row * T) * R
    tl.store(
        out + rows[:, None] * R + ranks[None, :],
        total * factor,
        mask=row_inside & (ranks < R)[None, :],
    )


@triton.jit(do_not_specialize=["T"])
def gathered_expand_kernel(
    out: tl.tensor,
    s: tl.tensor,
    b: tl.tensor,
    index: tl.tensor,
    T: int,
    N: int,
    R: int,
    RANK: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    UPCAST: tl.constexpr,
) -> None:
    """out (B, T, N) += s (B, T, R) b[index[b]] (R, N), rounded once."""
    blocks = tl.cdiv(T, ROWS)
    row, first_col = tl.program_id(0) // blocks, tl.program_id(1) * COLS
    rows = (tl.program_id(0) % blocks) * ROWS + tl.arange(0, ROWS)
    cols, ranks = first_col + tl.arange(0, COLS), tl.arange(0, RANK)
    number = tl.load(index + row)
    # A row of the base has no positions here: nothing of it is read or written.
    inside = (rows < tl.where(number >= 0, T, 0))[:, None] & (cols < N)[None, :]
    wide = row.to(tl.int64) * T
    out += wide * N
    # The largest load is issued first: its latency overlaps with the product.
    before = tl.load(out + rows[:, None] * N + cols[None, :], mask=inside, other=0.0)
    s_tile = tl.load(
        s + wide * R + (rows[:, None] * R + ranks[None, :]),
        mask=(rows < T)[:, None] & (ranks < R)[None, :],
        other=0.0,
    )
    b += tl.maximum(number, 0).to(tl.int64) * R * N
    b_tile = tl.load(
        b + ranks[:, None] * N + cols[None, :],
        mask=(ranks < R)[:, None] & (cols < N)[None, :],
        other=0.0,
    )
    total = product(s_tile, b_tile.to(s_tile.dtype), tl.zeros((ROWS, COLS), tl.float32), UPCAST)
    tl.store(out + rows[:, None] * N + cols[None, :], before.to(tl.float32) + total, mask=inside)


def add_gathered_(
    y: Tensor, x: Tensor, factors: tuple[Tensor, Tensor, Tensor], index: Tensor, scale: Tensor
) -> None:
    """y (B, ..., N) += scale * scalings[i] x A[i]^T B[i] in place, i = index: a row's own adapter.

    x (B, ..., K); factors: A (n, R, K), B (n, R, N) and scalings (n,) float32; index (B,) int64,
    -1 for the base, and scale (B,) float32.
    Raises: ValueError where y is no contiguous matrix: a copy would leave the caller's as it was.
    """
    a, b, scalings = factors
    (_, R, K), N, batch = a.shape, b.shape[2], len(index)
    if not y.is_contiguous():
        raise ValueError(
            f"gathered low-rank product: expected a contiguous y, got strides {y.stride()}"
        )
    # First: a grid without programs cannot be launched, and `M // batch` needs a row
    if y.numel() == 0:
        return
    x = readable(x.reshape(-1, K))
    M = x.shape[0]
    T = M // batch
    shrink, expand = (_tile(x, name, R, T) for name in ("shrink", "add_product"))
    programs = batch * triton.cdiv(T, shrink.rows)
    splits, steps = split_columns(programs * shrink.rows, K, shrink)
    # As in `steps.shrink`: partial sums in float32, one split rounded at once.
    s = torch.empty(splits, M, R, dtype=x.dtype if splits == 1 else torch.float32, device=x.device)
    options = constants(shrink, padded(R), x) | {"STEPS": steps}
    sizes = (T, M, K, R, x.stride(0))
    args = (x, a, index, scale, scalings, s, *sizes)
    launch(gathered_shrink_kernel, (programs, splits), args, **options)
    low = sum_parts(s, x.dtype)  # (M, R)
    grid = (batch * triton.cdiv(T, expand.rows), triton.cdiv(N, expand.cols))
    options = constants(expand, padded(R), x)
    launch(gathered_expand_kernel, grid, (y, low, b, index, T, N, R), **options)


def _tile(x: Tensor, kernel: str, rank: int, positions: int) -> Tile:
    if x.dtype.itemsize > 2:
        bucket(rank)  # refuses a rank that no tile serves
        return FLOAT32
    if positions <= FEW_ROWS[16].rows:
        return FEW_ROWS[bucket(rank)]
    return tile_for(capability_of(x.device), kernel, rank, x.dtype)
