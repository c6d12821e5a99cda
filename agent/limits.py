"""What one question may take, what it has taken, and the errors that a model reads at a limit."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from data.tool_calls import CallError

# Calls of one reply that are run: a model in a loop writes hundreds, and each may use up its time.
MAX_CALLS = 8
# Replies to one question in which the same call is run. Asking a clock twice has a reason; a call
# in four replies is a loop, and the next reply has to answer with what is known.
MAX_REPEATS = 3
# Characters of one result. Cut before it is encoded, which takes a second for each megabyte.
MAX_RESULT_CHARACTERS = 8000
# A reply that ends with one stretch of at most PERIOD ids, again and again, at least REPEATS times,
# goes on like that for ever.
PERIOD, REPEATS = 32, 4

NO_TOOLS = CallError("unknown_tool", "there are no tools in this chat", "answer without a call")
TOO_MANY = CallError(
    "too_many_calls",
    f"at most {MAX_CALLS} calls at once are run",
    "make fewer calls at once",
)
OUT_OF_TIME = CallError(
    "timeout",
    "the tools have used up the seconds of this question",
    "answer with what is known",
)
REPEATED = CallError(
    "repeated_call",
    "this call was made before; its result stands above",
    "answer with that result",
)


DECLINED = CallError(
    "declined",
    "the user was asked and does not want this call",
    "answer without it, or ask what is wanted",
)


@dataclass(frozen=True)
class Limits:
    """What one question may take.

    new_tokens is of one reply, question_tokens of all replies to the question. tool_seconds are for
    all its calls together, reply_seconds for writing all its replies. A reply whose last `loop` ids
    say one thing again and again is cut; 0 lets it go on.
    """

    new_tokens: int = 512
    question_tokens: int | None = None
    # Replies with calls. The reply after them may not call, so every question ends.
    rounds: int = 8
    tool_seconds: float = 120.0
    reply_seconds: float = math.inf
    loop: int = 96


@dataclass(frozen=True)
class Event:
    """One thing that happened while a question was answered.

    think, text (prose beside a call), tool_call, tool_response, answer and error are whole;
    think_delta and text_delta are characters as they are written; done is the last one of all.
    """

    kind: str
    content: Any  # a JSON value


@dataclass
class Spent:
    """What the question has taken so far."""

    tokens: int = 0
    replies: int = 0
    tool_seconds: float = 0.0
    reply_seconds: float = 0.0
    made: Counter[str] = field(default_factory=Counter)  # call -> replies that make it

    def exceeds(self, limits: Limits) -> bool:
        """True if the question may have no further reply."""
        most = limits.question_tokens
        is_full = most is not None and self.tokens >= most
        return is_full or self.reply_seconds > limits.reply_seconds


def cut_result(text: str) -> str:
    """At most MAX_RESULT_CHARACTERS of a result's text, which a tokenizer can encode.

    JSON can hold half a surrogate pair; it becomes a "?".
    """
    return text[:MAX_RESULT_CHARACTERS].encode(errors="replace").decode()


def is_loop(ids: Sequence[int], span: int) -> bool:
    """True if the last `span` ids are one short stretch, repeated."""
    if len(ids) < span:
        return False
    tail = ids[-span:]
    periods = range(1, min(PERIOD, span // REPEATS) + 1)
    return any(tail[period:] == tail[:-period] for period in periods)
