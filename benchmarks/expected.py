"""Writes docs/expected-results.md: what a run should give and take, from the rows of measurements.

    python -m benchmarks.expected

The rows are all of benchmarks/results/; `benchmarks.run_rows` makes those of finished runs. A
line without a row says "not measured": nothing on the page is typed in by hand.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.atomic import write_text
from common.cli import USER_ERRORS, Parser

ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "benchmarks" / "results", ROOT / "docs" / "expected-results.md"
NOT_MEASURED = "**not measured**"
# By how a row's device is called; a card's name is its own.
KINDS = {"CPU": "cpu", "NVIDIA GPU": "NVIDIA", "Mac": "mps"}

Row = dict[str, Any]


@dataclass(frozen=True)
class Line:
    """What is measured: the fields that its rows have, and the kinds of devices that matter."""

    what: str
    command: str
    wanted: Row
    kinds: tuple[str, ...] = tuple(KINDS)


@dataclass(frozen=True)
class Table:
    """Lines whose rows are told alike; a column's rows have more fields in common."""

    title: str
    columns: dict[str, Row]
    tell: Callable[[Sequence[Row]], str]
    lines: list[Line]


def span(values: Sequence[float], form: str) -> str:
    """The smallest and the largest of several measurements; one where they are written alike."""
    return " to ".join(dict.fromkeys(format(value, form) for value in (min(values), max(values))))


def tell_steps(rows: Sequence[Row]) -> str:
    """Rows of a whole optimizer step."""
    text = f"{span([row['p50_ms'] / 1e3 for row in rows], '.2f')} s, "
    text += f"{span([row['tokens_per_second'] for row in rows], ',.0f')} tokens/s"
    if peaks := [row["peak_bytes"] / 1e9 for row in rows if row.get("peak_bytes")]:
        text += f", peak {span(peaks, '.1f')} GB"
    return text + counted(rows)


def tell_runs(rows: Sequence[Row]) -> str:
    """The evaluations of finished runs, of different seeds or versions."""
    runs: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        runs.setdefault((row["seed"], row["commit"]), []).append(row)
    befores, afters = (
        [end(found, key=lambda row: row["step"]) for found in runs.values()] for end in (min, max)
    )
    text = f"held-out loss {span([row['eval_loss'] for row in befores], '.2f')} before, "
    text += f"{span([row['eval_loss'] for row in afters], '.2f')} after"
    if minutes := [row["seconds"] / 60 for row in afters if row.get("seconds")]:
        text = f"{span(minutes, '.1f')} minutes; {text}"
    for kind, words in CALLS.items():
        scores = [row["tool_call_accuracy"] for row in afters]
        if shares := [100 * score[kind] for score in scores if score["n"].get(kind)]:
            text += f"; {words} {span(shares, '.0f')}%"
    return text + counted(runs)


def counted(measured: Sized) -> str:
    """How many measurements a figure is of, where there are several."""
    return f" ({len(measured)} measurements)" if len(measured) > 1 else ""


CALLS = {
    "unseen": "tools never seen in training",
    "seen": "tools seen in training",
    "parallel": "several calls",
    "no_call": "no call due",
}
CPU, CARD = ("CPU",), ("NVIDIA GPU",)


def step(
    config: str, dtype: str, shape: str, documents: int = 1, *, kinds: tuple[str, ...]
) -> Line:
    """A step; shape: packs x tokens of a pack, in which there are so many documents."""
    packs, length = map(int, shape.split(" x "))
    sizes = {"config": config, "dtype": dtype, "packs": packs, "length": length}
    sizes["documents"] = documents
    names = {"2b": "Gemma-2-2B", "100m": "100M, Gemma's vocabulary", "tiny": "embedded base"}
    flags = [f"--{name} {value}" for name, value in sizes.items()]
    flags += ["--device cuda"] if kinds == CARD else []
    command = " ".join(["python -m benchmarks.train_step", *flags])
    what = f"{names[config]}, {dtype}, {shape} tokens"
    return Line(what, command, {"name": "train_step", **sizes}, kinds)


COURSE = "python train.py --config recipes/course.toml"
RUN: Row = {"name": "whole_run"}
REAL = RUN | {"model": "google/gemma-2-2b-it"}
TABLES = [
    Table(
        "Whole runs",
        {"result": {}},
        tell_runs,
        [
            Line("the embedded default", "python train.py", RUN | {"model": None}),
            Line(
                "Gemma 3 270M, 1,107 rows of the Berkeley leaderboard",
                "python train.py --model gemma-3-270m.gguf --dataset rows.jsonl --max-length 1024 "
                "--accumulate 1 --lr 1e-3 --alpha 16 --dropout 0",
                RUN | {"model": "gemma-3-270m.gguf"},
            ),
            Line(
                "Gemma-2-2B, the course's recipe",
                f"{COURSE} --output runs/course",
                REAL | {"adapt": "course"},
                CARD,
            ),
            Line(
                "Gemma-2-2B, this project's recipe",
                f"{COURSE} --adapt rows --output runs/gemma",
                REAL | {"adapt": "rows"},
                CARD,
            ),
        ],
    ),
    Table(
        "One optimizer step",
        {"this project": {"impl": "ours"}, "Transformers + PEFT": {"impl": "peft"}},
        tell_steps,
        [
            step("tiny", "fp32", "4 x 512", 2, kinds=CPU),
            step("tiny", "bf16", "4 x 512", 2, kinds=CPU),
            step("100m", "bf16", "1 x 512", kinds=CPU),
            step("2b", "bf16", "1 x 512", kinds=("CPU", "Mac")),
            step("2b", "bf16", "4 x 1024", kinds=CARD),
            step("2b", "bf16", "4 x 1500", 3, kinds=CARD),
            step("2b", "fp16", "1 x 1500", 3, kinds=CARD),
        ],
    ),
]


def read_rows(folder: Path) -> list[Row]:
    """Every row of the folder and those in it. Raises: ValueError for a line that is none."""
    rows = []
    for file in sorted(folder.rglob("*.jsonl")):
        for number, text in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
            try:
                row = json.loads(text)
            except ValueError as error:
                place = f"{file.relative_to(folder)}:{number}"
                raise ValueError(f"{place}: expected a row of JSON, got {error}") from None
            rows.append(row)
    return [row for row in rows if "error" not in row]


def lines_of(table: Table, line: Line, rows: Sequence[Row]) -> Iterator[list[str]]:
    """The cells for each device on which the line was measured, or for the kind where on none."""

    def has(row: Row, wanted: Row) -> bool:
        return all(row.get(name) == value for name, value in wanted.items())

    measured = [row for row in rows if has(row, line.wanted)]
    for kind in line.kinds:
        names = [str(row.get("device")) for row in measured]
        names = [name for name in dict.fromkeys(names) if name.startswith(KINDS[kind])]
        for name in names or [kind]:
            cells = []
            for wanted in table.columns.values():
                found = [row for row in measured if has(row, wanted | {"device": name})]
                cells.append(table.tell(found) if found else NOT_MEASURED)
            yield [line.what, name, *cells]


def page(rows: Sequence[Row]) -> str:
    """The whole page."""
    parts = [INTRODUCTION]
    for table in TABLES:
        parts.append(f"## {table.title}")
        head = ["what", "device", *table.columns]
        found = [cells for line in table.lines for cells in lines_of(table, line, rows)]
        written = [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *found)]
        parts.append("\n".join(written))
        commands = [f"{line.command}  # {line.what}" for line in table.lines]
        parts.append("\n".join(["```bash", *commands, "```"]))
    return "\n\n".join(parts) + "\n"


INTRODUCTION = """# What to expect

Written by `python -m benchmarks.expected` from the rows in `benchmarks/results/`, which have
device, versions and commit; nothing here is typed in by hand. Several measurements are given by the
smallest and the largest. Where nothing was measured, the page says so. `python train.py --check`
says how long a run would take on your machine, and what memory; the commands below each table
measure its lines.

A run's minutes are those of its steps and evaluations. Held-out loss is per learned token, in nats.
The percentages are exact calls on conversations that are never trained on: the first reply has the
right name and exactly the right values in every call, and none too many; names are held to those on
offer, the required ones among them. A step is the median of its rounds."""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser("Writes docs/expected-results.md from the rows of measurements.")
    parser.prog = "python -m benchmarks.expected"
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the rows")
    parser.add_argument("--page", type=Path, default=PAGE, help="file to write")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 for a wrong input."""
    args = parse_args(argv)
    try:
        write_text(args.page, page(read_rows(args.results)))
    except (*USER_ERRORS, OSError) as error:
        print(f"expected: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
