"""The low-rank path's five steps in plain PyTorch: for CPU, MPS, and GPUs older than sm_80.

Shapes: M rows, K in, N out, r rank, R the ranks of all linears that share x, one after the other.
`lora/kernels/steps.py` has the same five with the same signatures, as Triton kernels:

    shrink              s  = scale * D(x) a^T            (M, R)
    expand_             y += s b^T                       (M, N) in place
    expand_backward     ds = scaling * dy b,  db = dy^T s    (M, r), (N, r)
    shrink_backward_    da = ds^T D(x)                   (R, K);  dx += D'(ds a)    (M, K) in place
    keep_mask           the elements of x that D keeps   (M, K) bool

D(x) is x with dropped elements at zero, over 1 - p; the mask follows from p and `seed` (1,) int64.
The two files draw it from different random numbers: the same seed gives another mask there.

What makes this cheap against the formula as it is written: nothing of size M x K or M x N is copied
to float32, linears that read the same x share one dropout mask and one pass over x, the low-rank
term is added into the frozen product in place, and backward keeps x itself instead of its float32,
dropped-out copies.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

# Integers as wide as an activation: a dropped element is masked out with "and", a tenth of the cost
# of torch.where here.
INTEGERS = {2: torch.int16, 4: torch.int32}


def shrink(x: Tensor, a: Tensor, scale: Tensor, p: float, seed: Tensor) -> Tensor:
    """s (M, R) = scale * D(x) a^T in x's dtype: x (M, K), a (R, K) float32, scale (R,) float32."""
    low = F.linear(_kept(x, _draw_mask(x, p, seed)), a.to(x.dtype))
    # Dropout's 1 / (1 - p) meets the M x R product instead of x: no second pass over the large
    # matrix.
    return (low.float() * (scale / (1.0 - p))).to(x.dtype)


def expand_(y: Tensor, s: Tensor, b: Tensor) -> None:
    """y (M, N) += s (M, r) b^T in place: b (N, r) float32."""
    y.addmm_(s, b.to(y.dtype).T)


def expand_backward(
    dy: Tensor, b: Tensor, s: Tensor, scaling: float, ds: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """ds (M, r) = scaling * dy b in dy's dtype, into `ds` if given; db (N, r) = dy^T s, float32."""
    # Scaled in float32 before it is rounded: in float16 dy b alone may be too small to be a normal
    # number.
    wide = (dy @ b.to(dy.dtype)).float() * scaling
    return wide.to(dy.dtype) if ds is None else ds.copy_(wide), (dy.T @ s).float()


def shrink_backward_(
    dx: Tensor | None, ds: Tensor, x: Tensor, a: Tensor, p: float, seed: Tensor
) -> Tensor:
    """da (R, K) = ds^T D(x) in float32; adds D'(ds a) to dx (M, K) in place where there is one.

    ds (M, R), x (M, K), a (R, K) float32. One mask serves both.
    """
    mask = _draw_mask(x, p, seed)
    if dx is not None:
        a = (a / (1.0 - p)).to(dx.dtype)
        if mask is None:
            dx.addmm_(ds, a)
        else:
            # The mask lies between the product and the sum, so the product needs a matrix of its
            # own here.
            dx.add_(_kept(ds @ a, mask))
    return (ds.T @ _kept(x, mask)).float() / (1.0 - p)


def keep_mask(x: Tensor, p: float, seed: Tensor) -> Tensor:
    """The mask of x (M, K), bool: true where an element is kept.

    For tests, and to compare with another implementation.
    """
    mask = _draw_mask(x, p, seed)
    return torch.ones_like(x, dtype=torch.bool) if mask is None else mask != 0


def has_integer_masks(device: torch.device) -> bool:
    """True on a CPU, where masks are made of random bytes; a GPU's own generator is fast enough."""
    # A function of its own, so that a test can take the GPU's way on a CPU.
    return device.type == "cpu"


def _draw_mask(x: Tensor, p: float, seed: Tensor) -> Tensor | None:
    """The mask of x (M, K), the same for the same seed; None where nothing drops.

    Integers on a CPU, else booleans.
    """
    if not p:
        return None
    # A generator of its own: neither forward nor backward moves PyTorch's.
    if not has_integer_masks(x.device):
        generator = torch.Generator(x.device).manual_seed(int(seed))
        return torch.rand(x.shape, device=x.device, generator=generator) >= p
    return _keep_bits(x.shape[0], x.shape[1], p, seed).to(INTEGERS[x.itemsize])


def _kept(x: Tensor, mask: Tensor | None) -> Tensor:
    """x (M, K) with dropped elements at zero, not yet divided by 1 - p.

    That factor is applied to the small matrices.
    """
    if mask is None:
        return x
    if mask.dtype == torch.bool:
        return torch.where(mask, x, 0.0)
    # All bits or none: "and" with -1 leaves a float as it is, with 0 it makes +0.0, also of an
    # infinity.
    return (x.view(mask.dtype) & mask).view(x.dtype)


def _keep_bits(rows: int, columns: int, p: float, seed: Tensor) -> Tensor:
    """int16 (rows, columns) on the CPU: -1, all bits set, where an element is kept, else 0.

    One random byte an element, drawn eight at a time: PyTorch's own Bernoulli numbers cost ten
    times as much. A byte is below a threshold with probability threshold / 256; rows with two
    neighbouring thresholds, drawn so that their mean is 256 p, make every element's probability p
    (up to p = 255 / 256). The low bytes serve the first half of the rows.
    """
    generator = torch.Generator().manual_seed(int(seed))
    half = (rows + 1) // 2
    # Four int16 to a word, each with two bytes: one word serves four columns of two rows.
    words = torch.empty(half * columns // 4 + 1, dtype=torch.int64)
    words.random_(-(2**63), None, generator=generator)
    pairs = words.view(torch.int16)[: half * columns].view(half, columns)
    limits = torch.rand(2, half, 1, generator=generator).add_(256.0 * p).floor_().clamp_(max=255.0)
    limits = limits.to(torch.int16) - 1
    bits = torch.empty(2, half, columns, dtype=torch.int16)
    torch.sub(limits[0], pairs & 255, out=bits[0])
    # In place: `pairs` is read for the last time. The shift of a signed number fills with its sign,
    # hence the "and".
    torch.sub(limits[1], pairs.bitwise_right_shift_(8).bitwise_and_(255), out=bits[1])
    # limit - 1 - byte is negative where the byte is not below the limit; the sign fills all bits.
    return bits.bitwise_right_shift_(15).view(2 * half, columns)[:rows]
