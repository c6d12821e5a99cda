"""The modules that carry what trains: LoRA on a linear layer, LoRA on an embedding, and replaced token rows.

Shapes: B batch, T positions, K in, N out, r rank, V vocabulary, D model width, n trained tokens.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lora.fused import fused_linears
from lora.ops import lora_linear, resolve_impl


def _scale(embedding: nn.Embedding) -> Tensor:
    """Gemma's sqrt(D), which the model's own embedding multiplies with."""
    scale = embedding.scale
    assert isinstance(scale, Tensor)
    return scale


class LoRALinear(nn.Module):
    """A frozen linear layer plus scaling * B A: A starts Kaiming-uniform, B at zero, so training starts from the base.

    lora_A (r, K) and lora_B (N, r) are float32 whatever the base's dtype. Source: arXiv:2106.09685, section 4.1.
    """

    def __init__(
        self,
        base: nn.Linear,
        rank: int,
        scaling: float,
        dropout: float,
        generator: torch.Generator,
        impl: str = "auto",
    ) -> None:
        super().__init__()
        self.base, self.scaling, self.dropout, self.impl = base, scaling, dropout, impl
        bound = 1.0 / math.sqrt(
            base.in_features
        )  # Kaiming-uniform with a = sqrt(5), as PEFT draws it
        lora_a = torch.empty(rank, base.in_features).uniform_(-bound, bound, generator=generator)
        self.lora_A = nn.Parameter(lora_a.to(base.weight.device))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank, device=base.weight.device))

    @property
    def weight(self) -> Tensor:
        return self.base.weight

    def forward(self, x: Tensor) -> Tensor:
        return lora_linear(
            x,
            self.base.weight,
            self.lora_A,
            self.lora_B,
            self.scaling,
            self.dropout,
            self.training,
            self.impl,
            self.base,
        )

    def forward_group(self, x: Tensor, linears: Sequence[nn.Module]) -> list[Tensor]:
        """The outputs of several linears that read the same x, this one among them, with one pass over x for all.

        Fused ways share one dropout mask among the group; the reference draws one for each linear, as PEFT does.
        """
        adapted = [linear for linear in linears if isinstance(linear, LoRALinear)]
        impl, _ = resolve_impl(self.impl, x.device, x.dtype)
        if (
            impl == "reference"
            or len({(linear.dropout, linear.training) for linear in adapted}) > 1
        ):
            return [linear(x) for linear in linears]
        paths = [
            "base.weight" if isinstance(linear, LoRALinear) else "weight" for linear in linears
        ]
        weights = [linear.get_parameter(path) for linear, path in zip(linears, paths, strict=True)]
        lora_a = [linear.lora_A if isinstance(linear, LoRALinear) else None for linear in linears]
        lora_b = [linear.lora_B if isinstance(linear, LoRALinear) else None for linear in linears]
        scalings = [linear.scaling if isinstance(linear, LoRALinear) else 0.0 for linear in linears]
        return fused_linears(
            x, weights, lora_a, lora_b, scalings, self.dropout if self.training else 0.0, impl
        )


class LoRAEmbedding(nn.Module):
    """A frozen embedding plus scaling * (B A)^T: ids (B, T) -> (B, T, D), the delta times Gemma's sqrt(D) as well.

    lora_A (r, V) starts at zero and lora_B (D, r) normal, as PEFT draws them; no dropout on ids.
    """

    def __init__(
        self, base: nn.Embedding, rank: int, scaling: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.base, self.scaling = base, scaling
        device = base.weight.device
        self.lora_A = nn.Parameter(torch.zeros(rank, base.num_embeddings, device=device))
        self.lora_B = nn.Parameter(
            torch.randn(base.embedding_dim, rank, generator=generator).to(device)
        )

    @property
    def weight(self) -> Tensor:
        return self.base.weight

    def forward(self, tokens: Tensor) -> Tensor:
        frozen = self.base(tokens)
        delta = F.linear(F.embedding(tokens, self.lora_A.T), self.lora_B) * (
            self.scaling * _scale(self.base).float()
        )
        return (frozen + delta).to(frozen.dtype)


class NewTokens(nn.Module):
    """The replaced rows of some tokens: ids (n,) and rows (n, D), float32; embedding and tied head share one."""

    ids: Tensor

    def __init__(self, weight: Tensor, ids: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("ids", torch.tensor(ids, device=weight.device), persistent=False)
        self.host_ids = ids  # read without waiting for a GPU
        self.rows = nn.Parameter(weight.detach()[self.ids].float())


class NewTokensEmbedding(nn.Module):
    """An embedding in which some rows are replaced by trained ones: ids (B, T) -> (B, T, D)."""

    def __init__(self, base: nn.Embedding, trained: NewTokens) -> None:
        super().__init__()
        self.base, self.trained = base, trained

    @property
    def weight(self) -> Tensor:
        return self.base.weight

    def forward(self, tokens: Tensor) -> Tensor:
        frozen = self.base(tokens)
        match = tokens[..., None] == self.trained.ids  # (B, T, n)
        # Rounded before the scale, so that merging the rows into the weight changes nothing.
        rows = self.trained.rows.to(frozen.dtype) * _scale(self.base)
        return torch.where(
            match.any(-1, keepdim=True), F.embedding(match.int().argmax(-1), rows), frozen
        )


class NewTokensHead(nn.Module):
    """A head in which some tokens' logits come from trained rows: (..., D) -> (..., V)."""

    def __init__(self, base: nn.Linear, trained: NewTokens) -> None:
        super().__init__()
        self.base, self.trained = base, trained

    @property
    def weight(self) -> Tensor:
        return self.base.weight

    def replaced_rows(self) -> tuple[tuple[int, ...], Tensor]:
        """The ids and rows for a caller that computes the logits itself (`model/loss.py`)."""
        return self.trained.host_ids, self.trained.rows

    def forward(self, hidden: Tensor) -> Tensor:
        logits = self.base(hidden)
        replaced = F.linear(hidden, self.trained.rows.to(hidden.dtype))  # (..., n)
        # In place: a copy of 256,000 columns would cost more than the product of the n rows. Not by index_copy_, which has
        # been wrong and slow on MPS (github.com/pytorch/pytorch/issues/166237).
        logits[..., self.trained.ids] = replaced
        return logits
