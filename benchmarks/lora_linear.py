"""LoRA fused, unfused and by PEFT: the linears of a Gemma-2-2B block, forward and backward.

    python -m benchmarks.lora_linear [--device cpu] [--shapes block] [--rows 512] [--ranks 16]

In one run, on the same inputs: the frozen linears (the floor), the formula operator by operator
("reference"), the fused path, and PEFT in four modes: float32 adapters as it makes them by default,
the same under autocast, adapters in the base's dtype (autocast_adapter_dtype=False), and those
compiled. One JSON line per row goes to --out, a picture beside it.

On a GPU a row's mode says how it was run: "both" as called, where below 4,096 rows the host is what
is timed, and "graph" from one CUDA graph, which has no host. The card's cache is cleared before
each.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.lora_cases import SHAPES, Case, Groups
from benchmarks.timing import (
    GPU_WARM_UP,
    WARM_UP,
    Clock,
    attempt,
    capture,
    clear_cache,
    kept_bytes,
    quantiles,
    take_turns,
    write_rows,
)
from common.device import DTYPES, pick_device
from lora.implementations import resolve_impl
from model.layers import project

PEFT_MODES = ("peft_fp32", "peft_autocast", "peft_16bit", "peft_16bit_compiled")
GPU_GRID: dict[str, Any] = {
    "rows": [512, 1500, 2048, 4096, 8192],
    "ranks": [8, 16, 64],
    "shapes": list(SHAPES),
    "rounds": 30,
}
CPU_GRID: dict[str, Any] = {"rows": [512], "ranks": [16], "shapes": ["gate", "block"], "rounds": 5}

console = Console(width=140)


def forward(case: Case, groups: Groups, autocast: bool) -> list[Tensor]:
    """Every output of the case."""
    context = torch.autocast(case.device.type, case.dtype) if autocast else nullcontext()
    outputs: list[Tensor] = []
    with context:
        for x, linears in zip(case.inputs, groups, strict=True):
            outputs += project(x, *linears)
    return outputs


def parameters_of(groups: Groups) -> list[Tensor]:
    """All parameters, the frozen ones included."""
    return [p for linears in groups for linear in linears for p in linear.parameters()]


def run(case: Case, groups: Groups, autocast: bool, clock: Clock | None = None) -> list[Tensor]:
    """One forward and one backward: the outputs and every gradient."""
    trainable = [p for p in parameters_of(groups) if p.requires_grad]
    dys = [dy for group in case.gradients for dy in group]
    outputs = forward(case, groups, autocast)
    if clock:
        clock.lap("forward")
    # Not .backward(): it would add to .grad, a pass over memory that is no part of the operator.
    gradients = torch.autograd.grad(outputs, [*case.inputs, *trainable], dys)
    if clock:
        clock.lap("backward")
    return [*outputs, *gradients]


def step(
    case: Case, groups: Groups, autocast: bool, replay: Callable[[], None] | None
) -> dict[str, float]:
    """Seconds of one forward and one backward, as called and, where there is one, as a graph."""
    clear_cache(case.device)
    clock = Clock(case.device)
    run(case, groups, autocast, clock)
    seconds = clock.seconds()
    seconds |= {"both": sum(seconds.values())}
    if replay is None:
        return seconds
    clear_cache(case.device)
    clock = Clock(case.device)
    replay()
    clock.lap("graph")
    return seconds | clock.seconds()


def replay_of(case: Case, groups: Groups, autocast: bool) -> Callable[[], None] | None:
    """What replays the step's graph; None without CUDA, or where the step cannot be captured."""
    if case.device.type != "cuda":
        return None
    captured, error = attempt(lambda: capture(partial(run, case, groups, autocast)))
    if captured is None:
        console.print(f"no graph: {error}", style="red", markup=False)
        return None
    return captured[0]


def implementations(case: Case, with_peft: bool) -> dict[str, tuple[Groups, bool]]:
    """Name -> modules, and whether they run under autocast."""
    fused, _ = resolve_impl("auto", case.device, case.dtype)
    found = {"frozen": (case.frozen(), False), "reference": (case.ours("reference"), False)}
    for impl in dict.fromkeys((fused, "torch")):
        if impl != "reference":
            found[f"fused_{impl}"] = (case.ours(impl), False)
    for mode in PEFT_MODES if with_peft else ():
        found[mode] = (case.peft(mode), mode == "peft_autocast")
    return found


def measure(case: Case, rounds: int, with_peft: bool) -> list[dict[str, Any]]:
    """A row per implementation and phase."""
    ways = implementations(case, with_peft)
    steps: dict[str, Callable[[], dict[str, float]]] = {
        name: partial(step, case, groups, autocast, replay_of(case, groups, autocast))
        for name, (groups, autocast) in ways.items()
    }
    warm_up = GPU_WARM_UP if case.device.type == "cuda" else WARM_UP

    def died(name: str, error: str) -> None:
        console.print(f"{name}: {error}", style="red", markup=False)

    times = take_turns(steps, rounds, warm_up, died)
    what = {"shape": case.shape, "rows": case.rows, "rank": case.rank, "dropout": case.dropout}
    what["dtype"] = str(case.dtype).removeprefix("torch.")
    rows = []
    for name, found in times.items():
        groups, autocast = ways[name]
        memory = memory_of(case, groups, autocast)
        for phase, seconds in found.items():
            row = {"name": "lora_linear", "impl": name, "mode": phase}
            rows.append(row | what | quantiles(seconds) | memory)
    return rows


def memory_of(case: Case, groups: Groups, autocast: bool) -> dict[str, int | None]:
    """Bytes kept for backward, and on CUDA the peak of a step beyond what was allocated before."""
    kept = kept_bytes(lambda: forward(case, groups, autocast), parameters_of(groups))
    if case.device.type != "cuda":
        return {"kept_bytes": kept, "peak_bytes": None}
    before = torch.cuda.memory_allocated(case.device)
    torch.cuda.reset_peak_memory_stats(case.device)
    run(case, groups, autocast)
    return {"kept_bytes": kept, "peak_bytes": torch.cuda.max_memory_allocated(case.device) - before}


def show(rows: list[dict[str, Any]]) -> None:
    """Prints a case's rows as a table with ratios to the frozen linears."""
    first = rows[0]
    what = f"{first['shape']}, {first['rows']} rows, r {first['rank']}"
    table = Table(title=f"{what}, dropout {first['dropout']}, {first['dtype']}")
    columns = ["implementation", "forward ms", "backward ms", "both ms", "x frozen", "kept MB"]
    has_graphs = any(row["mode"] == "graph" for row in rows)
    for column in columns + ["graph ms", "x frozen"] * has_graphs:
        table.add_column(column, justify="left" if column == "implementation" else "right")
    p50 = {(row["impl"], row["mode"]): row["p50_ms"] for row in rows}
    for row in (row for row in rows if row["mode"] == "both"):
        times = [f"{p50[row['impl'], mode]:.2f}" for mode in ("forward", "backward", "both")]
        ratio = row["p50_ms"] / p50["frozen", "both"]
        cells = [*times, f"{ratio:.2f}", f"{row['kept_bytes'] / 1e6:.1f}"]
        graph = p50.get((row["impl"], "graph"))
        if graph is not None and ("frozen", "graph") in p50:
            cells += [f"{graph:.2f}", f"{graph / p50['frozen', 'graph']:.2f}"]
        table.add_row(row["impl"], *cells)
    console.print(table)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Bars of forward + backward relative to the frozen linears, one group of bars per case."""
    import matplotlib

    matplotlib.use("Agg")  # draws into a file and needs no screen
    import matplotlib.pyplot as plt

    mode = "graph" if any(row["mode"] == "graph" for row in rows) else "both"
    both = [row for row in rows if row["mode"] == mode]
    cases = list(dict.fromkeys((r["shape"], r["rows"], r["rank"], r["dropout"]) for r in both))
    names = list(dict.fromkeys(r["impl"] for r in both))
    times = {(r["impl"], r["shape"], r["rows"], r["rank"], r["dropout"]): r["p50_ms"] for r in both}
    figure, axis = plt.subplots(figsize=(max(7.0, 1.6 * len(cases) + 3), 4.5), layout="constrained")
    width = 0.8 / len(names)
    for index, name in enumerate(names):
        # No bar for what died or has no graph: plain steps with dropout make a generator.
        missing = float("nan")
        ratios = [times.get((name, *case), missing) / times["frozen", *case] for case in cases]
        bars = axis.bar([i + index * width for i in range(len(cases))], ratios, width, label=name)
        if len(cases) <= 6:
            axis.bar_label(bars, fmt="%.2f", fontsize=7)
    axis.axhline(1.0, color="black", lw=0.8)
    labels = [f"{s}, M {m}\nr {r}, p {p}" for s, m, r, p in cases]
    axis.set_xticks([i + 0.4 for i in range(len(cases))], labels, fontsize=8)
    axis.set_ylabel("forward + backward, frozen linears = 1")
    axis.legend(fontsize=8, ncols=2)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def default_of(name: str) -> str:
    """A flag's defaults, which depend on the device, for --help."""
    texts = []
    for device, grid in (("GPU", GPU_GRID), ("CPU", CPU_GRID)):
        value = grid[name]
        text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
        texts.append(f"{text} on a {device}")
    return f"default: {'; '.join(texts)}"


def values(kind: type) -> Callable[[str], list[Any]]:
    """An argparse type: comma-separated values."""
    return lambda text: [kind(part) for part in text.split(",")]


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.lora_linear", description=(__doc__ or "").splitlines()[0]
    )

    add = parser.add_argument_group("machine").add_argument
    add("--device", default="auto", help="auto, cuda, mps or cpu (default: %(default)s)")
    add("--dtype", choices=DTYPES, default="bf16", help="default: %(default)s")

    grid = parser.add_argument_group("grid", "comma-separated values; a CPU has a smaller grid")
    add = grid.add_argument
    add("--shapes", type=values(str), help=f"{', '.join(SHAPES)} ({default_of('shapes')})")
    add("--rows", type=values(int), help=f"numbers of rows M ({default_of('rows')})")
    add("--ranks", type=values(int), help=default_of("ranks"))
    add("--dropouts", type=values(float), default=[0.0, 0.05], help="default: 0,0.05")
    add("--no-peft", action="store_true", help="leave PEFT out")

    add = parser.add_argument_group("measuring").add_argument
    add("--rounds", type=int, help=f"timed rounds ({default_of('rounds')})")
    add("--out", type=Path, help="append JSON lines here, and draw a picture of the same name")
    args = parser.parse_args(argv)
    grid_of_device = CPU_GRID if pick_device(args.device).type == "cpu" else GPU_GRID
    for name, value in grid_of_device.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    unknown = [shape for shape in args.shapes if shape not in SHAPES]
    if unknown:
        parser.error(f"--shapes: unknown {', '.join(unknown)}; there are {', '.join(SHAPES)}")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    try:
        args = parse_args(argv)
        device, dtype = pick_device(args.device), DTYPES[args.dtype]
    except ValueError as error:
        print(f"lora_linear: {error}", file=sys.stderr)
        return 2
    rows: list[dict[str, Any]] = []
    # One case is in memory at a time.
    for shape, num_rows, rank, dropout in product(
        args.shapes, args.rows, args.ranks, args.dropouts
    ):
        torch.compiler.reset()  # or the compiled peer's graphs of all cases count to one limit
        case = Case(shape, num_rows, rank=rank, dropout=dropout, device=device, dtype=dtype)
        found = measure(case, args.rounds, with_peft=not args.no_peft)
        show(found)
        if args.out:
            write_rows(args.out, found, device)
        rows += found
    if args.out:
        draw(rows, args.out.with_suffix(".png"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
