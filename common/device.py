"""Device, dtype, seed and memory. Hardware is asked for when a function is called, never at import;
what a single kernel needs to know of a GPU is asked beside that kernel.

One precision rule for the whole program: frozen weights and activations have the dtype chosen here;
everything that trains is float32; sums that would lose digits (norms, softmax, the low-rank path,
cross-entropy) are taken in float32 in the code that computes them. That needs no autocast context,
so no operator changes its dtype behind the reader's back.
"""

import os
import platform
import resource
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from common.products import has_fast_matmul

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
# Below this many parameters float32 weights are cheap for a CPU that multiplies in float32 anyway.
SMALL_MODEL = 50_000_000


@dataclass(frozen=True)
class Precision:
    """The dtype of weights and activations, by its flag's name, and why it was chosen."""

    name: str
    reason: str

    @property
    def needs_scaler(self) -> bool:
        """True for fp16, whose smallest number, 6e-8, is larger than many gradients."""
        return self.name == "fp16"

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.name]


def send(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A copy of the host's x on `device`; where it is CUDA, nobody waits for what the card does."""
    if device.type != "cuda" or x.is_cuda:
        # Waiting: on MPS a source that is freed at once could be overwritten before it is copied.
        return x.to(device)
    # From pinned memory: a pageable copy of more than 64 KB waits until all earlier work is done.
    return x.pin_memory().to(device, non_blocking=True)


def pick_device(name: str) -> torch.device:
    """The device called `name`; "auto" takes CUDA, then MPS, then the CPU.

    Raises: ValueError for an unknown device or one that is not there.
    """
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        return torch.device(next(kind for kind, is_there in available.items() if is_there))
    kind = name.split(":")[0]
    if kind not in available:
        raise ValueError(f"--device: expected auto, cuda, mps or cpu, got {name!r}")
    # "cuda:1" and plain "cuda" are both names; PyTorch itself notices a missing one only later.
    index = name.removeprefix(kind).removeprefix(":") or "0"
    count = torch.cuda.device_count() if kind == "cuda" else 1
    is_number = index.isdecimal() and len(index) < 5  # Python converts 4,300 digits and no more
    if not available[kind] or not is_number or int(index) >= count:
        there = ", ".join(kind for kind, is_there in available.items() if is_there)
        raise ValueError(
            f"--device {name}: PyTorch {torch.__version__} finds no such device here; "
            f"there is {there}"
        )
    # Only CUDA's have numbers elsewhere: safetensors knows no "cpu:0", and PyTorch no "cpu:00".
    return torch.device(kind, int(index)) if name.startswith("cuda:") else torch.device(kind)


def pick_precision(name: str, device: torch.device, num_parameters: int) -> Precision:
    """What `--dtype name` means on `device` for a model of `num_parameters`.

    Raises: ValueError for an unknown name.
    """
    if name in DTYPES:
        return Precision(name, "asked for")
    if name != "auto":
        raise ValueError(f"--dtype: expected auto, bf16, fp16 or fp32, got {name!r}")
    if device.type == "cuda":
        return _cuda_precision(device)
    if device.type == "mps":
        return _mps_precision()
    # A CPU always computes bf16 somehow; what counts is what it multiplies faster.
    if has_fast_matmul(torch.empty(0, dtype=torch.bfloat16)):
        return Precision("bf16", "this CPU multiplies bf16 in hardware, and fast")
    if num_parameters < SMALL_MODEL:
        millions = num_parameters / 1e6
        return Precision("fp32", f"a model of {millions:.1f} M parameters fits into memory in fp32")
    return Precision("bf16", "bf16 halves the memory; this CPU multiplies in fp32, slice by slice")


def _cuda_precision(device: torch.device) -> Precision:
    # Not is_bf16_supported(): true on a T4, by emulation. Tensor cores for bf16 begin with 8.0.
    major, minor = torch.cuda.get_device_capability(device)
    capability = f"compute capability {major}.{minor}"
    if major >= 8:
        return Precision("bf16", f"{capability} multiplies bf16 in hardware")
    return Precision("fp16", f"{capability} has no bf16; fp16 with a gradient scaler")


def _mps_precision() -> Precision:
    release = platform.mac_ver()[0]
    if release and int(release.split(".")[0]) >= 14:
        return Precision("bf16", f"macOS {release} supports bf16 on MPS")
    system = f"macOS {release or 'of unknown version'}"
    return Precision("fp32", f"{system} has no bf16 on MPS (14 or newer has)")


def seed_everything(seed: int) -> None:
    """Seeds PyTorch's generators of every device; dropout masks and sampling follow from it.

    Raises: ValueError for a seed that does not fit into 64 bits.
    """
    if not -(2**63) <= seed < 2**63:
        raise ValueError(f"--seed: expected a number that fits into 64 bits, got {seed}")
    torch.manual_seed(seed)


def rng_state(device: torch.device) -> dict[str, torch.Tensor]:
    """The states, as byte tensors, of the generators that a run on `device` draws from."""
    # The CPU's on every device: without Triton the seeds of LoRA's dropout come from it.
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states


def set_rng_state(states: dict[str, torch.Tensor], device: torch.device) -> None:
    """Puts generators back to `rng_state`; a state for another device is left out."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
    elif device.type == "mps" and "mps" in states:
        torch.mps.set_rng_state(states["mps"])


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory that the run has taken so far.

    CUDA: PyTorch's largest allocation; MPS: the driver's present one; CPU: the process's peak.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    status = Path("/proc/self/status")
    if sys.platform != "darwin" and status.is_file():
        # Not ru_maxrss: a program started by another one inherits that one's peak.
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        if "VmHWM" in fields:
            return int(fields["VmHWM"].split()[0]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def available_memory_bytes(device: torch.device) -> int:
    """Memory that a run on `device` could still take; a CPU and MPS share the machine's."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) * 1024
    # Half of what is installed, not what is free: a Mac fills its memory with caches that it frees
    # when a program needs it.
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def describe(device: torch.device) -> str:
    """The device's name for run records."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    processor = platform.processor() or platform.machine()
    return f"{device.type} ({processor}, {torch.get_num_threads()} threads)"
