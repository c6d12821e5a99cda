"""Draws the pictures of README.md and docs/ from real objects: `python -m benchmarks.pictures`.

Nothing in them is drawn by hand: the mask is that of a rendered row, the pack's is what attention
gets, the bytes are counted operator by operator, and the replies and accuracies are rows of
`benchmarks/results/`. The count needs PEFT (`pip install -e '.[dev]'`).

Shapes: M rows (tokens), T positions.
"""

import argparse
import json
import sys
import textwrap
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from agent.loading import EMBEDDED_MODEL
from benchmarks.lora_cases import Case, Groups
from data.chat import Example, render
from data.packing import collate, pack_examples
from data.schema import parse_row
from data.tokenizer import Tokenizer
from lora.layer import LoRALinear
from model.attention import attention_mask
from training.finale import KINDS, RIGHT, describe_verdict

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
FOLDER = ROOT / "docs" / "pictures"
GREEN, GREY, RED, BLUE = "#1a7f37", "#57606a", "#b42318", "#0969da"
DPI = 130
CUT_LINES = 4  # of a reply that never ends
# Of a drawn pack: it is shorter than the embedded model's window (1024), and than Gemma-2's (4096).
WINDOW = 256
RANK = 16  # of the counted layouts; a group of three linears has three times as many


def rows_of(name: str) -> list[dict[str, Any]]:
    """The rows of a file of results."""
    lines = (RESULTS / name).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def save(figure: Figure, path: Path) -> None:
    """Writes a picture on white: pages are read on dark screens too."""
    figure.savefig(path, dpi=DPI, facecolor="white")


def examples(tokenizer: Tokenizer, path: Path, count: int) -> list[Example]:
    """The first rows of a file, rendered."""
    lines = path.read_text(encoding="utf-8").splitlines()[:count]
    return [render(parse_row(line), tokenizer) for line in lines]


def draw_mask(path: Path, width: int = 96) -> None:
    """Every token of a conversation in a box: green is what the model learns to write."""
    tokenizer = Tokenizer.from_pretrained(EMBEDDED_MODEL)
    (example,) = examples(tokenizer, ROOT / "data" / "examples" / "course.jsonl", 1)
    # (column, line, text, is trained) of each token; a line end is shown, and then obeyed
    placed: list[tuple[int, int, str, bool]] = []
    column = line = 0
    for id, is_trained in zip(example.tokens, example.trainable, strict=True):
        piece = tokenizer.decode([id])
        text = piece.replace("\n", "\u21b5")
        if column + len(text) > width:
            column, line = 0, line + 1
        placed.append((column, line, text, is_trained))
        column = 0 if piece.endswith("\n") else column + len(text)
        line += piece.endswith("\n")
    figure = Figure(figsize=(10, 0.27 * (line + 3)), layout="constrained")
    axis = figure.subplots()
    for column, number, text, is_trained in placed:
        box: dict[str, Any] = {
            "facecolor": "#d2f4d9" if is_trained else "#f3f4f6",
            "edgecolor": "white",
            "lw": 1.2,
        }
        axis.barh(number, len(text), left=column, height=0.9, **box)
        style: dict[str, Any] = {"color": GREEN if is_trained else GREY, "fontsize": 11}
        style["family"] = "monospace"
        for place, letter in enumerate(text):
            axis.text(column + place + 0.5, number, letter, ha="center", va="center", **style)
    axis.set(xlim=(0, width), ylim=(line + 0.6, -0.6))
    axis.axis("off")
    count = example.num_supervised
    title = f"green: the {count} of {len(example.tokens)} tokens that the model learns to write"
    axis.set_title(title, fontsize=10, loc="left")
    save(figure, path)


def draw_pack(path: Path, length: int = 1500) -> None:
    """Who sees whom in one pack, in both kinds of layers."""
    tokenizer = Tokenizer.from_pretrained(EMBEDDED_MODEL)
    found = examples(tokenizer, ROOT / "embedded" / "rows" / "train.jsonl", 24)
    packs = pack_examples(found, length).packs
    batch = collate([max(packs, key=len)], tokenizer.pad_id, length)
    figure = Figure(figsize=(10, 5.2), layout="constrained")
    for axis, limit in zip(figure.subplots(1, 2), (None, WINDOW), strict=True):
        places, documents = batch.positions, batch.documents
        mask = attention_mask(places, places, documents, documents, limit)[0, 0]  # (T, T)
        axis.imshow(np.where(mask, 0, 1), cmap="gray", vmin=-0.4, vmax=1, interpolation="nearest")
        edges = [i for i in range(1, length) if documents[0, i] != documents[0, i - 1]]
        for edge in edges:
            axis.axvline(edge, color=BLUE, lw=0.7)
            axis.axhline(edge, color=BLUE, lw=0.7)
        kind = "full attention" if limit is None else f"a window, here of {limit} keys"
        axis.set_title(f"layers with {kind}", fontsize=11)
        axis.set(xlabel="key, by its place in the pack", ylabel="query that looks at it")
    count = int(batch.documents.max()) + 1
    title = (
        f"one pack of {count} conversations: grey is seen, white is not; the last square is padding"
    )
    figure.suptitle(title, fontsize=11)
    save(figure, path)


class Traffic(TorchDispatchMode):
    """Counts the bytes of activations, masks included, that operators read and write.

    Weights, factors, and all that is as narrow as a rank are left out.
    """

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.least, self.bytes = 128 * rows, 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        # A view shares its operand's memory and moves nothing; in-place operators write it
        aliases = [item.alias_info for item in func._schema.returns]
        if not any(alias is not None and not alias.is_write for alias in aliases):
            for item in torch.utils._pytree.tree_leaves((args, kwargs, result)):
                if isinstance(item, Tensor) and self._counts(item):
                    self.bytes += item.numel() * item.element_size()
        return result

    def _counts(self, tensor: Tensor) -> bool:
        is_weight = tensor.dim() == 2 and min(tensor.shape) >= 1024
        is_narrow = any(side in (RANK, 2 * RANK, 3 * RANK) for side in tensor.shape)
        return tensor.numel() >= self.least and not (is_weight or is_narrow)


def traffic(case: Case, groups: Groups, *, autocast: bool = False) -> float:
    """Bytes a token of activations, forward and backward, in all linears of the case."""
    with Traffic(case.rows) as counted:
        outputs: list[Tensor] = []
        gradients: list[Tensor] = []
        for x, linears, dys in zip(case.inputs, groups, case.gradients, strict=True):
            with torch.autocast("cpu", case.dtype, enabled=autocast):
                if isinstance(linears[0], LoRALinear):
                    outputs += linears[0].forward_group(x, linears)
                else:
                    outputs += [linear(x) for linear in linears]
            gradients += dys
        torch.autograd.backward(outputs, gradients)
    return counted.bytes / case.rows


LAYOUTS: dict[str, tuple[str, Callable[[Case], Groups]]] = {
    "fused_torch": ("fused, plain PyTorch (lora/steps.py)", lambda case: case.ours("torch")),
    "reference": ("operator by operator (lora/reference.py)", lambda case: case.ours("reference")),
    "peft_16bit": ("PEFT, 16-bit adapters", lambda case: case.peft("peft_16bit")),
    "peft_autocast": ("PEFT under autocast", lambda case: case.peft("peft_autocast")),
    "peft_fp32": ("PEFT, float32 adapters", lambda case: case.peft("peft_fp32")),
}


def count_traffic(dropout: float, rows: int = 126) -> dict[str, float]:
    """Bytes a token beyond the frozen linears, for each layout of a Gemma-2-2B block, in bf16."""
    options: dict[str, Any] = {"rank": RANK, "dropout": dropout, "dtype": torch.bfloat16}
    case = Case("block", rows, device=torch.device("cpu"), **options)
    frozen = traffic(case, case.frozen())
    return {
        name: traffic(case, make(case), autocast=name == "peft_autocast") - frozen
        for name, (_, make) in LAYOUTS.items()
    }


def measured_times(dropout: float) -> dict[str, float]:
    """Forward and backward of each layout, the frozen linears alone being 1."""
    rows = rows_of("block_cpu_zen5.jsonl")
    rows = [row for row in rows if row["mode"] == "both" and row["dropout"] == dropout]
    times = {row["impl"]: row["p50_ms"] for row in rows}
    return {name: ms / times["frozen"] for name, ms in times.items()}


def draw_passes(path: Path) -> None:
    """What the low-rank path adds to a block: bytes as counted, and time as measured."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    names = list(LAYOUTS)
    for shift, dropout, color in ((-0.2, 0.0, GREEN), (0.2, 0.05, GREY)):
        found, times = count_traffic(dropout), measured_times(dropout)
        places = [place + shift for place in range(len(names))]
        style: dict[str, Any] = {"height": 0.38, "color": color, "label": f"dropout {dropout:g}"}
        bars = left.barh(places, [found[name] / 1e3 for name in names], **style)
        left.bar_label(bars, fmt=" {:,.0f} kB", fontsize=9)
        bars = right.barh(places, [times[name] for name in names], **style)
        right.bar_label(bars, fmt=" {:.2f} x", fontsize=9)
    left.set_yticks(range(len(names)), [words for words, _ in LAYOUTS.values()], fontsize=9.5)
    left.set(xlabel="bytes a token, beyond the frozen linears (counted)")
    left.set_xlim(0, 1.2 * left.get_xlim()[1])
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper right", ncols=2, fontsize=9)
    right.axvline(1, color="black", lw=0.8)
    right.set(xlabel="time, the frozen linears alone = 1 (measured)", xlim=(0.9, 1.95))
    left.invert_yaxis()
    save(figure, path)


def draw_kinds(path: Path) -> None:
    """Exact calls by kind in every evaluation of the default run."""
    rows = rows_of("default_curve.jsonl")
    figure = Figure(figsize=(8.5, 4.2), layout="constrained")
    axis = figure.subplots()
    marks = dict(zip(KINDS, "osD^*", strict=True))
    for kind, mark in marks.items():
        steps = [row["step"] for row in rows]
        shares = [100 * row["tool_call_accuracy"][kind] for row in rows]
        count = rows[-1]["tool_call_accuracy"]["n"][kind]
        label = f"{KINDS[kind]} ({count})"
        # Dotted: between two evaluations nothing was measured
        axis.plot(steps, shares, mark, ls=":", lw=1, ms=7, label=label, clip_on=False)
    first = rows[0]["tool_call_accuracy"]["n"]["overall"]
    axis.set(xlabel="optimizer step", ylabel="exact first replies (%)", ylim=(0, 102))
    axis.set_title(f"the default run; step 0 is measured on {first} rows", fontsize=10, loc="left")
    axis.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=1, fontsize=9)
    save(figure, path)


def draw_real(path: Path) -> None:
    """Exact calls of Gemma 3 270M before and after, by kind, a mark for each run."""
    runs: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for row in rows_of("gemma3_270m.jsonl"):
        runs.setdefault((row["total_steps"], row["seed"]), []).append(row)
    figure = Figure(figsize=(8.5, 3.4), layout="constrained")
    axis = figure.subplots()
    kinds = [kind for kind in KINDS if kind != "overall"]
    for mark, ((steps, seed), rows) in zip("osD^*", sorted(runs.items()), strict=False):
        first, last = rows[0]["tool_call_accuracy"], rows[-1]["tool_call_accuracy"]
        count = last["n"]["overall"]
        style: dict[str, Any] = {"marker": mark, "ls": "", "ms": 8, "clip_on": False}
        label = f"after {steps:,} steps, seed {seed} ({count} rows)"
        axis.plot([100 * last[k] for k in kinds], kinds, color=GREEN, label=label, **style)
        axis.plot([100 * first[k] for k in kinds], kinds, color=GREY, mfc="none", **style)
    axis.plot([], [], color=GREY, mfc="none", marker="o", ls="", label="before, on 24 rows")
    axis.set_yticks(range(len(kinds)), [KINDS[kind] for kind in kinds])
    axis.set(xlabel="exact first replies (%)", xlim=(-2, 102))
    axis.invert_yaxis()
    axis.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, fontsize=9)
    save(figure, path)


def reply_lines(reply: dict[str, Any]) -> list[str]:
    """A reply in lines; of one that never ended the first few."""
    found = [line for part in reply["reply"].splitlines() for line in textwrap.wrap(part, 44)]
    return [*found[:CUT_LINES], "... and so on"] if reply["tokens"] else found


def draw_replies(path: Path) -> None:
    """Replies of the default run before and after training, as they came."""
    rows = rows_of("default_run.jsonl")
    before, after = rows[0]["shown"], rows[-1]["shown"]
    wrap = partial(textwrap.wrap, break_long_words=False)  # of what is due: no name is broken
    height, cells = 0.0, []
    for old, new in zip(before, after, strict=True):
        question = [
            *wrap(old["question"], 30),
            *wrap("due: " + (", ".join(old["due"]) or "no call"), 32),
        ]
        texts = [reply_lines(r) for r in (old, new)]
        verdicts = [describe_verdict(r) for r in (old, new)]
        size = max(len(question), *(len(text) + 1 for text in texts)) + 0.8
        cells.append((height, question, texts, verdicts))
        height += size
    figure = Figure(figsize=(10.5, 0.178 * height + 0.35))
    axis = figure.add_axes((0.01, 0.01, 0.98, 0.98))
    axis.set(xlim=(0, 108), ylim=(height, -1.6))
    axis.axis("off")
    for left, title in ((0, "question"), (30, "before training"), (69, "after 165 steps")):
        axis.text(left, -0.9, title, fontsize=11, weight="bold", va="center")
    style: dict[str, Any] = {"fontsize": 9.5, "va": "top", "linespacing": 1.25}
    for top, question, texts, verdicts in cells:
        axis.axhline(top - 0.2, color="#d0d7de", lw=0.8)
        axis.text(0, top, "\n".join(question), **style)
        for left, text, verdict in zip((30, 69), texts, verdicts, strict=True):
            color = GREEN if verdict.startswith(RIGHT) else RED
            axis.text(left, top, verdict, color=color, weight="bold", **style)
            axis.text(
                left, top + 1, "\n".join(text), family="monospace", **style | {"fontsize": 8.6}
            )
    save(figure, path)


PICTURES: dict[str, Callable[[Path], None]] = {
    "before_after": draw_replies,
    "mask": draw_mask,
    "pack": draw_pack,
    "passes": draw_passes,
    "kinds": draw_kinds,
    "gemma3_270m": draw_real,
}


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code, which is 0."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pictures", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"of {', '.join(PICTURES)}; default: all"
    )
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder (default: docs/pictures)")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.names or PICTURES:
        PICTURES[name](args.out / f"{name}.png")
        print(args.out / f"{name}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
