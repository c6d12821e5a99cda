"""Exercise 5: cross-entropy in blocks of the vocabulary.

Gemma's head has 256,000 rows: all logits of a batch would be gigabytes. So they are made a block at
a time, and only sums are kept. As it is here, that works for small logits; for large ones exp()
overflows, and the loss is infinite.

    loss = sum over the rows of  log(sum over j of exp(z_j)) - z_target,   z = h W^T
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from model.sweep import Block, FrozenHead


def loss_in_blocks(hidden: Tensor, blocks: Iterable[Block], targets: Tensor) -> Tensor:
    """Summed cross-entropy of hidden (n, D) with targets (n,).

    A block has `start`, its first row's number in the head, and `weight` (m, D).
    """
    total, own = torch.zeros(len(hidden)), torch.zeros(len(hidden))
    for block in blocks:
        z = hidden @ block.weight.T  # (n, m)
        total += z.exp().sum(1)
        inside = (targets >= block.start) & (targets < block.start + len(block.weight))
        own[inside] = z[inside, targets[inside] - block.start]
    return (total.log() - own).sum()


def test_the_loss_is_that_of_all_logits_at_once() -> None:
    torch.manual_seed(0)
    weight, targets = torch.randn(100, 16), torch.randint(0, 100, (9,))
    for size in (0.1, 30.0):  # of the hidden states: logits of about 1, and of some hundreds
        hidden = size * torch.randn(9, 16)
        found = loss_in_blocks(hidden, FrozenHead(weight, ()).blocks(None, 24), targets)
        expected = F.cross_entropy(hidden @ weight.T, targets, reduction="sum")
        assert torch.allclose(found, expected, rtol=1e-4), f"{found}, expected {expected}"
