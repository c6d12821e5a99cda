"""Rows -> conversations -> examples; what is dropped, truncated or repaired is counted and named.

Separate from `files.py`, which knows file formats, and from `packing.py`, which knows tensors.
"""

import json
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.chat import Example, render
from data.conversation import Conversation
from data.files import read_rows
from data.schema import parse_row
from data.tokenizer import Tokenizer
from data.tool_schema import write_tool

OVERLONG = ("drop", "truncate", "error")
_SHOWN = 5  # a data set with the wrong column has as many problems as rows


@dataclass
class LoadReport:
    """What reading did."""

    rows: int = 0
    dropped: list[str] = field(default_factory=list)  # each left-out row's problems, with its place
    repairs: Counter[str] = field(default_factory=Counter)
    repaired_rows: int = 0

    def as_dict(self) -> dict[str, Any]:
        """For `run.json`; the reasons of the first dropped rows only."""
        return {
            "rows": self.rows,
            "dropped": len(self.dropped),
            "reasons": self.dropped[:_SHOWN],
            "repaired_rows": self.repaired_rows,
            "repairs": dict(self.repairs),
        }


@dataclass
class BuildReport:
    """What rendering did. Lists hold the rows' places."""

    examples: int = 0
    tokens: int = 0
    supervised_tokens: int = 0
    dropped_overlong: list[str] = field(default_factory=list)
    dropped_unsupervised: list[str] = field(default_factory=list)
    truncated: list[str] = field(default_factory=list)
    # (row, first equal row); such rows are not dropped: a data set may weight a row by repeating it
    duplicates: list[tuple[str, str]] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For `run.json`: counts only."""
        return {
            name: len(value) if isinstance(value, list) else value
            for name, value in vars(self).items()
        }


def load_conversations(path_or_repo: str | Path) -> tuple[list[Conversation], LoadReport]:
    """Read every row; one that cannot be read is dropped, with its problems in the report.

    Raises: FileNotFoundError and ValueError as `read_rows`, and ValueError if not one row can be
    read.
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
        conversations.append(conversation)
        report.repairs.update(conversation.repairs)
        report.repaired_rows += bool(conversation.repairs)
    if not conversations:
        reasons = "\n".join(report.dropped[:_SHOWN])
        raise ValueError(
            f"{path_or_repo}: expected conversations, got {report.rows} unreadable rows:\n{reasons}"
        )
    return conversations, report


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
        if key in first_places:
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
    rows stay on one side.

    Raises: ValueError for a fraction outside [0, 1), or no row left on a side that should have one.
    """
    if not 0 <= eval_fraction < 1:
        raise ValueError(f"eval fraction: expected at least 0 and less than 1, got {eval_fraction}")
    if eval_fraction == 0:
        return list(conversations), []
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


def _identity(conversation: Conversation) -> str:
    """Equal for rows that say the same, wherever they come from."""
    # Tools hold dicts, which have no hash; repr and JSON spell out everything that is compared
    tools = [write_tool(tool) for tool in conversation.tools]
    return json.dumps(
        [repr(conversation.messages), tools, repr(conversation.prompt), conversation.system]
    )
