"""Gemma-2: token ids (B, T) to logits (B, T, V). Module names are the checkpoint's, so parameter names match it.

Shapes: B batch, T query positions, S key positions, D model width, V vocabulary.
Source: arXiv:2408.00118.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.attention import Attention, InDocuments, KVCache, Look, Masked, attention_mask
from model.config import Gemma2Config
from model.documents import document_spans
from model.layers import MLP, Embedding, Linear, RMSNorm, rotary_tables, softcap


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
        self, x: Tensor, rotary: tuple[Tensor, Tensor], look: Look, positions: Tensor, cache: KVCache | None
    ) -> Tensor:
        attended = self.self_attn(self.input_layernorm(x), rotary, look, positions, cache)
        x = x + self.post_attention_layernorm(attended)
        return x + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)))


class Decoder(nn.Module):
    """Everything but the head: token ids (B, T) -> hidden states (B, T, D) after the final norm."""

    def __init__(self, config: Gemma2Config) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        # Recompute each block in the backward pass instead of keeping its activations (arXiv:1604.06174).
        self.checkpoint_activations = False

    def look(self, positions: Tensor, documents: Tensor | None, cache: KVCache | None) -> Look:
        """How the layers of this pass attend: through masks with a cache, else document by document."""
        batch, length = positions.shape
        if cache is None:
            return InDocuments(document_spans(documents, batch, length))
        end = int(positions.max()) + 1
        keys = torch.arange(end, device=positions.device).expand(batch, end)
        wide = attention_mask(positions, keys, None, None, None)
        return Masked(wide, attention_mask(positions, keys, None, None, self.config.sliding_window))

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        documents: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        if cache is not None and documents is not None:
            raise ValueError("documents and a cache exclude one another: a cache does not keep documents")
        if positions is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        look = self.look(positions, documents, cache)
        x = self.embed_tokens(tokens)  # (B, T, D)
        rotary = rotary_tables(positions, self.config.head_dim, self.config.rope_theta)
        for layer in self.layers:
            arguments: tuple[Any, ...] = (x, rotary, look, positions, cache)
            if self.checkpoint_activations and torch.is_grad_enabled():
                x = checkpoint(layer, *arguments, use_reentrant=False)
            else:
                x = layer(*arguments)
        return self.norm(x)


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
        return self.logits(self.model(tokens, positions, documents, cache))
