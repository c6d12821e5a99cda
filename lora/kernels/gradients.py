"""The gradients that reduce over rows: ds and dB from one read of dy, and dA from one read of x.

Letters: M rows, K in, N out, r one linear's rank, R the stacked ranks. Both are bound by memory. A program owns a strip of
columns and a block of rows; what crosses programs goes to a float32 buffer and is added in order: no atomics, so two runs
give the same bits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lora.kernels.common import product, readable, sum_parts
from lora.kernels.mask import drop_threshold, kept
from lora.kernels.tiles import capability_of, padded, split_rows, tile_for


@triton.jit(do_not_specialize=["M"])
def grad_s_b_kernel(
    dy: tl.tensor,
    b: tl.tensor,
    s: tl.tensor,
    ds_parts: tl.tensor,
    db_parts: tl.tensor,
    scaling: float,
    M: int,
    N: int,
    R: int,
    dy_stride: int,
    s_stride: int,
    RANK: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    STEPS: tl.constexpr,
    UPCAST: tl.constexpr,
) -> None:
    block, strip = tl.program_id(0), tl.program_id(1)
    cols = strip * COLS + tl.arange(0, COLS)
    ranks = tl.arange(0, RANK)
    b_inside = (cols < N)[:, None] & (ranks < R)[None, :]
    b_offsets = cols[:, None] * R + ranks[None, :]
    b_tile = tl.load(b + b_offsets, mask=b_inside, other=0.0).to(dy.dtype.element_ty)  # (COLS, RANK)
    db = tl.zeros((COLS, RANK), tl.float32)
    for step in range(STEPS):
        rows = (block * STEPS + step) * ROWS + tl.arange(0, ROWS)
        wide = rows[:, None].to(tl.int64)
        inside = (rows < M)[:, None] & (ranks < R)[None, :]
        dy_inside = (rows < M)[:, None] & (cols < N)[None, :]
        dy_tile = tl.load(dy + wide * dy_stride + cols[None, :], mask=dy_inside, other=0.0)
        s_tile = tl.load(s + wide * s_stride + ranks[None, :], mask=inside, other=0.0)
        ds = product(dy_tile, b_tile, tl.zeros((ROWS, RANK), tl.float32), UPCAST)
        ds_rows = ds_parts + (strip.to(tl.int64) * M + wide) * R
        tl.store(ds_rows + ranks[None, :], ds * scaling, mask=inside)
        db = product(tl.trans(dy_tile), s_tile, db, UPCAST)
    tl.store(db_parts + block.to(tl.int64) * N * R + b_offsets, db, mask=b_inside)


@triton.jit(do_not_specialize=["M", "threshold"])
def grad_a_kernel(
    ds: tl.tensor,
    x: tl.tensor,
    seed: tl.tensor,
    da_parts: tl.tensor,
    M: int,
    K: int,
    R: int,
    ds_stride: int,
    x_stride: int,
    threshold: int,
    inverse: float,
    RANK: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    STEPS: tl.constexpr,
    DROPOUT: tl.constexpr,
    UPCAST: tl.constexpr,
) -> None:
    block, strip = tl.program_id(0), tl.program_id(1)
    first_col = strip * COLS
    cols = first_col + tl.arange(0, COLS)
    ranks = tl.arange(0, RANK)
    total = tl.zeros((COLS, RANK), tl.float32)
    for step in range(STEPS):
        rows = (block * STEPS + step) * ROWS + tl.arange(0, ROWS)
        wide = rows[:, None].to(tl.int64)
        x_inside = (rows < M)[:, None] & (cols < K)[None, :]
        x_tile = tl.load(x + wide * x_stride + cols[None, :], mask=x_inside, other=0.0)
        ds_inside = (rows < M)[:, None] & (ranks < R)[None, :]
        ds_tile = tl.load(ds + wide * ds_stride + ranks[None, :], mask=ds_inside, other=0.0)
        if DROPOUT:
            x_tile = tl.where(kept(seed, rows, first_col, threshold, COLS), x_tile, 0.0)
        total = product(tl.trans(x_tile), ds_tile, total, UPCAST)
    da_rows = da_parts + (block.to(tl.int64) * R + ranks[None, :]) * K
    tl.store(da_rows + cols[:, None], total * inverse, mask=(cols < K)[:, None] & (ranks < R)[None, :])


def grad_s_b(dy: Tensor, b: Tensor, s: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """ds = scaling * dy b in dy's dtype and db = dy^T s in float32, from one read of dy.

    dy (M, N) with any strides, b (N, r) float32, s (M, r) in dy's dtype and already scaled -> ds (M, r), db (N, r).
    """
    (M, N), R = dy.shape, b.shape[1]
    if M == 0:
        return dy.new_empty(0, R), b.new_zeros(N, R)
    dy, s, b = readable(dy), readable(s), b.contiguous()
    tile = tile_for(capability_of(dy.device), "grad_s_b", R, dy.dtype)
    blocks, steps = split_rows(M, N, tile)
    strips = triton.cdiv(N, tile.cols)
    ds = torch.empty(strips, M, R, dtype=dy.dtype if strips == 1 else torch.float32, device=dy.device)
    db = torch.empty(blocks, N, R, dtype=torch.float32, device=dy.device)
    with torch.cuda.device_of(dy):
        grad_s_b_kernel[(blocks, strips)](
            dy, b, s, ds, db, scaling, M, N, R, dy.stride(0), s.stride(0),
            RANK=padded(R), ROWS=tile.rows, COLS=tile.cols, STEPS=steps, UPCAST=dy.device.type == "cpu",
            num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
        return sum_parts(ds, dy.dtype), sum_parts(db, torch.float32)


def grad_a(ds: Tensor, x: Tensor, p: float, seed: Tensor) -> Tensor:
    """da = ds^T dropout_p(x), under the mask of `shrink`: ds (M, R) and x (M, K) in one dtype -> (R, K) float32."""
    (M, K), R = x.shape, ds.shape[1]
    if M == 0:
        return torch.zeros(R, K, device=x.device)
    ds, x = readable(ds), readable(x)
    tile = tile_for(capability_of(x.device), "grad_a", R, x.dtype)
    blocks, steps = split_rows(M, K, tile)
    da = torch.empty(blocks, R, K, dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        grad_a_kernel[(blocks, triton.cdiv(K, tile.cols))](
            ds, x, seed, da, M, K, R, ds.stride(0), x.stride(0), drop_threshold(p), 1.0 / (1.0 - p),
            RANK=padded(R), ROWS=tile.rows, COLS=tile.cols, STEPS=steps, DROPOUT=p > 0, UPCAST=x.device.type == "cpu",
            num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
        return sum_parts(da, torch.float32)
