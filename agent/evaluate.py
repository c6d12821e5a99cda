"""Exact-call accuracy: does a model's first reply make exactly the calls that are due, or none?

Read downwards: batches of prompts, the model's first replies to them, the score of those replies.
All or nothing for each conversation: every name and every argument must be equal, as JSON, type and
value. The order of parallel calls does not count.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from data.chat import parse_reply, render, render_prompt
from data.conversation import Conversation, Message, ToolCall
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
    model: Gemma2, tokenizer: Tokenizer, conversations: Sequence[Conversation], max_new_tokens: int
) -> list[list[int]]:
    """The ids that the model writes, greedy, in place of each conversation's first reply.

    A prompt that fills the model's positions gets an empty reply.
    """
    prompts = [render_prompt(first_question(row), tokenizer) for row in conversations]
    limit = model.config.max_position_embeddings
    replies: list[list[int]] = [[] for _ in prompts]
    lengths = [len(prompt) for prompt in prompts]
    # One row at a time reads all weights for each token; 64 rows read them for 64 tokens.
    for rows in like_length_batches(lengths, limit, max_new_tokens):
        batch = [prompts[row] for row in rows]
        room = min(max_new_tokens, limit - len(batch[-1]))  # the last one is the longest
        # Without a `Sampling` it is greedy, so the same weights always get the same score.
        written = generate(model, batch, room, tokenizer.stop_ids)
        for row, reply in zip(rows, written, strict=True):
            replies[row] = reply
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
        expected = first_reply(conversation).calls
        # With the tools, because a call without arguments is complete for a tool that needs none.
        reply = parse_reply(list(ids), tokenizer, conversation.tools)
        # Where no call is due, garbage has none either: a reply that was cut or is empty is wrong.
        is_answer = bool(reply.calls or (reply.ended and reply.content))
        is_right = is_answer and not reply.errors and is_exact(expected, reply.calls)
        accuracy.add(kind_of(expected, seen_tools), is_right)
    return accuracy.as_dict()


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
