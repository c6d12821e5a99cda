"""The launchers: the five steps of `lora/steps.py` as Triton kernels, same names and signatures.

Letters: M rows, K in, N out, r one linear's rank, R the stacked ranks of all linears that share x.

    shrink              s  = scale * D(x) a^T            (M, R)
    expand_             y += s b^T                       (M, N) in place
    expand_backward     ds = scaling * dy b,  db = dy^T s    (M, r), (N, r)
    shrink_backward_    da = ds^T D(x)                   (R, K);  dx += D'(ds a)    (M, K) in place
    keep_mask           the elements of x that D keeps   (M, K) bool

D(x) is x with dropped elements at zero, over 1 - p. `seed` is one int64 on the host, a number to
the kernels: nothing is launched to draw it. Nothing is written but what a name with a trailing
underscore says. On a CPU the kernels run in Triton's interpreter, whose bfloat16 products need
UPCAST.
"""

import torch
import triton
from torch import Tensor

from lora.kernels.launch import launch
from lora.kernels.lowrank import (
    add_product_kernel,
    expand_backward_kernel,
    grad_a_kernel,
    shrink_kernel,
    sum_both_kernel,
    sum_parts_kernel,
)
from lora.kernels.mask import drop_threshold, keep_mask_kernel
from lora.kernels.tiles import (
    MASK,
    MAX_SLICE,
    SUM,
    Tile,
    capability_of,
    padded,
    split_columns,
    split_rows,
    tile_for,
)

SUM_CONSTANTS = {"CHUNK": SUM.rows, "BLOCK": SUM.cols} | SUM.options


def shrink(x: Tensor, a: Tensor, scale: Tensor, p: float, seed: Tensor) -> Tensor:
    """s (M, R) = scale * D(x) a^T in x's dtype, rounded once.

    x (M, K), a (R, K) float32, scale (R,) float32.
    """
    (M, K), R = x.shape, a.shape[0]
    if M == 0:
        return x.new_empty(0, R)  # a grid without programs cannot be launched
    x = readable(x)
    tile = tile_for(capability_of(x.device), "shrink", R, x.dtype)
    # With few rows there are few row blocks: the columns are split too, so that every
    # multiprocessor has work.
    splits, steps = split_columns(M, K, tile)
    # Partial sums stay in float32; a single split is complete and rounds to x's dtype at once.
    out_dtype = x.dtype if splits == 1 else torch.float32
    out = torch.empty(splits, M, R, dtype=out_dtype, device=x.device)
    inputs, sizes = (x, a.contiguous(), scale, int(seed)), (M, K, R, x.stride(0))
    options = constants(tile, padded(R), x) | {"STEPS": steps, "DROPOUT": p > 0}
    grid = (triton.cdiv(M, tile.rows), splits)
    launch(shrink_kernel, grid, (*inputs, out, *sizes, *rate_of(p)), **options)
    return sum_parts(out, x.dtype)


def expand_(y: Tensor, s: Tensor, b: Tensor) -> None:
    """y (M, N) += s (M, r) b^T in place, rounded once: s in y's dtype, b (N, r) float32."""
    _add_product_(y, s, b.t(), p=0.0, seed=0)


def expand_backward(
    dy: Tensor, b: Tensor, s: Tensor, scaling: float, ds: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """ds (M, r) = scaling * dy b in dy's dtype, db (N, r) = dy^T s in float32; dy is read once.

    dy (M, N) with any strides, b (N, r) float32, s (M, r) in dy's dtype and already scaled. A `ds`
    that is given is written, whatever the distance of its rows.
    """
    (M, N), R = dy.shape, b.shape[1]
    ds = dy.new_empty(M, R) if ds is None else ds
    if M == 0:
        return ds, b.new_zeros(N, R)
    dy, s = readable(dy), readable(s)
    # Slices of a large rank: more ranks in one program would leave it narrower strips of dy.
    rank = min(padded(R), MAX_SLICE)
    tile = tile_for(capability_of(dy.device), "expand_backward", rank, dy.dtype)
    blocks, steps = split_rows(M, N, tile)
    slices, strips = triton.cdiv(R, rank), triton.cdiv(N, tile.cols)
    # One product sums over the columns of dy, the other over its rows: each leaves partial sums
    # along the other cut.
    ds_parts = torch.empty(strips, M, R, dtype=torch.float32, device=dy.device)
    db_parts = torch.empty(blocks, N, R, dtype=torch.float32, device=dy.device)
    db = torch.empty(N, R, dtype=torch.float32, device=dy.device)
    inputs, sizes = (dy, b.contiguous(), s), (M, N, R, dy.stride(0), s.stride(0))
    options = constants(tile, rank, dy) | {"STEPS": steps}
    grid = (slices, blocks, strips)
    args = (*inputs, ds_parts, db_parts, float(scaling), *sizes)
    launch(expand_backward_kernel, grid, args, **options)
    # Both sums in one launch, and ds at once in its place among the other linears'.
    counts = (strips, M * R, blocks, N * R, R, ds.stride(0))
    sums = (triton.cdiv(M * R, SUM.cols) + triton.cdiv(N * R, SUM.cols),)
    launch(sum_both_kernel, sums, (ds_parts, ds, db_parts, db, *counts), **SUM_CONSTANTS)
    return ds, db


def shrink_backward_(
    dx: Tensor | None, ds: Tensor, x: Tensor, a: Tensor, p: float, seed: Tensor
) -> Tensor:
    """da = ds^T D(x) (R, K) in float32; adds D'(ds a) to dx (M, K) in place where there is one.

    ds (M, R) and x (M, K) in one dtype, a (R, K) float32; the mask is that of `shrink`.
    """
    # Two kernels: dx is written once for each element of x, da is summed over all rows of it.
    if dx is not None:
        _add_product_(dx, ds, a, p, int(seed))
    (M, K), R = x.shape, ds.shape[1]
    if M == 0:
        return torch.zeros(R, K, dtype=torch.float32, device=x.device)
    ds, x = readable(ds), readable(x)
    tile = tile_for(capability_of(x.device), "grad_a", R, x.dtype)
    blocks, steps = split_rows(M, K, tile)
    da = torch.empty(blocks, R, K, dtype=torch.float32, device=x.device)
    sizes = (M, K, R, ds.stride(0), x.stride(0))
    options = constants(tile, padded(R), x) | {"STEPS": steps, "DROPOUT": p > 0}
    grid = (blocks, triton.cdiv(K, tile.cols))
    launch(grad_a_kernel, grid, (ds, x, int(seed), da, *sizes, *rate_of(p)), **options)
    return sum_parts(da, torch.float32)


def keep_mask(x: Tensor, p: float, seed: Tensor) -> Tensor:
    """The mask of x (M, K), bool: true where an element is kept.

    For tests, and to compare with another implementation.
    """
    M, K = x.shape
    out = torch.empty(M, K, dtype=torch.bool, device=x.device)
    if out.numel():
        grid = (triton.cdiv(M, MASK.rows), triton.cdiv(K, MASK.cols))
        options = {"ROWS": MASK.rows, "COLS": MASK.cols} | MASK.options
        launch(keep_mask_kernel, grid, (out, int(seed), M, K, drop_threshold(p)), **options)
    return out


def _add_product_(out: Tensor, left: Tensor, right: Tensor, p: float, seed: int) -> None:
    """out (M, N) += keep / (1 - p) * (left (M, R) right (R, N)), in float32, rounded once.

    Raises: ValueError where out's columns are not one apart: a copy would leave the caller's tensor
    as it was.
    """
    (M, N), R = out.shape, left.shape[1]
    if out.stride(1) != 1 and N > 1:
        raise ValueError(
            "in-place low-rank product: expected columns one element apart, "
            f"got strides {out.stride()}"
        )
    if out.numel() == 0:
        return
    left = readable(left)
    tile = tile_for(capability_of(out.device), "add_product", R, out.dtype)
    # `right` may be transposed: both of its strides are passed on, which costs nothing for so small
    # a matrix.
    sizes = (M, N, R, out.stride(0), left.stride(0), *right.stride())
    options = constants(tile, padded(R), out) | {"DROPOUT": p > 0}
    grid = (triton.cdiv(M, tile.rows), triton.cdiv(N, tile.cols))
    launch(add_product_kernel, grid, (out, left, right, seed, *sizes, *rate_of(p)), **options)


def rate_of(p: float) -> tuple[int, float]:
    """What the kernels need of a dropout rate: the threshold of its mask, and 1 / (1 - p)."""
    return drop_threshold(p), 1.0 / (1.0 - p)


def constants(tile: Tile, rank: int, x: Tensor) -> dict[str, int]:
    """What every kernel with a matrix product is compiled for: tile, rank, compiler options."""
    sizes = {"RANK": rank, "ROWS": tile.rows, "COLS": tile.cols}
    # The interpreter's bfloat16 products are wrong, so on a CPU the operands are float32.
    return sizes | {"UPCAST": x.device.type == "cpu"} | tile.options


def sum_parts(parts: Tensor, dtype: torch.dtype) -> Tensor:
    """The sum of float32 parts over their first dimension, in a fixed order -> `dtype`."""
    if len(parts) == 1 and parts.dtype == dtype:
        return parts[0]
    out = torch.empty(parts.shape[1:], dtype=dtype, device=parts.device)
    grid = (triton.cdiv(out.numel(), SUM.cols),)
    launch(sum_parts_kernel, grid, (parts, out, len(parts), out.numel()), **SUM_CONSTANTS)
    return out


def readable(tensor: Tensor) -> Tensor:
    """`tensor` (rows, columns) with its columns one apart, as the kernels read it.

    Expanded or transposed, it is copied.
    """
    return tensor if tensor.stride(1) == 1 else tensor.contiguous()
