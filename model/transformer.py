"""Gemma-2: token ids (B, T) to logits (B, T, V). Module names are the checkpoint's, so parameter names match it.

Shapes: B batch, T query positions, S key positions, D model width, V vocabulary.
Source: arXiv:2408.00118.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.attention import Attend, Attention, KVCache, MaskedAttention, attention_mask
from model.attention_tiles import TiledAttention, document_spans
from model.config import Gemma2Config
from model.layers import MLP, Embedding, Linear, RMSNorm, rotary_tables, softcap
from model.recompute import recomputed

# A power of two, so exact: float16 ends at 65,504, which outputs of o_proj and down_proj exceed. The norm that follows
# takes the factor out again.
FP16_SHRINK = 2.0**-6


class Block(nn.Module):
    """One layer: attention and gated MLP, each with a norm before and a norm after, both residual."""

    def __init__(self, config: Gemma2Config, layer: int) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.rms_norm_eps
        self.self_attn = Attention(config, layer)
        self.mlp = MLP(width, config.intermediate_size)
        self.input_layernorm = RMSNorm(width, eps)
        self.post_attention_layernorm = RMSNorm(width, eps)
        self.pre_feedforward_layernorm = RMSNorm(width, eps)
        self.post_feedforward_layernorm = RMSNorm(width, eps)

    def forward(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor],
        look: Attend,
        positions: Tensor,
        cache: KVCache | None,
        selective: bool = False,
    ) -> Tensor:
        dtype = self.input_layernorm.weight.dtype
        shrink = FP16_SHRINK if dtype == torch.float16 else 1.0
        with _recomputed_norm(self.input_layernorm, x, dtype, selective) as normed:
            attended = self.self_attn(normed, rotary, look, positions, cache, shrink)
        x = self.post_attention_layernorm(attended, x.dtype, shrink, residual=x)
        with _recomputed_norm(self.pre_feedforward_layernorm, x, dtype, selective) as normed:
            changed = self.mlp(normed, shrink, selective)
        return self.post_feedforward_layernorm(changed, x.dtype, shrink, residual=x)


@contextmanager
def _recomputed_norm(
    norm: RMSNorm, x: Tensor, dtype: torch.dtype, selective: bool
) -> Iterator[Tensor]:
    """The norm of x in `dtype`; with `selective` what is saved of it inside is computed again from x."""
    normed = norm(x, dtype)
    if not selective:
        yield normed
        return
    source = x.detach()
    with recomputed(normed, lambda: norm(source, dtype)):
        yield normed


@cache
def _has_flex(device: torch.device) -> bool:
    from model.attention_flex import can_run

    return can_run(device)


class Decoder(nn.Module):
    """Everything but the head: token ids (B, T) -> hidden states (B, T, D) after the final norm."""

    def __init__(self, config: Gemma2Config) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        # What the backward pass computes again instead of keeping it: "none"; "selective", norms and the gated product;
        # "full", each block (arXiv:1604.06174).
        self.checkpoint_activations = "none"

    def choose_attention(
        self,
        positions: Tensor,
        documents: Tensor | None,
        cache: KVCache | None,
        is_whole: bool = False,
    ) -> Attend:
        """How this pass attends: through masks with a cache, else document by document, in a fused kernel if it can be.

        `is_whole`: the tokens stand at 0 .. T - 1, whatever the cache held before.
        """
        batch, length = positions.shape
        if cache is None and positions.is_cuda and _has_flex(positions.device):
            from model.attention_flex import (
                FlexAttention,
            )  # imported only where it runs: it brings a compiler

            documents = torch.zeros_like(positions) if documents is None else documents
            return FlexAttention.of(
                documents.to(positions.device, non_blocking=True), self.config.sliding_window
            )
        if cache is None or is_whole:  # with a cache: all keys are the prompt's own
            if cache is not None:
                cache.reserve(length, visible=length)
            return TiledAttention(document_spans(documents, batch, length))
        cache.reserve(int(positions.max()) + 1)
        keys = torch.arange(cache.max_length, device=positions.device).expand(batch, -1)
        wide = attention_mask(positions, keys, None, None, None)
        return MaskedAttention(
            wide, attention_mask(positions, keys, None, None, self.config.sliding_window)
        )

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        documents: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        if cache is not None and documents is not None:
            raise ValueError(
                "documents and a cache exclude one another: a cache does not keep documents"
            )
        is_whole = positions is None
        if positions is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        look = self.choose_attention(positions, documents, cache, is_whole)
        x = self.embed_tokens(tokens)  # (B, T, D)
        if x.dtype == torch.float16:
            x = x.float()  # the residual stream of a trained Gemma-2 outgrows float16
        rotary = rotary_tables(positions, self.config.head_dim, self.config.rope_theta)
        for layer in self.layers:
            arguments: tuple[Any, ...] = (x, rotary, look, positions, cache)
            if self.checkpoint_activations == "full" and torch.is_grad_enabled():
                x = checkpoint(layer, *arguments, use_reentrant=False)
            else:
                x = layer(
                    *arguments,
                    self.checkpoint_activations == "selective" and torch.is_grad_enabled(),
                )
        return self.norm(x, self.norm.weight.dtype)


class Gemma2(nn.Module):
    """The language model. The head shares the embedding's weight when `config.tie_word_embeddings`."""

    def __init__(self, config: Gemma2Config) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.lm_head = Linear(config.hidden_size, config.vocab_size)
        self.tie()

    def tie(self) -> None:
        """Makes head and embedding one parameter, where the configuration says so."""
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def replace_config(self, config: Gemma2Config) -> None:
        """Sets a changed configuration (vocabulary, tying) on the model and its decoder."""
        self.config = self.model.config = config

    def hidden(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        documents: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Hidden states (B, T, D) after the final norm; the arguments are those of `forward`."""
        states: Tensor = self.model(tokens, positions, documents, cache)
        return states

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states (..., D) -> softcapped float32 logits (..., V)."""
        return softcap(self.lm_head(hidden).float(), self.config.final_logit_softcapping)

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        documents: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Logits (B, T, V), float32, softcapped.

        tokens, positions, documents: int64 (B, T). Positions default to 0..T-1. Tokens of different documents do not
        see one another. With a cache, positions say where the new tokens stand and all that is stored before is seen.
        Raises: ValueError for documents together with a cache, or for positions past the cache's end.
        """
        return self.logits(self.hidden(tokens, positions, documents, cache))
