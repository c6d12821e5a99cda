"""One optimizer step, ours against Transformers + PEFT, on the same weights and packed batch.

    python -m benchmarks.train_step [--config 2b] [--device cpu] [--length 512] [--breakdown]
    python -m benchmarks.train_step --attribute    # what LoRA, attention, loss and norms bring each

All get LoRA on the seven linears and the same low-rank factors; their losses are compared without
dropout before anything is timed. Peaks of memory come from one fresh process for each. One JSON
line per row goes to --out, as soon as there is one; a way that dies, as one that runs out of
memory, has a row that says so and stops no other.
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

from benchmarks.our_model import CONFIGS, Ours, floor_seconds, random_batch
from benchmarks.peer_model import Peer
from benchmarks.plain_forms import PARTS, PlainForms
from benchmarks.timing import GPU_WARM_UP, Clock, attempt, quantiles, take_turns, write_rows
from common.device import DTYPES, describe, peak_memory_bytes, pick_device
from common.products import choose_products, use_products, used_products
from data.packing import Batch
from lora.implementations import IMPLEMENTATIONS

# Ours with one part in its plain form, or all; PEFT with its own float32 adapters, then in 16 bits.
PLAIN = {f"plain_{part}": (part,) for part in PARTS} | {"plain": PARTS}
PEERS = ("peft", "peft_16bit", "peft_16bit_compiled", "peft_16bit_flex")
NAMES = ("ours", *PLAIN, *PEERS)
PHASES = ("forward", "loss", "backward", "optimizer", "step")
Way = Ours | PlainForms | Peer
console = Console(width=140)


def build(name: str, ours: Ours, args: argparse.Namespace) -> Way:
    """One of NAMES, on the weights of `ours`."""
    if name == "ours":
        return ours
    if name in PLAIN:
        return PlainForms(ours, PLAIN[name])
    keeps_float32 = name == "peft"  # as PEFT does by default
    return Peer(ours.model, args, keeps_float32, how=name.removeprefix("peft_16bit").strip("_"))


def step(way: Way, batch: Batch) -> dict[str, float]:
    """One optimizer step; the seconds of its phases. The peer's forward pass includes its loss."""
    clock = Clock(batch.tokens.device)
    loss = way.loss(batch, clock)
    clock.lap("loss")
    loss.backward()
    clock.lap("backward")
    torch.nn.utils.clip_grad_norm_(way.parameters(), 1.0)
    way.optimizer.step()
    way.optimizer.zero_grad()
    clock.lap("optimizer")
    seconds = clock.seconds()
    return seconds | {"step": sum(seconds.values())}


def loss_and_norm(way: Way, batch: Batch) -> tuple[float, float]:
    """The loss and the norm of its gradient, without dropout: two ways draw different masks."""
    way.model.eval()
    try:
        loss = way.loss(batch)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(way.parameters(), float("inf"))
        return loss.item(), norm.item()
    finally:  # also when memory ran out: the others need what gradients there are
        way.optimizer.zero_grad()
        way.model.train()


def check_equal(
    ways: dict[str, Way],
    batch: Batch,
    dtype: torch.dtype,
    on_death: Callable[[str, str], None],
) -> dict[str, float]:
    """The losses, which must agree like the gradient norms before anything is timed.

    A way that raises, or differs from the first by more than the dtype's rounding, leaves `ways`.
    """
    losses: dict[str, tuple[float, float]] = {}
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    for name, way in list(ways.items()):
        values, error = attempt(partial(loss_and_norm, way, batch))
        first = next(iter(losses.values()), values)
        pairs = zip(first or (), values or (), strict=False)
        if any(not abs(ours - theirs) <= tolerance * abs(ours) for ours, theirs in pairs):
            error = f"loss and gradient norm {values} differ from the first way's, {first}"
        if error or values is None:
            del ways[name]
            on_death(name, error)
        else:
            losses[name] = values
    console.print("loss and gradient norm:", losses)
    return {name: loss for name, (loss, _) in losses.items()}


def peak_of(name: str, argv: Sequence[str]) -> int:
    """Peak bytes of two steps in a process of their own: resident on a CPU, allocated on a GPU."""
    command = [sys.executable, "-m", "benchmarks.train_step", *argv, "--peak-of", name]
    command += ["--products", used_products()]  # not timed again
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError((done.stderr.strip() or "no message").splitlines()[-1])
    return int(json.loads(done.stdout.splitlines()[-1])["peak_bytes"])


def measure(
    args: argparse.Namespace, argv: Sequence[str], keep: Callable[[dict[str, Any]], None]
) -> None:
    """A row per implementation goes to `keep` when it is there; one that died has an "error"."""
    config = CONFIGS[args.config]
    batch = random_batch(args, config)
    what: dict[str, Any] = {name: getattr(args, name) for name in ("config", "packs", "length")}
    what |= {"documents": args.documents, "supervised": batch.num_supervised, "dtype": args.dtype}
    what |= {"checkpointing": args.checkpoint_activations, "rank": args.rank}
    what |= {"dropout": args.dropout, "products": used_products(), "lora_impl": args.lora_impl}

    def died(name: str, error: str) -> None:
        out_of_memory = {"out_of_memory": "OutOfMemoryError" in error, "error": error}
        keep({"name": "train_step", "impl": name} | what | out_of_memory)

    # First, while this process has no model: a 2B model beside two others fits few machines.
    peaks: dict[str, int | None] = {}
    for name in args.only:
        peaks[name], error = (None, "") if args.no_peak else attempt(partial(peak_of, name, argv))
        if error:
            died(name, error)
    ours = Ours(args)
    alive = [name for name in args.only if args.no_peak or peaks[name] is not None]
    ways = {name: build(name, ours, args) for name in alive}
    losses = check_equal(ways, batch, DTYPES[args.dtype], died)
    steps: dict[str, Callable[[], dict[str, float]]] = {
        name: partial(step, way, batch) for name, way in ways.items()
    }
    warm_up = GPU_WARM_UP if batch.tokens.is_cuda else 1
    times = take_turns(steps, args.rounds, warm_up, died)
    floor = floor_seconds(args, config, batch)
    for name, found in times.items():
        phases = {phase: quantiles(seconds)["p50_ms"] for phase, seconds in found.items()}
        seconds = phases["step"] / 1e3
        row = {"name": "train_step", "impl": name} | what
        row |= {"loss": losses[name], "ms": phases} | quantiles(found["step"])
        row |= {"tokens_per_second": batch.tokens.numel() / seconds, "of_floor": floor / seconds}
        keep(row | {"peak_bytes": peaks[name]})
    if args.attribute and {"ours", *PLAIN} <= set(times):
        keep({"name": "attribution", "impl": "ours"} | what | attribution(times))


def attribution(times: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
    """What a step saves by each part: its median with that part in its plain form, less ours.

    Parts overlap, as where the processor's cache is what they save: the sum need not be the whole.
    """
    medians = {name: quantiles(found["step"])["p50_ms"] for name, found in times.items()}
    saved = {part: medians[f"plain_{part}"] - medians["ours"] for part in PARTS}
    return {"p50_ms": medians, "saved_ms": saved | {"all": medians["plain"] - medians["ours"]}}


def show(rows: list[dict[str, Any]], device: torch.device) -> None:
    """Prints the rows as a table, and what died below it."""
    for row in rows:
        if "error" in row:
            console.print(f"{row['impl']}: {row['error']}", style="red", markup=False)
        for part, saved in row.get("saved_ms", {}).items():
            share = saved / row["p50_ms"]["plain"]
            console.print(f"{part}: saves {saved:.0f} ms, {share:.0%} of the step in plain forms")
    rows = [row for row in rows if "ms" in row]
    if not rows:
        return
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
    products = "what a CPU multiplies bf16 in; auto times both"
    add("--products", choices=("auto", "bf16", "fp32"), default="auto", help=products)
    modes = ("none", "selective", "full")
    recompute = "the peer recomputes whole blocks for selective as for full"
    add("--checkpoint-activations", choices=modes, default="none", help=recompute)

    add = parser.add_argument_group("measuring").add_argument
    add("--rounds", type=int, default=3, help="timed rounds")
    names = f"comma-separated, out of {', '.join(NAMES)}"
    add("--only", type=lambda text: text.split(","), help=f"{names}; default: ours,peft")
    add("--attribute", action="store_true", help="ours with each part in its plain form, and PEFT")
    add("--no-peak", action="store_true", help="skip memory, which takes a process for each")
    add("--breakdown", action="store_true", help="only print where the time of our step goes")
    add("--peak-of", choices=NAMES, help=argparse.SUPPRESS)
    add("--out", type=Path, help="JSON lines are appended here")
    args = parser.parse_args(argv)
    usual = ["ours", *PLAIN, "peft", "peft_16bit"] if args.attribute else ["ours", "peft"]
    args.only = args.only or usual
    if set(args.only) & set(PLAIN) and args.checkpoint_activations != "none":
        parser.error("--checkpoint-activations: plain forms are taken in the forward pass alone")
    if unknown := set(args.only) - set(NAMES):
        parser.error(f"--only: unknown {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    if min(args.packs, args.rounds, args.rank) < 1:
        parser.error("--packs, --rounds, --rank: expected at least 1")
    if args.documents < 1 or args.length // args.documents < 4 or not 0 < args.share <= 1:
        expected = "every document needs 4 tokens, and the share lies above 0, up to 1"
        parser.error(f"--length, --documents, --share: {expected}")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 1 where a way died."""
    argv = list(sys.argv[1:] if argv is None else argv)
    args = parse_args(argv)
    try:
        device = pick_device(args.device)
    except ValueError as error:
        print(f"train_step: {error}", file=sys.stderr)
        return 2
    if args.products == "auto":
        choose_products("auto" if args.dtype == "bf16" else args.dtype, device)
    else:
        use_products(args.products)
    if args.breakdown:
        breakdown(args)
    elif args.peak_of:
        way, batch = build(args.peak_of, Ours(args), args), random_batch(args, CONFIGS[args.config])
        way.model.train()
        for _ in range(2):
            step(way, batch)
        print(json.dumps({"peak_bytes": peak_memory_bytes(device)}))
    else:
        rows: list[dict[str, Any]] = []

        def keep(row: dict[str, Any]) -> None:
            rows.append(row)
            if args.out:
                write_rows(args.out, [row], device)

        measure(args, argv, keep)
        show(rows, device)
        return int(any("error" in row for row in rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
