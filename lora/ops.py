"""`lora_linear`: the layer's product for raw tensors, for tests and other programs.

The model itself calls `LoRALinear`.
"""

import torch.nn.functional as F
from torch import Tensor

from lora.implementations import resolve_impl
from lora.layer import LowRank, fused_linears
from lora.reference import lora_linear_reference


def lora_linear(
    x: Tensor,
    weight: Tensor,
    lora_a: Tensor,
    lora_b: Tensor,
    scaling: float,
    dropout: float = 0.0,
    training: bool = False,
    impl: str = "auto",
) -> Tensor:
    """x W^T + scaling * dropout(x) A^T B^T.

    x (..., K) and weight (N, K) in one dtype; lora_a (r, K) and lora_b (N, r), float32 in training
    -> (..., N) in x's dtype. Only the reference gives a gradient to `weight`, and "auto" takes it
    for one that wants it.
    Raises: ValueError where `impl` cannot run. Source: arXiv:2106.09685, equation 3.
    """
    # The fused ways compute no gradient of W, which would be a product as large as the forward's.
    if impl == "auto" and weight.requires_grad:
        impl = "reference"
    impl, _ = resolve_impl(impl, x.device, x.dtype)
    p = dropout if training else 0.0
    if impl == "reference":
        return lora_linear_reference(x, F.linear(x, weight), lora_a, lora_b, scaling, p)
    return fused_linears(x, [LowRank(weight, lora_a, lora_b, scaling)], p=p, impl=impl)[0]
