"""Gemma-2, token ids (B, T) to logits (B, T, V): embedding, blocks, head.

Module names are the checkpoint's, so that parameter names match it. A Gemma 3 text model is this
with norms of queries and keys (`Attention.has_norms`), two rotary bases (`Decoder.forward`), fewer
full layers (`Gemma2Config.is_sliding`), and no softcap.
Shapes: B batch, T query positions, S key positions, D model width, V vocabulary.
Source: arXiv:2408.00118; Gemma 3: arXiv:2503.19786.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from common.products import product_dtype
from model.attention import Attend, KVCache, MaskedAttention, attention_mask
from model.attention_tiles import TiledAttention, document_spans
from model.config import Gemma2Config
from model.fused import ResidualNorm, RMSNorm, rotary_tables, softcap
from model.layers import MLP, Attention, Linear, Pass
from model.recompute import recomputed


class Embedding(nn.Embedding):
    """Token ids (B, T) -> vectors (B, T, D) times sqrt(D), rounded to the weight's dtype."""

    @property
    def scale(self) -> Tensor:
        """sqrt(D) as Gemma was trained with it: for D = 3584 in bfloat16 59.75, not 59.87."""
        weight = self.weight
        # A fill on the device: torch.tensor would copy from the host at every call.
        return torch.full((), self.embedding_dim**0.5, dtype=weight.dtype, device=weight.device)

    def forward(self, tokens: Tensor) -> Tensor:
        return F.embedding(tokens, self.weight) * self.scale


class Block(nn.Module):
    """One layer: attention and gated MLP, each between two norms, each added to its input."""

    def __init__(self, config: Gemma2Config, layer: int) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.rms_norm_eps
        self.self_attn = Attention(config, layer)
        self.mlp = MLP(width, config.intermediate_size)
        self.input_layernorm = RMSNorm(width, eps)
        self.post_attention_layernorm = ResidualNorm(width, eps)
        self.pre_feedforward_layernorm = RMSNorm(width, eps)
        self.post_feedforward_layernorm = ResidualNorm(width, eps)

    def forward(self, x: Tensor, call: Pass) -> Tensor:
        """The residual stream x (B, T, D) -> the same, with what the two branches add to it."""
        # x + norm(attention(norm(x)))
        norm = self.input_layernorm
        normed = norm(x)
        with _not_kept(normed, norm, x) if call.recompute else nullcontext():
            attended = self.self_attn(normed, call)
        x = self.post_attention_layernorm(attended, residual=x)
        # x + norm(mlp(norm(x)))
        norm = self.pre_feedforward_layernorm
        normed = norm(x)
        with _not_kept(normed, norm, x) if call.recompute else nullcontext():
            changed = self.mlp(normed, call)
        return self.post_feedforward_layernorm(changed, residual=x)


def _not_kept(normed: Tensor, norm: RMSNorm, x: Tensor) -> AbstractContextManager[None]:
    """Inside, autograd saves no normed = norm(x): the backward pass computes it again from x."""
    source = x.detach()  # or the closure would keep the graph of all earlier layers alive
    return recomputed(normed, lambda: norm(source))


class Decoder(nn.Module):
    """Everything but the head: token ids (B, T) -> hidden states (B, T, D) after the final norm."""

    def __init__(self, config: Gemma2Config) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        # Some layers see a window, the others all keys (`Gemma2Config.is_sliding`).
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        # What the backward pass computes again instead of keeping it: "none"; "selective", norms
        # and the gated product; "full", each block (arXiv:1604.06174).
        self.checkpoint_activations = "none"

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        documents: Tensor | None = None,
        cache: KVCache | None = None,
        *,
        end: int | None = None,
    ) -> Tensor:
        if cache is not None and documents is not None:
            raise ValueError("documents and a cache exclude each other: a cache keeps no documents")
        is_whole = positions is None  # these tokens are all: none in the cache comes before them
        if positions is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        # Without gradients, as in decoding, nothing is kept that could be computed again.
        recompute = self.checkpoint_activations if torch.is_grad_enabled() else "none"
        config = self.config
        full = rotary_tables(positions, config.head_dim, config.rope_theta, config.rope_factor)
        sliding, base = full, config.rope_local_base_freq
        if base is not None:  # Gemma 3 turns its sliding layers faster
            sliding = rotary_tables(positions, config.head_dim, base)
        call = Pass(
            attend=self.choose_attention(positions, documents, cache, is_whole, end),
            full_rotary=full,
            sliding_rotary=sliding,
            positions=positions,
            cache=cache,
            recompute=recompute == "selective",
        )
        x = self.embed_tokens(tokens)  # (B, T, D)
        if x.dtype == torch.float16:
            x = x.float()  # a trained Gemma-2's residual stream outgrows float16
        for layer in self.layers:
            if recompute == "full":
                # The reentrant kind would lose the gradients behind a frozen embedding's output.
                x = checkpoint(layer, x, call, use_reentrant=False)
            else:
                x = layer(x, call)
        return self.norm(x)

    def choose_attention(
        self,
        positions: Tensor,
        documents: Tensor | None,
        cache: KVCache | None,
        is_whole: bool = False,
        end: int | None = None,
    ) -> Attend:
        """How this pass attends. `is_whole`: positions are 0 .. T - 1, and no others are seen.

        end: above all positions, from a caller who knows; else the device is asked.
        """
        batch, length = positions.shape
        window = self.config.sliding_window
        if cache is None and positions.is_cuda:
            # Imported only where it may run: it brings a compiler.
            from model.attention_flex import FlexAttention, can_run

            if can_run(positions.device, self.norm.weight.dtype):
                if documents is None:
                    documents = torch.zeros(positions.shape, dtype=torch.int64)
                return FlexAttention.of(documents, window, positions.device)
        if cache is None or is_whole:
            if cache is not None:  # a prompt sees only itself, so its keys are the visible ones
                cache.reserve(length, visible=length)
            spans = document_spans(documents, batch, length)
            return TiledAttention(spans, product_dtype(self.norm.weight))
        # Decoding. An entry's index is its position: the masks hide what a row has not written.
        cache.reserve(int(positions.max()) + 1 if end is None else end)
        keys = torch.arange(cache.max_length, device=positions.device).expand(batch, -1)
        return MaskedAttention(
            full=attention_mask(positions, keys, None, None, None),
            sliding=attention_mask(positions, keys, None, None, window),
        )


class Gemma2(nn.Module):
    """The language model. The head shares the embedding's weight if `tie_word_embeddings`."""

    def __init__(self, config: Gemma2Config) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.lm_head = Linear(config.hidden_size, config.vocab_size)
        self.tie()  # named_parameters then lists the shared weight once, as the embedding's

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        documents: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Logits (B, T, V), float32, softcapped.

        tokens, positions, documents: int64 (B, T). Positions are by default 0..T-1. Tokens of
        different documents do not see one another. With a cache, positions say where the new tokens
        belong, and they see all that is stored before them.
        Raises: ValueError for documents together with a cache, or for positions past its end.
        """
        return self.logits(self.hidden(tokens, positions, documents, cache))

    def hidden(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        documents: Tensor | None = None,
        cache: KVCache | None = None,
        *,
        end: int | None = None,
    ) -> Tensor:
        """Hidden states (B, T, D) after the final norm, for the arguments of `forward`.

        end: above all positions, from a caller who decodes with a cache and knows.
        """
        states: Tensor = self.model(tokens, positions, documents, cache, end=end)
        return states

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states (..., D) -> softcapped float32 logits (..., V)."""
        # Cast first: a softcap in 16 bits would merge logits that differ.
        return softcap(self.lm_head(hidden).float(), self.config.final_logit_softcapping)

    def tie(self) -> None:
        """Makes head and embedding one parameter, where the configuration says so."""
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def replace_config(self, config: Gemma2Config) -> None:
        """Sets a changed configuration (vocabulary, tying) on the model and its decoder."""
        self.config = self.model.config = config
