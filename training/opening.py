"""What a run says before it begins: what will happen, on what, how long it takes; one conversation
with its mask; and the choices behind them."""

import json
import time
from typing import Any

from rich.console import Console
from rich.text import Text

from common.atomic import write_text
from common.device import describe, rng_state, set_rng_state
from common.screen import has_colour
from data.masks import legend, mask_text
from lora.inject import trainable_parameters
from training.run import Run, StepLoss
from training.run_folder import DROPPED, RUN, git_commit, versions, write_json

OWN_BASE = (
    "the small Gemma-2 of this repository (pretrained here on tools and requests in other formats, "
    "not Google's weights)"
)
OWN_ROWS = "this repository's own, from requests that were written by hand"
LONG_PROBE = 2.0  # seconds; after a first pass that takes longer there is no second one


def introduce(
    run: Run, counts: dict[str, Any], choices: dict[str, tuple[str, str]], console: Console
) -> None:
    """Writes `run.json` and `dropped.jsonl`; prints what is about to happen and one conversation.

    With --check nothing is written.
    """
    left_out = counts.pop("left_out")
    # All of it in one object: what is printed is read from what is written.
    batches, length = run.data.batches, run.args.max_length
    packs = batches.packs
    trained = sum(p.numel() for p in trainable_parameters(run.model).values())
    content: dict[str, Any] = {
        "arguments": vars(run.args),
        "device": describe(run.device),
        "choices": choices,
        "data": counts,
        "packing": {
            "packs": len(packs),
            "packs_per_step": min(batches.packs_per_step, len(packs)),
            "conversations_shown": batches.num_shown(run.total_steps),
            "efficiency": counts["rendering"]["tokens"] / (len(packs) * length),
        },
        "parameters": sum(p.numel() for p in run.model.parameters()) - trained,
        "trainable_parameters": trained,
        "total_steps": run.total_steps,
        "seconds_per_step": None if run.args.check else time_step(run),  # --check times whole steps
        "versions": versions(),
        "git_commit": git_commit(),
    }
    if run.ranks.is_first and not run.args.check:
        write_json(run.output / RUN, content)
        if left_out:  # one line of JSON each: thousands of them are searched, not read
            lines = [json.dumps(line, ensure_ascii=False) + "\n" for line in left_out]
            write_text(run.output / DROPPED, "".join(lines))
    _say(console, describe_rows(content), "bold")
    _say(console, describe_time(content), "bold")
    if not run.args.quiet:
        show_conversation(run, console)
    for sentence in describe_run(content):
        _say(console, sentence, "dim")
    for sentence in describe_losses(content):
        console.print(sentence, soft_wrap=True)


def announce(model: str | None, console: Console) -> None:
    """The first of three first lines: what is about to happen."""
    told = (
        f"What: LoRA teaches {model or OWN_BASE} to call tools. The model stays as it is; a small "
    )
    _say(console, f"{told}addition to it, the adapter, is trained.", "bold")


def _say(console: Console, sentence: str, style: str) -> None:
    """Prints a sentence, broken between words on a terminal and whole in a log."""
    console.print(sentence, style=style, soft_wrap=not console.is_terminal)


def describe_rows(run: dict[str, Any]) -> str:
    """The second line: on what, and how much of it the steps of the run will see."""
    data, names = run["data"], run["arguments"]["dataset"] or [OWN_ROWS]
    held_out, packing = data["held_out_rows"], run["packing"]
    tests = f"kept to test it: {held_out:,} more" if held_out else "none is kept to test it"
    count, shown, per_step = (
        data["rendering"]["examples"],
        packing["conversations_shown"],
        packing["packs_per_step"],
    )
    steps = f"{run['total_steps']:,} steps" + f" of {per_step} packs" * (per_step > 1)
    # An epoch shows each once before any comes again.
    if shown < count:
        seen = f"of which {steps} show about {_rounded(shown):,}, each once"
    else:
        seen = f"which {steps} show {in_times(shown / count)} each"
    return f"On what: {count:,} conversations ({', '.join(names)}), {seen}; {tests}."


def _rounded(count: int) -> int:
    """A count to two digits: 597 is about 600."""
    unit = 10 ** max(0, len(str(count)) - 2)
    return round(count / unit) * unit


def in_times(passes: float) -> str:
    """How often, as people say it: once, about 1.5 times, about 165 times."""
    return "once" if passes == 1 else f"about {in_digits(passes)} times"


def in_digits(passes: float) -> str:
    """A number of passes without false precision: 0.3, 1.5, 2, 165."""
    return f"{passes:.2g}" if passes < 9.95 else f"{passes:,.0f}"


def describe_time(run: dict[str, Any]) -> str:
    """The third line: how long it takes on this machine, where that was measured."""
    steps, trained, base = run["total_steps"], run["trainable_parameters"], run["parameters"]
    work = f"{steps:,} steps, which train {trained:,} numbers beside the model's {_short(base)}"
    if run["seconds_per_step"] is None:
        return f"How long: {work}; --check times some at its end ({run['device']})."
    # What a test takes depends on when replies end: the first one is timed as a whole.
    tests = "; a test before and one after come on top" if run["data"]["held_out_rows"] else ""
    took = in_words(run["seconds_per_step"] * steps)
    return f"How long: {took} on this machine ({run['device']}; just measured) for {work}{tests}."


def _short(count: int) -> str:
    """A count in words: 4.7 million."""
    for size, word in ((10**9, "billion"), (10**6, "million")):
        if count >= size:
            return f"{count / size:.1f} {word}"
    return f"{count:,}"


def time_step(run: Run) -> float | None:
    """Seconds of an optimizer step, from a forward and backward pass whose gradients are dropped.

    None with several ranks, whose passes would wait for one another.
    """
    if run.ranks.count > 1:
        return None
    batches, state = run.data.batches, rng_state(run.device)
    packs = batches.of_step(1)
    step_loss, scale = StepLoss(run.model.train()), run.scaler.get_scale()
    passes = batches.micro_batches(packs)
    step_tokens = sum(len(example.tokens) for pack in packs for example in pack)
    # One conversation first: it warms up, and of a large model it says enough. A kernel that is
    # compiled for one shape warms up on that one.
    # The last is its pack's shortest: packs are filled from the longest on
    one = packs[0][-1]
    small = (batches.collate([[one]]), step_tokens / len(one.tokens))
    whole = (passes[0], float(len(passes)))
    seconds = 0.0
    for batch, share in (whole if batches.shape else small, whole):
        begin = time.perf_counter()
        step_loss(batch, scale).backward()
        _wait(run)
        seconds = (time.perf_counter() - begin) * share
        if seconds / share > LONG_PROBE and not batches.shape:
            break
    # Nothing of this is left: the run goes on as if it had not been.
    run.optimizer.zero_grad(set_to_none=True)
    set_rng_state(state, run.device)
    return seconds


def _wait(run: Run) -> None:
    """Waits for the device, which a GPU's calls do not."""
    # A sum that is asked for now stands in the queue behind the whole pass.
    for parameter in list(trainable_parameters(run.model).values())[-1:]:
        if parameter.grad is not None:
            parameter.grad.sum().item()


def in_words(seconds: float) -> str:
    """A time as people say it: about 40 s, about 3 minutes, about 2.5 hours."""
    if seconds < 100:
        return f"about {max(1.0, seconds):.0f} s"
    if seconds < 5400:
        return f"about {seconds / 60:.0f} minutes"
    return f"about {seconds / 3600:.1f} hours"


def show_conversation(run: Run, console: Console) -> None:
    """One conversation of the training rows, with what is learned in colour or between marks."""
    marked = not has_colour(console)
    title = "\nOne of these conversations, up to its first answer. "
    if not run.args.dataset:
        title += "Its tool's result is made up. "
    console.print(Text.assemble(title, legend(marked), "\n"))
    console.print(mask_text(run.data.sample, run.data.tokenizer, marked=marked))


def describe_run(run: dict[str, Any]) -> list[str]:
    """The content of `run.json` as a few sentences for the start of a run."""
    reading, rendering, packing = run["data"]["reading"], run["data"]["rendering"], run["packing"]
    tokens, supervised = rendering["tokens"], rendering["supervised_tokens"]
    choices = [
        f"{name.replace('_', ' ')}: {choice} ({reason})"
        for name, (choice, reason) in run["choices"].items()
    ]
    counts = {
        "to train on": rendering["examples"],
        "held out": run["data"]["held_out_rows"],
        "unreadable": reading["dropped"],
        "repaired": reading["repaired_rows"],
        "bad calls": reading["bad_calls"],
        "too long": rendering["dropped_overlong"],
        "cut": rendering["truncated"],
    }
    rows = [f"{n} {what}" for what, n in counts.items() if n or what == "held out"]
    return [
        f"in all {rendering['examples']:,} conversations, {supervised:,} of {tokens:,} tokens "
        f"({100 * supervised / tokens:.0f}%) are the model's to write",
        f"rows: {', '.join(rows)}; {packing['packs']} packs of up to "
        f"{run['arguments']['max_length']} tokens, {100 * packing['efficiency']:.0f}% full; "
        f"tools: offered in {reading['rows_with_tools']} rows, {reading['calls']} calls made",
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
