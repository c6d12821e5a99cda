"""A reply read piece by piece, while it is written or at once: its parts, and in the end the whole.

`ReplyReader` takes texts and tags, cut as they may be; `ReplyStream` takes ids one by one. Whatever
is reported while a reply is written adds up to what `data/reply.py` says of it afterwards.
"""

import codecs
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from data.conversation import Tool, ToolCall
from data.lenient_json import shorten
from data.tokenizer import Tokenizer
from data.tool_calls import CallError, Outcome, error_for, read_calls
from data.wire import HERMES, Block, Piece, Tag, WireFormat


@dataclass(frozen=True)
class Reply:
    """What a turn says."""

    thinking: str = ""
    content: str = ""
    outcomes: tuple[Outcome, ...] = ()  # calls and errors in their order
    repairs: tuple[str, ...] = ()
    ended: bool = True  # False if generation was cut

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        """The calls that can be run."""
        return tuple(outcome for outcome in self.outcomes if isinstance(outcome, ToolCall))

    @property
    def errors(self) -> tuple[CallError, ...]:
        """The calls that cannot."""
        return tuple(outcome for outcome in self.outcomes if isinstance(outcome, CallError))


@dataclass(frozen=True)
class Part:
    """What the last piece has brought: the next characters of a text, a whole thought, or calls."""

    # "thinking", "content" and "call" are texts as they come; "thought" and "outcomes" whole blocks
    kind: Literal["thinking", "content", "call", "thought", "outcomes"]
    text: str = ""
    outcomes: tuple[Outcome, ...] = ()


class _Texts:
    """Texts without the space around each, joined by empty lines, as far as they are certain."""

    def __init__(self) -> None:
        self.parts: list[str] = []  # joined, what has been given out
        self.held = ""  # space that may be the end of a text, or lie inside of it
        self.number, self.is_open, self.begun = 0, False, 0

    @property
    def text(self) -> str:
        return "".join(self.parts)

    def add(self, text: str) -> str:
        """The characters that are new."""
        gap = ""
        if not self.is_open:
            text = text.lstrip()
            if not text:
                return ""
            gap = "\n\n" if self.number else ""
            self.number, self.is_open = self.number + 1, True
        text = self.held + text
        kept = text.rstrip()
        self.held = text[len(kept) :]
        self.parts.append(gap + kept)
        return gap + kept

    def end(self) -> str:
        """Ends a text, which it returns; the next one is another."""
        text = "".join(self.parts[self.begun :]).lstrip() if self.is_open else ""
        self.held, self.is_open, self.begun = "", False, len(self.parts)
        return text


class ReplyReader:
    """Puts a turn's pieces together; never raises.

    Prose from before, between and after calls is kept as one content. Calls inside thinking are
    thinking.
    """

    def __init__(self, wire: WireFormat = HERMES, tools: Iterable[Tool] = ()) -> None:
        self.wire, self.tools = wire, tuple(tools)
        self.thoughts, self.prose = _Texts(), _Texts()
        self.outcomes: list[Outcome] = []
        self.repairs: list[str] = []
        self.block: Block | None = None  # the one that is open
        self.body: list[Piece] = []  # of a call
        # Thinking that a format writes as plain text stands at the beginning, or nowhere
        self.start: str | None = None if wire.thinking.tags else ""

    def feed(self, piece: Piece) -> list[Part]:
        """Takes a tag or the next characters of a text."""
        if self.block is not None and piece == self.block.close:
            return self._close(is_closed=True, ended=True)
        if self.block is self.wire.call:
            self.body.append(piece)
            return [Part("call", str(piece))]
        if self.block is not None:
            return self._add("thinking", str(piece))
        if isinstance(piece, str):
            return self._add("content", piece) if self.start is None else self._begin(piece)
        if not self.wire.thinking.tags and piece != self.wire.call.open:
            return []  # a stray tag, which parts nothing
        parts = self._settle()
        self.prose.end()
        if piece == self.wire.call.open:
            self.block, self.body = self.wire.call, []
        elif piece == HERMES.thinking.open:
            self.block = HERMES.thinking
        else:
            self.repairs.append("stray_tag")
        return parts

    def end(self, *, ended: bool) -> list[Part]:
        """Ends the turn; `ended` is False if it was cut."""
        parts = self._settle()
        return parts + (self._close(is_closed=False, ended=ended) if self.block else [])

    def reply(self, *, ended: bool) -> Reply:
        """The turn as a whole, after its end."""
        several = ["several_thoughts"] if self.thoughts.number > 1 else []
        repairs = (*self.repairs, *several)
        outcomes = tuple(self.outcomes)
        return Reply(self.thoughts.text, self.prose.text, outcomes, repairs, ended)

    def _add(self, kind: Literal["thinking", "content"], text: str) -> list[Part]:
        texts = self.thoughts if kind == "thinking" else self.prose
        was_open = texts.is_open
        new = texts.add(text)
        if texts.is_open and not was_open and kind == "content" and self.outcomes:
            self.repairs.append("text_after_call")
        return [Part(kind, new)] if new else []

    def _begin(self, text: str) -> list[Part]:
        """Holds a turn's beginning until it is known whether it is thinking as plain text."""
        self.start = (self.start or "") + text
        begun = self.start.lstrip()
        if "<think>".startswith(begun[:7]):
            if len(begun) < 7 or "</think>" not in begun:
                return []
            thinking, rest = self.start.split("</think>", 1)
            self.start = None
            parts = self._add("thinking", thinking.replace("<think>", "", 1))
            return parts + self._end_thought() + self._add("content", rest)
        return self._settle()

    def _settle(self) -> list[Part]:
        """Takes a beginning that is no thinking as what it is."""
        text, self.start = self.start, None
        return self._add("content", text) if text else []

    def _end_thought(self) -> list[Part]:
        thought = self.thoughts.end()
        return [Part("thought", thought)] if thought else []

    def _close(self, *, is_closed: bool, ended: bool) -> list[Part]:
        block, self.block = self.block, None
        if block is self.wire.call:
            # Only the end of the turn closes a block without a closing mark
            is_closed = ended if self.wire.call.close is None else is_closed
            found, names = _read_call_block(
                self.body, self.wire, self.tools, is_closed=is_closed, ended=ended
            )
            self.outcomes += found
            self.repairs += names
            return [Part("outcomes", outcomes=tuple(found))]
        self.repairs += [] if is_closed else ["unclosed_think"]
        return self._end_thought()


class _Characters:
    """Ids -> text, id by id: never half of a character."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.held: list[int] = []

    def feed(self, id: int) -> str:
        tokenizer = self.tokenizer
        if tokenizer.is_byte_level:
            return self.decoder.decode(tokenizer.spelling(id) or b"")
        self.held.append(id)
        # A run of byte pieces is decoded as a whole: if one is wrong, none of them is a character
        return "" if tokenizer.is_byte_piece(id) else self.end()

    def end(self) -> str:
        """What was held back."""
        if self.tokenizer.is_byte_level:
            return self.decoder.decode(b"", final=True)
        ids, self.held = self.held, []
        return self.tokenizer.decode(ids)


class ReplyStream:
    """Reads a reply's ids as they are written; see `parse_reply`, which reads them all at once."""

    def __init__(self, tokenizer: Tokenizer, tools: Iterable[Tool] = ()) -> None:
        self.tokenizer = tokenizer
        self.reader = ReplyReader(tokenizer.wire, tools)
        self.characters = _Characters(tokenizer)
        self.ended = False  # by an id that ends the turn; what follows is ignored

    def feed(self, id: int) -> list[Part]:
        """Takes the next id."""
        if self.ended:
            return []
        is_end = id in self.tokenizer.turn_ends
        if id not in self.tokenizer.control_ids and not is_end:
            return self._text(self.characters.feed(id))
        parts = self._text(self.characters.end())
        self.ended = is_end
        return parts if is_end else parts + self.reader.feed(self.tokenizer.pieces([id])[0])

    def end(self, *, ended: bool = False) -> tuple[list[Part], Reply]:
        """The last parts, and the reply; `ended` if something other than an id ended it."""
        self.ended |= ended
        parts = self._text(self.characters.end()) + self.reader.end(ended=self.ended)
        return parts, self.reader.reply(ended=self.ended)

    def _text(self, text: str) -> list[Part]:
        return self.reader.feed(text) if text else []


def _read_call_block(
    body: Sequence[Piece], wire: WireFormat, tools: Iterable[Tool], *, is_closed: bool, ended: bool
) -> tuple[list[Outcome], list[str]]:
    """Read what follows a call's tag; a call that was cut is never completed by guessing."""
    if wire.read_call is not None:
        if not is_closed and not ended:
            got = shorten("".join(map(str, body)))
            return [error_for("truncated", f"expected a complete call, got {got}")], []
        outcomes, repairs = wire.read_call(body, tools)
        return outcomes, repairs + ([] if is_closed else ["missing_end_tag"])
    # JSON that a model writes holds no control token: content cannot spell one
    if any(isinstance(piece, Tag) for piece in body):
        return _read_tags_in_call(body, wire, tools, is_closed=is_closed, ended=ended)
    text = "".join(map(str, body))
    if not is_closed and not ended:
        # Complete JSON without its end tag may still be half of what the model meant to write
        got = shorten(text) or "nothing"
        return [error_for("truncated", f"expected a complete call, got {got}")], []
    outcomes, repairs = read_calls(text, tools)
    if wire.call.close is None:
        # Such a block is a list by rights, not by a slip
        repairs = [repair for repair in repairs if repair != "list_of_calls"]
    return outcomes, repairs + ([] if is_closed else ["missing_end_tag"])


def _read_tags_in_call(
    body: Sequence[Piece], wire: WireFormat, tools: Iterable[Tool], *, is_closed: bool, ended: bool
) -> tuple[list[Outcome], list[str]]:
    """Read a call with a tag inside: an error, for it was forged or garbled, but for one case.

    Where the call's own tag opens again before it closes, complete calls in front of it count.
    """
    parts: list[list[Piece]] = [[]]
    for piece in body:
        if piece == wire.call.open:
            parts.append([])
        else:
            parts[-1].append(piece)
    if len(parts) == 1 or wire.call.close is None or not all(map(_is_complete, parts[:-1])):
        text = "".join(map(str, body))
        if not is_closed and not ended:
            problem = f"expected a complete call, got {shorten(text)}"
            return [error_for("truncated", problem)], []
        problem = f"expected plain text in the call, got {shorten(text)}"
        return [error_for("control_token", problem)], []
    outcomes: list[Outcome] = []
    repairs: list[str] = []
    for part in parts[:-1]:
        found, names = read_calls("".join(map(str, part)), tools)
        outcomes += found
        repairs += [*names, "stray_tag"]
    # What is left has one tag less
    found, names = _read_call_block(parts[-1], wire, tools, is_closed=is_closed, ended=ended)
    return outcomes + found, repairs + names


def _is_complete(part: Sequence[Piece]) -> bool:
    """True for the text of good calls and nothing else."""
    outcomes, _ = read_calls("".join(map(str, part)))
    is_plain = all(isinstance(piece, str) for piece in part)
    return is_plain and all(isinstance(outcome, ToolCall) for outcome in outcomes)
