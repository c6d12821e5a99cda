"""Dropout and the product with A in one read of x: s = scale * dropout(x) A^T.

Letters: M rows, K in, R the stacked ranks of all linears that read this x. Bound by memory: x is read once for the whole
group, nothing of its size is written. Few rows alone would leave most of a GPU idle, so the columns are split among
programs and the partial sums added in order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lora.kernels.common import product, readable, sum_parts
from lora.kernels.mask import drop_threshold, kept
from lora.kernels.tiles import capability_of, padded, split_columns, tile_for


@triton.jit(do_not_specialize=["M", "threshold"])
def shrink_kernel(
    x: tl.tensor,
    a: tl.tensor,
    scale: tl.tensor,
    seed: tl.tensor,
    out: tl.tensor,
    M: int,
    K: int,
    R: int,
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
    block, split = tl.program_id(0), tl.program_id(1)
    rows = block * ROWS + tl.arange(0, ROWS)
    ranks = tl.arange(0, RANK)
    x_rows = x + rows[:, None].to(tl.int64) * x_stride
    total = tl.zeros((ROWS, RANK), tl.float32)
    for step in range(STEPS):
        first_col = (split * STEPS + step) * COLS
        cols = first_col + tl.arange(0, COLS)
        x_tile = tl.load(x_rows + cols[None, :], mask=(rows < M)[:, None] & (cols < K)[None, :], other=0.0)
        a_inside = (cols < K)[:, None] & (ranks < R)[None, :]
        a_tile = tl.load(a + ranks[None, :] * K + cols[:, None], mask=a_inside, other=0.0).to(x_tile.dtype)
        if DROPOUT:
            x_tile = tl.where(kept(seed, rows, first_col, threshold, COLS), x_tile, 0.0)
        total = product(x_tile, a_tile, total, UPCAST)
    factor = tl.load(scale + ranks, mask=ranks < R, other=0.0) * inverse
    out_rows = out + (split.to(tl.int64) * M + rows[:, None]) * R
    tl.store(out_rows + ranks[None, :], total * factor[None, :], mask=(rows < M)[:, None] & (ranks < R)[None, :])


def shrink(x: Tensor, a: Tensor, scale: Tensor, p: float, seed: Tensor) -> Tensor:
    """s = scale * dropout_p(x) a^T: x (M, K) of 16 or 32 bits, a (R, K) and scale (R,) float32 -> (M, R) in x's dtype.

    `seed` is one int64 on x's device, read by the kernel. The factors scale and 1 / (1 - p) meet the float32 sum, so s is
    rounded once. Source: arXiv:2106.09685, equation 3.
    """
    (M, K), R = x.shape, a.shape[0]
    if M == 0:
        return x.new_empty(0, R)
    x, a = readable(x), a.contiguous()
    tile = tile_for(capability_of(x.device), "shrink", R, x.dtype)
    splits, steps = split_columns(M, K, tile)
    out = torch.empty(splits, M, R, dtype=x.dtype if splits == 1 else torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        shrink_kernel[(triton.cdiv(M, tile.rows), splits)](
            x, a, scale, seed, out, M, K, R, x.stride(0), drop_threshold(p), 1.0 / (1.0 - p),
            RANK=padded(R), ROWS=tile.rows, COLS=tile.cols, STEPS=steps, DROPOUT=p > 0, UPCAST=x.device.type == "cpu",
            num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
        return sum_parts(out, x.dtype)
