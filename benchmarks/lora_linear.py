"""Fused against unfused LoRA, and against PEFT: the linears of a Gemma-2-2B block, forward and backward.

    python -m benchmarks.lora_linear [--device cpu] [--shapes block] [--rows 512] [--ranks 16] [--dropouts 0,0.05]

In one run, on the same inputs: the frozen linears (the floor), the formula operator by operator ("reference"), the fused
path, and PEFT in four modes: float32 adapters as it makes them by default, the same under autocast, adapters in the
base's dtype (autocast_adapter_dtype=False), and those compiled. One JSON line per row goes to --out, a picture beside it.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.timing import Clock, kept_bytes, quantiles, take_turns, write_rows
from common.device import DTYPES, pick_device
from lora.implementations import resolve_impl
from lora.layer import LoRALinear
from model.layers import Linear, project

# Name -> in, out, of Gemma-2-2B; the names in one inner tuple read the same x.
SIZES = {
    "q_proj": (2304, 2048),
    "k_proj": (2304, 1024),
    "v_proj": (2304, 1024),
    "o_proj": (2048, 2304),
    "gate_proj": (2304, 9216),
    "up_proj": (2304, 9216),
    "down_proj": (9216, 2304),
}
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
PEFT_MODES = ("peft_fp32", "peft_autocast", "peft_16bit", "peft_16bit_compiled")
ALPHA = 64
GPU_GRID = {
    "rows": [512, 1500, 2048, 4096, 8192],
    "ranks": [8, 16, 64],
    "shapes": list(SHAPES),
    "rounds": 30,
}
CPU_GRID = {"rows": [512], "ranks": [16], "shapes": ["gate", "block"], "rounds": 5}

console = Console(width=140)
Groups = list[list[nn.Module]]


class Case:
    """One shape, number of rows, rank and dropout: inputs, output gradients, and the frozen weights all share."""

    def __init__(
        self,
        shape: str,
        rows: int,
        rank: int,
        dropout: float,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.shape, self.rows, self.rank, self.dropout, self.device, self.dtype = (
            shape,
            rows,
            rank,
            dropout,
            device,
            dtype,
        )
        torch.manual_seed(0)
        self.names = SHAPES[shape]
        self.bases = {name: self._linear(*SIZES[name]) for group in self.names for name in group}
        self.inputs = [
            self._noise(rows, SIZES[group[0]][0]).requires_grad_() for group in self.names
        ]
        self.gradients = [
            [self._noise(rows, SIZES[name][1]) for name in group] for group in self.names
        ]

    def _noise(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=self.device).to(self.dtype)

    def _linear(self, size_in: int, size_out: int) -> Linear:
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
        groups = [
            [wrap(self.bases[name], impl=impl).train() for name in group] for group in self.names
        ]
        for linear in (linear for group in groups for linear in group):
            nn.init.normal_(linear.lora_B, std=0.01)
        return [list(group) for group in groups]

    def frozen(self) -> Groups:
        """The linears alone."""
        return [[self.bases[name] for name in group] for group in self.names]

    def peft(self, mode: str) -> Groups:
        """PEFT's own layers on the same weights."""
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners.tuners_utils import cast_adapter_dtype

        holder = nn.Module()
        for name, base in self.bases.items():
            plain = nn.Linear(base.in_features, base.out_features, bias=False, device="meta")
            plain.weight = base.weight
            holder.add_module(name, plain)
        config = LoraConfig(
            r=self.rank,
            lora_alpha=ALPHA,
            lora_dropout=self.dropout,
            target_modules=list(self.bases),
        )
        inject_adapter_in_model(config, holder)
        if mode in ("peft_fp32", "peft_autocast"):
            cast_adapter_dtype(holder, adapter_name="default", autocast_adapter_dtype=True)
        for name, parameter in holder.named_parameters():
            parameter.requires_grad_("lora_" in name)
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.01)
        holder.train()
        return [
            [self._compiled(getattr(holder, name), mode) for name in group] for group in self.names
        ]

    def _compiled(self, module: nn.Module, mode: str) -> nn.Module:
        if mode == "peft_16bit_compiled":
            torch._dynamo.config.recompile_limit = (
                64  # all linears share one forward; past the limit it would run eagerly
            )
            module.compile()
        return module


def forward(case: Case, groups: Groups, autocast: bool) -> list[Tensor]:
    """Every output of the case."""
    context = torch.autocast(case.device.type, case.dtype) if autocast else nullcontext()
    with context:
        return [
            y for x, linears in zip(case.inputs, groups, strict=True) for y in project(x, *linears)
        ]


def step(case: Case, groups: Groups, autocast: bool) -> dict[str, float]:
    """Seconds of one forward and one backward."""
    parameters = [
        p for group in groups for linear in group for p in linear.parameters() if p.requires_grad
    ]
    dys = [dy for group in case.gradients for dy in group]
    clock = Clock(case.device)
    outputs = forward(case, groups, autocast)
    seconds = clock.lap()
    torch.autograd.grad(outputs, [*case.inputs, *parameters], dys)
    backward = clock.lap()
    return {"forward": seconds, "backward": backward, "both": seconds + backward}


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
        name: partial(step, case, groups, autocast) for name, (groups, autocast) in ways.items()
    }
    times = take_turns(steps, rounds)
    rows = []
    for name, (groups, autocast) in ways.items():
        memory = memory_of(case, groups, autocast)
        for phase, seconds in times[name].items():
            rows.append(
                {
                    "name": "lora_linear",
                    "impl": name,
                    "mode": phase,
                    "shape": case.shape,
                    "rows": case.rows,
                    "rank": case.rank,
                    "dropout": case.dropout,
                    "dtype": str(case.dtype).removeprefix("torch."),
                    **quantiles(seconds),
                    **memory,
                }
            )
    return rows


def memory_of(case: Case, groups: Groups, autocast: bool) -> dict[str, int | None]:
    """Bytes kept for backward, and on CUDA the peak of a whole step beyond what was allocated before it."""
    parameters = [p for group in groups for linear in group for p in linear.parameters()]
    kept = kept_bytes(lambda: forward(case, groups, autocast), parameters)
    if case.device.type != "cuda":
        return {"kept_bytes": kept, "peak_bytes": None}
    before = torch.cuda.memory_allocated(case.device)
    torch.cuda.reset_peak_memory_stats(case.device)
    step(case, groups, autocast)
    return {"kept_bytes": kept, "peak_bytes": torch.cuda.max_memory_allocated(case.device) - before}


def show(rows: list[dict[str, Any]]) -> None:
    """Prints a case's rows as a table with ratios to the frozen linears."""
    first = rows[0]
    title = f"{first['shape']}, {first['rows']} rows, r {first['rank']}, dropout {first['dropout']}, {first['dtype']}"
    table = Table(title=title)
    for column in ("implementation", "forward ms", "backward ms", "both ms", "x frozen", "kept MB"):
        table.add_column(column, justify="left" if column == "implementation" else "right")
    p50 = {(row["impl"], row["mode"]): row["p50_ms"] for row in rows}
    for row in (row for row in rows if row["mode"] == "both"):
        times = [f"{p50[row['impl'], mode]:.2f}" for mode in ("forward", "backward", "both")]
        ratio = row["p50_ms"] / p50["frozen", "both"]
        table.add_row(row["impl"], *times, f"{ratio:.2f}", f"{row['kept_bytes'] / 1e6:.1f}")
    console.print(table)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Bars of forward + backward relative to the frozen linears, one group of bars per case."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    both = [row for row in rows if row["mode"] == "both"]
    cases = list(dict.fromkeys((r["shape"], r["rows"], r["rank"], r["dropout"]) for r in both))
    names = list(dict.fromkeys(r["impl"] for r in both))
    times = {(r["impl"], r["shape"], r["rows"], r["rank"], r["dropout"]): r["p50_ms"] for r in both}
    figure, axis = plt.subplots(figsize=(max(7.0, 1.6 * len(cases) + 3), 4.5), layout="constrained")
    width = 0.8 / len(names)
    for index, name in enumerate(names):
        ratios = [times[name, *case] / times["frozen", *case] for case in cases]
        bars = axis.bar([i + index * width for i in range(len(cases))], ratios, width, label=name)
        if len(cases) <= 6:
            axis.bar_label(bars, fmt="%.2f", fontsize=7)
    axis.axhline(1.0, color="black", lw=0.8)
    axis.set_xticks(
        [i + 0.4 for i in range(len(cases))],
        [f"{s}, M {m}\nr {r}, p {p}" for s, m, r, p in cases],
        fontsize=8,
    )
    axis.set_ylabel("forward + backward, frozen linears = 1")
    axis.legend(fontsize=8, ncols=2)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def numbers(kind: type) -> Callable[[str], list[Any]]:
    """An argparse type: comma-separated values."""
    return lambda text: [kind(part) for part in text.split(",")]


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--device", default="auto", help="auto, cuda, mps or cpu; a CPU gets a smaller grid")
    add("--dtype", choices=DTYPES, default="bf16")
    add("--shapes", type=numbers(str), help=f"comma-separated, out of {', '.join(SHAPES)}")
    add("--rows", type=numbers(int), help="numbers of rows M")
    add("--ranks", type=numbers(int))
    add("--dropouts", type=numbers(float), default=[0.0, 0.05])
    add("--rounds", type=int, help="timed rounds")
    add("--no-peft", action="store_true", help="leave PEFT out")
    add(
        "--out",
        type=Path,
        help="JSON lines are appended here, and a picture of the same name is drawn",
    )
    args = parser.parse_args(argv)
    for name, value in (CPU_GRID if pick_device(args.device).type == "cpu" else GPU_GRID).items():
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
    grid = [
        (s, m, r, p)
        for s in args.shapes
        for m in args.rows
        for r in args.ranks
        for p in args.dropouts
    ]
    for shape, num_rows, rank, dropout in grid:
        found = measure(
            Case(shape, num_rows, rank, dropout, device, dtype), args.rounds, not args.no_peft
        )
        show(found)
        if args.out:
            write_rows(args.out, found, device)
        rows += found
    if args.out:
        draw(rows, args.out.with_suffix(".png"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
