"""This project's model, loss and optimizer for `train_step`, with random weights and random tokens.

Shapes: B packs, T tokens of a pack.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.make_checkpoint import random_tensor
from benchmarks.timing import Clock, take_turns
from common.device import DTYPES, pick_device
from data.chat import Example
from data.packing import Batch, collate
from lora.config import LoRAConfig
from lora.inject import add_lora, trainable_parameters
from model.config import Gemma2Config
from model.loss import supervised_loss
from model.transformer import Gemma2
from train import make_optimizer

# The embedded base, a small model with Gemma's vocabulary, Gemma-2-2B, and Gemma 3's 270M; each
# vocabulary has room for the eight tags.
CONFIGS = {
    "tiny": Gemma2Config(2056, 256, 640, 6, 4, 2, 64, sliding_window=256, query_pre_attn_scalar=64),
    "100m": Gemma2Config(256_008, 320, 1280, 12, 4, 2, 64, query_pre_attn_scalar=64),
    "2b": Gemma2Config(256_008),
    "270m": Gemma2Config(
        262_152,
        640,
        2048,
        num_hidden_layers=18,
        num_attention_heads=4,
        num_key_value_heads=1,
        max_position_embeddings=32768,
        rope_theta=1e6,
        sliding_window=512,
        attn_logit_softcapping=None,
        final_logit_softcapping=None,
        eos_token_id=1,
        model_type="gemma3_text",
        rope_local_base_freq=1e4,
        sliding_window_pattern=6,
    ),
}


class Ours:
    """This project's model, loss and optimizer."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.device = pick_device(args.device)
        self.model = random_model(CONFIGS[args.config], DTYPES[args.dtype], self.device)
        config = LoRAConfig(rank=args.rank, alpha=4.0 * args.rank, dropout=args.dropout)
        add_lora(self.model, config, impl=args.lora_impl)
        self.model.model.checkpoint_activations = args.checkpoint_activations
        generator = torch.Generator().manual_seed(3)
        for name, p in trainable_parameters(self.model).items():
            # As after some training: zeros would hide a wrong gradient of A.
            if name.endswith("lora_B"):
                p.data.copy_(torch.randn(p.shape, generator=generator) * 0.01)
        self.optimizer = make_optimizer(self.model, weight_decay=0.1)

    def loss(self, batch: Batch, clock: Clock | None = None) -> Tensor:
        """Mean loss per supervised token; the lap "forward" ends with the hidden states."""
        hidden = self.model.model(batch.tokens, batch.positions, batch.documents)
        if clock:
            clock.lap("forward")
        total, count = supervised_loss(self.model, hidden, batch.targets)
        return total / count

    def parameters(self) -> list[torch.nn.Parameter]:
        return list(trainable_parameters(self.model).values())


def random_model(config: Gemma2Config, dtype: torch.dtype, device: torch.device) -> Gemma2:
    """Gemma-2 with noise for weights."""
    # On "meta" the model has no memory of its own: each weight exists once.
    with torch.device("meta"):
        model = Gemma2(config)
    generator = torch.Generator().manual_seed(0)
    for name, p in list(model.named_parameters()):  # a list: the loop replaces them
        parent, _, leaf = name.rpartition(".")
        value = random_tensor(tuple(p.shape), dtype, generator).to(device)
        setattr(model.get_submodule(parent), leaf, torch.nn.Parameter(value))
    model.tie()
    return model


def twin(model: Gemma2) -> Gemma2:
    """A plain model around the weights of another one, which it shares."""
    with torch.device("meta"):
        other = Gemma2(model.config)
    for name, p in model.named_parameters():
        parent, _, leaf = name.rpartition(".")
        setattr(other.get_submodule(parent), leaf, torch.nn.Parameter(p.detach(), False))
    other.tie()
    return other.eval()


def random_batch(args: argparse.Namespace, config: Gemma2Config) -> Batch:
    """Packs of random tokens in which the last `share` of every document is supervised.

    Documents and targets are on the host, as training has them.
    """
    generator = torch.Generator().manual_seed(1)
    size = args.length // args.documents

    def document() -> Example:
        tokens = torch.randint(3, config.vocab_size - 8, (size,), generator=generator).tolist()
        first = size - round(args.share * size)
        return Example(tokens, [i >= first for i in range(size)])

    batch = collate([[document() for _ in range(args.documents)] for _ in range(args.packs)], 0)
    device = pick_device(args.device)
    return replace(
        batch, tokens=batch.tokens.to(device), positions=batch.positions.to(device)
    )  # (B, T) each


def floor_seconds(args: argparse.Namespace, config: Gemma2Config, batch: Batch) -> float:
    """Time of the frozen products alone, at the rate of the fastest large product on this device.

    Forward and backward through W take 4 operations per weight and token (no gradient of W itself);
    the head is needed at supervised positions only.
    """
    device, dtypes = batch.tokens.device, {DTYPES[args.dtype]}
    if device.type == "cpu":  # which may multiply float32 faster than 16 bits
        dtypes.add(torch.float32)
    rows = min(batch.tokens.numel(), 8192)

    def product(dtype: torch.dtype) -> Callable[[], dict[str, float]]:
        x, weight = (torch.randn(n, 2304, device=device).to(dtype) for n in (rows, 9216))

        def run() -> dict[str, float]:
            clock = Clock(device)
            x @ weight.T
            clock.lap("s")
            return clock.seconds()

        return run

    found = take_turns({str(dtype): product(dtype) for dtype in dtypes}, 10)
    rate = 2 * rows * 2304 * 9216 / min(min(seconds["s"]) for seconds in found.values())
    table = config.vocab_size * config.hidden_size
    blocks = 4 * (config.num_parameters - table) * batch.tokens.numel()
    head = 4 * table * batch.num_supervised
    return (blocks + head) / rate
