"""One optimizer step, ours against Transformers + PEFT, on the same weights and packed batch.

    python -m benchmarks.train_step [--config 2b] [--device cpu] [--length 512] [--breakdown]

Both get LoRA on the seven linears and the same low-rank factors; their losses are compared without
dropout before anything is timed. Peaks of memory come from one fresh process for each. One JSON
line per row goes to --out.
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

from benchmarks.our_model import CONFIGS, Ours, random_batch
from benchmarks.peer_model import Peer
from benchmarks.timing import Clock, quantiles, take_turns, write_rows
from common.device import DTYPES, describe, peak_memory_bytes, pick_device
from data.packing import Batch
from lora.implementations import IMPLEMENTATIONS
from model.config import Gemma2Config

NAMES = ("ours", "peft", "peft_16bit")
PHASES = ("forward", "loss", "backward", "optimizer", "step")
console = Console(width=140)


def build(name: str, args: argparse.Namespace) -> Ours | Peer:
    """One of NAMES. The peer gets the weights of one of our models."""
    ours = Ours(args)
    return ours if name == "ours" else Peer(ours.model, args, keeps_float32=name == "peft")


def step(way: Ours | Peer, batch: Batch) -> dict[str, float]:
    """One optimizer step; the seconds of its phases. The peer's forward pass includes its loss."""
    clock = Clock(batch.tokens.device)
    loss, forward = way.loss(batch, clock)
    head = clock.lap()
    loss.backward()
    backward = clock.lap()
    torch.nn.utils.clip_grad_norm_(way.parameters(), 1.0)
    way.optimizer.step()
    way.optimizer.zero_grad()
    update = clock.lap()
    seconds = (forward, head, backward, update, forward + head + backward + update)
    return dict(zip(PHASES, seconds, strict=True))


def check_equal(ways: dict[str, Ours | Peer], batch: Batch, dtype: torch.dtype) -> dict[str, float]:
    """The losses, which must agree like the gradient norms before anything is timed.

    Raises: AssertionError naming what differs by more than the dtype's rounding.
    """
    losses = {}
    for name, way in ways.items():
        way.model.eval()  # no dropout: the two would draw different masks
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
    """Time of the frozen products alone, at the rate of one large product on this device.

    Forward and backward through W take 4 operations per weight and token (no gradient of W itself);
    the head is needed at supervised positions only.
    """
    device, dtype = batch.tokens.device, DTYPES[args.dtype]
    rows = min(batch.tokens.numel(), 8192)
    x, weight = (torch.randn(n, 2304, device=device).to(dtype) for n in (rows, 9216))

    def product() -> dict[str, float]:
        clock = Clock(device)
        x @ weight.T
        return {"s": clock.lap()}

    seconds = take_turns({"product": product}, 10)
    rate = 2 * rows * 2304 * 9216 / min(seconds["product"]["s"])
    table = config.vocab_size * config.hidden_size
    blocks = 4 * (config.num_parameters - table) * batch.tokens.numel()
    head = 4 * table * batch.num_supervised
    return (blocks + head) / rate


def peak_of(name: str, argv: Sequence[str]) -> int:
    """Peak bytes of two steps in a process of their own: resident on a CPU, allocated on a GPU."""
    command = [sys.executable, "-m", "benchmarks.train_step", *argv, "--peak-of", name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr[-2000:]}")
    return int(json.loads(done.stdout.splitlines()[-1])["peak_bytes"])


def measure(args: argparse.Namespace, argv: Sequence[str]) -> list[dict[str, Any]]:
    """A row per implementation."""
    # First, while this process has no model: a 2B model beside two others fits few machines.
    peaks = {name: None if args.no_peak else peak_of(name, argv) for name in args.only}
    config = CONFIGS[args.config]
    batch = random_batch(args, config)
    ours = Ours(args)
    ways: dict[str, Ours | Peer] = {}
    for name in args.only:
        is_peft = name == "peft"  # as it is by default: float32 adapters
        ways[name] = ours if name == "ours" else Peer(ours.model, args, keeps_float32=is_peft)
    losses = check_equal(ways, batch, DTYPES[args.dtype])
    steps: dict[str, Callable[[], dict[str, float]]] = {
        name: partial(step, way, batch) for name, way in ways.items()
    }
    times = take_turns(steps, args.rounds, warm_up=1)
    floor = floor_seconds(args, config, batch)

    what: dict[str, Any] = {name: getattr(args, name) for name in ("config", "packs", "length")}
    what |= {"documents": args.documents, "supervised": batch.num_supervised, "dtype": args.dtype}
    what |= {"checkpointing": args.checkpoint_activations, "rank": args.rank}
    what["dropout"] = args.dropout
    rows: list[dict[str, Any]] = []
    for name in ways:
        phases = {phase: quantiles(seconds)["p50_ms"] for phase, seconds in times[name].items()}
        seconds = phases["step"] / 1e3
        row = {"name": "train_step", "impl": name} | what
        row |= {"loss": losses[name], "ms": phases} | quantiles(times[name]["step"])
        row |= {"tokens_per_second": batch.tokens.numel() / seconds, "of_floor": floor / seconds}
        rows.append(row | {"peak_bytes": peaks[name]})
    return rows


def show(rows: list[dict[str, Any]], device: torch.device) -> None:
    """Prints the rows as a table."""
    first = rows[0]
    size = f"{first['packs']} x {first['length']} tokens, {first['supervised']} supervised"
    how = f"{first['dtype']}, checkpointing {first['checkpointing']}, {describe(device)}"
    table = Table(title=f"{first['config']}, {size}, {how}")
    columns = ["", "forward ms", *PHASES[1:], "x ours", "tokens/s", "of floor", "peak GB"]
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        times = [f"{row['ms'][phase]:.0f}" for phase in PHASES]
        ratio, speed = row["p50_ms"] / first["p50_ms"], row["tokens_per_second"]
        peak = "-" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e9:.2f}"
        last = (f"{ratio:.2f}", f"{speed:.0f}", f"{row['of_floor']:.0%}", peak)
        table.add_row(row["impl"], *times, *last)
    console.print(table)


def breakdown(args: argparse.Namespace) -> None:
    """Where the time of one of our steps goes, by operator."""
    way, batch = Ours(args), random_batch(args, CONFIGS[args.config])
    way.model.train()
    step(way, batch)  # the first step also allocates, and compiles where anything is compiled
    activities = [torch.profiler.ProfilerActivity.CPU]
    if batch.tokens.is_cuda:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        step(way, batch)
    order = "self_cuda_time_total" if batch.tokens.is_cuda else "self_cpu_time_total"
    print(profile.key_averages().table(sort_by=order, row_limit=25, max_name_column_width=50))


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.train_step",
        description=(__doc__ or "").splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )

    add = parser.add_argument_group("model and machine").add_argument
    add("--config", choices=CONFIGS, default="2b", help="size of the model")
    add("--device", default="auto", help="auto, cuda, mps or cpu")
    add("--dtype", choices=DTYPES, default="bf16", help="of weights and activations")

    add = parser.add_argument_group("batch").add_argument
    add("--packs", type=int, default=1, help="B")
    add("--length", type=int, default=512, help="T")
    add("--documents", type=int, default=1, help="documents of a pack")
    add("--share", type=float, default=0.3, help="share of each document that is supervised")

    add = parser.add_argument_group("LoRA and memory").add_argument
    add("--rank", type=int, default=16, help="alpha is four times as large")
    add("--dropout", type=float, default=0.05, help="of LoRA")
    add("--lora-impl", choices=IMPLEMENTATIONS, default="auto", help="of our side")
    modes = ("none", "selective", "full")
    recompute = "the peer recomputes whole blocks for selective as for full"
    add("--checkpoint-activations", choices=modes, default="none", help=recompute)

    add = parser.add_argument_group("measuring").add_argument
    add("--rounds", type=int, default=3, help="timed rounds")
    names = f"comma-separated, out of {', '.join(NAMES)}"
    add("--only", type=lambda text: text.split(","), default=list(NAMES[:2]), help=names)
    add("--no-peak", action="store_true", help="skip memory, which takes a process for each")
    add("--breakdown", action="store_true", help="only print where the time of our step goes")
    add("--peak-of", choices=NAMES, help=argparse.SUPPRESS)
    add("--out", type=Path, help="JSON lines are appended here")
    args = parser.parse_args(argv)
    if unknown := set(args.only) - set(NAMES):
        parser.error(f"--only: unknown {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    if min(args.packs, args.rounds, args.rank) < 1:
        parser.error("--packs, --rounds, --rank: expected at least 1")
    if args.documents < 1 or args.length // args.documents < 4 or not 0 < args.share <= 1:
        expected = "every document needs 4 tokens, and the share lies above 0, up to 1"
        parser.error(f"--length, --documents, --share: {expected}")
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
