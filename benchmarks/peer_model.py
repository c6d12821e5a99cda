"""Transformers' Gemma-2 or 3 with PEFT's LoRA, on the weights and factors of one of our models.

Separate from `train_step` because it is the only file that needs the two libraries.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from data.packing import Batch
from lora.layer import LoRALinear
from model.attention import attention_mask
from model.transformer import Gemma2

if TYPE_CHECKING:
    from benchmarks.timing import Clock


def shared_weights(model: Gemma2) -> dict[str, Tensor]:
    """The frozen weights by the checkpoint's names."""
    return {
        name.replace(".base.", "."): p.detach()
        for name, p in model.named_parameters()
        if "lora_" not in name
    }


def transformers_model(ours: Gemma2, *, use_cache: bool, attention: str | None = None) -> Any:
    """Transformers' model of the same configuration around our weights, which it shares."""
    from transformers import AutoConfig, AutoModelForCausalLM

    weights = shared_weights(ours)
    norm = weights["model.norm.weight"]
    # Both families have one way in: the file that our own checkpoints carry.
    with tempfile.TemporaryDirectory() as folder:
        ours.config.to_json(Path(folder) / "config.json")
        config = AutoConfig.from_pretrained(folder, use_cache=use_cache)
    if attention is None:
        # What Transformers itself chooses: SDPA has no softcap, and Gemma-2 needs one.
        attention = "sdpa" if ours.config.attn_logit_softcapping is None else "eager"
    # assign=True: both sides share one copy of the frozen weights.
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    base.load_state_dict(weights, strict=False, assign=True)
    base.tie_weights()
    base.model.rotary_emb = type(base.model.rotary_emb)(config).to(norm.device)
    _fill_buffers(base, config.hidden_size, norm.dtype, norm.device)
    return base


class Peer:
    """Transformers + PEFT. Its attention takes documents as additive masks."""

    def __init__(
        self,
        ours: Gemma2,
        args: argparse.Namespace,
        keeps_float32: bool,
        token_ids: Sequence[int] = (),
        how: str = "",
    ) -> None:
        """how: "compiled" compiles each block, "flex" attends by FlexAttention (on CUDA alone)."""
        from peft import LoraConfig, get_peft_model

        self.uses_flex = how == "flex"
        attention = "flex_attention" if self.uses_flex else None
        base = transformers_model(ours, use_cache=False, attention=attention)
        targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        linears = [m for m in ours.modules() if isinstance(m, LoRALinear)]
        lora = LoraConfig(
            r=args.rank,
            lora_alpha=linears[0].scaling * args.rank,
            lora_dropout=args.dropout,
            target_modules=targets,
            # Rows of the embedding that train; the head is tied to it.
            trainable_token_indices={"embed_tokens": list(token_ids)} if token_ids else None,
            task_type="CAUSAL_LM",
        )
        self.model = get_peft_model(base, lora, autocast_adapter_dtype=keeps_float32)
        self._copy_factors(ours)
        if args.checkpoint_activations != "none":
            base.gradient_checkpointing_enable({"use_reentrant": False})
            base.enable_input_require_grads()
        if how == "compiled":
            for layer in base.model.layers:
                layer.compile()
        self.window = ours.config.sliding_window
        self.optimizer = torch.optim.AdamW(self.parameters(), lr=0.0, weight_decay=0.1)

    def _copy_factors(self, ours: Gemma2) -> None:
        theirs = dict(self.model.named_parameters())
        for path, module in ours.named_modules():
            if isinstance(module, LoRALinear):
                for name in ("lora_A", "lora_B"):
                    target = theirs[f"base_model.model.{path}.{name}.default.weight"]
                    target.data = module.get_parameter(name).detach().to(target.dtype).clone()

    def parameters(self) -> list[nn.Parameter]:
        return [p for p in self.model.parameters() if p.requires_grad]

    def masks(self, batch: Batch, dtype: torch.dtype) -> dict[str, Any]:
        """The additive masks (B, 1, T, T) of the two kinds of layers, or their block masks."""
        if self.uses_flex:
            from model.attention_flex import FlexAttention

            ours = FlexAttention.of(batch.documents, self.window, batch.tokens.device)
            return {"full_attention": ours.full, "sliding_attention": ours.sliding}
        found: dict[str, Any] = {}
        for kind, window in (("full_attention", None), ("sliding_attention", self.window)):
            positions = batch.positions
            documents = batch.documents.to(positions.device)
            seen = attention_mask(positions, positions, documents, documents, window)
            mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
            found[kind] = mask.masked_fill_(~seen, torch.finfo(dtype).min)
        return found

    def loss(self, batch: Batch, clock: "Clock | None" = None) -> Tensor:
        """Mean loss per supervised token; forward and loss are one call and one lap here."""
        masks = self.masks(batch, next(self.model.parameters()).dtype)
        targets = batch.targets.to(batch.tokens.device)
        output = self.model(
            input_ids=batch.tokens,
            position_ids=batch.positions,
            attention_mask=masks,
            labels=targets,
            shift_labels=targets,
            num_items_in_batch=torch.tensor(batch.num_supervised),
        )
        if clock:
            clock.lap("forward")
        return output.loss


def _fill_buffers(base: nn.Module, width: int, dtype: torch.dtype, device: torch.device) -> None:
    """Replaces buffers that are still on "meta": only the embedding's scale may be."""
    for name, buffer in list(base.named_buffers()):
        if buffer.is_meta:
            parent, _, leaf = name.rpartition(".")
            assert leaf == "embed_scale", name
            scale = torch.tensor(width**0.5, dtype=dtype, device=device)  # rounded like Gemma's
            setattr(base.get_submodule(parent), leaf, scale)
