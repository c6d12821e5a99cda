"""Which packs an optimizer step trains on, and how the ranks share them as micro-batches."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from common.constants import IGNORED
from data.chat import Example
from data.packing import Batch, collate, epoch_order
from training.ranks import Ranks

Pack = list[Example]


@dataclass(frozen=True)
class StepBatches:
    """The packs of every step, in an order that depends on the seed and the epoch alone.

    A step takes micro_batch x accumulate packs on each rank; an epoch's last step may be short.
    `shape` is (B, T) of every batch, where a compiled kernel wants one shape; None takes
    micro_batch packs and pads to the longest of them. A larger B than micro_batch folds forward
    passes of a step into one, which changes nothing but dropout's masks.
    """

    packs: Sequence[Pack]
    micro_batch: int
    accumulate: int
    ranks: Ranks
    seed: int
    pad_id: int
    shape: tuple[int, int] | None = None

    @property
    def packs_per_step(self) -> int:
        """Packs of one optimizer step, on all ranks together."""
        return self.micro_batch * self.accumulate * self.ranks.count

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps that show every pack once."""
        return math.ceil(len(self.packs) / self.packs_per_step)

    def of_step(self, step: int) -> list[Pack]:
        """The packs of optimizer step 1, 2, ... on all ranks."""
        epoch, index = divmod(step - 1, self.steps_per_epoch)
        # Drawn anew from seed and epoch, not kept: a resumed run finds its place by the step alone.
        order = epoch_order(len(self.packs), self.seed, epoch)
        return [self.packs[i] for i in order[index * self.packs_per_step :][: self.packs_per_step]]

    def num_shown(self, steps: int) -> int:
        """Conversations of the first `steps` optimizer steps, each counted every time it comes."""
        epochs, rest = divmod(steps, self.steps_per_epoch)
        # Not step by step: each draws its epoch's order anew
        last = epoch_order(len(self.packs), self.seed, epochs)[: rest * self.packs_per_step]
        whole = epochs * sum(map(len, self.packs))
        return whole + sum(len(self.packs[i]) for i in last)

    def micro_batches(self, packs: Sequence[Pack]) -> list[Batch]:
        """This rank's part of a step's packs.

        Every rank gets the same number: their collectives must match. Where packs run out, a batch
        with no supervised position fills up, which adds nothing to loss or gradients.
        """
        # Dealt out one by one, so that ranks differ by at most one batch.
        size = self.micro_batch if self.shape is None else self.shape[0]
        groups = [list(packs[i : i + size]) for i in range(0, len(packs), size)]
        if self.shape:
            # With empty packs: an epoch's last step would otherwise compile for itself.
            groups = [[*group, *[[]] * (size - len(group))] for group in groups]
        mine = [self.collate(group) for group in groups[self.ranks.index :: self.ranks.count]]
        for _ in range(math.ceil(len(groups) / self.ranks.count) - len(mine)):
            idle = self.collate(groups[0])
            mine.append(replace(idle, targets=torch.full_like(idle.targets, IGNORED)))
        return mine

    def collate(self, packs: Sequence[Pack]) -> Batch:
        """One batch of packs."""
        return collate(packs, self.pad_id, self.shape and self.shape[1])
