"""Exercise 3: merging.

After training, the low-rank term can be added to the frozen weight once and for all: the model is
then a plain one again, and answers at a plain one's speed. As it is here, the sum lacks something,
and the merged model speaks in a much weaker voice than the adapter.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from lora.layer import LoRALinear
from model.layers import Linear


def merged_weight(layer: LoRALinear) -> Tensor:
    """One weight (N, K) that does what the whole layer does.

    The layer has base.weight (N, K), lora_A (r, K), lora_B (N, r), and scaling = alpha / r.
    """
    return layer.base.weight + layer.lora_B @ layer.lora_A


def test_a_plain_linear_with_the_merged_weight_gives_what_the_layer_gives() -> None:
    generator = torch.Generator().manual_seed(0)
    layer = LoRALinear(Linear(24, 20), 4, scaling=4.0, dropout=0.05, generator=generator).eval()
    layer.base.requires_grad_(False)
    with torch.no_grad():
        layer.lora_B.normal_(generator=generator)  # it starts at zero: as after some training
        x = torch.randn(5, 24, generator=generator)
        before = layer.base.weight.clone()
        merged = merged_weight(layer)
        assert torch.equal(layer.base.weight, before), "the base was changed, not copied"
        off = (F.linear(x, merged) - layer(x)).abs().max() / layer(x).abs().max()
    assert off < 1e-5, f"merged and unmerged outputs differ by {off:.0%} of the largest"
