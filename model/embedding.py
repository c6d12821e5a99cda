"""Room for new tokens: the rows that they start from, and the resize itself.

Shapes: V vocabulary, D model width, n new tokens.
Transformers draws new rows from N(mean, 1e-9 * covariance): in bf16 they come out as n nearly
identical copies of the mean row. Here each row starts at the mean of its own tag's pieces, and the
noise is far above bf16's resolution.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from model.transformer import Gemma2

# Noise as a fraction of a typical row's standard deviation; bf16 resolves 2**-8 = 0.004 of a value.
NOISE = 0.25


def new_rows(model: Gemma2, sub_tokens: list[list[int]], seed: int) -> Tensor:
    """Starting rows (n, D) like the embedding's: mean of each tag's pieces plus seeded noise.

    sub_tokens: for each tag, the ids of the ordinary pieces that spell it.
    Raises: ValueError for a tag without pieces or a piece outside the vocabulary.
    """
    weight = model.model.embed_tokens.weight.detach()
    for ids in sub_tokens:
        if not ids or min(ids) < 0 or max(ids) >= weight.shape[0]:
            raise ValueError(
                f"new token: pieces {ids} are not ids of a vocabulary of {weight.shape[0]} entries"
            )
    pieces = [torch.tensor(ids, device=weight.device) for ids in sub_tokens]
    means = torch.stack([weight[ids].float().mean(0) for ids in pieces])  # (n, D)
    # Drawn on the CPU: the same seed gives the same rows on every device.
    noise = torch.randn(means.shape, generator=torch.Generator().manual_seed(seed)).to(means.device)
    # Some 4,096 rows are enough for a standard deviation; in float32 all would be a second copy.
    sample = weight[:: max(1, weight.shape[0] // 4096)].float()
    return (means + NOISE * sample.std() * noise).to(weight.dtype)


def set_rows(model: Gemma2, ids: Sequence[int], rows: Tensor) -> None:
    """Writes rows (n, D) over those of some ids, in the head too where it is not tied."""
    if not ids:
        return
    for weight in {model.model.embed_tokens.weight, model.lm_head.weight}:
        weight.data[list(ids)] = rows.to(weight)


def resize_embedding(model: Gemma2, new_rows: Tensor) -> None:
    """Appends `new_rows` (n, D) to the embedding in place, and to the head where it is not tied.

    Raises: ValueError if the rows are not D wide, or if the model carries LoRA already.
    """
    width = model.config.hidden_size
    embedding, head = model.model.embed_tokens, model.lm_head
    if not isinstance(embedding, nn.Embedding) or not isinstance(head, nn.Linear):
        raise ValueError("embedding or head already carries LoRA; resize the plain model first")
    if new_rows.dim() != 2 or new_rows.shape[1] != width:
        raise ValueError(f"new rows: expected shape (n, {width}), got {tuple(new_rows.shape)}")
    embedding.weight = _append(embedding.weight, new_rows)
    embedding.num_embeddings = embedding.weight.shape[0]
    if not model.config.tie_word_embeddings:
        head.weight = _append(head.weight, new_rows)
    head.out_features = embedding.num_embeddings
    model.replace_config(replace(model.config, vocab_size=embedding.num_embeddings))
    model.tie()  # the embedding's Parameter is a new one, which a tied head must share again


def _append(weight: Tensor, rows: Tensor) -> nn.Parameter:
    joined = torch.cat((weight.detach(), rows.to(weight)))
    return nn.Parameter(joined, requires_grad=weight.requires_grad)
