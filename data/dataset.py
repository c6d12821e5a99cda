"""Rows -> conversations -> examples; what is dropped, truncated or repaired is counted and named.

Separate from `files.py`, which knows file formats, and from `packing.py`, which knows tensors.
"""

import json
import math
import random
from collections.abc import Iterable, Sequence
from pathlib import Path

from data.call_check import bad_calls as find_bad_calls
from data.chat import Example, render
from data.conversation import Conversation
from data.files import read_rows
from data.reports import BuildReport, LoadReport, first_lines
from data.schema import parse_row
from data.tokenizer import Tokenizer
from data.tool_schema import write_tool

OVERLONG = ("drop", "truncate", "error")
BAD_CALLS = ("keep", "drop", "error")


def load_conversations(
    path_or_repo: str | Path, *, bad_calls: str = "keep", max_dropped: float = 1.0
) -> tuple[list[Conversation], LoadReport]:
    """Read every row; a row that cannot be read is dropped and told in the report.

    `bad_calls` says what happens to a row with a call that its own tools do not allow: "keep",
    "drop" or "error". `max_dropped` is the largest share of unreadable rows.

    Raises: FileNotFoundError and ValueError as `read_rows`, and ValueError for too many unreadable
    rows, for none that is left, or for a bad call with "error".
    """
    report, conversations = LoadReport(), []
    for place, row in read_rows(path_or_repo):
        # One broken row must not cost the other ten thousand
        report.rows += 1
        try:
            conversation = parse_row(row, place)
        except ValueError as error:
            report.dropped.append(str(error))
            continue
        problems = find_bad_calls(conversation)
        report.bad_calls += problems
        if problems and bad_calls == "drop":
            report.dropped_for_calls += 1
            continue
        conversations.append(conversation)
        report.repairs.update(conversation.repairs)
        report.repaired_rows += bool(conversation.repairs)
        report.offering += bool(conversation.tools)
        report.calls += sum(len(message.calls) for message in conversation.messages)
    if report.bad_calls and bad_calls == "error":
        got = f"got {len(report.bad_calls)} others:\n{first_lines(report.bad_calls)}"
        advice = "--bad-calls keep trains on them all the same"
        raise ValueError(f"{path_or_repo}: expected calls that fit their tools, {got}\n{advice}")
    reasons = first_lines(report.dropped or report.bad_calls)
    if not conversations:
        left = "unreadable rows" if report.dropped else "rows with bad calls"
        raise ValueError(
            f"{path_or_repo}: expected conversations, got {report.rows} {left}:\n{reasons}"
        )
    dropped = len(report.dropped)
    if dropped / report.rows > max_dropped:
        enough = math.ceil(1000 * dropped / report.rows) / 1000
        raise ValueError(
            f"{path_or_repo}: expected at most {max_dropped:.0%} unreadable rows, got "
            f"{dropped} of {report.rows}:\n{reasons}\nrepair them, or allow them with "
            f"--max-dropped {enough:g}, and dropped.jsonl will name them all"
        )
    return conversations, report


def weighted(conversations: Sequence[Conversation], weight: float, seed: int) -> list[Conversation]:
    """Return the rows as often as their data set weighs.

    2.5 is each one twice, and half of them, drawn by the seed, a third time.
    """
    whole = int(weight)
    extra = round((weight - whole) * len(conversations))
    drawn = random.Random(f"weight {seed}").sample(range(len(conversations)), extra)
    return [*conversations] * whole + [conversations[index] for index in sorted(drawn)]


def build_examples(
    conversations: Iterable[Conversation],
    tokenizer: Tokenizer,
    max_length: int,
    overlong: str = "drop",
    train_on: str = "assistant",
    may_be_empty: bool = False,
) -> tuple[list[Example], BuildReport]:
    """Render every conversation to at most `max_length` tokens.

    `overlong` is what happens to a longer one: "drop", "truncate" (the head is kept; if nothing
    supervised is left, it is dropped), or "error". `may_be_empty` allows a result without any
    example, as held-out rows may give.

    Raises: ValueError for a longer one with "error", for no supervised token in any example, or for
    a bad argument.
    """
    if overlong not in OVERLONG or max_length < 2:
        raise ValueError(
            f"expected overlong out of {', '.join(OVERLONG)} and max_length >= 2, "
            f"got {overlong} and {max_length}"
        )
    report, examples = BuildReport(), []
    # By ids, not by rows: what training sees is what counts as equal
    first_places: dict[tuple[int, ...], str] = {}
    for conversation in conversations:
        example = _fit(render(conversation, tokenizer, train_on), max_length, overlong, report)
        if example is None:
            continue
        key = tuple(example.tokens)
        # The same place again is one row that its data set's weight repeats
        if first_places.get(key, example.where) != example.where:
            report.duplicates.append((example.where, first_places[key]))
        first_places.setdefault(key, example.where)
        examples.append(example)
        report.examples += 1
        report.tokens += len(example.tokens)
        report.supervised_tokens += example.num_supervised
    if not report.supervised_tokens and not may_be_empty:
        raise ValueError(
            f"expected supervised tokens, got none: {len(report.dropped_overlong)} rows are longer "
            f"than {max_length} tokens, {len(report.dropped_unsupervised)} have no trained turn; "
            f"raise --max-length or check --train-on"
        )
    return examples, report


def _fit(example: Example, max_length: int, overlong: str, report: BuildReport) -> Example | None:
    """Return the example if it may stay, cut to length if need be; note what happened to it."""
    is_overlong = len(example.tokens) > max_length
    if is_overlong and overlong == "error":
        raise ValueError(
            f"{example.where}: expected at most {max_length} tokens, got {len(example.tokens)}; "
            f"raise --max-length, or choose --overlong drop or truncate"
        )
    if is_overlong and overlong == "drop":
        report.dropped_overlong.append(example.where)
        return None
    if is_overlong:
        tokens, trainable = example.tokens[:max_length], example.trainable[:max_length]
        example = Example(tokens, trainable, example.where)
    # Without a target it costs time and moves no weight
    if not example.num_supervised:
        (report.dropped_overlong if is_overlong else report.dropped_unsupervised).append(
            example.where
        )
        return None
    if is_overlong:
        report.truncated.append(example.where)
    return example


def split(
    conversations: Sequence[Conversation], eval_fraction: float, seed: int
) -> tuple[list[Conversation], list[Conversation]]:
    """Hold rows out: (training rows, held-out rows), each in its old order.

    Up to half of the held-out rows are chosen by their tools: all rows that share a tool with them
    are held out too, so no training row ever names these tools. The rest is drawn at random. Equal
    rows stay on one side. Where rows say themselves that they are for evaluation, these are held
    out whatever the fraction is, and no others.

    Raises: ValueError for a fraction outside [0, 1), or no row left on a side that should have one.
    """
    if not 0 <= eval_fraction < 1:
        raise ValueError(f"eval fraction: expected at least 0 and less than 1, got {eval_fraction}")
    marked = [conversation for conversation in conversations if conversation.held_out]
    if marked or eval_fraction == 0:
        return [row for row in conversations if not row.held_out], marked
    target = max(1, round(len(conversations) * eval_fraction))
    # Shuffled indices, not rows: both sides keep the order of the file
    order = list(range(len(conversations)))
    # Seeded by a string, so that no other draw of the run has the same numbers
    random.Random(f"split {seed}").shuffle(order)
    # Tools that training never names are the harder half: the score on them is the one to trust
    held = _hold_out_tools(conversations, order, target // 2)
    # Equal rows on both sides would make the held-out score a memory test
    groups: dict[str, list[int]] = {}
    for index in order:
        groups.setdefault(_identity(conversations[index]), []).append(index)
    for group in groups.values():
        if len(held) >= target:
            break
        # A group goes over as a whole, but never all rows
        if held.isdisjoint(group) and len(held) + len(group) < len(conversations):
            held.update(group)
    if not held:
        raise ValueError(
            f"expected two different rows to hold one out, got {len(conversations)} in all; "
            f"use --eval-fraction 0"
        )
    train = [conversation for index, conversation in enumerate(conversations) if index not in held]
    return train, [conversations[index] for index in sorted(held)]


def _hold_out_tools(
    conversations: Sequence[Conversation], order: Sequence[int], budget: int
) -> set[int]:
    """Choose rows by whole tools: all rows that share a tool with a chosen one are chosen with it.

    A group that would exceed the budget is skipped.
    """
    rows_of: dict[str, set[int]] = {}
    for index, conversation in enumerate(conversations):
        for name in conversation.tool_names:
            rows_of.setdefault(name, set()).add(index)
    held: set[int] = set()
    for index in order:
        # All rows with a tool of this row; their other tools may well be seen in training
        touched = set().union(*(rows_of[name] for name in conversations[index].tool_names))
        if touched and len(held | touched) <= budget:
            held |= touched
    return held


def common_rows(rows: Iterable[Conversation], others: Iterable[Conversation]) -> int:
    """Return how many of the others stand in the rows too."""
    known = {_identity(row) for row in rows}
    return sum(_identity(other) in known for other in others)


def _identity(conversation: Conversation) -> str:
    """Equal for rows that say the same, wherever they come from."""
    # Tools hold dicts, which have no hash; repr and JSON spell out everything that is compared
    tools = [write_tool(tool) for tool in conversation.tools]
    return json.dumps(
        [repr(conversation.messages), tools, repr(conversation.prompt), conversation.system]
    )
