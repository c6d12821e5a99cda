"""The low-rank formula in plain PyTorch: what every faster implementation is compared with.

Shapes: M rows (any leading shape), K in, N out, r rank. Source: arXiv:2106.09685, equation 3.
"""

import torch.nn.functional as F
from torch import Tensor


def lora_linear_reference(
    x: Tensor, frozen: Tensor, lora_a: Tensor, lora_b: Tensor, scaling: float, p: float
) -> Tensor:
    """frozen + scaling * dropout(x) A^T B^T, where frozen = x W^T was computed by the caller.

    x (..., K), frozen (..., N), lora_a (r, K), lora_b (N, r); p is this call's dropout rate, 0
    outside training. The low-rank path and the sum are computed in the adapter's float32 and
    rounded to x's dtype once, as PEFT does.
    """
    # At p = 0 PyTorch returns its input and draws no random number: evaluation leaves the generator
    # as it was.
    dropped = F.dropout(x.to(lora_a.dtype), p)
    low = F.linear(dropped, lora_a)  # (..., r)
    return (frozen + scaling * F.linear(low, lora_b)).to(x.dtype)
