"""The low-rank path's five steps in plain PyTorch, for devices without Triton: CPU, MPS, and GPUs older than sm_80.

Shapes: M rows, K in, N out, r rank, R the ranks of all linears that share x, one after the other.
What makes it cheap against the formula as it is written: nothing of size M x K or M x N is copied to float32, linears
that read the same x share one dropout mask and one pass over x, the low-rank term is added into the frozen product in
place, and backward keeps x itself instead of its float32, dropped-out copies.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def keep_mask(rows: int, columns: int, p: float, seed: Tensor, device: torch.device) -> Tensor:
    """Bool (rows, columns), true where an element is kept: with probability 1 - p, the same for the same seed."""
    generator = torch.Generator(device).manual_seed(int(seed))
    if device.type != "cpu":
        return torch.rand(rows, columns, device=device, generator=generator) >= p
    # One random byte an element, drawn eight at a time: PyTorch's own Bernoulli numbers cost five times as much. A byte
    # is below a threshold with probability threshold / 256; rows with two neighbouring thresholds, drawn so that their
    # mean is 256 p, make every element's probability p (up to p = 255 / 256).
    words = torch.empty(rows * columns // 8 + 1, dtype=torch.int64).random_(-(2**63), None, generator=generator)
    data = words.view(torch.uint8)[: rows * columns].view(rows, columns)
    limits = torch.rand(rows, 1, generator=generator).add_(256.0 * p).floor_().clamp_(max=255.0).to(torch.uint8)
    return data >= limits


def dropped(x: Tensor, p: float, seed: Tensor) -> Tensor:
    """x (M, K) with dropped elements at zero, not yet divided by 1 - p: that factor belongs to the small matrices."""
    return torch.where(keep_mask(x.shape[0], x.shape[1], p, seed, x.device), x, 0.0) if p else x


def shrink(x: Tensor, a: Tensor, scale: Tensor, p: float, seed: Tensor) -> Tensor:
    """s (M, R) = scale * dropout(x) a^T in x's dtype: x (M, K), a (R, K) float32, scale (R,) float32."""
    low = F.linear(dropped(x, p, seed), a.to(x.dtype))
    return (low.float() * (scale / (1.0 - p))).to(x.dtype)


def expand_(y: Tensor, s: Tensor, b: Tensor) -> None:
    """y (M, N) += s (M, r) b^T in place: b (N, r) float32."""
    y.addmm_(s, b.to(y.dtype).T)


def grad_s_b(dy: Tensor, b: Tensor, s: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """ds (M, r) = scaling * dy b in dy's dtype, and db (N, r) = dy^T s in float32."""
    ds = ((dy @ b.to(dy.dtype)).float() * scaling).to(dy.dtype)
    return ds, (dy.T @ s).float()


def grad_a(ds: Tensor, x: Tensor, p: float, seed: Tensor) -> Tensor:
    """da (R, K) = ds^T dropout(x) in float32: ds (M, R), x (M, K)."""
    return (ds.T @ dropped(x, p, seed)).float() / (1.0 - p)


def add_grad_x_(dx: Tensor, ds: Tensor, a: Tensor, p: float, seed: Tensor) -> None:
    """dx (M, K) += mask / (1 - p) * (ds a), in place."""
    a = (a / (1.0 - p)).to(dx.dtype)
    if p == 0:
        dx.addmm_(ds, a)
    else:
        dx.add_(torch.where(keep_mask(dx.shape[0], dx.shape[1], p, seed, dx.device), ds @ a, 0.0))
