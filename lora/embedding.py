"""What trains at the model's two ends: LoRA on the embedding, and the rows of new tokens.

Shapes: B batch, T positions, r rank, V vocabulary, D model width, n new tokens.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lora.wrapped import WrappedLayer, add_delta_, survival

# PEFT's key for trained token rows, after the module's path.
ROWS_KEY = ".token_adapter.trainable_tokens_delta"


def embedding_scale(embedding: nn.Embedding) -> Tensor:
    """Gemma's sqrt(D), which the model's own embedding multiplies with."""
    scale = embedding.scale
    assert isinstance(scale, Tensor)
    return scale


class LoRAEmbedding(WrappedLayer):
    """A frozen embedding plus scaling * (B A)^T: ids (B, T) -> (B, T, D).

    The delta is multiplied with Gemma's sqrt(D) as the frozen vectors are.

    lora_A (r, V) starts at zero and lora_B (D, r) normal, as PEFT draws them; no dropout on ids.
    """

    base: nn.Embedding

    def __init__(
        self, base: nn.Embedding, rank: int, scaling: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.base, self.scaling = base, scaling
        device = base.weight.device
        # The roles of A and B are swapped against a linear layer: here A is the part that is looked
        # up, and it starts at zero. Normal numbers, drawn on the CPU, so that every device starts
        # from the same ones.
        lora_b = torch.randn(base.embedding_dim, rank, generator=generator)
        self.lora_A = nn.Parameter(torch.zeros(rank, base.num_embeddings, device=device))
        self.lora_B = nn.Parameter(lora_b.to(device))

    def forward(self, tokens: Tensor) -> Tensor:
        frozen = self.base(tokens)
        low = F.embedding(tokens, self.lora_A.T)  # (B, T, r), a lookup instead of a product
        # The frozen rows carry the scale already. It is one number rounded to the weight's dtype,
        # as Gemma rounds it; in float32 it is that rounded number, so that the delta is scaled by
        # the same value.
        delta = F.linear(low, self.lora_B) * (self.scaling * embedding_scale(self.base).float())
        return (frozen + delta).to(frozen.dtype)

    def merged(self) -> nn.Embedding:
        left, right = self.lora_A.T, self.lora_B.T
        self.survived = add_delta_(self.base.weight, left, right, self.scaling)
        return self.base

    def peft_tensors(self, prefix: str) -> dict[str, nn.Parameter]:
        # No ".weight" here: PEFT stores the factors of an embedding as bare parameters.
        return {
            f"{prefix}.lora_embedding_A": self.lora_A,
            f"{prefix}.lora_embedding_B": self.lora_B,
        }


# How the parameter of `NewTokens` ends wherever it is in a model: whoever gives the rows a learning
# rate of their own looks for it.
ROWS_NAME = ".trained.rows"


class NewTokens(nn.Module):
    """The trained rows of some tokens, shared by the embedding and a tied head.

    ids (n,) and rows (n, D), float32.
    """

    ids: Tensor

    def __init__(self, weight: Tensor, ids: tuple[int, ...]) -> None:
        super().__init__()
        # Not saved: the ids belong to the configuration, the rows alone are trained.
        self.register_buffer("ids", torch.tensor(ids, device=weight.device), persistent=False)
        self.host_ids = ids  # read without waiting for a GPU
        # A checkpoint stores parameters by name: "trained.rows" must stay, or earlier runs cannot
        # be resumed.
        self.rows = nn.Parameter(weight.detach()[self.ids].float())


class _WithNewTokens(WrappedLayer):
    """A layer over the vocabulary, some of whose rows are replaced by trained ones."""

    def __init__(self, base: nn.Module, trained: NewTokens) -> None:
        super().__init__()
        self.base, self.trained = base, trained

    @torch.no_grad()
    def merged(self) -> nn.Module:
        rows = self.trained.rows.to(self.weight.dtype)
        lost = (rows.float() - self.trained.rows).square().sum().item()
        whole = (self.trained.rows - self.weight[self.trained.ids].float()).square().sum().item()
        # A tied head and embedding both do this to the one weight they share: the second time
        # changes nothing, so what is left of the rows is the first one's.
        is_first = not torch.equal(self.weight[self.trained.ids], rows)
        self.survived = survival(lost, whole) if is_first or lost != lost else 1.0
        self.weight.index_copy_(0, self.trained.ids, rows)
        return self.base

    def peft_tensors(self, prefix: str) -> dict[str, nn.Parameter]:
        return {prefix + ROWS_KEY: self.trained.rows}


class NewTokensEmbedding(_WithNewTokens):
    """An embedding in which some rows are replaced by trained ones: ids (B, T) -> (B, T, D)."""

    base: nn.Embedding

    def forward(self, tokens: Tensor) -> Tensor:
        frozen = self.base(tokens)
        match = tokens[..., None] == self.trained.ids  # (B, T, n)
        # Rounded before the scale, so that merging the rows into the weight changes nothing.
        rows = self.trained.rows.to(frozen.dtype) * embedding_scale(self.base)
        # argmax finds the one id that matches, and row 0 where none does: `where` then keeps the
        # frozen vector.
        replaced = F.embedding(match.int().argmax(-1), rows)
        return torch.where(match.any(-1, keepdim=True), replaced, frozen)


class NewTokensHead(_WithNewTokens):
    """A head in which some tokens' logits come from trained rows: (..., D) -> (..., V)."""

    base: nn.Linear

    def replaced_rows(self) -> tuple[tuple[int, ...], Tensor]:
        """The ids and rows for a caller that computes the logits itself (`model/loss.py`)."""
        return self.trained.host_ids, self.trained.rows

    def forward(self, hidden: Tensor) -> Tensor:
        logits = self.base(hidden)
        replaced = F.linear(hidden, self.trained.rows.to(hidden.dtype))  # (..., n)
        # In place: a copy of 256,000 columns would cost more than the product of the n rows. Not by
        # index_copy_, which has been wrong and slow on MPS
        # (github.com/pytorch/pytorch/issues/166237).
        logits[..., self.trained.ids] = replaced
        return logits
