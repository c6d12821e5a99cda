"""What "auto" means on this machine: precision, low-rank path, batch, recomputation, and why."""

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from common.device import Precision, available_memory_bytes, pick_precision
from common.products import choose_products
from lora.implementations import resolve_impl
from model.config import Gemma2Config
from model.recompute import MEMORY_SHARE, MicroBatch, pick_checkpointing
from training.checkpoint import products_of
from training.ranks import Ranks
from training.run_folder import CHECKPOINT

# Tokens of a forward pass beyond which a card computes no faster: with few the host is what it
# waits for, which needs the same time for any number of them.
ENOUGH_TOKENS = 16_384


def choose(
    args: argparse.Namespace,
    base: Path,
    device: torch.device,
    *,
    ranks: Ranks,
    output: Path,
) -> tuple[Precision, int | None, dict[str, tuple[str, str]]]:
    """What "auto" means here: the precision, and (choice, reason) of everything for `run.json`.

    Between the two the packs of a forward pass, on CUDA, where every pass has the same. `base` is
    the folder of the model, `output` that of the run; one that is resumed goes on as it began.

    Raises: ValueError for flags that cannot go together, before anything large is read.
    """
    config = Gemma2Config.from_json(base)
    if args.max_length > config.max_position_embeddings:
        limit = config.max_position_embeddings
        raise ValueError(f"--max-length: the model has {limit} positions, got {args.max_length}")
    # Every layer has the hidden size on one side, and B A cannot have a higher rank than that.
    if args.rank > config.hidden_size:
        width = config.hidden_size
        raise ValueError(f"--rank: expected at most {width}, the model's width, got {args.rank}")
    # In this order: each choice depends on the ones before it.
    kept = products_of(output / CHECKPOINT) if args.resume else ""
    products = choose_products(args.dtype, device, kept, agree=ranks.total)
    precision = pick_precision(args.dtype, device, config.num_parameters)
    impl = resolve_impl(args.lora_impl, device, precision.dtype)
    one = MicroBatch(
        config,
        args.max_length,
        precision.dtype,
        copies=impl[0] == "reference",  # its float32 copies count as activations
        slices=ranks.count if args.shard else 1,
    )
    packs, why = pick_packs(args, one, device)
    micro_batch = replace(one, tokens=packs * args.max_length)
    mode = pick_checkpointing(args.checkpoint_activations, micro_batch, device)
    # Refused here and not where it would go wrong: loading a large model takes minutes.
    check_recomputed_dropout(args, mode[0], impl[0], device)
    # FSDP2's gradients are 16-bit where its weights are, and a GradScaler refuses fp16 gradients.
    if args.shard and (ranks.count == 1 or precision.needs_scaler):
        raise ValueError(
            "--shard: needs several ranks (torchrun --nproc-per-node=N train.py) and --dtype bf16 "
            f"or fp32, got {ranks.count} rank and {precision.name}"
        )
    chosen = (precision.name, precision.reason)
    choices = {"precision": chosen, "lora": impl, "checkpoint_activations": mode}
    if products:
        choices["products"] = (products.name, products.reason)
    if device.type != "cuda":
        return precision, None, choices
    return precision, packs, choices | {"packs_at_once": (str(packs), why)}


def pick_packs(args: argparse.Namespace, one: MicroBatch, device: torch.device) -> tuple[int, str]:
    """Packs of one forward pass, and why; `one` has a pack's tokens.

    On CUDA as many of a step's packs as fit without recomputing more than was asked for, up to
    ENOUGH_TOKENS. The step keeps its packs, its sum and its divisor.
    """
    asked, passes = args.micro_batch, args.accumulate
    if device.type != "cuda" or not args.fold:
        return asked, "asked for"
    free = MEMORY_SHARE[device.type] * available_memory_bytes(device)
    name = args.checkpoint_activations
    for folded in range(passes, 1, -1):
        larger = replace(one, tokens=folded * asked * one.tokens)
        fits = larger.memory_bytes("none" if name == "auto" else name) <= free
        if passes % folded == 0 and larger.tokens <= ENOUGH_TOKENS and fits:
            return folded * asked, f"{folded} of a step's {passes} forward passes at once"
    return asked, "no more fit into the memory"


def check_recomputed_dropout(
    args: argparse.Namespace, mode: str, impl: str, device: torch.device
) -> None:
    """Raises: ValueError where a recomputed block would draw other masks than its first pass.

    The fused paths draw theirs from a seed of their own; the reference uses PyTorch's generator,
    whose state checkpointing puts back on CPUs and GPUs but not on MPS.
    """
    if device.type == "mps" and mode == "full" and impl == "reference" and args.dropout:
        raise ValueError(
            "--lora-impl reference with --checkpoint-activations full and dropout is not exact on "
            "mps: give --lora-impl auto, --checkpoint-activations none, or --dropout 0"
        )
