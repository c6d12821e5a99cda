"""`lora_linear`: one function, one dispatch point for every implementation of the low-rank path."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from lora.reference import lora_linear_reference

IMPLEMENTATIONS = ("auto", "reference", "triton")


def resolve_impl(impl: str, device: torch.device | str) -> tuple[str, str]:
    """The implementation that `impl` stands for on `device`, and why.

    Raises: ValueError for an unknown name, or for one that cannot run here; nothing falls back silently.
    """
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"lora impl: expected one of {', '.join(IMPLEMENTATIONS)}, got {impl!r}")
    if impl == "triton":
        kind = torch.device(device).type
        raise ValueError(f"lora impl: this version has no Triton kernel for {kind}; use auto or reference")
    reason = "asked for" if impl == "reference" else "the only implementation of this version"
    return "reference", reason


def lora_linear(
    x: Tensor,
    weight: Tensor,
    lora_a: Tensor,
    lora_b: Tensor,
    scaling: float,
    dropout: float = 0.0,
    training: bool = False,
    impl: str = "auto",
    linear: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """x W^T + scaling * dropout(x) A^T B^T.

    x (..., K) and weight (N, K) in one dtype; lora_a (r, K) and lora_b (N, r), float32 in training -> (..., N) in x's
    dtype. `linear` computes the frozen product where the caller knows a better way than `F.linear(x, weight)`.
    Raises: ValueError where `impl` cannot run. Source: arXiv:2106.09685, equation 3.
    """
    resolve_impl(impl, x.device)
    frozen = F.linear(x, weight) if linear is None else linear(x)
    return lora_linear_reference(x, frozen, lora_a, lora_b, scaling, dropout, training)
