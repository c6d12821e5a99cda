"""What the backward pass computes again instead of keeping it: how much, and how one tensor is.

Selective recomputation: arXiv:2205.05198, section 4; of whole blocks: arXiv:1604.06174.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from common.device import available_memory_bytes
from model.config import Gemma2Config

# The share of the free memory that weights and activations may take before activations are
# recomputed instead. The rest is headroom for the head's chunks, the optimizer, fragmentation and,
# where the memory is the machine's, other programs.
MEMORY_SHARE = {"cuda": 0.7, "mps": 0.4, "cpu": 0.4}

# Nothing; norms and the gated product; whole blocks.
CHECKPOINTING = ("none", "selective", "full")


@dataclass(frozen=True)
class MicroBatch:
    """What decides how much memory a micro-batch needs; `tokens` is its number of them.

    `copies`: LoRA runs in its reference form, which keeps float32 copies. `slices`: the ranks that
    share the weights.
    """

    config: Gemma2Config
    tokens: int
    dtype: torch.dtype
    copies: bool = False
    slices: int = 1

    def memory_bytes(self, mode: str) -> int:
        """Weights, and what the blocks save for the backward pass."""
        weights = self.dtype.itemsize * self.config.num_parameters // self.slices
        layers = self.config.num_hidden_layers
        return weights + self.tokens * layers * self.activation_bytes_per_token(mode)

    def activation_bytes_per_token(self, mode: str) -> int:
        """Rough size of what one block saves for one token: a count, not a measurement.

        Counted from what the operators save: the inputs of the four norms and of the four groups of
        linears, queries, keys, values, gate and up.
        """
        config, width = self.config, self.dtype.itemsize
        if mode == "full":
            return width * config.hidden_size
        heads = 2 * (config.num_attention_heads + config.num_key_value_heads) * config.head_dim
        if config.has_qk_norms:  # queries and keys as they come into their norms
            heads += (config.num_attention_heads + config.num_key_value_heads) * config.head_dim
        kept = 6 * config.hidden_size + heads + 3 * config.intermediate_size
        if mode == "selective":  # without the norms' results and the gated product
            kept -= 2 * config.hidden_size + config.intermediate_size
        # The reference form's float32 copy (4 bytes) and mask (1) of each input of a linear.
        extra = 5 * (6 * config.hidden_size + config.intermediate_size) if self.copies else 0
        return width * kept + extra


def pick_checkpointing(name: str, batch: MicroBatch, device: torch.device) -> tuple[str, str]:
    """What to recompute in the backward pass (none, selective or full), and why.

    "auto" takes the first of them whose memory stays under MEMORY_SHARE of what is free.
    """
    if name != "auto":
        return name, "asked for"
    free = available_memory_bytes(device)
    for mode in CHECKPOINTING:
        needed = batch.memory_bytes(mode)
        if needed <= MEMORY_SHARE[device.type] * free:
            break  # if none fits, the last one is the best there is
    gigabytes = f"{needed / 1e9:.1f} GB, of {free / 1e9:.1f} GB free"
    return mode, f"weights and activations take about {gigabytes}"


@contextmanager
def recomputed(x: Tensor, make: Callable[[], Tensor]) -> Iterator[None]:
    """Inside, what autograd saves of x is not kept: the backward pass calls `make` for it again.

    For a tensor that costs little arithmetic and much memory, as the product of a GeGLU or a norm's
    result; what `make` needs must be saved anyway. `make` must not refer to x.
    """

    def pack(saved: Tensor) -> tuple[Tensor | None, torch.Size]:
        # By address, since autograd saves reshaped views of x.
        is_x = saved.data_ptr() == x.data_ptr() and saved.numel() == x.numel()
        # Detached: the saved tensor itself could hold its own graph alive.
        return None if is_x else saved.detach(), saved.shape

    def unpack(packed: tuple[Tensor | None, torch.Size]) -> Tensor:
        saved, shape = packed
        if saved is not None:
            return saved
        with torch.no_grad():
            return make().view(shape)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield
