"""A low-rank product added in place: y += s b^T (forward) and dx += dropout'(ds a) (backward).

Letters: M rows, K in, N out, r one linear's rank, R the stacked ranks. One kernel, because b^T and a differ only in their
strides. It reads and writes the big matrix once; where dropout is off, a vendor GEMM with a bordered weight has no such
pass at all.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lora.kernels.common import product, readable
from lora.kernels.mask import drop_threshold, kept
from lora.kernels.tiles import capability_of, padded, tile_for


@triton.jit(do_not_specialize=["M", "threshold"])
def add_product_kernel(
    out: tl.tensor,
    left: tl.tensor,
    right: tl.tensor,
    seed: tl.tensor,
    M: int,
    N: int,
    R: int,
    out_stride: int,
    left_stride: int,
    right_stride: int,
    right_step: int,
    threshold: int,
    inverse: float,
    RANK: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    DROPOUT: tl.constexpr,
    UPCAST: tl.constexpr,
) -> None:
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    first_col = tl.program_id(1) * COLS
    cols = first_col + tl.arange(0, COLS)
    ranks = tl.arange(0, RANK)
    wide = rows[:, None].to(tl.int64)
    left_inside = (rows < M)[:, None] & (ranks < R)[None, :]
    left_tile = tl.load(left + wide * left_stride + ranks[None, :], mask=left_inside, other=0.0)
    right_inside = (ranks < R)[:, None] & (cols < N)[None, :]
    right_tile = tl.load(right + ranks[:, None] * right_stride + cols[None, :] * right_step, mask=right_inside, other=0.0)
    total = product(left_tile, right_tile.to(left_tile.dtype), tl.zeros((ROWS, COLS), tl.float32), UPCAST)
    if DROPOUT:
        total = tl.where(kept(seed, rows, first_col, threshold, COLS), total * inverse, 0.0)
    inside = (rows < M)[:, None] & (cols < N)[None, :]
    out_tile = out + wide * out_stride + cols[None, :]
    tl.store(out_tile, tl.load(out_tile, mask=inside, other=0.0).to(tl.float32) + total, mask=inside)


def _add_product_(out: Tensor, left: Tensor, right: Tensor, p: float, seed: Tensor) -> None:
    """out (M, N) += keep / (1 - p) * (left (M, R) right (R, N)), summed in float32 and rounded once.

    Raises: ValueError where out's columns are not one apart: a copy would leave the caller's tensor as it was.
    """
    (M, N), R = out.shape, left.shape[1]
    if out.stride(1) != 1 and N > 1:
        raise ValueError(f"in-place product: expected columns one element apart, got strides {out.stride()}")
    if out.numel() == 0:
        return
    left = readable(left)
    tile = tile_for(capability_of(out.device), "add_product", R, out.dtype)
    with torch.cuda.device_of(out):
        add_product_kernel[(triton.cdiv(M, tile.rows), triton.cdiv(N, tile.cols))](
            out, left, right, seed, M, N, R, out.stride(0), left.stride(0), right.stride(0), right.stride(1),
            drop_threshold(p), 1.0 / (1.0 - p),
            RANK=padded(R), ROWS=tile.rows, COLS=tile.cols, DROPOUT=p > 0, UPCAST=out.device.type == "cpu",
            num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip


def add_grad_x_(dx: Tensor, ds: Tensor, a: Tensor, p: float, seed: Tensor) -> None:
    """dx += keep / (1 - p) * (ds a) in place, under the mask of `shrink`: dx (M, K), ds (M, R) in its dtype, a (R, K)."""
    _add_product_(dx, ds, a, p, seed)


def expand_(y: Tensor, s: Tensor, b: Tensor) -> None:
    """y += s b^T in place, the epilogue of the forward pass: y (M, N), s (M, r) in its dtype, b (N, r) float32."""
    _add_product_(y, s, b.t(), 0.0, y)
