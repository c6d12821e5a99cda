"""What a run shows to people: its plan, one reply before and after, and the picture of its loss."""

import gc
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from safetensors import SafetensorError

from common.atomic import replace_file, write_text
from common.cli import USER_ERRORS
from common.device import describe
from common.screen import Screen
from common.sharding import unsharded
from data.chat import Example
from data.masks import mask_text
from lora.inject import trainable_parameters
from training.run import Run
from training.run_folder import (
    BEST,
    BEST_RECORD,
    DROPPED,
    PICTURE,
    RUN,
    append_metrics,
    checkpoint_left,
    git_commit,
    read_best,
    read_metrics,
    versions,
    write_json,
)


def introduce(
    run: Run,
    examples: list[Example],
    counts: dict[str, Any],
    choices: dict[str, tuple[str, str]],
    console: Console,
) -> None:
    """Writes `run.json` and `dropped.jsonl`; prints one example and what is about to be trained.

    With --check nothing is written.
    """
    left_out = counts.pop("left_out")
    # All of it in one object: what is printed is read from what is written.
    packs, length = run.data.batches.packs, run.args.max_length
    filled = sum(len(example.tokens) for example in examples)
    content = {
        "arguments": vars(run.args),
        "device": describe(run.device),
        "choices": choices,
        "data": counts,
        "packing": {"packs": len(packs), "efficiency": filled / (len(packs) * length)},
        "trainable_parameters": sum(p.numel() for p in trainable_parameters(run.model).values()),
        "total_steps": run.total_steps,
        "versions": versions(),
        "git_commit": git_commit(),
    }
    if run.ranks.is_first and not run.args.check:
        write_json(run.output / RUN, content)
        if left_out:  # one line of JSON each: thousands of them are searched, not read
            lines = [json.dumps(line, ensure_ascii=False) + "\n" for line in left_out]
            write_text(run.output / DROPPED, "".join(lines))
    console.print(mask_text(examples[0], run.data.tokenizer), soft_wrap=True)
    for sentence in [*describe_run(content), *describe_losses(content)]:
        console.print(sentence, soft_wrap=True, markup=False)


def describe_run(run: dict[str, Any]) -> list[str]:
    """The content of `run.json` as a few sentences for the start of a run."""
    reading, rendering, packing = run["data"]["reading"], run["data"]["rendering"], run["packing"]
    tokens, supervised = rendering["tokens"], rendering["supervised_tokens"]
    choices = [
        f"{name.replace('_', ' ')}: {choice} ({reason})"
        for name, (choice, reason) in run["choices"].items()
    ]
    return [
        "above: one training row; green is what the model learns to write. In all "
        f"{supervised:,} of {tokens:,} tokens are supervised ({100 * supervised / tokens:.0f}%)",
        f"rows: {reading['rows']} read, {reading['dropped']} unreadable, "
        f"{reading['repaired_rows']} repaired, {reading['bad_calls']} bad calls, "
        f"{rendering['dropped_overlong']} too long, "
        f"{rendering['truncated']} cut, {run['data']['held_out_rows']} held out; "
        f"{packing['packs']} packs, {100 * packing['efficiency']:.0f}% full",
        f"tools: offered in {reading['rows_with_tools']} rows, {reading['calls']} calls made",
        f"device: {run['device']}; {run['trainable_parameters']:,} parameters train in "
        f"{run['total_steps']} steps",
        "; ".join(choices),
    ]


def describe_losses(run: dict[str, Any]) -> list[str]:
    """What the data lost or lacks, with the first reasons; [] where there is nothing to say."""
    reading, sentences = run["data"]["reading"], []
    if reading["dropped"]:
        sentences.append(f"{reading['dropped']} rows could not be read; the first of them:")
        sentences += reading["reasons"]
    if reading["bad_calls"]:
        what = "left out" if reading["dropped_for_calls"] else "trained on all the same"
        count = f"{reading['bad_calls']} calls do not fit their tools"
        sentences.append(f"{count} ({what}; see --bad-calls); the first of them:")
        sentences += reading["bad_call_reasons"]
    if sentences and not run["arguments"].get("check"):
        sentences.append(f"all of them are in {DROPPED}")
    if not reading["calls"]:
        lack = "no row makes a call" if reading["rows_with_tools"] else "no row offers a tool"
        sentences.append(
            f"warning: {lack}, so no calling can be learned; calls are read from tool_calls, from "
            "<tool_call> tags and in the forms of data/examples/"
        )
    if run["data"]["rows_in_both"]:
        count = run["data"]["rows_in_both"]
        sentences.append(f"warning: {count} rows of --eval-dataset are trained on too")
    return sentences


def describe_evaluation(line: dict[str, Any]) -> list[str]:
    """What an evaluation found, if this line of metrics holds one."""
    if line.get("eval_loss") is None:
        return []
    accuracy, questions = line.get("tool_call_accuracy"), line.get("questions_accuracy")
    shares = f"; exact calls: {describe_shares(accuracy)}" if accuracy else ""
    sentences = [f"step {line['step']}: held-out loss {line['eval_loss']:.3f}{shares}"]
    if questions:
        sentences.append(f"questions written by hand: {describe_shares(questions)}")
    return sentences


def describe_shares(accuracy: dict[str, Any]) -> str:
    """Accuracies as one line of text, each share with its number of conversations."""
    kinds = [kind for kind, count in accuracy["n"].items() if count]
    return ", ".join(f"{k} {100 * accuracy[k]:.0f}% of {accuracy['n'][k]}" for k in kinds)


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
    damage would be saved as an adapter. A run whose every step a scaler has skipped has no state of
    AdamW, and nothing to save.
    """
    norm = unsharded(torch.nn.utils.get_total_norm(trainable_parameters(run.model).values()))
    is_whole = math.isfinite(norm.item()) and is_sound(line)
    is_idle = line["step"] == run.total_steps and not run.optimizer.state
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
    for sentence in describe_evaluation(line):
        console.print(sentence, soft_wrap=True)


def show_sample(folder: Path, console: Console) -> None:
    """The reply to the run's sample question before and after training, side by side.

    Prints nothing where only one evaluation made a sample.
    """
    samples = [line["sample"] for line in read_metrics(folder) if line.get("sample")]
    if len(samples) > 1:
        table = Table("before", "after", title=Text(samples[0]["question"]))
        table.add_row(Text(samples[0]["reply"]), Text(samples[-1]["reply"]))
        console.print(table)
    best = read_best(folder / BEST / BEST_RECORD)
    if best:
        found = f"step {best[0]}, held-out loss {best[1]:.3f}"
        console.print(
            f"best evaluation: {found}; its adapter is in {folder / BEST}", soft_wrap=True
        )


def describe_end(output: Path) -> str:
    """One sentence for the end of a run: where the adapter is, and a command to try it with."""
    question = '--tools agent/example_tools.py --prompt "What is 12 times 8.25?"'
    return f"done: adapter in {output}; try: python infer.py --adapter {output} {question}"


def draw_loss(folder: Path) -> None:
    """Draws `loss.png` from `metrics.jsonl`.

    Every step's loss, and each evaluation's held-out loss and exact-call accuracy.
    """
    _draw(folder)
    # A figure, its axes and its canvas point at one another: with 16 MB for 3,000 steps each, they
    # would wait for Python's rare full collection, and a long run would grow by 150 MB meanwhile.
    gc.collect()


def _draw(folder: Path) -> None:
    from matplotlib.figure import Figure  # not pyplot: no window, no global state

    lines = read_metrics(folder)
    figure = Figure(figsize=(7, 4), layout="constrained")
    axis = figure.subplots()
    steps, losses = _series(lines, lambda line: line.get("loss"))
    mark = "." if len(steps) < 2 else ""  # a line needs two points to be seen
    axis.plot(steps, losses, lw=1, marker=mark, label="training")
    steps, losses = _series(lines, lambda line: line.get("eval_loss"))
    if steps:
        axis.plot(steps, losses, "o-", label="held out")
    axis.set(xlabel="optimizer step", ylabel="loss per supervised token (nats)", ylim=(0, None))
    axis.grid(alpha=0.3)
    steps, shares = _series(lines, _overall)
    if steps:
        style: dict[str, Any] = {"color": "tab:green", "label": "exact calls"}
        other = axis.twinx()
        other.plot(steps, [100 * share for share in shares], "s--", **style)
        other.set(ylabel="exact calls, held out (%)", ylim=(-2, 102))
        axis.plot([], [], "s--", **style)  # one legend for both axes
    axis.legend(loc="center right")  # the curves begin and end in the corners
    # Replaced in one step, as all files of a run are: a viewer may have the old one open.
    replace_file(folder / PICTURE, lambda path: figure.savefig(path, dpi=120, format="png"))


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
