"""The low-rank path's five steps in plain PyTorch, for devices without Triton: CPU, MPS, and GPUs older than sm_80.

Shapes: M rows, K in, N out, r rank, R the ranks of all linears that share x, one after the other.
What makes it cheap against the formula as it is written: nothing of size M x K or M x N is copied to float32, linears
that read the same x share one dropout mask and one pass over x, the low-rank term is added into the frozen product in
place, and backward keeps x itself instead of its float32, dropped-out copies.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

# Integers as wide as an activation: a dropped element is masked out with "and", which costs a tenth of torch.where here.
INTEGERS = {2: torch.int16, 4: torch.int32}


def keep_bits(rows: int, columns: int, p: float, seed: Tensor) -> Tensor:
    """int16 (rows, columns) on the CPU: -1, all bits set, where an element is kept, which has probability 1 - p; else 0.

    One random byte an element, drawn eight at a time: PyTorch's own Bernoulli numbers cost ten times as much. A byte is
    below a threshold with probability threshold / 256; rows with two neighbouring thresholds, drawn so that their mean
    is 256 p, make every element's probability p (up to p = 255 / 256). The low bytes serve the first half of the rows.
    """
    generator = torch.Generator().manual_seed(int(seed))
    half = (rows + 1) // 2
    words = torch.empty(half * columns // 4 + 1, dtype=torch.int64).random_(
        -(2**63), None, generator=generator
    )
    pairs = words.view(torch.int16)[: half * columns].view(half, columns)
    limits = (
        torch.rand(2, half, 1, generator=generator)
        .add_(256.0 * p)
        .floor_()
        .clamp_(max=255.0)
        .to(torch.int16)
        - 1
    )
    bits = torch.empty(2, half, columns, dtype=torch.int16)
    torch.sub(limits[0], pairs & 255, out=bits[0])
    torch.sub(limits[1], pairs.bitwise_right_shift_(8).bitwise_and_(255), out=bits[1])
    # limit - 1 - byte is negative where the byte is not below the limit; the sign fills all bits.
    return bits.bitwise_right_shift_(15).view(2 * half, columns)[:rows]


def has_integer_masks(device: torch.device) -> bool:
    """True where masks are made of random bytes, on a CPU; an accelerator's own generator is fast enough."""
    return device.type == "cpu"


def draw_mask(x: Tensor, p: float, seed: Tensor) -> Tensor | None:
    """The mask of x (M, K), the same for the same seed: integers on a CPU, else booleans; None where nothing drops."""
    if not p:
        return None
    if not has_integer_masks(x.device):
        generator = torch.Generator(x.device).manual_seed(int(seed))
        return torch.rand(x.shape, device=x.device, generator=generator) >= p
    return keep_bits(x.shape[0], x.shape[1], p, seed).to(INTEGERS[x.itemsize])


def keep_mask(rows: int, columns: int, p: float, seed: Tensor, device: torch.device) -> Tensor:
    """Bool (rows, columns), true where an element is kept: what `draw_mask` stands for."""
    mask = draw_mask(torch.empty(rows, columns, device=device), p, seed)
    return torch.ones(rows, columns, dtype=torch.bool, device=device) if mask is None else mask != 0


def kept(x: Tensor, mask: Tensor | None) -> Tensor:
    """x (M, K) with dropped elements at zero, not yet divided by 1 - p: that factor belongs to the small matrices."""
    if mask is None:
        return x
    return (
        torch.where(mask, x, 0.0)
        if mask.dtype == torch.bool
        else (x.view(mask.dtype) & mask).view(x.dtype)
    )


def shrink(x: Tensor, a: Tensor, scale: Tensor, p: float, seed: Tensor) -> Tensor:
    """s (M, R) = scale * dropout(x) a^T in x's dtype: x (M, K), a (R, K) float32, scale (R,) float32."""
    low = F.linear(kept(x, draw_mask(x, p, seed)), a.to(x.dtype))
    return (low.float() * (scale / (1.0 - p))).to(x.dtype)


def expand_(y: Tensor, s: Tensor, b: Tensor) -> None:
    """y (M, N) += s (M, r) b^T in place: b (N, r) float32."""
    y.addmm_(s, b.to(y.dtype).T)


def expand_backward(dy: Tensor, b: Tensor, s: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """ds (M, r) = scaling * dy b in dy's dtype, and db (N, r) = dy^T s in float32."""
    ds = ((dy @ b.to(dy.dtype)).float() * scaling).to(dy.dtype)
    return ds, (dy.T @ s).float()


def shrink_backward_(
    dx: Tensor | None, ds: Tensor, x: Tensor, a: Tensor, p: float, seed: Tensor
) -> Tensor:
    """da (R, K) = ds^T dropout(x) in float32; adds dropout'(ds a) to dx (M, K) in place where there is one.

    ds (M, R), x (M, K), a (R, K) float32. One mask serves both.
    """
    mask = draw_mask(x, p, seed)
    if dx is not None:
        a = (a / (1.0 - p)).to(dx.dtype)
        if mask is None:
            dx.addmm_(ds, a)
        else:
            dx.add_(kept(ds @ a, mask))
    return (ds.T @ kept(x, mask)).float() / (1.0 - p)
