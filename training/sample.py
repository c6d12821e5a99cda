"""The one conversation that a run shows: short, whole, and in words that people know."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from data.conversation import Conversation

MOST_READ = 3000  # rows that are looked at; more would cost seconds and find none much better
# A word of fewer rows than this is rare: a name, a code, or an invented word.
KNOWN_ROWS = 3
# Each rare word weighs as much as so many characters more to read.
RARE_COST = 60
WORD = re.compile(r"[^\W\d_]{2,}")


def pick_conversation(rows: Sequence[Conversation]) -> Conversation:
    """The first exchange of the row that shows best what training teaches.

    One with a call, its result and an answer goes before one with a call alone, and that before
    others; best is a call with a value. Among equals the shortest, rare words counting as length.
    """
    exchanges = [first_exchange(row) for row in rows[:MOST_READ]]
    spoken = [_words(exchange) for exchange in exchanges]
    # Rows and not places: a word that one row repeats is no better known for it.
    known = Counter(word for words in spoken for word in words)

    def cost(index: int) -> tuple[int, int]:
        exchange = exchanges[index]
        rare = sum(known[word] < KNOWN_ROWS for word in spoken[index])
        return -completeness(exchange), _length(exchange) + RARE_COST * rare

    return exchanges[min(range(len(exchanges)), key=cost)]


def first_exchange(row: Conversation) -> Conversation:
    """The row up to the answer to its first question; whole where no answer comes."""
    for end, message in enumerate(row.messages, start=1):
        if message.role == "model" and not message.calls:
            return replace(row, messages=row.messages[:end])
    return row


def completeness(exchange: Conversation) -> int:
    """3: a call with a value, its result and an answer; 2: without a value; 1: a call; 0: none."""
    has_call = any(message.calls for message in exchange.messages)
    has_result = any(message.results for message in exchange.messages)
    is_answered = has_call and has_result and not exchange.messages[-1].calls
    has_value = any(call.arguments for message in exchange.messages for call in message.calls)
    return 2 + has_value if is_answered else int(has_call)


def _words(exchange: Conversation) -> set[str]:
    """The words of the tools and of what is said, in small letters."""
    texts = [f"{tool.name} {tool.description}" for tool in exchange.tools]
    texts += [name for tool in exchange.tools for name in tool.parameters.get("properties", {})]
    texts += [message.content for message in exchange.messages]
    texts += [result.content for message in exchange.messages for result in message.results]
    return {word.lower() for text in texts for word in WORD.findall(text.replace("_", " "))}


def _length(exchange: Conversation) -> int:
    """Characters, about, of the exchange as it is shown."""
    tools = sum(len(f"{tool.name}{tool.description}{tool.parameters}") for tool in exchange.tools)
    said = sum(len(f"{m.content}{m.thinking}{m.calls}{m.results}") for m in exchange.messages)
    return tools + said + len(exchange.system)
