"""What a run shows when it is done: replies before and after, what was measured, in words, and the
adapter in use.

Everything here is read from files that are written, and nothing of it may end the run.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from training.run import Run
from training.run_folder import BEST, BEST_RECORD, read_best, read_metrics

Line = dict[str, Any]
RIGHT = "right"
CUT_LINES = 2  # shown of a reply that ran to its limit, or repeats itself
LOOP = re.compile(r"(\S.{1,60}?)\1{3,}", re.DOTALL)
ALIKE = re.compile(r"""[{(]\s*["']?\w+["']?\s*[:=]""")  # a call in some other form
STYLES = {"think": "dim italic", "tool_call": "cyan", "tool_response": "green", "answer": "bold"}
LABELS = {"tool_call": "call", "tool_response": "result"}
# What the kinds of the accuracy are, in the order of the table.
KINDS = {
    "unseen": "one call, of a tool that training has never shown",
    "seen": "one call, of a tool that training has shown",
    "parallel": "two calls or more in one message",
    "no_call": "no call: small talk, nothing fits, or a value is missing",
    "overall": "all of them",
}
# Of the questions that were written without a look at the rows; no tool of theirs counts as seen.
BY_HAND = {
    "unseen": "one call",
    "parallel": "two calls",
    "no_call": "no call",
    "overall": "all of them",
}
CALLS = ("seen", "unseen", "parallel")  # the kinds for which a call is due
# What a verdict means where no call is due: the same word would puzzle.
VERDICTS = {"no call": "no call is made", "cut": "never comes to an end", "empty": "empty"}
OTHER_FORM = "calls in another form do not count"  # of a base that writes them otherwise

NO_RESULTS = (
    "The rows hold no results of tools, so answering from one was not learned; the adapter was not "
    "tried with real tools."
)

# Where a run has rows of its own.
NOT_YOURS = (
    "The questions are not about your tools: being the same in every run, they show whether "
    "calling as such was learned."
)
NOT_YOUR_TOOLS = "They are not your tools, of which rows hold only the descriptions."

# Questions (`agent.trial.Trial`), each with the events (`agent.limits.Event`) of its answer.
Trials = Callable[[], Iterator[tuple[Any, Iterable[Any]]]]


def show(run: Run, trials: Trials, console: Console) -> None:
    """Replies before and after, the table, and the trials, each with its mark.

    Only on the first rank; the model of a sharded run answers on all ranks or none. With --quiet
    only the best evaluation's line.
    """
    lines, has_own_rows = read_metrics(run.output), bool(run.args.dataset)
    parts: list[Callable[[], None]] = [
        lambda: show_replies(lines, console, has_own_rows=has_own_rows),
        lambda: show_accuracy(lines, console),
        lambda: show_best(run, console),
    ]
    has_asked = any(line.get("shown") for line in lines)
    if has_asked and run.ranks.is_first and not run.args.shard:
        # Who has never seen a result cannot answer from one: its calls were shown above.
        if run.data.has_results:
            parts.append(lambda: show_trials(trials, console, has_own_rows=has_own_rows))
        else:
            parts.append(lambda: console.print(NO_RESULTS))
    if run.args.quiet:
        parts = [lambda: show_best(run, console)]
    for part in parts:
        # Whatever goes wrong here, the adapter is saved: it costs what would have been shown.
        try:
            part()
        except Exception as error:
            problem = f"{type(error).__name__}: {error}".splitlines()[0]
            console.print(f"this cannot be shown ({problem}); the adapter is saved", soft_wrap=True)


def show_replies(lines: list[Line], console: Console, *, has_own_rows: bool = False) -> None:
    """The replies to the shown questions before and after training, side by side."""
    asked = [line["shown"] for line in lines if line.get("shown")]
    # A run that broke off, or was given no rows to hold out, has nothing to compare.
    if len(asked) < 2:
        return
    console.rule("before and after", align="left")
    console.print(
        "One of the program's own questions of each kind, about tools that training has never "
        "seen; whatever came out. "
        "Right is a reply with exactly the calls that are due, and none where none is due; its "
        "thoughts and other words are not judged. How often replies are right, a table below says.",
        NOT_YOURS if has_own_rows else "",
    )
    for before, after in zip(asked[0], asked[-1], strict=True):
        due = ", ".join(before["due"]) or "no call"
        console.print(
            Text.assemble(("\n" + before["kind"], "bold"), f": {before['question']}"),
            Text(f"tools: {', '.join(before['tools'])}; due: {due}", style="dim"),
            sep="\n",
        )
        # A table for each question: rich has no cell that spans columns.
        table = Table(expand=True)
        for title, reply in (("before", before), ("after", after)):
            table.add_column(_heading(title, reply), ratio=1)
        width = max(20, (console.width - 7) // 2)  # borders and padding take seven columns
        table.add_row(*(_shortened(reply, width, console) for reply in (before, after)))
        console.print(table)


def _heading(title: str, reply: Line) -> Text:
    """A column's title with the mark of its reply."""
    style = "bold green" if reply["verdict"] == RIGHT else "bold red"
    return Text(f"{title}: {describe_verdict(reply)}", style=style)


def describe_verdict(reply: Line) -> str:
    """A reply's mark in words: right, right: no call, wrong (other arguments)."""
    verdict = reply["verdict"]
    is_alike = bool(ALIKE.search(reply["reply"]))
    if verdict == RIGHT:  # a base that never calls is right here too, and it shows why
        return "right" + ("" if reply["due"] else f": {OTHER_FORM if is_alike else 'no call'}")
    is_other = verdict == "no call" and is_alike
    return f"wrong ({OTHER_FORM if is_other else VERDICTS.get(verdict, verdict)})"


def _shortened(reply: Line, width: int, console: Console) -> Text:
    """A reply; of one that does not end or goes in circles the first lines, and a word about it."""
    text = reply["reply"].strip() or "(nothing)"
    if reply["tokens"]:
        return _cut(text, f"it was stopped after {reply['tokens']} tokens", width, console)
    return _unlooped(text, width, console)


def _unlooped(text: str, width: int, console: Console) -> Text:
    """The text, or its first lines where it repeats itself."""
    return _cut(text, "it repeats itself", width, console) if LOOP.search(text) else Text(text)


def _cut(text: str, why: str, width: int, console: Console) -> Text:
    """The first lines of a text, and why there are no more."""
    kept = Text(text).wrap(console, width)[:CUT_LINES]
    return Text("\n").join([*kept, Text(f"... and so on: {why}", style="dim")])


def show_accuracy(lines: list[Line], console: Console) -> None:
    """The table of what was measured before and after, with what the numbers mean."""
    measured = [line for line in lines if line.get("tool_call_accuracy")]
    if len(measured) < 2:
        return
    first, last = measured[0], measured[-1]
    console.rule("exact calls: how often the first reply is right", align="left")
    # A column is a line of metrics, or a part of one with the same names.
    columns = {"before": first, "after": last}
    if last.get("free"):
        columns["after, free"] = last["free"]
    table = Table("what is due", *columns)
    for kind, words in KINDS.items():
        shares = [share(line.get("tool_call_accuracy"), kind) for line in columns.values()]
        if any(shares):  # a kind that no row has would be an empty line
            table.add_row(words, *shares, style="bold" if kind == "overall" else "")
    if last.get("questions_accuracy"):
        table.add_section()
        for kind, words in BY_HAND.items():
            shares = [share(line.get("questions_accuracy"), kind) for line in columns.values()]
            style = "bold" if kind == "overall" else ""
            if any(shares):
                table.add_row(f"someone else's questions: {words}", *shares, style=style)
    console.print(table)
    for sentence in explain_accuracy(first, last):
        console.print(sentence)


def explain_accuracy(first: Line, last: Line) -> list[str]:
    """What the numbers of the table mean, in sentences."""
    before, after = first["tool_call_accuracy"], last["tool_call_accuracy"]
    sentences = [
        "Each is a share of conversations that are not trained on: the first reply counts if every "
        "call in it has the right name and exactly the right values, with none too many or "
        "missing. Only calls are judged, not the words of an answer."
    ]
    losses = [line["eval_loss"] for line in (first, last)]
    if None not in losses:
        sentences.append(
            f"Held-out loss {losses[0]:.3f} before, {losses[1]:.3f} after: how surprising the "
            "right words are to the model, 0 would be not at all."
        )
    if before["n"]["overall"] < after["n"]["overall"]:
        asked, all_of_them = before["n"]["overall"], after["n"]["overall"]
        sentences.append(
            f"Before training only {asked} of the {all_of_them} were asked, to save time."
        )
    by_hand = last.get("questions_accuracy")
    if by_hand:
        sentences.append(
            "Someone else's questions are plain English, written without a look at these rows: "
            "they tell best how the model does with yours."
        )
    if last.get("free"):
        sentences.append(
            "While a call is written, names of tools and arguments are held to those on offer, and "
            "no required one is left out; free is the model without that help (infer.py --free)."
        )
    # Without a word on it 100% of the last kind would look like something learned before.
    if not any(before[kind] for kind in CALLS) and any(before["n"][kind] for kind in CALLS):
        shares = [f"{share_due_none(after):.0f}% of these"]
        if by_hand:
            shares.append(f"{share_due_none(by_hand):.0f}% of someone else's questions")
        sentences.append(
            "No call of the base was right. A model that never calls is right where none is due: "
            f"that would be {' and '.join(shares)}. A reply without an end is wrong there too."
        )
    return sentences


def share_due_none(accuracy: Line) -> float:
    """The percentage of questions for which no call is due."""
    counts: dict[str, int] = accuracy["n"]
    return 100 * counts["no_call"] / max(1, counts["overall"])


def share(accuracy: Line | None, kind: str) -> str:
    """A share in words, like 69% of 32; empty where nothing of the kind was asked."""
    count = accuracy["n"].get(kind) if accuracy else 0
    return f"{100 * accuracy[kind]:.0f}% of {count}" if accuracy and count else ""


def show_best(run: Run, console: Console) -> None:
    """Which evaluation was the best, where `--eval-every` has kept its adapter."""
    best, where = read_best(run.output / BEST / BEST_RECORD), run.output / BEST
    if best:
        found = f"step {best[0]}, held-out loss {best[1]:.3f}"
        console.print(f"best evaluation: {found}; its adapter is in {where}", soft_wrap=True)


def show_trials(trials: Trials, console: Console, *, has_own_rows: bool = False) -> None:
    """The model answers with real Python tools, event by event, each question marked at its end."""
    console.rule("the adapter in use", align="left")
    console.print(
        "Easy questions about Python functions that training has never seen: the model writes a "
        "call, the program runs it, and the model answers from what came back.",
        NOT_YOUR_TOOLS if has_own_rows else "",
    )
    for trial, answering in trials():
        console.print(Text.assemble(("\nquestion ", "bold"), trial.question))
        if trial.tools:
            console.print(Text(f"tools    {', '.join(trial.tools)}", style="dim"))
        events = []
        for event in answering:
            events.append(event)
            if event.kind == "done":  # its counts are for programs
                continue
            text = event.content
            if event.kind == "tool_response":
                text = text["content"]
            elif event.kind == "tool_call":
                text = f"{text['name']} {json.dumps(text['arguments'], ensure_ascii=False)}"
            label = f"{LABELS.get(event.kind, event.kind):8} "
            style = STYLES.get(event.kind, "red")
            shown = _unlooped(text, max(20, console.width - len(label)), console)
            console.print(Text.assemble((label, style), shown, style=style))
        if trial.is_right(events):
            console.print(Text("right    this is the call that is due", style="bold green"))
        else:
            console.print(Text(f"wrong    due: {trial.due_text}", style="bold red"))
