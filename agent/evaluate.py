"""Exact-call accuracy: does a model's first reply make exactly the calls that are due, or none?

Read downwards: batches of prompts, the model's first replies to them, the score of those replies.
All or nothing for each conversation: every name and every argument must be equal, as JSON, type and
value. The order of parallel calls does not count.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.guides import CallRule, guide_for
from common.atomic import write_text
from data.chat import Reply, parse_reply, render, render_prompt
from data.conversation import Conversation, Message, ToolCall, ask_to_think
from data.dataset import load_conversations
from data.reports import first_lines
from data.tokenizer import Tokenizer
from model.generate import generate
from model.transformer import Gemma2

EVAL_BATCH = 64  # rows of a batch
# Rows of a batch times the positions of its cache. One position of one row is 106 kB for
# Gemma-2-2B in 16 bits, so that a full cache is 6.4 GB.
EVAL_ENTRIES = 60_000
# Tokens that a scored reply may have: this many more than the longest expected one, but never fewer
# or more than these limits.
REPLY_MARGIN, SHORTEST_LIMIT, LONGEST_LIMIT = 8, 160, 512
# What a conversation expects: one call of a tool that training has shown, or of one that it has
# not, no call, or several. Learning by heart shows as a gap between the first two.
KINDS = ("seen", "unseen", "no_call", "parallel")
RIGHT = "right"
OFFERED = CallRule()  # names are held to the tools on offer


def like_length_batches(
    lengths: Sequence[int], limit: int, max_new_tokens: int
) -> Iterator[list[int]]:
    """Indices of the rows shorter than `limit`, shortest first: alike, they need little padding."""
    fitting = [row for row in range(len(lengths)) if lengths[row] < limit]
    batch: list[int] = []
    for row in sorted(fitting, key=lambda row: lengths[row]):
        # This row is the batch's longest, and so has the length of the whole batch's cache.
        entries = (len(batch) + 1) * (lengths[row] + max_new_tokens)
        if batch and (len(batch) == EVAL_BATCH or entries > EVAL_ENTRIES):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def first_replies(
    model: Gemma2,
    tokenizer: Tokenizer,
    conversations: Sequence[Conversation],
    max_new_tokens: int,
    *,
    free: bool = False,
    count: Callable[[int], None] | None = None,
) -> list[list[int]]:
    """The ids that the model writes, greedy, in place of each conversation's first reply.

    free: whether calls may have names that are not on offer.
    """
    questions = [first_question(conversation) for conversation in conversations]
    rule = CallRule("free" if free else "offered")
    return write_replies(model, tokenizer, questions, max_new_tokens, rule=rule, count=count)


def write_replies(
    model: Gemma2,
    tokenizer: Tokenizer,
    questions: Sequence[Conversation],
    max_new_tokens: int,
    *,
    rule: CallRule = OFFERED,
    count: Callable[[int], None] | None = None,
) -> list[list[int]]:
    """The ids that the model writes, greedy, behind each of the questions.

    A prompt that fills the model's positions gets an empty reply. `rule` says what a call to the
    question's own tools may be. `count` is told of each batch how many replies it brought.
    """
    prompts = [render_prompt(question, tokenizer) for question in questions]
    limit = model.config.max_position_embeddings
    replies: list[list[int]] = [[] for _ in prompts]
    lengths = [len(prompt) for prompt in prompts]
    # One row at a time reads all weights for each token; 64 rows read them for 64 tokens.
    for rows in like_length_batches(lengths, limit, max_new_tokens):
        batch = [prompts[row] for row in rows]
        room = min(max_new_tokens, limit - len(batch[-1]))  # the last one is the longest
        guides = [guide_for(tokenizer, questions[row].tools, rule, room=room) for row in rows]
        # Without a `Sampling` it is greedy, so the same weights always get the same score.
        written = generate(model, batch, room, tokenizer.stop_ids, guides=guides)
        for row, reply in zip(rows, written, strict=True):
            replies[row] = reply
        if count:
            count(len(rows))
    return replies


def first_reply(conversation: Conversation) -> Message:
    """The model's first turn. Raises: StopIteration without one; `parse_row` refuses such rows."""
    return next(message for message in conversation.messages if message.role == "model")


def first_question(conversation: Conversation) -> Conversation:
    """The conversation up to the model's first turn."""
    end = conversation.messages.index(first_reply(conversation))
    return dataclasses.replace(conversation, messages=conversation.messages[:end])


def reply_length(conversation: Conversation, tokenizer: Tokenizer) -> int:
    """Tokens of the first reply as the row writes it, its end included."""
    question = first_question(conversation)
    turns = conversation.messages[: len(question.messages) + 1]
    both = render(dataclasses.replace(conversation, messages=turns), tokenizer)
    # A rendered turn ends with a newline, which the model does not write.
    return len(both.tokens) - len(render_prompt(question, tokenizer)) - len(tokenizer.encode("\n"))


def reply_limit(asked: Sequence[Conversation], tokenizer: Tokenizer) -> int:
    """Tokens that a scored reply may have: somewhat more than the longest expected one."""
    longest = max(reply_length(conversation, tokenizer) for conversation in asked)
    # A model that does not know when to stop writes all of them in every row.
    return min(max(longest + REPLY_MARGIN, SHORTEST_LIMIT), LONGEST_LIMIT)


def score_calls(
    tokenizer: Tokenizer,
    conversations: Sequence[Conversation],
    replies: Sequence[Sequence[int]],
    seen_tools: set[str],
) -> dict[str, Any]:
    """Exact-call accuracy of such replies, as `Accuracy.as_dict`; an empty reply is wrong.

    seen_tools: the names that training has shown.
    """
    accuracy = Accuracy()
    for conversation, ids in zip(conversations, replies, strict=True):
        expected = first_reply(conversation)
        # With the tools, because a call without arguments is complete for a tool that needs none.
        reply = parse_reply(list(ids), tokenizer, conversation.tools)
        is_right = judge(expected.calls, reply) == RIGHT
        accuracy.add(kind_of(expected.calls, seen_tools), is_right)
    return accuracy.as_dict()


def judge(expected: Sequence[ToolCall], reply: Reply) -> str:
    """The verdict on a reply: RIGHT, or what is wrong with its calls."""
    if reply.errors:
        return f"broken call: {reply.errors[0].code}"
    # Where no call is due, garbage has none either: a reply that was cut or is empty is wrong.
    if not (reply.calls or (reply.ended and reply.content)):
        return "empty" if reply.ended else "cut"
    if is_exact(expected, reply.calls):
        return RIGHT
    if not reply.calls:
        return "no call"
    if not expected:
        return "a call where none is due"
    due, made = (Counter(call.name for call in calls) for calls in (expected, reply.calls))
    if made < due:  # nothing that is not due, but not all that is
        return "a call is missing"
    return "other arguments" if made == due else "other tools"


def score_every_reply(
    model: Gemma2,
    tokenizer: Tokenizer,
    conversations: Sequence[Conversation],
    max_new_tokens: int,
    *,
    rule: CallRule = OFFERED,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Accuracy over every reply that a row trains, not only the first; and a line for each reply.

    The turns before a reply are the row's own, so that one mistake costs one reply.
    """
    asked = [
        (conversation, turn)
        for conversation in conversations
        for turn, message in enumerate(conversation.messages)
        if message.role == "model" and message.trained
    ]
    questions = [dataclasses.replace(row, messages=row.messages[:turn]) for row, turn in asked]
    # Rows without thoughts do not ask for any. A model that has learned to think first is asked to,
    # as an agent asks it: unasked it writes what it was never trained to write.
    if tokenizer.prompt and tokenizer.prompt.asks_to_think:
        questions = [ask_to_think(row) if row.tools else row for row in questions]
    written = write_replies(model, tokenizer, questions, max_new_tokens, rule=rule)
    accuracy, lines = Accuracy(), []
    for (conversation, turn), ids in zip(asked, written, strict=True):
        expected = conversation.messages[turn]
        reply = parse_reply(ids, tokenizer, conversation.tools)
        verdict = judge(expected.calls, reply)
        # No tool counts as seen, because the rows of the training are not known here.
        kind = kind_of(expected.calls, set())
        accuracy.add(kind, verdict == RIGHT)
        place = {"row": conversation.where, "message": turn + 1, "kind": kind}
        due = {"calls": _as_objects(expected.calls), "content": expected.content}
        got = {"calls": _as_objects(reply.calls), "text": tokenizer.decode(ids)}
        lines.append({**place, "expected": due, "got": got, "verdict": verdict})
    return accuracy.as_dict(), lines


def evaluate_file(
    path: Path,
    load: Callable[[], tuple[Gemma2, Tokenizer]],
    max_new_tokens: int,
    out: Path | None,
    *,
    rule: CallRule = OFFERED,
) -> tuple[dict[str, Any], str]:
    """The accuracy on a file's rows, and the first unreadable ones; `out` gets the lines.

    load: gives model and tokenizer, once the file has been read.
    Raises: ValueError, FileNotFoundError for wrong inputs, most of them before anything is loaded.
    """
    if out and not out.parent.is_dir():
        raise ValueError(f"--out {out}: no folder {out.parent}; create it first")
    conversations, report = load_conversations(path)
    model, tokenizer = load()
    limit = model.config.max_position_embeddings
    if max_new_tokens >= limit:
        given = f"--max-new-tokens {max_new_tokens}"
        raise ValueError(f"{given}: the model has {limit} positions for prompt and reply")
    accuracy, lines = score_every_reply(model, tokenizer, conversations, max_new_tokens, rule=rule)
    if out:
        write_text(out, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    line = {"file": str(path), "rows_dropped": len(report.dropped), "names": rule.names}
    return {**line, "tool_call_accuracy": accuracy}, first_lines(report.dropped)


def _as_objects(calls: Sequence[ToolCall]) -> list[dict[str, Any]]:
    return [{"name": call.name, "arguments": call.arguments} for call in calls]


def is_exact(expected: Sequence[ToolCall], got: Sequence[ToolCall]) -> bool:
    """True if both contain the same calls, in any order."""
    return sorted(call.key for call in expected) == sorted(call.key for call in got)


def kind_of(expected: Sequence[ToolCall], seen_tools: set[str]) -> str:
    """One of KINDS: "parallel" is two calls or more, "seen" one call of a tool in `seen_tools`."""
    if len(expected) != 1:
        return "parallel" if expected else "no_call"
    return "seen" if expected[0].name in seen_tools else "unseen"


@dataclass
class Accuracy:
    """Right and scored conversations of each kind."""

    right: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    total: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))

    def add(self, kind: str, is_right: bool) -> None:
        """Counts one conversation."""
        self.total[kind] += 1
        self.right[kind] += is_right

    def as_dict(self) -> dict[str, Any]:
        """{"overall", "seen", "unseen", "no_call", "parallel", "n": {the same keys}}.

        Shares between 0 and 1, None for a kind without conversations; n is their number.
        """
        counts = {"overall": sum(self.total.values()), **self.total}
        rights = {"overall": sum(self.right.values()), **self.right}
        shares = {kind: rights[kind] / counts[kind] if counts[kind] else None for kind in counts}
        return {**shares, "n": counts}
