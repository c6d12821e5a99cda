"""The low-rank formula in plain PyTorch: what every faster implementation is compared with.

Shapes: M rows (any leading shape), K in, N out, r rank. Source: arXiv:2106.09685, equation 3.
"""

import torch.nn.functional as F
from torch import Tensor


def lora_linear_reference(
    x: Tensor,
    frozen: Tensor,
    lora_a: Tensor,
    lora_b: Tensor,
    scaling: float,
    dropout: float,
    training: bool,
) -> Tensor:
    """frozen + scaling * dropout(x) A^T B^T: x (..., K), frozen = x W^T (..., N), lora_a (r, K), lora_b (N, r).

    The low-rank path and the sum are computed in the adapter's float32 and rounded to x's dtype once, as PEFT does.
    """
    low = F.linear(F.dropout(x.to(lora_a.dtype), dropout, training), lora_a)  # (..., r)
    return (frozen + scaling * F.linear(low, lora_b)).to(x.dtype)
