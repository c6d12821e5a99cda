"""Our model with parts of it in their plain forms, which say what each part is worth in a step.

A plain form computes the same, operator by operator and differentiated by autograd, as Transformers
and PEFT do: LoRA in its reference form; attention through (T, T) masks; cross-entropy over the
logits of all positions; norms, rotary embedding and GeGLU as they are written down. All forms share
one model and one optimizer, whose rate is zero.

Shapes: B packs, T positions, D model width, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.our_model import Ours
from benchmarks.timing import Clock
from common.constants import IGNORED
from data.packing import Batch
from lora.layer import LoRALinear
from model import fused, layers
from model.attention import MaskedAttention, attention_mask

PARTS = ("lora", "attention", "loss", "norms")


class PlainForms:
    """A way to take a step, like `Ours`: its model with `parts` in their plain forms."""

    def __init__(self, ours: Ours, parts: Sequence[str]) -> None:
        self.ours, self.parts = ours, parts
        self.model, self.optimizer = ours.model, ours.optimizer

    def parameters(self) -> list[nn.Parameter]:
        return self.ours.parameters()

    def loss(self, batch: Batch, clock: Clock | None = None) -> Tensor:
        """Mean loss per supervised token. Autograd remembers the forms for the backward pass."""
        with self._swapped(batch):
            if "loss" not in self.parts:
                return self.ours.loss(batch, clock)
            hidden = self.model.model(batch.tokens, batch.positions, batch.documents)
            if clock:
                clock.lap("forward")
            logits = self.model.logits(hidden).flatten(0, 1)  # (B * T, V), float32
            targets = batch.targets.to(logits.device).flatten()
            total = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")
            return total / batch.num_supervised

    @contextmanager
    def _swapped(self, batch: Batch) -> Iterator[None]:
        """Inside, everything but the loss is in the form that this way asks for."""
        with ExitStack() as stack:
            if "norms" in self.parts:
                stack.enter_context(patch.object(fused, "rms_norm", plain_norm))
                stack.enter_context(patch.object(layers, "rotate", plain_rotation))
                stack.enter_context(patch.object(layers, "geglu", plain_geglu))
            if "attention" in self.parts:
                masks = self._masks(batch)
                choose = patch.object(self.model.model, "choose_attention", lambda *_: masks)
                stack.enter_context(choose)
            if "lora" in self.parts:
                for module in self.model.modules():
                    if isinstance(module, LoRALinear):
                        stack.enter_context(patch.object(module, "impl", "reference"))
            yield

    def _masks(self, batch: Batch) -> MaskedAttention:
        positions = batch.positions
        documents = batch.documents.to(positions.device)
        at = positions, positions, documents, documents
        window = self.model.config.sliding_window
        return MaskedAttention(attention_mask(*at, None), attention_mask(*at, window))


def plain_norm(
    x: Tensor,
    weight: Tensor,
    *,
    eps: float,
    dtype: torch.dtype | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """`model.fused.rms_norm`, differentiated by autograd."""
    wide = x.float()
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    y = (normed * (1.0 + weight.float())).to(dtype or weight.dtype)
    return y if residual is None else residual + y


def plain_rotation(query: Tensor, keys: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """`model.fused.rotate`, differentiated by autograd."""

    def turned(x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=-1)
        return x * cos.to(x.dtype) + torch.cat((-second, first), dim=-1) * sin.to(x.dtype)

    return turned(query), turned(keys)


def plain_geglu(gate: Tensor, up: Tensor) -> Tensor:
    """`model.fused.geglu`, differentiated by autograd."""
    return F.gelu(gate, approximate="tanh") * up
