"""One optimizer step, ours against Transformers + PEFT: the same weights, the same packed batch, the same loss.

    python -m benchmarks.train_step [--config 2b] [--device cpu] [--length 512] [--breakdown]

Both get LoRA on the seven linears and the same low-rank factors; their losses are compared without dropout before
anything is timed. Peaks of memory come from one fresh process for each. One JSON line per row goes to --out.
Shapes: B packs, T tokens of a pack, V vocabulary, D model width.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.make_checkpoint import random_tensor
from benchmarks.peer_model import Peer
from benchmarks.timing import Clock, quantiles, take_turns, write_rows
from common.device import DTYPES, describe, peak_memory_bytes, pick_device
from data.chat import Example
from data.packing import Batch, collate
from lora.config import LoRAConfig
from lora.implementations import IMPLEMENTATIONS
from lora.inject import add_lora, trainable_parameters
from model.config import Gemma2Config
from model.loss import supervised_loss
from model.transformer import Gemma2
from training.checkpoint import make_optimizer

CONFIGS = {
    "tiny": Gemma2Config(2056, 256, 640, 6, 4, 2, 64, sliding_window=256, query_pre_attn_scalar=64),
    "100m": Gemma2Config(256_008, 320, 1280, 12, 4, 2, 64, query_pre_attn_scalar=64),
    "2b": Gemma2Config(256_008),
}
NAMES = ("ours", "peft", "peft_16bit")
console = Console(width=140)


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
            if name.endswith(
                "lora_B"
            ):  # as after some training: zeros would hide a wrong gradient of A
                p.data.copy_(torch.randn(p.shape, generator=generator) * 0.01)
        self.optimizer = make_optimizer(self.model, weight_decay=0.1)

    def loss(self, batch: Batch, clock: Clock | None = None) -> tuple[Tensor, float]:
        """Mean loss per supervised token, and the seconds until the hidden states were there."""
        hidden = self.model.model(batch.tokens, batch.positions, batch.documents)
        seconds = clock.lap() if clock else 0.0
        total, count = supervised_loss(self.model, hidden, batch.targets)
        return total / count, seconds

    def parameters(self) -> list[torch.nn.Parameter]:
        return list(trainable_parameters(self.model).values())


def random_model(config: Gemma2Config, dtype: torch.dtype, device: torch.device) -> Gemma2:
    """Gemma-2 with noise for weights, made without an intermediate copy."""
    with torch.device("meta"):
        model = Gemma2(config)
    generator = torch.Generator().manual_seed(0)
    for name, p in list(model.named_parameters()):
        parent, _, leaf = name.rpartition(".")
        value = random_tensor(tuple(p.shape), dtype, generator).to(device)
        setattr(model.get_submodule(parent), leaf, torch.nn.Parameter(value))
    model.tie()
    return model


def random_batch(args: argparse.Namespace, config: Gemma2Config) -> Batch:
    """Packs of random tokens in which the last `share` of every document is supervised."""
    generator = torch.Generator().manual_seed(1)
    size = args.length // args.documents

    def document() -> Example:
        tokens = torch.randint(3, config.vocab_size - 8, (size,), generator=generator).tolist()
        first = size - round(args.share * size)
        return Example(tokens, [i >= first for i in range(size)])

    batch = collate([[document() for _ in range(args.documents)] for _ in range(args.packs)], 0)
    device = pick_device(args.device)
    return Batch(
        *(t.to(device) for t in (batch.tokens, batch.positions, batch.documents, batch.targets))
    )


def build(name: str, args: argparse.Namespace) -> "Ours | Peer":
    ours = Ours(args)
    return ours if name == "ours" else Peer(ours.model, args, keeps_float32=name == "peft")


def step(way: "Ours | Peer", batch: Batch) -> dict[str, float]:
    """One optimizer step; the seconds of its phases. The peer's forward pass holds its loss."""
    clock = Clock(batch.tokens.device)
    loss, forward = way.loss(batch, clock)
    head = clock.lap()
    loss.backward()
    backward = clock.lap()
    torch.nn.utils.clip_grad_norm_(way.parameters(), 1.0)
    way.optimizer.step()
    way.optimizer.zero_grad()
    update = clock.lap()
    return {
        "forward": forward,
        "loss": head,
        "backward": backward,
        "optimizer": update,
        "step": forward + head + backward + update,
    }


def check_equal(
    ways: dict[str, "Ours | Peer"], batch: Batch, dtype: torch.dtype
) -> dict[str, float]:
    """Losses and gradient norms without dropout, which must agree within the dtype's rounding before anything is timed.

    Raises: AssertionError naming what differs.
    """
    losses = {}
    for name, way in ways.items():
        way.model.eval()
        loss, _ = way.loss(batch)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(way.parameters(), float("inf"))
        way.optimizer.zero_grad()
        way.model.train()
        losses[name] = (loss.item(), norm.item())
    console.print("loss and gradient norm:", losses)
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    first = losses[next(iter(ways))]
    for name, values in losses.items():
        for ours, theirs in zip(first, values, strict=True):
            assert abs(ours - theirs) <= tolerance * abs(ours), f"{name}: {values} against {first}"
    return {name: loss for name, (loss, _) in losses.items()}


def floor_seconds(args: argparse.Namespace, config: Gemma2Config, batch: Batch) -> float:
    """Time of the frozen products alone at the rate of one large product here.

    Forward and backward through W take 4 operations per weight and token; the head does so for supervised rows only.
    """
    device, dtype = batch.tokens.device, DTYPES[args.dtype]
    rows = min(batch.tokens.numel(), 8192)
    x, weight = (torch.randn(n, 2304, device=device).to(dtype) for n in (rows, 9216))
    seconds = take_turns(
        {"product": lambda: (clock := Clock(device), x @ weight.T, {"s": clock.lap()})[-1]}, 10
    )
    rate = 2 * rows * 2304 * 9216 / min(seconds["product"]["s"])
    table = config.vocab_size * config.hidden_size
    work = (
        4 * (config.num_parameters - table) * batch.tokens.numel()
        + 4 * table * batch.num_supervised
    )
    return work / rate


def peak_of(name: str, argv: Sequence[str]) -> int:
    """Peak bytes of two steps in a process of their own: resident on a CPU, allocated on a GPU."""
    command = [sys.executable, "-m", "benchmarks.train_step", *argv, "--peak-of", name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr[-2000:]}")
    return int(json.loads(done.stdout.splitlines()[-1])["peak_bytes"])


def measure(args: argparse.Namespace, argv: Sequence[str]) -> list[dict[str, Any]]:
    """A row per implementation."""
    # First, while this process holds nothing: two 2B models beside a third would not fit many a machine.
    peaks = {name: None if args.no_peak else peak_of(name, argv) for name in args.only}
    config = CONFIGS[args.config]
    batch = random_batch(args, config)
    ours = Ours(args)
    ways: dict[str, Ours | Peer] = {"ours": ours}
    ways |= {
        name: Peer(ours.model, args, keeps_float32=name == "peft")
        for name in args.only
        if name != "ours"
    }
    ways = {name: ways[name] for name in args.only}
    losses = check_equal(ways, batch, DTYPES[args.dtype])
    steps: dict[str, Callable[[], dict[str, float]]] = {
        n: partial(step, way, batch) for n, way in ways.items()
    }
    times = take_turns(steps, args.rounds, warm_up=1)
    floor = floor_seconds(args, config, batch)
    rows = []
    for name in ways:
        phases = {phase: quantiles(seconds)["p50_ms"] for phase, seconds in times[name].items()}
        seconds = phases["step"] / 1e3
        rows.append(
            {
                "name": "train_step",
                "impl": name,
                "config": args.config,
                "packs": args.packs,
                "length": args.length,
                "documents": args.documents,
                "supervised": batch.num_supervised,
                "dtype": args.dtype,
                "checkpointing": args.checkpoint_activations,
                "rank": args.rank,
                "dropout": args.dropout,
                "loss": losses[name],
                "ms": phases,
                **quantiles(times[name]["step"]),
                "tokens_per_second": batch.tokens.numel() / seconds,
                "of_floor": floor / seconds,
                "peak_bytes": peaks[name],
            }
        )
    return rows


def show(rows: list[dict[str, Any]], device: torch.device) -> None:
    """Prints the rows as a table."""
    first = rows[0]
    what = f"{first['config']}, {first['packs']} x {first['length']} tokens, {first['supervised']} supervised"
    table = Table(
        title=f"{what}, {first['dtype']}, checkpointing {first['checkpointing']}, {describe(device)}"
    )
    for column in (
        "",
        "forward ms",
        "loss",
        "backward",
        "optimizer",
        "step",
        "x ours",
        "tokens/s",
        "of floor",
        "peak GB",
    ):
        table.add_column(column, justify="right")
    for row in rows:
        times = [
            f"{row['ms'][phase]:.0f}"
            for phase in ("forward", "loss", "backward", "optimizer", "step")
        ]
        peak = "-" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e9:.2f}"
        table.add_row(
            row["impl"],
            *times,
            f"{row['p50_ms'] / first['p50_ms']:.2f}",
            f"{row['tokens_per_second']:.0f}",
            f"{row['of_floor']:.0%}",
            peak,
        )
    console.print(table)


def breakdown(args: argparse.Namespace) -> None:
    """Where the time of one of our steps goes, by operator."""
    way, batch = Ours(args), random_batch(args, CONFIGS[args.config])
    way.model.train()
    step(way, batch)
    activities = [torch.profiler.ProfilerActivity.CPU]
    if batch.tokens.is_cuda:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        step(way, batch)
    order = "self_cuda_time_total" if batch.tokens.is_cuda else "self_cpu_time_total"
    print(profile.key_averages().table(sort_by=order, row_limit=25, max_name_column_width=50))


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.train_step", description=(__doc__ or "").splitlines()[0]
    )
    add = parser.add_argument
    add("--config", choices=CONFIGS, default="2b")
    add("--device", default="auto")
    add("--dtype", choices=DTYPES, default="bf16")
    add("--packs", type=int, default=1, help="B")
    add("--length", type=int, default=512, help="T")
    add("--documents", type=int, default=1, help="documents of a pack")
    add("--share", type=float, default=0.3, help="share of each document that is supervised")
    add("--rank", type=int, default=16)
    add("--dropout", type=float, default=0.05)
    add("--lora-impl", choices=IMPLEMENTATIONS, default="auto")
    add(
        "--checkpoint-activations",
        choices=("none", "selective", "full"),
        default="none",
        help="the peer recomputes whole blocks for selective as for full",
    )
    add("--rounds", type=int, default=3)
    add(
        "--only",
        type=lambda text: text.split(","),
        default=list(NAMES[:2]),
        help=f"out of {', '.join(NAMES)}",
    )
    add(
        "--no-peak",
        action="store_true",
        help="do not measure memory, which takes a process for each",
    )
    add("--breakdown", action="store_true", help="only print where the time of our step goes")
    add("--peak-of", choices=NAMES, help=argparse.SUPPRESS)
    add("--out", type=Path, help="JSON lines are appended here")
    args = parser.parse_args(argv)
    if unknown := set(args.only) - set(NAMES):
        parser.error(f"--only: unknown {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    if min(args.packs, args.rounds, args.rank) < 1:
        parser.error("--packs, --rounds, --rank: expected at least 1")
    if args.documents < 1 or args.length // args.documents < 4 or not 0 < args.share <= 1:
        parser.error(
            "--length, --documents, --share: every document needs 4 tokens, and the share lies above 0, up to 1"
        )
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    args = parse_args(argv)
    try:
        device = pick_device(args.device)
    except ValueError as error:
        print(f"train_step: {error}", file=sys.stderr)
        return 2
    if args.breakdown:
        breakdown(args)
    elif args.peak_of:
        way, batch = build(args.peak_of, args), random_batch(args, CONFIGS[args.config])
        way.model.train()
        for _ in range(2):
            step(way, batch)
        print(json.dumps({"peak_bytes": peak_memory_bytes(device)}))
    else:
        rows = measure(args, argv)
        show(rows, device)
        if args.out:
            write_rows(args.out, rows, device)
    return 0


if __name__ == "__main__":
    sys.exit(main())
