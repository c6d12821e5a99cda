"""The kernels of the low-rank path: four tile products, and the ordered sum of their parts.

Letters: M rows, K in, N out, r one linear's rank, R the stacked ranks of all linears that share x
(in a kernel, R is the true rank and RANK its padding). Every kernel is bound by memory: it passes
once over the big matrix (x, dy or dx) and keeps everything of rank size in registers. Products
accumulate in float32, and scalings meet that sum. What crosses programs goes to a float32 buffer
and is added in order: no atomics, so two runs give the same bits. The split of the backward pass,
ds and dB from one read of dy, is that of LoRAFusion (arXiv:2510.00206), there with atomics.

Plain loops with constant trip counts: the compiler pipelines their loads, and the interpreter takes
them. A tile's first row is int64, since M * N may pass 2^31; offsets inside a tile are int32, which
saves registers.
"""

import triton
import triton.language as tl

from lora.kernels.mask import Seed, kept


@triton.jit
def product(left: tl.tensor, right: tl.tensor, total: tl.tensor, UPCAST: tl.constexpr) -> tl.tensor:
    """total + left @ right in float32; "ieee" keeps float32 operands out of TF32.

    UPCAST: the interpreter's bfloat16 dot is wrong, so its operands become float32.
    """
    # `total` goes in as the accumulator: one instruction multiplies and adds.
    if UPCAST:
        left, right = left.to(tl.float32), right.to(tl.float32)
    return tl.dot(left, right, total, input_precision="ieee")


@triton.jit
def sum_of(
    parts: tl.tensor,
    index: tl.tensor,
    count: int,
    size: int,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """The sum (BLOCK) of parts (count, size) over their first dimension, in order, at `index`.

    CHUNK of them are read at a time.
    """
    total = tl.zeros((BLOCK,), tl.float32)
    # A while loop: `range` with a run-time bound fails in Triton 3.6's interpreter on NumPy 2.4.
    first = 0
    while first < count:
        part = first + tl.arange(0, CHUNK)
        inside = (part < count)[:, None] & (index < size)[None, :]
        values = tl.load(
            parts + part[:, None].to(tl.int64) * size + index[None, :], mask=inside, other=0.0
        )
        total += tl.sum(values, axis=0)
        first += CHUNK
    return total


@triton.jit(do_not_specialize=["count", "size"])
def sum_parts_kernel(
    parts: tl.tensor,
    out: tl.tensor,
    count: int,
    size: int,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """out (size) = the sum of parts (count, size), see `sum_of`."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = sum_of(parts, index, count, size, CHUNK, BLOCK)
    tl.store(out + index, total, mask=index < size)


@triton.jit(do_not_specialize=["ds_count", "ds_size", "db_count", "db_size"])
def sum_both_kernel(
    ds_parts: tl.tensor,
    ds: tl.tensor,
    db_parts: tl.tensor,
    db: tl.tensor,
    ds_count: int,
    ds_size: int,
    db_count: int,
    db_size: int,
    R: int,
    ds_stride: int,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Both sums of `expand_backward` in one launch: ds (ds_size / R, R) and db (db_size).

    The rows of ds are `ds_stride` apart: it is a slice of the ds of all linears that share x.
    """
    program, ds_programs = tl.program_id(0), (ds_size + BLOCK - 1) // BLOCK
    if program < ds_programs:
        index = program * BLOCK + tl.arange(0, BLOCK)
        total = sum_of(ds_parts, index, ds_count, ds_size, CHUNK, BLOCK)
        place = (index // R).to(tl.int64) * ds_stride + index % R
        tl.store(ds + place, total, mask=index < ds_size)
    else:
        index = (program - ds_programs) * BLOCK + tl.arange(0, BLOCK)
        total = sum_of(db_parts, index, db_count, db_size, CHUNK, BLOCK)
        tl.store(db + index, total, mask=index < db_size)


@triton.jit(do_not_specialize=["M", "threshold", "seed"])
def shrink_kernel(
    x: tl.tensor,
    a: tl.tensor,
    scale: tl.tensor,
    seed: Seed,
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
    """out (splits, M, R) = scale * inverse * (keep * x) a^T over each split's columns.

    x (M, K), a (R, K), scale (R).
    """
    first_row, split = tl.program_id(0) * ROWS, tl.program_id(1)
    rows, ranks = tl.arange(0, ROWS), tl.arange(0, RANK)
    row_inside, rank_inside = (first_row + rows < M)[:, None], (ranks < R)[None, :]
    x += first_row.to(tl.int64) * x_stride  # in 64 bits: M * K may pass 2^31
    total = tl.zeros((ROWS, RANK), tl.float32)
    # The split's columns, one tile after the other: x passes by once, the sum stays in registers.
    for step in range(STEPS):
        first_col = (split * STEPS + step) * COLS
        cols = first_col + tl.arange(0, COLS)
        x_tile = tl.load(
            x + rows[:, None] * x_stride + cols[None, :],
            mask=row_inside & (cols < K)[None, :],
            other=0.0,
        )
        a_tile = tl.load(
            a + ranks[None, :] * K + cols[:, None],
            mask=(cols < K)[:, None] & rank_inside,
            other=0.0,
        )
        # A constant of compilation: without dropout this is no code.
        if DROPOUT:
            x_tile = tl.where(kept(seed, first_row + rows, first_col, threshold, COLS), x_tile, 0.0)
        # A is rounded to x's dtype here, tile by tile: a 16-bit copy of it is never stored.
        total = product(x_tile, a_tile.to(x_tile.dtype), total, UPCAST)
    # Scaling and 1 / (1 - p) meet the float32 sum, before it is rounded for the first time.
    factor = tl.load(scale + ranks, mask=ranks < R, other=0.0) * inverse
    # Every split writes a slice of its own; sum_parts_kernel adds them in order.
    out += (split.to(tl.int64) * M + first_row) * R
    tl.store(
        out + rows[:, None] * R + ranks[None, :],
        total * factor[None, :],
        mask=row_inside & rank_inside,
    )


@triton.jit(do_not_specialize=["M"])
def expand_backward_kernel(
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
    """ds = scaling * dy b and db = dy^T s, each in parts.

    ds_parts (strips, M, R) over each strip's columns of dy, db_parts (blocks, N, R) over each
    block's rows.

    dy (M, N), b (N, R), s (M, R).
    """
    # Slices of the rank run next to one another, so that dy comes from the cache for all but the
    # first.
    ranks = tl.program_id(0) * RANK + tl.arange(0, RANK)
    block, strip = tl.program_id(1), tl.program_id(2)
    rows, cols = tl.arange(0, ROWS), strip * COLS + tl.arange(0, COLS)
    col_inside, rank_inside = cols < N, (ranks < R)[None, :]
    b_offsets, b_inside = cols[:, None] * R + ranks[None, :], col_inside[:, None] & rank_inside
    b_tile = tl.load(b + b_offsets, mask=b_inside, other=0.0).to(
        dy.dtype.element_ty
    )  # (COLS, RANK)
    ds_parts += strip.to(tl.int64) * M * R
    # db is complete after the loop and stays in registers until then; each tile's ds is at once.
    db = tl.zeros((COLS, RANK), tl.float32)
    for step in range(STEPS):
        first_row = ((block * STEPS + step) * ROWS).to(tl.int64)
        row_inside = (first_row + rows < M)[:, None]
        dy_tile = tl.load(
            dy + first_row * dy_stride + (rows[:, None] * dy_stride + cols[None, :]),
            mask=row_inside & col_inside[None, :],
            other=0.0,
        )
        s_tile = tl.load(
            s + first_row * s_stride + (rows[:, None] * s_stride + ranks[None, :]),
            mask=row_inside & rank_inside,
            other=0.0,
        )
        # Both products from the one tile of dy: reading it is what this kernel costs.
        ds = product(dy_tile, b_tile, tl.zeros((ROWS, RANK), tl.float32), UPCAST)
        # Only these columns' share of the row tile's ds: every strip writes its own part.
        ds_tile = ds_parts + first_row * R + (rows[:, None] * R + ranks[None, :])
        tl.store(ds_tile, ds * scaling, mask=row_inside & rank_inside)
        db = product(tl.trans(dy_tile), s_tile, db, UPCAST)
    tl.store(db_parts + block.to(tl.int64) * N * R + b_offsets, db, mask=b_inside)


@triton.jit(do_not_specialize=["M", "threshold", "seed"])
def grad_a_kernel(
    ds: tl.tensor,
    x: tl.tensor,
    seed: Seed,
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
    """da_parts (blocks, R, K) = inverse * ds^T (keep * x) over each block's rows.

    ds (M, R), x (M, K).
    """
    block, first_col = tl.program_id(0), tl.program_id(1) * COLS
    rows, cols, ranks = tl.arange(0, ROWS), first_col + tl.arange(0, COLS), tl.arange(0, RANK)
    col_inside, rank_inside = cols < K, (ranks < R)[None, :]
    # Transposed, so that the longer side is the rows: Hopper's tensor cores take 64 at a time.
    total = tl.zeros((COLS, RANK), tl.float32)
    for step in range(STEPS):
        first_row = (block * STEPS + step) * ROWS
        wide = first_row.to(tl.int64)
        row_inside = (first_row + rows < M)[:, None]
        x_tile = tl.load(
            x + wide * x_stride + (rows[:, None] * x_stride + cols[None, :]),
            mask=row_inside & col_inside[None, :],
            other=0.0,
        )
        ds_tile = tl.load(
            ds + wide * ds_stride + (rows[:, None] * ds_stride + ranks[None, :]),
            mask=row_inside & rank_inside,
            other=0.0,
        )
        if DROPOUT:
            x_tile = tl.where(kept(seed, first_row + rows, first_col, threshold, COLS), x_tile, 0.0)
        total = product(tl.trans(x_tile), ds_tile, total, UPCAST)
    # Stored transposed back: da has the shape of A.
    da_parts += block.to(tl.int64) * R * K
    tl.store(
        da_parts + (ranks[None, :] * K + cols[:, None]),
        total * inverse,
        mask=col_inside[:, None] & rank_inside,
    )


@triton.jit(do_not_specialize=["M", "threshold", "seed"])
def add_product_kernel(
    out: tl.tensor,
    left: tl.tensor,
    right: tl.tensor,
    seed: Seed,
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
    """out (M, N) += keep * inverse * (left (M, R) right (R, N)), rounded once.

    `right` may be a transposed matrix.
    """
    first_row, first_col = tl.program_id(0) * ROWS, tl.program_id(1) * COLS
    wide = first_row.to(tl.int64)
    rows, cols, ranks = tl.arange(0, ROWS), first_col + tl.arange(0, COLS), tl.arange(0, RANK)
    row_inside, col_inside = (first_row + rows < M)[:, None], (cols < N)[None, :]
    out += wide * out_stride
    out_offsets = rows[:, None] * out_stride + cols[None, :]
    # The largest load is issued first: its latency overlaps with the product.
    before = tl.load(out + out_offsets, mask=row_inside & col_inside, other=0.0)
    left_offsets = rows[:, None] * left_stride + ranks[None, :]
    left_tile = tl.load(
        left + wide * left_stride + left_offsets, mask=row_inside & (ranks < R)[None, :], other=0.0
    )
    right_offsets = ranks[:, None] * right_stride + cols[None, :] * right_step
    right_tile = tl.load(right + right_offsets, mask=(ranks < R)[:, None] & col_inside, other=0.0)
    total = product(
        left_tile, right_tile.to(left_tile.dtype), tl.zeros((ROWS, COLS), tl.float32), UPCAST
    )
    # The mask meets the product here, not an operand: it belongs to the elements of `out`.
    if DROPOUT:
        total = tl.where(
            kept(seed, first_row + rows, first_col, threshold, COLS), total * inverse, 0.0
        )
    tl.store(out + out_offsets, before.to(tl.float32) + total, mask=row_inside & col_inside)
