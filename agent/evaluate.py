"""Exact-call accuracy: did the model's first reply call the same tools with the same arguments, or none where none was due?

All or nothing per conversation: every name and every argument must be equal, as JSON, type and value. The order of
parallel calls does not count.
"""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from data.chat import parse_reply, render, render_prompt
from data.conversation import Conversation, Message, ToolCall
from data.tokenizer import Tokenizer
from model.generate import generate
from model.transformer import Gemma2

# Rows of an evaluation's batch, and entries of its cache, each 106 kB for Gemma-2-2B in 16 bits.
EVAL_BATCH, EVAL_ENTRIES = 64, 60_000
REPLY_MARGIN, SHORTEST_LIMIT, LONGEST_LIMIT = 8, 160, 512
KINDS = ("seen", "unseen", "no_call", "parallel")


def call_key(call: ToolCall) -> str:
    """Equal for two calls that are equal as JSON, whatever the order of their keys."""
    return json.dumps([call.name, call.arguments], sort_keys=True, ensure_ascii=False)


def is_exact(expected: Sequence[ToolCall], got: Sequence[ToolCall]) -> bool:
    """True if both hold the same calls, in any order."""
    return sorted(map(call_key, expected)) == sorted(map(call_key, got))


def kind_of(expected: Sequence[ToolCall], seen_tools: set[str]) -> str:
    """One of KINDS: "parallel" is two calls and more, "seen" one call of a tool that training has shown."""
    if len(expected) != 1:
        return "parallel" if expected else "no_call"
    return "seen" if expected[0].name in seen_tools else "unseen"


@dataclass
class Accuracy:
    """Counts per kind; `as_dict` gives shares between 0 and 1, null where a kind did not occur, and the counts as n."""

    right: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    total: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))

    def add(self, kind: str, is_right: bool) -> None:
        """Counts one conversation."""
        self.total[kind] += 1
        self.right[kind] += is_right

    def as_dict(self) -> dict[str, Any]:
        """{"overall", "seen", "unseen", "no_call", "parallel", "n": {the same keys}}."""
        counts = {"overall": sum(self.total.values()), **self.total}
        rights = {"overall": sum(self.right.values()), **self.right}
        shares = {kind: rights[kind] / counts[kind] if counts[kind] else None for kind in counts}
        return {**shares, "n": counts}


def describe_shares(accuracy: dict[str, Any]) -> str:
    """`Accuracy.as_dict` as one line of text, each share with its number of conversations."""
    kinds = [kind for kind, count in accuracy["n"].items() if count]
    return ", ".join(
        f"{kind} {100 * accuracy[kind]:.0f}% of {accuracy['n'][kind]}" for kind in kinds
    )


def first_replies(
    model: Gemma2, tokenizer: Tokenizer, conversations: Sequence[Conversation], max_new_tokens: int
) -> list[list[int]]:
    """What the model writes, greedy, where the first reply of each conversation stands: ids.

    A prompt that fills the model's positions gets an empty one.
    """
    prompts = [
        render_prompt(first_question(conversation), tokenizer) for conversation in conversations
    ]
    limit = model.config.max_position_embeddings
    replies: list[list[int]] = [[] for _ in prompts]
    for rows in _alike([len(prompt) for prompt in prompts], limit, max_new_tokens):
        batch = [prompts[i] for i in rows]
        room = min(max_new_tokens, limit - len(batch[-1]))
        for i, reply in zip(rows, generate(model, batch, room, tokenizer.stop_ids), strict=True):
            replies[i] = reply
    return replies


def _alike(lengths: Sequence[int], limit: int, max_new_tokens: int) -> Iterator[list[int]]:
    """Batches of the rows shorter than `limit`, shortest first: rows of like length need little padding."""
    batch: list[int] = []
    for i in sorted(
        (i for i in range(len(lengths)) if lengths[i] < limit), key=lambda i: lengths[i]
    ):
        entries = (len(batch) + 1) * (lengths[i] + max_new_tokens)
        if batch and (len(batch) == EVAL_BATCH or entries > EVAL_ENTRIES):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def score_calls(
    tokenizer: Tokenizer,
    conversations: Sequence[Conversation],
    replies: Sequence[Sequence[int]],
    seen_tools: set[str],
) -> dict[str, Any]:
    """Exact-call accuracy of such replies; see `agent.evaluate`. An empty one is wrong."""
    accuracy = Accuracy()
    for conversation, ids in zip(conversations, replies, strict=True):
        expected = first_reply(conversation).calls
        reply = parse_reply(list(ids), tokenizer, conversation.tools)
        # A reply that was cut or is empty is no answer, so garbage does not pass where no call is due.
        is_answer = bool(reply.calls or (reply.ended and reply.content))
        is_right = is_answer and not reply.errors and is_exact(expected, reply.calls)
        accuracy.add(kind_of(expected, seen_tools), is_right)
    return accuracy.as_dict()


def first_reply(conversation: Conversation) -> Message:
    """The first turn of the model. Raises: StopIteration without one; `parse_row` refuses such rows."""
    return next(message for message in conversation.messages if message.role == "model")


def first_question(conversation: Conversation) -> Conversation:
    """The conversation up to the model's first turn."""
    end = conversation.messages.index(first_reply(conversation))
    return dataclasses.replace(conversation, messages=conversation.messages[:end])


def reply_length(conversation: Conversation, tokenizer: Tokenizer) -> int:
    """Tokens of the first reply as the row has it, its end included."""
    question = first_question(conversation)
    both = dataclasses.replace(
        conversation, messages=conversation.messages[: len(question.messages) + 1]
    )
    return (
        len(render(both, tokenizer).tokens) - len(render_prompt(question, tokenizer)) - 1
    )  # without the newline


def reply_limit(asked: Sequence[Conversation], tokenizer: Tokenizer) -> int:
    """Tokens that a scored reply may have: somewhat more than the longest expected one.

    A model that does not know when to stop pays for all of them, so there is an upper bound.
    """
    longest = max(reply_length(conversation, tokenizer) for conversation in asked)
    return min(max(longest + REPLY_MARGIN, SHORTEST_LIMIT), LONGEST_LIMIT)


def pick_sample(
    scored: Sequence[Conversation],
    replies: Sequence[Sequence[int]],
    tokenizer: Tokenizer,
    seen_tools: set[str],
) -> dict[str, str]:
    """A scored question and the reply to it, control tokens as text.

    For a tool that training never shows, if there is one.
    """
    kinds = [kind_of(first_reply(row).calls, seen_tools) for row in scored]
    index = kinds.index("unseen") if "unseen" in kinds else 0
    asked = [m.content for m in first_question(scored[index]).messages if m.role == "user"]
    return {"question": asked[-1], "reply": tokenizer.decode(replies[index])}
