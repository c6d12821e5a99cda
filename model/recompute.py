"""What the backward pass computes again instead of keeping it: how much to recompute, and how one tensor is.

Selective recomputation: arXiv:2205.05198, section 4; of whole blocks: arXiv:1604.06174.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from common.device import Precision, available_memory_bytes
from model.config import Gemma2Config

# The share of the free memory that weights and activations may take before activations are recomputed instead.
MEMORY_SHARE = {"cuda": 0.7, "mps": 0.4, "cpu": 0.4}

CHECKPOINTING = ("none", "selective", "full")


def pick_checkpointing(
    name: str,
    config: Gemma2Config,
    tokens: int,
    precision: Precision,
    device: torch.device,
    copies: bool = False,
    slices: int = 1,
) -> tuple[str, str]:
    """What to recompute in the backward pass (none, selective or full), and why; `tokens` is the number in a micro-batch.

    "auto" takes the first of them with which weights and activations stay under MEMORY_SHARE of what is free; the rest is
    headroom for the head's chunks, the optimizer, fragmentation and, where the memory is the machine's, other programs.
    `copies`: LoRA runs in its reference form, which keeps float32 copies. `slices`: ranks that share the weights.
    """
    if name != "auto":
        return name, "asked for"
    free, width = available_memory_bytes(device), precision.dtype.itemsize
    weights = width * config.num_parameters // slices
    for mode in CHECKPOINTING:
        kept = (
            tokens
            * config.num_hidden_layers
            * activation_bytes_per_token(config, width, mode, copies)
        )
        if weights + kept <= MEMORY_SHARE[device.type] * free:
            break
    needed = f"weights and activations take about {(weights + kept) / 1e9:.1f} of {free / 1e9:.1f} GB free"
    return mode, needed


def activation_bytes_per_token(
    config: Gemma2Config, width: int, mode: str, copies: bool = False
) -> int:
    """Rough size of what one block keeps for one token's backward pass, `width` bytes per activation.

    Counted from what the operators save: the inputs of the four norms and of the four groups of linears, queries, keys,
    values, gate and up; "selective" leaves out the norms' results and the gated product. A count, not a measurement.
    """
    if mode == "full":
        return width * config.hidden_size
    heads = 2 * (config.num_attention_heads + config.num_key_value_heads) * config.head_dim
    kept = 6 * config.hidden_size + heads + 3 * config.intermediate_size
    if mode == "selective":
        kept -= 2 * config.hidden_size + config.intermediate_size
    # The reference form's float32 copy and mask of each input of a linear.
    extra = 5 * (6 * config.hidden_size + config.intermediate_size) if copies else 0
    return width * kept + extra


@contextmanager
def recomputed(x: Tensor, make: Callable[[], Tensor]) -> Iterator[None]:
    """Inside, what autograd saves of x is not kept: the backward pass calls `make` for it again.

    For a tensor that costs little arithmetic and much memory, as the product of a GeGLU or a norm's result; what `make`
    needs must be saved anyway. Selective recomputation: arXiv:2205.05198, section 4.
    """

    def pack(saved: Tensor) -> tuple[Tensor | None, torch.Size]:
        is_x = saved.data_ptr() == x.data_ptr() and saved.numel() == x.numel()
        return (
            None if is_x else saved.detach(),
            saved.shape,
        )  # itself, it could hold its own graph alive

    def unpack(packed: tuple[Tensor | None, torch.Size]) -> Tensor:
        saved, shape = packed
        if saved is None:
            with torch.no_grad():
                return make().view(shape)
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield
