"""Several processes with one device each, as `torchrun` starts them: who writes, what is summed, what is sharded.

Data-parallel by default (DistributedDataParallel): each rank holds the model and takes its share of a step's micro-batches.
With sharding (FSDP2, `fully_shard`) each rank holds a slice of every weight, and a block is whole only while it computes.
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
    local: int = 0

    @property
    def is_first(self) -> bool:
        """True for the one that writes and speaks."""
        return self.index == 0

    def device(self, name: str) -> str:
        """The device of this rank: its own GPU where GPUs are asked for. Raises: ValueError for one GPU for all."""
        if self.count > 1 and name.startswith("cuda:"):
            raise ValueError(
                f"--device: several ranks take a GPU each, so give cuda without a number, got {name!r}"
            )
        has_gpus = name == "cuda" or (name == "auto" and torch.cuda.is_available())
        return f"cuda:{self.local}" if self.count > 1 and has_gpus else name

    def total(self, value: Tensor) -> Tensor:
        """The sum of a tensor over all ranks."""
        if self.count > 1:
            dist.all_reduce(value)
        return value

    def share(self, text: str) -> str:
        """The first rank's text, on every rank; sent as bytes, for object collectives would pickle."""
        if self.count == 1:
            return text
        encoded = torch.tensor([*text.encode("utf-8", "surrogateescape")], dtype=torch.uint8)
        size = torch.tensor(len(encoded))
        dist.broadcast(size, src=0)
        received = encoded if self.is_first else torch.empty(int(size), dtype=torch.uint8)
        dist.broadcast(received, src=0)
        return bytes(received.tolist()).decode("utf-8", "surrogateescape")

    def gather(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Every rank's tensors, which agree in names and shapes, under its number: name.0, name.1, ...

        One rank's keep their names.
        """
        if self.count == 1:
            return tensors
        gathered: dict[str, Tensor] = {}
        for name in sorted(tensors):
            boxes = [torch.empty_like(tensors[name]) for _ in range(self.count)]
            dist.all_gather(boxes, tensors[name])
            gathered |= {f"{name}.{index}": box for index, box in enumerate(boxes)}
        return gathered


@contextmanager
def joined() -> Iterator[Ranks]:
    """This process's ranks: alone, or among those that torchrun started, whose group lasts as long as the context."""
    if "RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Ranks()
        return
    ranks = Ranks(
        int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_RANK"])
    )
    if ranks.local < torch.cuda.device_count():
        torch.cuda.set_device(ranks.local)
    dist.init_process_group("cuda:nccl,cpu:gloo" if torch.cuda.is_available() else "gloo")
    try:
        yield ranks
    finally:
        dist.destroy_process_group()


def data_parallel(step: nn.Module, ranks: Ranks) -> nn.Module:
    """`step`, whose gradients are averaged over the ranks in its backward pass."""
    return DistributedDataParallel(step, gradient_as_bucket_view=True) if ranks.count > 1 else step


def shard(model: Gemma2, ranks: Ranks, device: torch.device) -> None:
    """Slices every weight over the ranks and moves the slices to `device`, one block after the other.

    A model that lies in memory-mapped files on the CPU is never whole on a device: at most one block, or the embedding, is.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(device.type, (ranks.count,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    register_fsdp_forward_method(model, "hidden")


def slice_again(model: Gemma2) -> None:
    """After a pass without gradients: the root's weights, which stay whole until a backward pass, back to their slices."""
    reshard = getattr(model, "reshard", None)
    if reshard is not None:
        reshard()


@contextmanager
def synchronized(step: nn.Module, is_last: bool) -> Iterator[None]:
    """Inside, gradients are averaged over the ranks only in a step's last micro-batch."""
    if isinstance(step, DistributedDataParallel) and not is_last:
        with step.no_sync():
            yield
    else:
        yield
