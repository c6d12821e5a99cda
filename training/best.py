"""The adapter of the best evaluation, kept beside the last one under `best/`."""

import math
from pathlib import Path
from typing import Any

import torch

from lora.adapter import save_adapter
from training.run import Run
from training.run_folder import BEST, BEST_RECORD, read_best, write_json


def keep_best(run: Run, line: dict[str, Any]) -> None:
    """With --eval-every, writes `best/` if this line's held-out loss is the lowest so far.

    Every rank must call this, as it must `save_adapter`: they all see the same loss.
    """
    loss, folder = line.get("eval_loss"), run.output / BEST
    if not run.args.eval_every or loss is None or not math.isfinite(loss):
        return
    # Read from the file, so that a resumed run knows the best of the steps before.
    path = folder / BEST_RECORD
    if _lowest(path) <= loss:
        return
    run.ranks.total(torch.tensor(0.0))  # nobody writes before all have read
    folder.mkdir(parents=True, exist_ok=True)
    save_adapter(run.model, folder, run.config, run.ranks.is_first)
    if run.ranks.is_first:
        run.data.tokenizer.save(folder)
        accuracy = line.get("tool_call_accuracy")
        write_json(path, {"step": line["step"], "eval_loss": loss, "tool_call_accuracy": accuracy})


def _lowest(path: Path) -> float:
    """The loss that the record names; infinite without one that can be read."""
    record = read_best(path)
    return record[1] if record else math.inf
