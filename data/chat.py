"""A conversation -> token ids and, id for id, whether the model learns to write it.

Gemma's turns, with control ids by number and all content through `Tokenizer.encode`, so that no text of a user, a tool or
a tool's description can forge a turn or a tag. `parse_reply` and `parse_tool_calls` in `data/reply.py` are the inverse.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from data.conversation import Conversation, Message, SystemPrompt
from data.replies import Reply
from data.reply import parse_reply, parse_tool_calls
from data.tokenizer import Tokenizer
from data.tool_schema import write_tool

__all__ = [
    "Example",
    "Reply",
    "SystemPrompt",
    "common_prompt",
    "parse_reply",
    "parse_tool_calls",
    "render",
    "render_prompt",
]

# What a piece of a conversation is: only the model's own pieces are ever trained
Kind = Literal["prompt", "thinking", "content", "call", "end", "call_end"]
TRAINED: dict[str, frozenset[Kind]] = {
    "assistant": frozenset({"thinking", "content", "call", "end", "call_end"}),
    "tool-calls": frozenset({"thinking", "call", "call_end"}),
}
Piece = tuple[str | int, Kind]  # ordinary text, or a control id


@dataclass(frozen=True)
class Example:
    """Token ids and same-length flags: `trainable[i]` says that `tokens[i]` is to be predicted."""

    tokens: list[int]
    trainable: list[bool]
    where: str = field(default="", compare=False)

    @property
    def num_supervised(self) -> int:
        """Flags that count: the first token has none before it that could predict it."""
        return sum(self.trainable[1:])


def render(
    conversation: Conversation, tokenizer: Tokenizer, train_on: str = "assistant"
) -> Example:
    """Render a conversation for training.

    The model's turn is trained from the first id after its header to its `<end_of_turn>`, which it must learn to
    write; the header and the newline after the turn are given. With S for `<start_of_turn>` and E for `<end_of_turn>`:

        input   <bos> S    user \\n   Hi   E    \\n   S     model \\n   Yo   E    \\n
        target  S     user \\n   Hi   E    \\n   S    model \\n    Yo   E    \\n   -
        mask    0     0    0    0    0    0    0    0     0     1    1    0    -

    A target is masked in where the flag of the token that it is, one to the right, is set.

    Args:
        train_on: "assistant", or "tool-calls" for thinking and calls alone (and the end of the turns that call).
    Raises:
        ValueError: an unknown `train_on`, or text that no tokenizer can encode.
    """
    if train_on not in TRAINED:
        raise ValueError(f"train_on: expected {' or '.join(TRAINED)}, got {train_on!r}")
    tokens: list[int] = []
    trainable: list[bool] = []

    def add(piece: str | int, is_trained: bool) -> None:
        ids = [piece] if isinstance(piece, int) else tokenizer.encode(piece)
        tokens.extend(ids)
        trainable.extend([is_trained] * len(ids))

    add(tokenizer.bos_id, False)
    for number, message in enumerate(conversation.messages):
        for piece, kind in _turn(conversation, number, tokenizer):
            add(piece, message.trained and kind in TRAINED[train_on])
    return Example(tokens, trainable, conversation.where)


def render_prompt(conversation: Conversation, tokenizer: Tokenizer) -> list[int]:
    """Return the ids to generate from: an exact prefix of what `render` gives once the model's turn is there."""
    return [
        *render(conversation, tokenizer).tokens,
        tokenizer.start_of_turn_id,
        *tokenizer.encode("model\n"),
    ]


def _turn(conversation: Conversation, number: int, tokenizer: Tokenizer) -> Iterator[Piece]:
    """Yield one turn; every text between two control ids is one piece, as a template's string would be tokenized."""
    message = conversation.messages[number]
    yield tokenizer.start_of_turn_id, "prompt"
    if message.role == "user":
        yield from _join_texts(_user(conversation, message, number, tokenizer))
    elif message.role == "tool":
        yield from _join_texts(_results(message, tokenizer))
    else:
        # A piece of its own, because generation starts after it: the model's text may begin with a newline
        yield "model\n", "prompt"
        yield from (_mistral_turn if tokenizer.format == "mistral" else _hermes_turn)(
            message, tokenizer
        )
    yield (
        tokenizer.end_of_turn_id,
        ("prompt" if message.role != "model" else "call_end" if message.calls else "end"),
    )
    yield "\n", "prompt"


def _join_texts(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """Join neighbouring texts of a prompt."""
    text = ""
    for piece, kind in pieces:
        if isinstance(piece, str):
            text += piece
            continue
        if text:
            yield text, kind
        yield piece, kind
        text = ""
    if text:
        yield text, "prompt"


def _user(
    conversation: Conversation, message: Message, number: int, tokenizer: Tokenizer
) -> Iterator[Piece]:
    """Yield a user's turn; the first one begins with the system text and the tools."""
    yield "user\n", "prompt"
    if number == 0:
        yield from _system(conversation, tokenizer)
    yield message.content, "prompt"


def _system(conversation: Conversation, tokenizer: Tokenizer) -> Iterator[Piece]:
    """Yield the system text, the wording around the tools, and the tools between their tags.

    The operator wrote text and wording, so a tag in them is the tag itself, as it is for Transformers, which tokenizes
    the chat template's string: an adapter is served the ids that it was trained on. The tools are only data.
    """
    prompt = conversation.prompt
    yield from _with_tags(conversation.system, tokenizer)
    if prompt:
        yield from _with_tags(("\n\n" if conversation.system else "") + prompt.before, tokenizer)
        tools = dump([write_tool(tool) for tool in conversation.tools])
        is_hermes = tokenizer.format == "hermes"
        yield tokenizer.tag_ids["<tools>" if is_hermes else "[AVAILABLE_TOOLS]"], "prompt"
        yield f"\n{tools}\n" if is_hermes else tools, "prompt"
        yield tokenizer.tag_ids["</tools>" if is_hermes else "[/AVAILABLE_TOOLS]"], "prompt"
        yield from _with_tags(prompt.after, tokenizer)
    if prompt or conversation.system:
        yield "\n\n", "prompt"


def _with_tags(text: str, tokenizer: Tokenizer) -> Iterator[Piece]:
    """Yield text with the format's tags in it as control ids; all other control tokens stay text."""
    for part in re.split(f"({'|'.join(map(re.escape, tokenizer.tag_ids))})", text):
        yield tokenizer.tag_ids.get(part, part), "prompt"


def _hermes_turn(message: Message, tokenizer: Tokenizer) -> Iterator[Piece]:
    """Yield what the model writes: thinking, prose, then one pair of tags per call."""
    tags = tokenizer.tag_ids
    if message.thinking:
        yield tags["<think>"], "thinking"
        yield message.thinking, "thinking"
        yield tags["</think>"], "thinking"
    yield message.content, "content"
    for call in message.calls:
        yield tags["<tool_call>"], "call"
        yield f"\n{dump({'name': call.name, 'arguments': call.arguments})}\n", "call"
        yield tags["</tool_call>"], "call"


def _mistral_turn(message: Message, tokenizer: Tokenizer) -> Iterator[Piece]:
    """Yield thinking (which has no token in this format) as plain text, prose, then one list of all calls."""
    if message.thinking:
        yield f"<think>{message.thinking}</think>\n", "thinking"
    yield message.content, "content"
    if message.calls:
        yield tokenizer.tag_ids["[TOOL_CALLS]"], "call"
        yield (
            dump([{"name": call.name, "arguments": call.arguments} for call in message.calls]),
            "call",
        )


def _results(message: Message, tokenizer: Tokenizer) -> Iterator[Piece]:
    """Yield a tool's turn: what the calls gave, each between its tags."""
    is_hermes = tokenizer.format == "hermes"
    yield "tool\n", "prompt"
    for result in message.results:
        yield tokenizer.tag_ids["<tool_response>" if is_hermes else "[TOOL_RESULTS]"], "prompt"
        named = {"content": result.content} | ({"name": result.name} if result.name else {})
        yield f"\n{result.content}\n" if is_hermes else dump(named), "prompt"
        yield tokenizer.tag_ids["</tool_response>" if is_hermes else "[/TOOL_RESULTS]"], "prompt"


def dump(value: object) -> str:
    """The one spelling of JSON in tokens."""
    return json.dumps(value, ensure_ascii=False)


def common_prompt(conversations: Iterable[Conversation]) -> SystemPrompt | None:
    """The wording, with its tool shape, that most rows use (the first of equals); None if no row has tools."""
    counts = Counter(conversation.prompt for conversation in conversations if conversation.prompt)
    return counts.most_common(1)[0][0] if counts else None
