"""What `lora_linear` measures: one shape of Gemma-2-2B's linears, with every implementation on it.

Shapes: M rows (tokens), K in, N out.
"""

from functools import partial

import torch
from torch import Tensor, nn

from lora.layer import LoRALinear
from model.layers import Linear

# Name -> (K, N) of Gemma-2-2B.
SIZES = {
    "q_proj": (2304, 2048),
    "k_proj": (2304, 1024),
    "v_proj": (2304, 1024),
    "o_proj": (2048, 2304),
    "gate_proj": (2304, 9216),
    "up_proj": (2304, 9216),
    "down_proj": (9216, 2304),
}
# Names in one inner tuple read the same x: their low-rank products can share a pass over it.
SHAPES: dict[str, tuple[tuple[str, ...], ...]] = {
    "q": (("q_proj",),),
    "k": (("k_proj",),),
    "o": (("o_proj",),),
    "gate": (("gate_proj",),),
    "down": (("down_proj",),),
    "block": (
        ("q_proj", "k_proj", "v_proj"),
        ("o_proj",),
        ("gate_proj", "up_proj"),
        ("down_proj",),
    ),
}
ALPHA = 64

# Linears by the x that they read.
Groups = list[list[nn.Module]]


class Case:
    """One shape, number of rows, rank and dropout.

    Inputs, output gradients and frozen weights are the same for every implementation.
    """

    def __init__(
        self,
        shape: str,
        rows: int,
        *,
        rank: int,
        dropout: float,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.shape, self.rows, self.rank, self.dropout = shape, rows, rank, dropout
        self.device, self.dtype = device, dtype
        torch.manual_seed(0)
        self.names = SHAPES[shape]
        self.bases = {name: self._linear(*SIZES[name]) for group in self.names for name in group}
        widths = [SIZES[group[0]][0] for group in self.names]
        # In a model x needs a gradient too.
        self.inputs = [self._noise(rows, width).requires_grad_() for width in widths]  # (M, K) each
        self.gradients = [
            [self._noise(rows, SIZES[name][1]) for name in group] for group in self.names
        ]  # (M, N) each

    def _noise(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=self.device).to(self.dtype)

    def _linear(self, size_in: int, size_out: int) -> Linear:
        """A frozen linear; with this deviation its outputs are as large as its inputs."""
        linear = Linear(size_in, size_out).to(self.device, self.dtype).requires_grad_(False)
        linear.weight.normal_(std=size_in**-0.5)
        return linear

    def ours(self, impl: str) -> Groups:
        """The linears wrapped in LoRA; B random, as after some training."""
        generator = torch.Generator().manual_seed(1)
        wrap = partial(
            LoRALinear,
            rank=self.rank,
            scaling=ALPHA / self.rank,
            dropout=self.dropout,
            generator=generator,
        )
        groups: Groups = []
        for names in self.names:
            linears = [wrap(self.bases[name], impl=impl).train() for name in names]
            for linear in linears:
                nn.init.normal_(linear.lora_B, std=0.01)
            groups.append([*linears])
        return groups

    def frozen(self) -> Groups:
        """The linears alone."""
        return [[self.bases[name] for name in group] for group in self.names]

    def peft(self, mode: str) -> Groups:
        """PEFT's own layers on the same weights."""
        # Imported here: only this comparison needs PEFT.
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners.tuners_utils import cast_adapter_dtype

        holder = nn.Module()
        for name, base in self.bases.items():
            # PEFT wraps nn.Linear; on "meta" it has no weight of its own before it gets ours.
            plain = nn.Linear(base.in_features, base.out_features, bias=False, device="meta")
            plain.weight = base.weight
            holder.add_module(name, plain)
        names = list(self.bases)
        config = LoraConfig(
            r=self.rank, lora_alpha=ALPHA, lora_dropout=self.dropout, target_modules=names
        )
        inject_adapter_in_model(config, holder)
        if mode in ("peft_fp32", "peft_autocast"):
            cast_adapter_dtype(holder, adapter_name="default", autocast_adapter_dtype=True)
        for name, parameter in holder.named_parameters():
            parameter.requires_grad_("lora_" in name)
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.01)
        holder.train()
        if mode == "peft_16bit_compiled":
            # All linears share one forward: past the limit it would run eagerly, without a word.
            torch._dynamo.config.recompile_limit = 64
            for name in names:
                holder.get_submodule(name).compile()
        return [[holder.get_submodule(name) for name in group] for group in self.names]
