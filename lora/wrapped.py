"""What every wrapped layer can do: show its frozen weight, name what it trains, merge the two.

Everything else works with these three alone: saving, loading and merging (`lora/adapter.py`) never
ask which kind of layer they hold, so a new kind of layer is one class.
"""

import torch
from torch import Tensor, nn

# Rows of a weight merged at a time: bounds the float32 temporary of a 256,000-row matrix to 75 MB
# at D = 2304.
MERGE_ROWS = 8192


class WrappedLayer(nn.Module):
    """A frozen layer, `base`, with the parameters that train beside it."""

    base: nn.Module
    # After `merged`: how much of what was trained outlived the rounding, see `survival`.
    survived: float = 1.0

    @property
    def weight(self) -> Tensor:
        """The frozen weight, under the name that it has in an unwrapped layer."""
        weight = self.base.weight
        assert isinstance(weight, Tensor)
        return weight

    def merged(self) -> nn.Module:
        """`base` itself, its weight changed in place by what was trained, in the weight's dtype."""
        raise NotImplementedError

    def peft_tensors(self, prefix: str) -> dict[str, nn.Parameter]:
        """What trains here under PEFT's keys; `prefix` is PEFT's path of this layer."""
        raise NotImplementedError


@torch.no_grad()
def add_delta_(weight: Tensor, left: Tensor, right: Tensor, scaling: float) -> float:
    """weight (N, K) += scaling * left (N, r) @ right (r, K), in float32, rounded once.

    Returns what is left of the delta after the rounding, see `survival`.
    """
    lost = whole = 0.0
    for start in range(0, weight.shape[0], MERGE_ROWS):
        part = slice(start, start + MERGE_ROWS)
        # Sum first, round last: a bfloat16 delta added to a bfloat16 weight would be rounded twice,
        # and a small delta would lose most of its digits before it reaches the weight.
        delta = scaling * (left[part].float() @ right.float())
        before = weight[part].float()
        after = (before + delta).to(weight.dtype)
        # Before it is written: a float32 `before` is the weight's own memory.
        lost += (after.float() - before - delta).square().sum().item()
        weight[part] = after
        whole += delta.square().sum().item()
    return survival(lost, whole)


def survival(lost: float, whole: float) -> float:
    """The share of a delta's energy that rounding left: 1 - |moved - delta|^2 / |delta|^2.

    0 where every entry was too small to move its weight, 1 where all arrived; NaN for a weight that
    is not finite.
    """
    # A rounding that doubles small entries loses more than the delta was: that is nothing left.
    return 1.0 if whole == 0 and lost == 0 else max(1.0 - lost / max(whole, 1e-45), 0.0 * lost)
