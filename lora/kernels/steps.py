"""The launchers: what `lora.steps` does in PyTorch, with the kernels. Same names, same arguments.

Letters: M rows, K in, N out, r one linear's rank, R the stacked ranks of all linears that share x. `seed` is one int64 on
the tensors' device, read by the kernels: the host never waits. Nothing is written but what a name with a trailing
underscore says. On a CPU the kernels run in Triton's interpreter, whose bfloat16 products need UPCAST.
"""

import torch
import triton
from torch import Tensor

from lora.kernels.lowrank import (
    add_product_kernel,
    expand_backward_kernel,
    grad_a_kernel,
    shrink_kernel,
    sum_parts_kernel,
)
from lora.kernels.mask import drop_threshold, keep_mask_kernel
from lora.kernels.tiles import (
    MASK,
    MAX_SLICE,
    SUM,
    capability_of,
    padded,
    split_columns,
    split_rows,
    tile_for,
)


def keep_mask(M: int, K: int, p: float, seed: Tensor) -> Tensor:
    """The mask that the kernels make: bool (M, K) on seed's device, True where an element is kept. See `mask`."""
    out = torch.empty(M, K, dtype=torch.bool, device=seed.device)
    if out.numel():
        grid = (triton.cdiv(M, MASK.rows), triton.cdiv(K, MASK.cols))
        with torch.cuda.device_of(seed):
            keep_mask_kernel[grid](
                out, seed, M, K, drop_threshold(p), ROWS=MASK.rows, COLS=MASK.cols, **MASK.options
            )
    return out


def shrink(x: Tensor, a: Tensor, scale: Tensor, p: float, seed: Tensor) -> Tensor:
    """s = scale * dropout_p(x) a^T: x (M, K), a (R, K) and scale (R,) float32 -> (M, R) in x's dtype, rounded once."""
    (M, K), R = x.shape, a.shape[0]
    if M == 0:
        return x.new_empty(0, R)
    x = _readable(x)
    tile = tile_for(capability_of(x.device), "shrink", R, x.dtype)
    splits, steps = split_columns(M, K, tile)
    out = torch.empty(
        splits, M, R, dtype=x.dtype if splits == 1 else torch.float32, device=x.device
    )
    with torch.cuda.device_of(x):
        shrink_kernel[(triton.cdiv(M, tile.rows), splits)](
            x,
            a.contiguous(),
            scale,
            seed,
            out,
            M,
            K,
            R,
            x.stride(0),
            drop_threshold(p),
            1.0 / (1.0 - p),
            RANK=padded(R),
            ROWS=tile.rows,
            COLS=tile.cols,
            STEPS=steps,
            DROPOUT=p > 0,
            UPCAST=x.device.type == "cpu",
            **tile.options,
        )
        return _sum_parts(out, x.dtype)


def expand_(y: Tensor, s: Tensor, b: Tensor) -> None:
    """y += s b^T in place, rounded once: y (M, N), s (M, r) in y's dtype, b (N, r) float32."""
    _add_product_(y, s, b.t(), 0.0, y)


def expand_backward(dy: Tensor, b: Tensor, s: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """ds = scaling * dy b in dy's dtype and db = dy^T s in float32, from one read of dy.

    dy (M, N) with any strides, b (N, r) float32, s (M, r) in dy's dtype and already scaled -> ds (M, r), db (N, r).
    """
    (M, N), R = dy.shape, b.shape[1]
    if M == 0:
        return dy.new_empty(0, R), b.new_zeros(N, R)
    dy, s = _readable(dy), _readable(s)
    rank = min(padded(R), MAX_SLICE)
    tile = tile_for(capability_of(dy.device), "expand_backward", rank, dy.dtype)
    blocks, steps = split_rows(M, N, tile)
    slices, strips = triton.cdiv(R, rank), triton.cdiv(N, tile.cols)
    ds = torch.empty(
        strips, M, R, dtype=dy.dtype if strips == 1 else torch.float32, device=dy.device
    )
    db = torch.empty(blocks, N, R, dtype=torch.float32, device=dy.device)
    with torch.cuda.device_of(dy):
        expand_backward_kernel[(slices, blocks, strips)](
            dy,
            b.contiguous(),
            s,
            ds,
            db,
            float(scaling),
            M,
            N,
            R,
            dy.stride(0),
            s.stride(0),
            RANK=rank,
            ROWS=tile.rows,
            COLS=tile.cols,
            STEPS=steps,
            UPCAST=dy.device.type == "cpu",
            **tile.options,
        )
        return _sum_parts(ds, dy.dtype), _sum_parts(db, torch.float32)


def grad_a(ds: Tensor, x: Tensor, p: float, seed: Tensor) -> Tensor:
    """da = ds^T dropout_p(x), under the mask of `shrink`: ds (M, R) and x (M, K) in one dtype -> (R, K) float32."""
    (M, K), R = x.shape, ds.shape[1]
    if M == 0:
        return torch.zeros(R, K, dtype=torch.float32, device=x.device)
    ds, x = _readable(ds), _readable(x)
    tile = tile_for(capability_of(x.device), "grad_a", R, x.dtype)
    blocks, steps = split_rows(M, K, tile)
    da = torch.empty(blocks, R, K, dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        grad_a_kernel[(blocks, triton.cdiv(K, tile.cols))](
            ds,
            x,
            seed,
            da,
            M,
            K,
            R,
            ds.stride(0),
            x.stride(0),
            drop_threshold(p),
            1.0 / (1.0 - p),
            RANK=padded(R),
            ROWS=tile.rows,
            COLS=tile.cols,
            STEPS=steps,
            DROPOUT=p > 0,
            UPCAST=x.device.type == "cpu",
            **tile.options,
        )
        return _sum_parts(da, torch.float32)


def add_grad_x_(dx: Tensor, ds: Tensor, a: Tensor, p: float, seed: Tensor) -> None:
    """dx += keep / (1 - p) * (ds a) in place, under the mask of `shrink`: dx (M, K), ds (M, R), a (R, K) float32."""
    _add_product_(dx, ds, a, p, seed)


def shrink_backward_(
    dx: Tensor | None, ds: Tensor, x: Tensor, a: Tensor, p: float, seed: Tensor
) -> Tensor:
    """da (R, K); adds the low-rank part to dx (M, K) in place where there is one: the two functions above."""
    if dx is not None:
        add_grad_x_(dx, ds, a, p, seed)
    return grad_a(ds, x, p, seed)


def _add_product_(out: Tensor, left: Tensor, right: Tensor, p: float, seed: Tensor) -> None:
    """out (M, N) += keep / (1 - p) * (left (M, R) right (R, N)), summed in float32 and rounded once.

    Raises: ValueError where out's columns are not one apart: a copy would leave the caller's tensor as it was.
    """
    (M, N), R = out.shape, left.shape[1]
    if out.stride(1) != 1 and N > 1:
        raise ValueError(
            f"in-place low-rank product: expected columns one element apart, got strides {out.stride()}"
        )
    if out.numel() == 0:
        return
    left = _readable(left)
    tile = tile_for(capability_of(out.device), "add_product", R, out.dtype)
    with torch.cuda.device_of(out):
        add_product_kernel[(triton.cdiv(M, tile.rows), triton.cdiv(N, tile.cols))](
            out,
            left,
            right,
            seed,
            M,
            N,
            R,
            out.stride(0),
            left.stride(0),
            right.stride(0),
            right.stride(1),
            drop_threshold(p),
            1.0 / (1.0 - p),
            RANK=padded(R),
            ROWS=tile.rows,
            COLS=tile.cols,
            DROPOUT=p > 0,
            UPCAST=out.device.type == "cpu",
            **tile.options,
        )


def _sum_parts(parts: Tensor, dtype: torch.dtype) -> Tensor:
    """The sum over the first dimension of float32 partial results, always in the same order -> `dtype`."""
    if len(parts) == 1 and parts.dtype == dtype:
        return parts[0]
    out = torch.empty(parts.shape[1:], dtype=dtype, device=parts.device)
    grid = (triton.cdiv(out.numel(), SUM.cols),)
    sum_parts_kernel[grid](
        parts, out, len(parts), out.numel(), CHUNK=SUM.rows, BLOCK=SUM.cols, **SUM.options
    )
    return out


def _readable(tensor: Tensor) -> Tensor:
    """`tensor` (rows, columns) with its columns one apart, as the kernels read it; expanded or transposed, it is copied."""
    return tensor if tensor.stride(1) == 1 else tensor.contiguous()
