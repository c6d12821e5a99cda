"""`lora_linear` and its grouped form: the one dispatch point for every implementation of the low-rank path."""

import os
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from common.device import has_fast_matmul
from lora.fused import fused_linears
from lora.kernels.tiles import supported
from lora.reference import lora_linear_reference

IMPLEMENTATIONS = ("auto", "reference", "torch", "triton")


@torch.compiler.assume_constant_result  # the arguments and the machine alone decide
def resolve_impl(
    impl: str, device: torch.device | str, dtype: torch.dtype = torch.float32
) -> tuple[str, str]:
    """The implementation that `impl` stands for with activations of `dtype` on `device`, and why.

    Raises: ValueError for an unknown name, or for one that cannot run here; nothing falls back silently.
    """
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"lora impl: expected one of {', '.join(IMPLEMENTATIONS)}, got {impl!r}")
    device = torch.device(device)
    has_triton, triton_reason = _triton(device)
    is_interpreted = device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
    if impl == "triton" and not has_triton and not is_interpreted:
        raise ValueError(
            f"lora impl: triton cannot run here ({triton_reason}); use auto, torch or reference"
        )
    if impl in ("torch", "triton") and dtype == torch.float64:
        raise ValueError(
            f"lora impl: {impl} computes in at most float32, got {dtype}; use reference"
        )
    if impl != "auto":
        return impl, "asked for"
    if dtype == torch.float64:
        return "reference", "float64 is only for checks"
    if has_triton:
        return "triton", triton_reason
    if device.type == "cpu" and dtype != torch.float32 and not _has_cpu_matmul(dtype):
        return (
            "reference",
            f"this CPU does not multiply {str(dtype).removeprefix('torch.')} in hardware",
        )
    return "torch", f"fused in plain PyTorch: {triton_reason}"


def _triton(device: torch.device) -> tuple[bool, str]:
    if device.type != "cuda":
        return False, f"no Triton on {device.type}"
    return supported(torch.cuda.get_device_capability(device))


def _has_cpu_matmul(dtype: torch.dtype) -> bool:
    return has_fast_matmul(torch.empty(0, dtype=dtype))


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
    dtype. `linear` computes the frozen product for the reference where the caller knows a better way than
    `F.linear(x, weight)`. Only the reference gives a gradient to `weight`, and "auto" takes it for one that wants it.
    Raises: ValueError where `impl` cannot run. Source: arXiv:2106.09685, equation 3.
    """
    if weight.requires_grad and impl in ("torch", "triton"):
        raise ValueError(
            f"lora impl: {impl} is for a frozen weight, but this one requires a gradient; use reference"
        )
    impl, _ = resolve_impl("reference" if weight.requires_grad else impl, x.device, x.dtype)
    if impl == "reference":
        frozen = F.linear(x, weight) if linear is None else linear(x)
        return lora_linear_reference(x, frozen, lora_a, lora_b, scaling, dropout, training)
    p = dropout if training else 0.0
    return fused_linears(x, [weight], [lora_a], [lora_b], [scaling], p, impl)[0]
