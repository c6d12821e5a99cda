"""Exercise 5, solved: every exponent has the largest logit so far taken off (arXiv:1805.02867)."""

from collections.abc import Iterable

import torch
from torch import Tensor

from model.sweep import Block


def loss_in_blocks(hidden: Tensor, blocks: Iterable[Block], targets: Tensor) -> Tensor:
    """Summed cross-entropy of hidden (n, D) with targets (n,)."""
    total, own = torch.zeros(len(hidden)), torch.zeros(len(hidden))
    largest = torch.full((len(hidden),), -torch.inf)
    for block in blocks:
        z = hidden @ block.weight.T  # (n, m)
        higher = torch.maximum(largest, z.amax(1))
        # What was summed below the old maximum shrinks to what it is below the new one.
        total = total * (largest - higher).exp() + (z - higher[:, None]).exp().sum(1)
        largest = higher
        inside = (targets >= block.start) & (targets < block.start + len(block.weight))
        own[inside] = z[inside, targets[inside] - block.start]
    return (largest + total.log() - own).sum()
