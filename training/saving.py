"""A run written down and taken up again: the checkpoint, then what other programs read."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from common.device import rng_state, set_rng_state
from common.products import used_products
from lora.adapter import save_adapter
from training import checkpoint, run_folder
from training.card import write_card
from training.checkpoint import ANEW
from training.report import draw_loss, record
from training.run import Run
from training.settings import fingerprint


def save(run: Run, step: int, line: dict[str, Any]) -> None:
    """Writes the checkpoint first, because the rest can be made from it again: the adapter, the
    tokenizer, the picture and the card.

    `line` is the step's line of metrics, kept until the run's last one has its evaluation.
    """
    is_writer = run.ranks.is_first
    checkpoint.save_checkpoint(
        run.output / run_folder.CHECKPOINT,
        run.model,
        optimizer=run.optimizer,
        rng=run.ranks.gather(rng_state(run.device)),
        # `fingerprint` is compared before anything is loaded, the rest while it is.
        counters={
            "step": step,
            "total_steps": run.total_steps,
            "scaler": run.scaler.state_dict(),
            "precision": run.precision.name,
            "products": used_products(),
            "fingerprint": fingerprint(run.args),
            "rows": run.data.digest,
            "base": run.base.result() if run.base else None,
            "line": line,
        },
        is_writer=is_writer,
    )
    publish(run)


def publish(run: Run) -> None:
    """Writes the adapter, the tokenizer, the picture and the card, as the model is now."""
    save_adapter(run.model, run.output, run.config, run.ranks.is_first)
    if run.ranks.is_first:
        run.data.tokenizer.save(run.output)
        _show_metrics(run.output)


def record_last(run: Run, line: dict[str, Any], console: Console) -> None:
    """Records the last step's line and shows its evaluation in the picture and the card.

    The last thing of a run: where the line is there, --resume finds nothing left to do.
    """
    record(run, line, console)
    if run.ranks.is_first:
        _show_metrics(run.output)


def _show_metrics(folder: Path) -> None:
    draw_loss(folder)
    write_card(folder)


def begin(run: Run, say: Callable[[str], None]) -> tuple[int, dict[str, Any] | None]:
    """Takes a run up again, or clears the folder for it; returns what `resume` does, or (0, None).

    Only when everything has been read: a wrong input must not cost the earlier run.
    """
    if run.args.resume:
        return resume(run, say)
    if run.ranks.is_first and run.args.overwrite:
        run_folder.clear_run(run.output)
    return 0, None


def resume(run: Run, say: Callable[[str], None]) -> tuple[int, dict[str, Any] | None]:
    """Puts the run back to its checkpoint; returns the last step that was done, and its line of
    metrics where that has not been written.

    Raises: ValueError for a checkpoint of another precision, other rows, another base or model.
    """
    folder = run.output / run_folder.CHECKPOINT
    counters = checkpoint.read_counters(folder)
    step = counters["step"]
    # The first rank alone has read the base; all must know, or the others wait for ever.
    problem = run.ranks.share(_find_change(run, counters) if run.ranks.is_first else "")
    if problem:
        raise ValueError(f"{run.output}: {problem}")
    states = checkpoint.load_checkpoint(folder, run.model, run.optimizer)
    # Of several ranks each has its own generators: the states carry the rank's number.
    mine = {name.removesuffix(f".{run.ranks.index}"): state for name, state in states.items()}
    try:
        run.scaler.load_state_dict(counters["scaler"])
        # Last, after everything that may draw: dropout must go on where it stopped.
        set_rng_state(mine, run.device)
    except (KeyError, TypeError, RuntimeError) as error:
        raise ValueError(
            f"{folder}: generator or scaler states do not fit ({error}); {ANEW}"
        ) from None
    planned = counters.get("total_steps", step)
    if planned != run.total_steps:
        say(
            f"{planned} steps were planned and are done, {run.total_steps} are to be: warmup and "
            "cosine now span all of them, so the learning rate jumps up again at the next step"
        )
    return step, _take_up_files(run, step, counters.get("line"))


def _find_change(run: Run, counters: dict[str, Any]) -> str:
    """What is no longer as it was when the checkpoint was made; empty if nothing."""
    then, now = counters.get("precision", run.precision.name), run.precision.name
    if then != now:
        return (
            f"was trained in {then}, this device would go on in {now}; "
            f"give --dtype {then}, or {ANEW}"
        )
    if counters["step"] > run.total_steps:
        return (
            f"{counters['step']} steps are done, but the flags ask for {run.total_steps}; "
            "give a larger --max-steps or --epochs"
        )
    # Checkpoints from before there were checksums have none.
    if counters.get("rows", run.data.digest) != run.data.digest:
        rows = ", ".join(run.args.dataset or ["the embedded data set"])
        return f"the rows of {rows} are not those that it was trained on; put them back, or {ANEW}"
    base = run.base.result() if run.base else None
    if run.base and counters.get("base", base) != base:
        where = run.base.folder
        return f"the base in {where} is not the one that was trained on; put it back, or {ANEW}"
    return ""


def _take_up_files(run: Run, step: int, line: dict[str, Any] | None) -> dict[str, Any] | None:
    """Brings metrics and adapter to the checkpoint's step; returns a line that is missing still."""
    missing = ""
    if run.ranks.is_first and not run_folder.keep_metrics_until(run.output, step) and line:
        missing = json.dumps(line)
        if step < run.total_steps:  # the run was made longer: its old end is a step like others
            run_folder.append_metrics(run.output, line)
            run.logger.log(line)
            missing = ""
    # A stop may have come between the checkpoint and the adapter, or a disk been full.
    publish(run)
    missing = run.ranks.share(missing)
    return json.loads(missing) if missing else None
