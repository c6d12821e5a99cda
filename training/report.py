"""What a run says while it lasts and how it ended: evaluations, breaks, the picture of its loss."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors import SafetensorError

from common.atomic import replace_file
from common.cli import USER_ERRORS
from common.screen import Screen
from common.sharding import unsharded
from lora.inject import trainable_parameters
from training.opening import in_words
from training.run import Run
from training.run_folder import (
    PICTURE,
    RUN,
    append_metrics,
    checkpoint_left,
    read_metrics,
)


def describe_evaluation(line: dict[str, Any]) -> list[str]:
    """What an evaluation found, if this line of metrics holds one; the end of a run has it all."""
    if line.get("eval_loss") is None:
        return []
    accuracy = line.get("tool_call_accuracy")
    count = accuracy["n"]["overall"] if accuracy else 0
    shares = f"; exact calls {100 * accuracy['overall']:.0f}% of {count} rows" if accuracy else ""
    meaning = "" if line["step"] else " (the end of the run explains both)"
    return [f"step {line['step']}: held-out loss {line['eval_loss']:.3f}{shares}{meaning}"]


def describe_rest(run: Run, line: dict[str, Any]) -> list[str]:
    """After the first evaluation, how long the rest of the run will take."""
    if line["step"] or not line.get("eval_seconds") or not run.ranks.is_first:
        return []
    # From the record, as all that is said about a run: a pass of its first step was timed.
    per_step = json.loads((run.output / RUN).read_text(encoding="utf-8")).get("seconds_per_step")
    if per_step is None:
        return []
    # The last evaluation scores more rows; its losses take as long as these.
    calls, accuracy = run.args.eval_calls, line.get("tool_call_accuracy")
    scored = len(run.data.held_out[:calls])
    asides = len(run.data.questions[:calls]) + len(run.data.shown)
    share = (scored + asides) / (accuracy["n"]["overall"] + asides) if accuracy else 1.0
    last = line["eval_seconds"] * share
    return [
        f"this test took {in_words(line['eval_seconds'])}; {in_words(per_step * run.total_steps)} "
        f"of training and {in_words(last)} of the last test are to come"
    ]


def is_sound(line: dict[str, Any]) -> bool:
    """False where loss or gradient is not finite and no scaler has skipped the step."""
    held_out = line.get("eval_loss")
    return (
        math.isfinite(line["loss"])
        and (math.isfinite(line["grad_norm"]) or bool(line.get("skipped")))
        and (held_out is None or math.isfinite(held_out))
    )


def has_broken(run: Run, line: dict[str, Any]) -> bool:
    """True after a step with which a run cannot go on or end, on whichever rank it shows.

    A loss is taken before its step moves the weights: without a look at these the last step's
    damage would be saved as an adapter. A run whose every step a scaler has skipped has learned
    nothing that could be saved.
    """
    norm = unsharded(torch.nn.utils.get_total_norm(trainable_parameters(run.model).values()))
    is_whole = math.isfinite(norm.item()) and is_sound(line)
    # A skipped step leaves AdamW's counters at 0, or without any where it is not the fused one.
    is_idle = line["step"] == run.total_steps and not any(
        state["step"].item() for state in run.optimizer.state.values()
    )
    return bool(run.ranks.total(torch.tensor(float(is_idle or not is_whole))))


def stop_if_broken(run: Run, line: dict[str, Any]) -> None:
    """Raises: FloatingPointError where the last evaluation found a loss that is not finite."""
    if line.get("eval_loss") is not None and not math.isfinite(line["eval_loss"]):
        raise FloatingPointError(
            describe_break({"loss": 0.0, "grad_norm": 0.0, **line}, run.precision.name)
        )


def describe_break(line: dict[str, Any], precision: str) -> str:
    """What went wrong in a step and what to try."""
    advice = "a lower --lr" + (", or --dtype bf16 or fp32" if precision == "fp16" else "")
    numbers = f"loss {line['loss']}, gradient norm {line['grad_norm']}"
    if line.get("skipped"):
        numbers = "every step so far was skipped, so nothing has been learned"
    elif math.isfinite(line["loss"]) and math.isfinite(line["grad_norm"]):
        numbers += ", but the weights or the held-out loss are not finite any more"
    return f"step {line['step']}: {numbers}; try {advice}"


def record(run: Run, line: dict[str, Any], console: Console) -> None:
    """Appends one line of metrics; prints what an evaluation found."""
    if run.ranks.is_first:
        append_metrics(run.output, line)
    run.logger.log(line)
    for sentence in [*describe_evaluation(line), *describe_rest(run, line)]:
        console.print(sentence, soft_wrap=not console.is_terminal)


def describe_end(output: Path, dataset: list[str] | None, seconds: float) -> str:
    """One sentence for the end of a run: how long it took, where the adapter is, and a command to
    try it with.

    dataset: the run's own rows, whose tools nobody knows here; None for the embedded ones.
    """
    question = '--tools embedded/shown/tools.py --prompt "Get the hours of the pharmacy in Rome."'
    if dataset:
        question = "--tools FILE.py, a file whose functions are the tools that your rows are about"
    return (
        f"done; this took {in_words(seconds)}: adapter in {output}, its curve in "
        f"{output / PICTURE}; try: python infer.py --adapter {output} {question}"
    )


def draw_loss(folder: Path) -> None:
    """Draws `loss.png` from `metrics.jsonl`.

    Every step's loss, and each evaluation's held-out loss and exact-call accuracy.
    """
    from matplotlib.figure import Figure  # not pyplot: no window, no global state

    lines = read_metrics(folder)
    figure = Figure(figsize=(7, 4), layout="constrained")
    axis = figure.subplots()
    steps, losses = _series(lines, lambda line: line.get("loss"))
    mark = "." if len(steps) < 2 else ""  # a line needs two points to be seen
    axis.plot(steps, losses, lw=1, marker=mark, label="training")
    steps, losses = _series(lines, lambda line: line.get("eval_loss"))
    if steps:
        # Points alone: between two evaluations nothing was measured, a line would invent it.
        axis.plot(steps, losses, "o", clip_on=False, zorder=3, label="held out")
    axis.set(xlabel="optimizer step", ylabel="loss per supervised token (nats)", ylim=(0, None))
    axis.grid(alpha=0.3)
    steps, shares = _series(lines, _overall)
    if steps:
        style: dict[str, Any] = {"color": "tab:green", "label": "exact calls"}
        other = axis.twinx()
        other.plot(steps, [100 * share for share in shares], "s", clip_on=False, **style)
        other.set(ylabel="exact calls, held out (%)", ylim=(-2, 102))
        axis.plot([], [], "s", **style)  # one legend for both axes
    axis.legend(loc="center right")  # the curves begin and end in the corners
    # Replaced in one step, as all files of a run are: a viewer may have the old one open.
    replace_file(folder / PICTURE, lambda path: figure.savefig(path, dpi=120, format="png"))
    # A figure, its axes and its canvas point at one another and wait for Python's rare collection;
    # the drawn lines, 16 MB for 3,000 steps, do not have to.
    figure.clear()


def _overall(line: dict[str, Any]) -> float | None:
    accuracy = line.get("tool_call_accuracy") or {}
    return accuracy.get("overall")


def _series(
    lines: list[dict[str, Any]], value: Callable[[dict[str, Any]], float | None]
) -> tuple[list[int], list[float]]:
    """The steps of the lines that have a value, and the values."""
    points = [(line["step"], value(line)) for line in lines]
    kept = [(step, y) for step, y in points if y is not None]
    return [step for step, _ in kept], [y for _, y in kept]


def explain_stop(error: BaseException, output: Path | None, is_quiet: bool) -> int:
    """One sentence on standard error for what ended a run; returns the exit code.

    Raises: `error` itself where it is none of those that a user or a machine can cause.
    """
    errors = Screen(is_error=True)
    errors.quiet, errors.soft_wrap = is_quiet, True
    if isinstance(error, USER_ERRORS):
        errors.print(f"train.py: {error}")
        return 2
    # Below, nothing is the user's mistake: the sentence says what there is to go on from.
    left = checkpoint_left(output)
    if isinstance(error, KeyboardInterrupt):
        errors.print(f"interrupted; {left}")
        return 130
    if _is_out_of_memory(error):
        advice = "--checkpoint-activations selective or full, a smaller --micro-batch or --rank"
        errors.print(f"train.py: out of memory ({error}); try {advice} or --max-length; {left}")
    elif isinstance(error, FloatingPointError | OSError | SafetensorError):
        where = "" if output is None or str(output) in str(error) else f"{output}: "
        errors.print(f"train.py: {where}{error}; {left}")
    else:
        raise error
    return 1


def _is_out_of_memory(error: BaseException) -> bool:
    """True on every device: a CPU's allocator raises a plain RuntimeError."""
    is_cpu = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    return is_cpu or isinstance(error, torch.OutOfMemoryError | MemoryError)
