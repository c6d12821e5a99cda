"""`train.py --check`: what a run would need, from a few of its own steps that are thrown away.

Separate because nothing of it belongs to a run: no file is written, and the steps change only the
copy of the weights in this process's memory.
"""

from collections.abc import Callable
from typing import Any

from rich.console import Console

from common.screen import has_colour
from data.masks import mask_text
from lora.inject import trainable_parameters
from training.opening import in_digits, in_words
from training.run import Run

STEPS = 3  # that are timed
FEW_SCORED = 20  # rows; the share of so few moves by 5% with each
WARMUP = 1  # before them: it compiles kernels and fills caches


def check(run: Run, step: Callable[[Run, int], dict[str, Any]], console: Console) -> None:
    """Shows a second row (the opening has shown the first), times steps, and says what is needed.

    step: `train_step`, which takes the run and the step's number.
    """
    shown = run.data.sample
    rows = (row for pack in run.data.batches.packs for row in pack)
    # The sample may be only the beginning of its row, and a row may stand twice
    others = [row for row in rows if row.where != shown.where and row.tokens != shown.tokens]
    marked = not has_colour(console)
    if others and not run.args.quiet:
        shortest = min(others, key=lambda row: len(row.tokens))  # it shows what a long one hides
        console.print(mask_text(shortest, run.data.tokenizer, marked=marked), soft_wrap=True)
    lines = [step(run, number) for number in range(1, min(WARMUP + STEPS, run.total_steps) + 1)]
    timed = lines[WARMUP:] or lines
    seconds = sum(line["tokens"] / line["tokens_per_second"] for line in timed) / len(timed)
    for sentence in describe_need(run, seconds, lines[-1]):
        console.print(sentence, soft_wrap=True, markup=False)


def describe_need(run: Run, seconds: float, line: dict[str, Any]) -> list[str]:
    """What the whole run would take; seconds: of one step; line: a step's metrics."""
    size = 4 * sum(p.numel() for p in trainable_parameters(run.model).values()) / 1e6
    memory = line["peak_memory_bytes"]
    peak = f"{memory / 1e9:.1f} GB of memory at the peak" if memory else "memory not measured here"
    batches, scored = run.data.batches, min(len(run.data.held_out), run.args.eval_calls)
    passes = batches.num_shown(run.total_steps) / sum(map(len, batches.packs))
    few = (
        f"check: the calls of {scored} held-out rows are scored, and a share of fewer than "
        f"{FEW_SCORED} says little; see --eval-fraction, --eval-dataset and --eval-calls"
    )
    return [
        f"check: {run.total_steps} steps of {seconds:.1f} s ({line['tokens_per_second']:.0f} "
        f"tokens/s) take {in_words(seconds * run.total_steps)}, evaluations not counted; {peak}",
        f"check: these steps are {in_digits(passes)} passes over the rows (--epochs, --max-steps)",
        *([few] if scored < FEW_SCORED else []),
        f"check: the adapter would take {size:.0f} MB, the checkpoint {3 * size:.0f} MB",
        "check: nothing was trained and nothing was written; leave --check out to begin",
    ]
