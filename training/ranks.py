"""Several processes with one device each, as `torchrun` starts them.

Data-parallel by default (DistributedDataParallel): every rank has the whole model and its share of
a step's micro-batches. Sharded (FSDP2, `fully_shard`): every rank has a slice of each weight, and a
block is put together only while it computes.
Sources: "PyTorch Distributed" (arXiv:2006.15704), "PyTorch FSDP" (arXiv:2304.11277).
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from model.transformer import Gemma2


@dataclass(frozen=True)
class Ranks:
    """This process's number among `count`, and its number on this machine."""

    index: int = 0
    count: int = 1
    local: int = 0  # on a machine of a cluster; decides the GPU

    @property
    def is_first(self) -> bool:
        """True on the rank that writes files and prints."""
        return self.index == 0

    def device(self, name: str) -> str:
        """The device of this rank: its own GPU where GPUs are asked for.

        Raises: ValueError where one GPU is named for several ranks.
        """
        if self.count > 1 and name.startswith("cuda:"):
            raise ValueError(
                "--device: several ranks take a GPU each, so give cuda without a number, "
                f"got {name!r}"
            )
        has_gpus = name == "cuda" or (name == "auto" and torch.cuda.is_available())
        return f"cuda:{self.local}" if self.count > 1 and has_gpus else name

    def total(self, value: Tensor) -> Tensor:
        """The sum of a tensor over all ranks."""
        if self.count > 1:
            dist.all_reduce(value)
        return value

    def share(self, text: str) -> str:
        """The first rank's text, on every rank. As bytes: object collectives would pickle."""
        if self.count == 1:
            return text
        # surrogateescape: a path need not be valid UTF-8.
        encoded = torch.tensor([*text.encode("utf-8", "surrogateescape")], dtype=torch.uint8)
        # The length first: every rank must offer a tensor of the size that it will receive.
        size = torch.tensor(len(encoded))
        dist.broadcast(size, src=0)
        received = encoded if self.is_first else torch.empty(int(size), dtype=torch.uint8)
        dist.broadcast(received, src=0)
        return bytes(received.tolist()).decode("utf-8", "surrogateescape")

    def gather(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Every rank's tensors under its number: name.0, name.1, ...; a lone rank's unchanged.

        All ranks must have the same names and shapes.
        """
        if self.count == 1:
            return tensors
        gathered: dict[str, Tensor] = {}
        # Sorted, because collectives match by their order: all ranks must gather the same tensor.
        for name in sorted(tensors):
            boxes = [torch.empty_like(tensors[name]) for _ in range(self.count)]
            dist.all_gather(boxes, tensors[name])
            gathered |= {f"{name}.{index}": box for index, box in enumerate(boxes)}
        return gathered


# What torchrun sets for each process that it starts.
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def _read_environment() -> Ranks:
    """The ranks that the environment describes. Raises: ValueError where it is not torchrun's."""
    found = {name: os.environ.get(name, "") for name in VARIABLES}
    if not found["RANK"] or found["WORLD_SIZE"] in ("", "1"):
        return Ranks()
    numbers = [found[name] for name in VARIABLES if name != "MASTER_ADDR"]
    is_whole = all(text.isascii() and text.isdecimal() and len(text) < 7 for text in numbers)
    ranks = Ranks(*(int(text) for text in numbers[:3])) if is_whole else Ranks()
    if not (is_whole and found["MASTER_ADDR"] and max(ranks.index, ranks.local) < ranks.count):
        said = ", ".join(f"{name}={text!r}" for name, text in found.items())
        raise ValueError(
            f"environment: expected what torchrun sets for a process among several, got {said}; "
            "start it with torchrun --nproc-per-node=N train.py, or unset RANK and WORLD_SIZE"
        )
    return ranks


@contextmanager
def joined() -> Iterator[Ranks]:
    """This process's ranks: alone, or in the group that torchrun started.

    The group lasts as long as the context.
    Raises: ValueError for an environment that torchrun has not made.
    """
    ranks = _read_environment()
    if ranks.count == 1:
        yield ranks
        return
    # Before the group: NCCL binds each rank to the current device when it starts.
    if ranks.local < torch.cuda.device_count():
        torch.cuda.set_device(ranks.local)
    # gloo as well beside NCCL: generator states and paths are gathered as CPU tensors.
    dist.init_process_group("cuda:nccl,cpu:gloo" if torch.cuda.is_available() else "gloo")
    try:
        yield ranks
    finally:
        dist.destroy_process_group()


def data_parallel(step: nn.Module, ranks: Ranks, is_sharded: bool = False) -> nn.Module:
    """`step`, whose gradients are averaged over the ranks in its backward pass.

    A sharded model averages them by itself.
    """
    if ranks.count == 1 or is_sharded:
        return step
    return DistributedDataParallel(step, gradient_as_bucket_view=True)


def shard(model: Gemma2, ranks: Ranks, device: torch.device) -> None:
    """Slices every weight over the ranks and moves the slices to `device`, block by block.

    So a device never has more than one block, or the embedding, as a whole: the model itself may
    be larger than its memory.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(device.type, (ranks.count,))
    # Each block is a group of its own, gathered just before it computes; what is left (embedding,
    # head, last norm) belongs to the root and is gathered once a pass.
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    # FSDP2 hooks into forward(); training calls hidden() instead, which must gather too.
    register_fsdp_forward_method(model, "hidden")


def slice_again(model: Gemma2) -> None:
    """Frees the root's gathered weights after a pass without gradients.

    FSDP2 frees them in the backward pass, which an evaluation does not have.
    """
    reshard = getattr(model, "reshard", None)
    if reshard is not None:
        reshard()


@contextmanager
def synchronized(step: nn.Module, is_last: bool) -> Iterator[None]:
    """Inside, gradients are averaged over the ranks only in a step's last micro-batch."""
    if isinstance(step, DistributedDataParallel) and not is_last:
        # Gradients only add up locally; the last micro-batch sends the sum, once.
        with step.no_sync():
            yield
    else:
        yield
