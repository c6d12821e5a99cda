"""Processes that share the batches of a step, one for each core: a second thread of one process
brings less than a second process (measured in benchmarks/LOG.md).

Each has the whole model and its own batches; the gradients are summed, and all make the same
update.
"""

import os
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor


def join() -> None:
    """Meets the other processes, if torchrun has started several."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        dist.init_process_group("gloo")


def this_process() -> tuple[int, int]:
    """Its number, and how many there are: 0 and 1 for a process that is alone."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def wait() -> None:
    """Until all processes are here."""
    if this_process()[1] > 1:
        dist.barrier()


def add_up(parameters: Iterable[Tensor], totals: Tensor) -> None:
    """Sums the parameters' gradients and `totals` over all processes, in place.

    A sum of two is the same in any order, and so the same as in one process.
    """
    if this_process()[1] == 1:
        return
    parts = [totals, *(p.grad for p in parameters if p.grad is not None)]
    flat = torch.cat([part.flatten() for part in parts])
    dist.all_reduce(flat)
    for part, summed in zip(parts, flat.split([p.numel() for p in parts]), strict=True):
        part.copy_(summed.view_as(part))
