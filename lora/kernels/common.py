"""What the low-rank kernels share: the tile product, the ordered sum of partial results, and the check of inputs."""

import torch
import triton
import triton.language as tl
from torch import Tensor

SUM_BLOCK = 256
SUM_CHUNK = 8


@triton.jit
def product(left: tl.tensor, right: tl.tensor, total: tl.tensor, UPCAST: tl.constexpr) -> tl.tensor:
    """total + left @ right in float32; "ieee" keeps float32 operands out of TF32. UPCAST: the interpreter's bf16 dot."""
    if UPCAST:
        left, right = left.to(tl.float32), right.to(tl.float32)
    return tl.dot(left, right, total, input_precision="ieee")


@triton.jit(do_not_specialize=["count", "size"])
def sum_parts_kernel(
    parts: tl.tensor, out: tl.tensor, count: int, size: int, CHUNK: tl.constexpr, BLOCK: tl.constexpr
) -> None:
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    first = 0
    while first < count:
        part = first + tl.arange(0, CHUNK)
        inside = (part < count)[:, None] & (index < size)[None, :]
        values = tl.load(parts + part[:, None].to(tl.int64) * size + index[None, :], mask=inside, other=0.0)
        total += tl.sum(values, axis=0)
        first += CHUNK
    tl.store(out + index, total, mask=index < size)


def sum_parts(parts: Tensor, dtype: torch.dtype) -> Tensor:
    """The sum over the first dimension of float32 partial results, always in the same order -> `dtype`.

    A second small kernel in place of atomics: two runs give the same bits. Called inside the caller's device guard.
    """
    if len(parts) == 1 and parts.dtype == dtype:
        return parts[0]
    out = torch.empty(parts.shape[1:], dtype=dtype, device=parts.device)
    grid = (triton.cdiv(out.numel(), SUM_BLOCK),)
    sum_parts_kernel[grid](parts, out, len(parts), out.numel(), CHUNK=SUM_CHUNK, BLOCK=SUM_BLOCK, num_warps=4)
    return out


def readable(tensor: Tensor) -> Tensor:
    """`tensor` (rows, columns) as the kernels read it, columns one apart; copied where they are not (expanded, transposed)."""
    return tensor if tensor.stride(1) == 1 else tensor.contiguous()
