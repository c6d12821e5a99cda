"""Exercise 4: the mask of a pack.

Several conversations share one row of tokens, so that no time goes into padding. None of them may
notice: each must come out as if it were alone. As it is here, a token sees everything before it,
and so reads the conversations in front of its own.
"""

import torch
from torch import Tensor

from benchmarks.tiny_base import tiny_config
from model.attention import MaskedAttention
from model.transformer import Gemma2


def packing_mask(documents: Tensor) -> Tensor:
    """True where a token may see a token: (B, T) document numbers -> bool (B, 1, T, T).

    The first T is the place of the one who looks, the second of the one who is looked at.
    """
    length = documents.shape[1]
    return torch.ones(length, length, dtype=torch.bool).tril().expand(len(documents), 1, -1, -1)


def test_a_packed_conversation_is_computed_as_if_it_were_alone() -> None:
    torch.manual_seed(0)
    model = Gemma2(tiny_config(60)).eval()
    parts = [torch.randint(0, 60, (1, length)) for length in (9, 1, 6)]
    positions = torch.cat([torch.arange(part.shape[1])[None] for part in parts], dim=1)
    documents = torch.cat([torch.full_like(part, n) for n, part in enumerate(parts)], dim=1)
    with torch.no_grad():
        alone = torch.cat([model(part) for part in parts], dim=1)
        mask = packing_mask(documents)
        assert mask.shape == (1, 1, 16, 16) and mask.dtype == torch.bool
        model.model.choose_attention = lambda *_: MaskedAttention(mask, mask)  # type: ignore
        packed = model(torch.cat(parts, dim=1), positions, documents)
    first, *others = (packed - alone).abs().amax(-1)[0].split([9, 1, 6])
    assert first.max() < 1e-4, "even the first conversation is off: it may see no later token"
    for number, off in enumerate(others, start=2):
        assert off.max() < 1e-4, f"conversation {number} is off by {off.max():.2f}: it sees another"
