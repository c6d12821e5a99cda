"""What "auto" means on this machine: precision, low-rank path, recomputation, and why."""

import argparse

import torch

from common.device import Precision, pick_precision
from lora.implementations import resolve_impl
from model.config import Gemma2Config
from model.recompute import MicroBatch, pick_checkpointing


def choose(
    args: argparse.Namespace, config: Gemma2Config, device: torch.device, num_ranks: int
) -> tuple[Precision, dict[str, tuple[str, str]]]:
    """What "auto" means here: the precision, and (choice, reason) of everything for `run.json`.

    Raises: ValueError for flags that cannot go together, before anything large is read.
    """
    if args.max_length > config.max_position_embeddings:
        limit = config.max_position_embeddings
        raise ValueError(f"--max-length: the model has {limit} positions, got {args.max_length}")
    # Every layer has the hidden size on one side, and B A cannot have a higher rank than that.
    if args.rank > config.hidden_size:
        width = config.hidden_size
        raise ValueError(f"--rank: expected at most {width}, the model's width, got {args.rank}")
    # In this order: each choice depends on the ones before it.
    precision = pick_precision(args.dtype, device, config.num_parameters)
    impl = resolve_impl(args.lora_impl, device, precision.dtype)
    micro_batch = MicroBatch(
        config,
        args.micro_batch * args.max_length,
        precision.dtype,
        copies=impl[0] == "reference",  # its float32 copies count as activations
        slices=num_ranks if args.shard else 1,
    )
    mode = pick_checkpointing(args.checkpoint_activations, micro_batch, device)
    # Refused here and not where it would go wrong: loading a large model takes minutes.
    check_recomputed_dropout(args, mode[0], impl[0], device)
    # FSDP2's gradients are 16-bit where its weights are, and a GradScaler refuses fp16 gradients.
    if args.shard and (num_ranks == 1 or precision.needs_scaler):
        raise ValueError(
            "--shard: needs several ranks (torchrun --nproc-per-node=N train.py) and --dtype bf16 "
            f"or fp32, got {num_ranks} rank and {precision.name}"
        )
    chosen = (precision.name, precision.reason)
    return precision, {"precision": chosen, "lora": impl, "checkpoint_activations": mode}


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
