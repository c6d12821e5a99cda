"""What a run shows of its model: replies to a few fixed questions, and real use of Python tools.

The questions and the tools lie in `embedded/shown/`, so that they can be exchanged for others.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agent.agent import Agent
from agent.evaluate import (
    first_question,
    first_replies,
    first_reply,
    is_exact,
    judge,
    reply_limit,
    score_calls,
)
from agent.guides import CallRule, guide_for
from agent.limits import Event, Limits
from agent.toolbox import ToolBox
from data.chat import parse_reply
from data.conversation import Conversation, ToolCall
from data.tokenizer import Tokenizer
from model.transformer import Gemma2

LIVE, TOOLS = "live.jsonl", "tools.py"
MAX_NEW_TOKENS = 160  # of one reply: as many as the shortest limit of a scored one
TOOL_SECONDS = 10.0


@dataclass(frozen=True)
class Asked:
    """The questions of one evaluation, which are all asked in the same batches."""

    held_out: Sequence[Conversation]
    by_hand: Sequence[Conversation]
    shown: Mapping[str, Conversation]  # by kind
    seen_tools: set[str]  # names that training has shown

    @property
    def rows(self) -> list[Conversation]:
        """All of them, in the order of the fields; none where no row is held out."""
        if not self.held_out:
            return []
        return [*self.held_out, *self.by_hand, *self.shown.values()]


def measure_calls(
    model: Gemma2, tokenizer: Tokenizer, asked: Asked, count: Callable[[int], None] | None = None
) -> dict[str, Any]:
    """What the model's first replies are worth, for a line of metrics; `count` as `write_replies`.

    {"tool_call_accuracy", "questions_accuracy" (where some are by hand), "shown", and "free": the
    first two once more without a mask over names}.
    """
    rows = asked.rows
    if not rows:
        return {}
    limit = reply_limit(rows, tokenizer)
    # A decoding step costs little more for many rows than for one.
    free = first_replies(model, tokenizer, rows, limit, free=True, count=count)
    # A mask changes nothing where every id fits: few rows are to be asked a second time.
    pairs = enumerate(zip(rows, free, strict=True))
    bent = [index for index, (row, ids) in pairs if not _is_offered(tokenizer, row, ids)]
    again = [rows[index] for index in bent]
    written = first_replies(model, tokenizer, again, limit) if again else []
    held = [*free]
    for index, ids in zip(bent, written, strict=True):
        held[index] = ids
    # Shown is what the program does by default.
    start = len(asked.held_out) + len(asked.by_hand)
    shown = describe_replies(tokenizer, asked.shown, held[start:])
    line = _score(tokenizer, asked, held) | {"shown": shown}
    return line | {"free": _score(tokenizer, asked, free)}


def _is_offered(tokenizer: Tokenizer, row: Conversation, ids: Sequence[int]) -> bool:
    """True if all names in the calls of a reply are on offer, and none that is required lacks."""
    guide = guide_for(tokenizer, row.tools, CallRule(), room=len(ids)) if row.tools else None
    if guide is None:  # this wire format's names are not held
        return True
    for id in ids:
        if not guide.accepts(id):
            return False
        guide.advance(id)
    return True


def _score(tokenizer: Tokenizer, asked: Asked, replies: Sequence[list[int]]) -> dict[str, Any]:
    """Accuracy of the held-out rows, and of the questions by hand if there are any."""
    first, by_hand = len(asked.held_out), asked.by_hand
    none: set[str] = set()
    parts = (
        ("tool_call_accuracy", asked.held_out, replies[:first], asked.seen_tools),
        # Of their tools none counts as seen: an equal name is chance, the rest is someone else's.
        ("questions_accuracy", by_hand, replies[first : first + len(by_hand)], none),
    )
    return {
        name: score_calls(tokenizer, rows, written, seen_tools)
        for name, rows, written, seen_tools in parts
        if rows
    }


def describe_replies(
    tokenizer: Tokenizer, shown: Mapping[str, Conversation], replies: Sequence[Sequence[int]]
) -> list[dict[str, Any]]:
    """A reply to each of the questions as JSON: its text, the verdict, and what was due.

    shown: the questions by their kind, in the order of the replies.
    """
    lines = []
    for (kind, row), ids in zip(shown.items(), replies, strict=True):
        expected = first_reply(row)
        reply = parse_reply(list(ids), tokenizer, row.tools)
        asked = [m.content for m in first_question(row).messages if m.role == "user"]
        stops = set(tokenizer.stop_ids)
        lines.append(
            {
                "kind": kind,
                "question": asked[-1],
                "tools": [tool.name for tool in row.tools],
                "due": [call_text(call) for call in expected.calls],
                "reply": tokenizer.decode(id for id in ids if id not in stops),
                "verdict": judge(expected.calls, reply),
                "tokens": None if reply.ended else len(ids),  # a reply that ran to the limit
            }
        )
    return lines


def call_text(call: ToolCall) -> str:
    """A call as a line of Python: people read it sooner than JSON."""
    arguments = ", ".join(f"{name}={value!r}" for name, value in call.arguments.items())
    return f"{call.name}({arguments})"


@dataclass(frozen=True)
class Trial:
    """One question with the call that is due, and the names of the tools on offer."""

    question: str
    due: tuple[ToolCall, ...]
    tools: tuple[str, ...] = ()

    @property
    def due_text(self) -> str:
        """The calls that are due, as a person writes them."""
        return ", ".join(call_text(call) for call in self.due) or "no call"

    def is_right(self, events: Sequence[Event]) -> bool:
        """True if the calls were those that are due, no more, and there was an answer."""
        made = [event.content for event in events if event.kind == "tool_call"]
        # Broken calls have made no event of this kind.
        calls = [ToolCall(call["name"], call["arguments"]) for call in made]
        return is_exact(self.due, calls) and any(event.kind == "answer" for event in events)


def read_trials(folder: Path) -> list[Trial]:
    """The questions of `live.jsonl`. Raises: OSError, ValueError, KeyError for a broken file."""
    lines = (folder / LIVE).read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines if line.strip()]
    return [
        Trial(row["question"], tuple(ToolCall(c["name"], c["arguments"]) for c in row["calls"]))
        for row in rows
    ]


def try_out(
    model: Gemma2, tokenizer: Tokenizer, folder: Path
) -> Iterator[tuple[Trial, Iterator[Event]]]:
    """Each question with the events that answer it, which happen while they are read.

    Raises: whatever the tools' file or the model raises.
    """
    with ToolBox(folder / TOOLS, TOOL_SECONDS) as toolbox:
        agent = Agent(model.eval(), tokenizer, toolbox, limits=Limits(new_tokens=MAX_NEW_TOKENS))
        offered = tuple(tool.name for tool in toolbox.tools)
        for trial in read_trials(folder):
            agent.forget()  # each question is a chat of its own
            yield replace(trial, tools=offered), agent.ask(trial.question)
