"""A conversation -> token ids and, id for id, whether the model learns to write it.

Gemma's turns, with control ids by number and all content through `Tokenizer.encode`, so that no
text of a user, a tool or a tool's description can forge a turn or a tag. `parse_reply` and
`parse_tool_calls` in `data/reply.py` are the inverse.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Literal

from data.conversation import Conversation, Message, SystemPrompt
from data.reply import Reply as Reply  # importable from here too, as the inverse of `render`
from data.reply import parse_reply as parse_reply
from data.reply import parse_tool_calls as parse_tool_calls
from data.tokenizer import Tokenizer
from data.wire import Piece, Tag, WireFormat

# What a piece of a conversation is: only the model's own pieces are ever trained. The end of a turn
# that calls is a kind of its own: after a call, stopping is a part of calling.
Kind = Literal["prompt", "thinking", "content", "call", "end", "call_end"]
TRAINED: dict[str, frozenset[Kind]] = {
    "assistant": frozenset({"thinking", "content", "call", "end", "call_end"}),
    "tool-calls": frozenset({"thinking", "call", "call_end"}),
}


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

    The model's turn is trained from the first id after its header to its `<end_of_turn>`, which it
    must learn to write; the header and the newline after the turn are given. With S for
    `<start_of_turn>` and E for `<end_of_turn>`:

        input   <bos> S    user \\n   Hi   E    \\n   S     model \\n   Yo   E    \\n
        target  S     user \\n   Hi   E    \\n   S    model \\n    Yo   E    \\n   -
        mask    0     0    0    0    0    0    0    0     0     1    1    0    -

    A target is masked in where the flag of the token that it is, one to the right, is set.

    `train_on` is "assistant", or "tool-calls" for thinking and calls alone (and the end of the
    turns that call).

    Raises: ValueError for an unknown `train_on`, or for text that no tokenizer can encode.
    """
    if train_on not in TRAINED:
        raise ValueError(f"train_on: expected {' or '.join(TRAINED)}, got {train_on!r}")
    tokens: list[int] = []
    trainable: list[bool] = []

    # The one place that appends: ids and flags cannot drift apart. Only an id or a Tag gives
    # control tokens; a string, whatever it spells, is encoded as content.
    def add(piece: Piece | int, is_trained: bool = False) -> None:
        if isinstance(piece, int):
            ids = [piece]
        elif isinstance(piece, Tag):
            ids = [tokenizer.tag_ids[piece.name]]
        else:
            ids = tokenizer.encode(piece)
        tokens.extend(ids)
        trainable.extend([is_trained] * len(ids))

    wire, messages = tokenizer.wire, conversation.messages
    add(tokenizer.bos_id)
    if wire.system_role and (system := _system(conversation, wire)):
        add(tokenizer.start_of_turn_id)
        for piece, _ in _join_texts(
            (piece, "prompt") for piece in (f"{wire.system_role}\n", *system)
        ):
            add(piece)
        add(tokenizer.end_of_turn_id)
        add("\n")
    for number, message in enumerate(messages):
        # A turn of weight 0 is context: rendered like any other, with no flag set
        kinds = TRAINED[train_on] if message.trained else frozenset()
        if not _goes_on(messages, number, wire):
            add(tokenizer.start_of_turn_id)
        for piece, kind in _join_texts(_turn(conversation, number, wire)):
            add(piece, kind in kinds)
        is_end_trained = ("call_end" if message.calls else "end") in kinds
        following = messages[number + 1 : number + 2]
        is_open = _is_left_open(message, following, wire)
        if is_open and message.calls:
            add(wire.result.open, is_end_trained)
        if not is_open:
            add(tokenizer.end_of_turn_id, message.role == "model" and is_end_trained)
            add("\n")  # Gemma's own template has it after each turn; generation stops before it
    return Example(tokens, trainable, conversation.where)


def render_prompt(conversation: Conversation, tokenizer: Tokenizer) -> list[int]:
    """Return the ids to generate from: a prefix of what `render` gives with the reply added."""
    # "model\n" is encoded on its own here and in `_model_turn`, so the ids cannot differ
    tokens = render(conversation, tokenizer).tokens
    if conversation.messages and _is_left_open(conversation.messages[-1], (), tokenizer.wire):
        return tokens  # the answer belongs to the turn that called
    return [*tokens, tokenizer.start_of_turn_id, *tokenizer.encode("model\n")]


def turn_end(reply: Iterable[int], tokenizer: Tokenizer) -> list[int]:
    """Return the ids that `render` writes behind those of a reply."""
    wire = tokenizer.wire
    opening = [tokenizer.tag_ids[tag] for tag in wire.call.tags[:1]]
    if wire.answers_in_turn and not set(opening).isdisjoint(reply):
        return [tokenizer.tag_ids[tag] for tag in wire.result.tags[:1]]
    return [tokenizer.end_of_turn_id, *tokenizer.encode("\n")]


def _goes_on(messages: Sequence[Message], number: int, wire: WireFormat) -> bool:
    """True for a message that belongs to the turn of the one before it."""
    message = messages[number]
    follows_result = number > 0 and messages[number - 1].role == "tool"
    is_answer = message.role == "model" and follows_result
    return wire.answers_in_turn and (message.role == "tool" or is_answer)


def _is_left_open(message: Message, following: Sequence[Message], wire: WireFormat) -> bool:
    """True for a message whose turn the next one continues: a call, or results."""
    wanted = "tool" if message.calls else "model"
    is_followed = not following or following[0].role == wanted
    return wire.answers_in_turn and bool(message.calls or message.results) and is_followed


def _turn(
    conversation: Conversation, number: int, wire: WireFormat
) -> Iterator[tuple[Piece, Kind]]:
    """Yield what lies between the control tokens of one turn, from its header on."""
    message = conversation.messages[number]
    if message.role == "model":
        if not _goes_on(conversation.messages, number, wire):
            # A text of its own, because generation starts after it: the model's text may begin with
            # a newline
            yield "model\n", "prompt"
        yield from _model_turn(message, wire)
        return
    pieces: list[Piece] = [f"{message.role}\n"]
    if message.role == "user" and not wire.system_role:
        # Gemma has no system turn: what the operator says opens the first user's turn, which a
        # greeting by the model may precede
        is_first = all(turn.role != "user" for turn in conversation.messages[:number])
        system = _system(conversation, wire) if is_first else []
        pieces += [*system, "\n\n"] if system else []
    pieces.append(message.content)
    for result in message.results:
        pieces += wire.result.around(wire.write_result(result))
    if _goes_on(conversation.messages, number, wire):
        pieces = pieces[3:]  # header, empty content, and the mark that the call ended with
    for piece in pieces:
        yield piece, "prompt"


def _model_turn(message: Message, wire: WireFormat) -> Iterator[tuple[Piece, Kind]]:
    """Yield thinking, prose and calls, each of its own kind, since each may be trained or not."""
    if message.thinking:
        for piece in wire.thinking.around(message.thinking):
            yield piece, "thinking"
    yield message.content, "content"
    for body in wire.write_calls(message.calls):
        for piece in wire.call.around(body):
            yield piece, "call"


def _system(conversation: Conversation, wire: WireFormat) -> list[Piece]:
    """Return what precedes the first question: system text, the tools, and the wording around them.

    The operator wrote text and wording, so a tag in them is the tag itself, as it is for
    Transformers, which tokenizes the chat template's string: an adapter is served the ids that it
    was trained on. The tools are only data.
    """
    prompt, said = conversation.prompt, conversation.system
    if not prompt:
        return _with_tags(said, wire) if said else []
    before, after = prompt.before, prompt.after
    if wire.wording is not None:
        # What asks for calls in the words that the model was made for; a row may have them already
        before, after = ("" if wire.wording in said else wire.wording), ""
    pieces = _with_tags(said + ("\n\n" if said and before else "") + before, wire)
    for body in wire.write_tools(conversation.tools):
        pieces += wire.tools.around(body)
    return pieces + _with_tags(after, wire)


def _with_tags(text: str, wire: WireFormat) -> list[Piece]:
    """Cut text at the format's tags; all other control tokens in it stay text."""
    # The group in the pattern makes split return the tags too, at every second place
    parts = re.split(f"({'|'.join(map(re.escape, wire.tags))})", text)
    return [Tag(part) if part in wire.tags else part for part in parts]


def _join_texts(pieces: Iterable[tuple[Piece, Kind]]) -> Iterator[tuple[Piece, Kind]]:
    """Join neighbouring texts of one kind, since a chat template's string is tokenized as a whole.

    Byte-pair merges cross the places where texts meet, so the same characters in two texts can have
    other ids.
    """
    for (kind, is_text), run in groupby(pieces, key=lambda pair: (pair[1], type(pair[0]) is str)):
        if is_text:
            yield "".join(str(piece) for piece, _ in run), kind
        else:
            yield from run


def common_prompt(conversations: Iterable[Conversation]) -> SystemPrompt | None:
    """Return the wording and tool shape of most rows (the first of equals); None without tools."""
    counts = Counter(conversation.prompt for conversation in conversations if conversation.prompt)
    return counts.most_common(1)[0][0] if counts else None
