"""The model that is pretrained: its size, its first weights, and its blocks compiled for one shape.

All that depends on the insides of `model/` is here, in `tile_attention` and `compile_blocks`.
Shapes: B packs, T positions, H query heads, Hkv key/value heads, d head width, D model width.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from common.products import has_fast_matmul
from embedded.generate.batches import Batch
from model import attention, layers
from model.attention import attend, attention_mask
from model.config import Gemma2Config
from model.loader import load_gemma2
from model.transformer import Gemma2

CONFIG = Gemma2Config(
    vocab_size=2048,
    hidden_size=256,
    intermediate_size=640,
    num_hidden_layers=6,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
    max_position_embeddings=2048,
    sliding_window=256,
    query_pre_attn_scalar=64,
    eos_token_id=(1, 5),  # <eos> and <end_of_turn>
)
TILE = 64  # queries


def compute_dtype(device: str = "cpu") -> torch.dtype:
    """bfloat16 where the device multiplies it in hardware, else float32."""
    probe = torch.zeros(1, dtype=torch.bfloat16, device=device)
    return torch.bfloat16 if has_fast_matmul(probe) else torch.float32


def new_model(seed: int, dtype: torch.dtype, config: Gemma2Config = CONFIG) -> Gemma2:
    """A freshly initialised base.

    Embeddings have unit variance after Gemma's factor sqrt(D). A norm after a block starts at -0.5,
    as (1 + w) expects: residual branches at half strength.
    """
    torch.manual_seed(seed)
    base = Gemma2(config)
    with torch.no_grad():
        for name, p in base.named_parameters():
            if p.dim() == 2:
                p.normal_(std=p.shape[1] ** -0.5)
            elif "post_" in name:
                p.fill_(-0.5)
    return base.to(dtype)


def start_model(seed: int, device: str, init: Path | None) -> Gemma2:
    """A fresh model, or the weights of an exported one."""
    dtype = compute_dtype(device)
    base = new_model(seed, dtype)
    if init:
        base.load_state_dict(load_gemma2(init, dtype=dtype).state_dict())
    return base.to(device)


@dataclass(frozen=True)
class TiledMasks:
    """Attention through masks (B, 1, T, T), in tiles of queries, each with the keys before its end.

    The tiles depend on T alone. The model's own tiles follow the documents of a pack and would be
    another graph, and so another compilation, for every pack.
    """

    full: Tensor
    sliding: Tensor

    def __call__(
        self,
        query: Tensor,  # (B, T, H, d)
        keys: Tensor,  # (B, T, Hkv, d)
        values: Tensor,
        *,
        window: int | None,
        scale: float,
        cap: float | None,
    ) -> Tensor:
        mask = self.full if window is None else self.sliding
        parts = []
        for start in range(0, query.shape[1], TILE):
            rows, end = slice(start, start + TILE), start + TILE
            # No query sees a later key: nearly half of the products are never computed.
            seen = keys[:, :end], values[:, :end], mask[:, :, rows, :end]
            parts.append(attend(query[:, rows], *seen, scale=scale, cap=cap))
        return torch.cat(parts, dim=1)  # (B, T, H, d)


def tile_attention(base: Gemma2) -> None:
    """Gives the decoder `TiledMasks` instead of the attention that it would choose."""
    window = base.config.sliding_window

    def choose(positions: Tensor, documents: Tensor | None, *_: object) -> TiledMasks:
        at = positions, positions, documents, documents
        return TiledMasks(full=attention_mask(*at, None), sliding=attention_mask(*at, window))

    base.model.choose_attention = choose  # type: ignore[method-assign, assignment]


def compile_blocks(base: Gemma2) -> None:
    """Compiles each block for the one shape that all batches have."""
    tile_attention(base)

    def always(x: Tensor) -> bool:
        return True

    # The question about the processor would break the graph at every product. `compute_dtype` has
    # chosen a dtype for which the answer is yes.
    layers.has_fast_matmul = attention.has_fast_matmul = always
    torch._inductor.config.cpp.dynamic_threads = True  # `Threads` changes their number as it runs
    # tanh is in softcap and GELU: written out it is exact to 1e-7 and several times faster.
    torch._inductor.config.cpp.use_decompose_tanh = True
    for layer in base.model.layers:
        layer.compile(dynamic=False)


def hidden_states(base: Gemma2, batch: Batch) -> Tensor:
    """The decoder's output (B, T, D), on the model's device."""
    device = base.model.norm.weight.device
    arrays = (batch.tokens, batch.positions, batch.documents)
    tokens, positions, documents = (torch.from_numpy(array).to(device) for array in arrays)
    return base.model(tokens, positions, documents)


def head_loss(
    base: Gemma2, hidden: Tensor, targets: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of hidden (N, D) and targets (N): the weighted sum, and the plain one of
    those that weigh 1 or more."""
    losses = F.cross_entropy(base.logits(hidden), targets, reduction="none")
    return (losses * weights).sum(), (losses * (weights >= 1.0)).sum()
