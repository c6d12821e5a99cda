"""Which implementation of the low-rank path runs, and why: never silently.

Separate from the layer, because a program decides before it reads anything large, prints the reason
and saves it; `add_lora` decides for callers that have not.
"""

import os

import torch

from lora.kernels.tiles import supported

IMPLEMENTATIONS = ("auto", "reference", "torch", "triton")


def resolve_impl(
    impl: str, device: torch.device | str, dtype: torch.dtype = torch.float32
) -> tuple[str, str]:
    """The implementation that `impl` means for activations of `dtype` on `device`, and the reason.

    Raises: ValueError for an unknown name, or for one that cannot run here; nothing falls back
    silently.
    """
    device = torch.device(device)
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"lora impl: expected one of {', '.join(IMPLEMENTATIONS)}, got {impl!r}")
    has_triton, triton_reason = _triton(device)
    # Triton's interpreter runs the kernels on a CPU, in NumPy: far too slow to train with, so only
    # when named.
    is_interpreted = device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
    if impl == "triton" and not has_triton and not is_interpreted:
        raise ValueError(
            f"lora impl: triton cannot run here ({triton_reason}); use auto, torch or reference"
        )
    if impl in ("torch", "triton") and dtype == torch.float64:
        # Their gradients of A and B come out in float32: a check in float64 would measure that
        # rounding.
        raise ValueError(
            f"lora impl: {impl} computes in at most float32, got {dtype}; use reference"
        )
    if impl != "auto":
        return impl, "asked for"
    return _automatic(device, dtype, has_triton, triton_reason)


def _automatic(
    device: torch.device, dtype: torch.dtype, has_triton: bool, triton_reason: str
) -> tuple[str, str]:
    if dtype == torch.float64:
        return "reference", "float64 is only for checks"
    if has_triton:
        return "triton", triton_reason
    return "torch", f"fused in plain PyTorch: {triton_reason}"


def _triton(device: torch.device) -> tuple[bool, str]:
    if device.type != "cuda":
        return False, f"no Triton on {device.type}"
    return supported(torch.cuda.get_device_capability(device))
