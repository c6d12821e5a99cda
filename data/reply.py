"""A model's turn, as ids or as text -> thinking, prose, calls and errors: the inverse of rendering.

Both are first cut into pieces, ordinary text and tags, and everything after that is shared. Among
ids a tag is an id of its own, so the characters "</tool_call>" inside a JSON string stay data; text
needs the rule of `split_text` for that.
"""

import dataclasses
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from data.conversation import Tool, ToolCall
from data.lenient_json import find_end, shorten
from data.tokenizer import Tokenizer
from data.tool_calls import CallError, Outcome, error_for, read_calls
from data.wire import HERMES, Piece, Tag, WireFormat

# What may lie between the values of a call: space, separators, the fence of a code block
_VALUE_GAP = re.compile(r"(?:[\s,;]|```[a-zA-Z]*)*")
# Repairs that a reply survives but that a row of training data must not have: the model would learn
# them.
STRUCTURAL = {
    "unclosed_think": "a <think> that never closes",
    "stray_tag": "a tag that opens or closes nothing here",
    "missing_end_tag": "a <tool_call> that never closes",
}
_SHOWN = 5


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


def explain_problems(reply: Reply) -> str:
    """Return as one line what in a reply the model must not learn to write."""
    problems = [f"{error.message}; {error.hint}" for error in reply.errors[:_SHOWN]]
    if len(reply.errors) > _SHOWN:
        problems.append(f"and {len(reply.errors) - _SHOWN} more broken calls")
    for repair in dict.fromkeys(reply.repairs):
        if repair in STRUCTURAL:
            got = STRUCTURAL[repair]
            problems.append(f"expected balanced tags, got {got}; close or remove it")
    return " / ".join(problems)


def parse_reply(
    tokens: Iterable[int], tokenizer: Tokenizer, tools: Sequence[Tool] = (), lenient: bool = False
) -> Reply:
    """Read the ids that a model wrote after `<start_of_turn>model\\n`; never raises.

    A stop id, a new turn or a tool's result ends the turn, and what follows is ignored. Without any
    of them the turn counts as cut, and a call that was not closed is the error "truncated". A call
    without arguments is an error if its tool requires some. `lenient` takes a turn that is nothing
    but the bare JSON of calls to `tools` as these.
    """
    ids: list[int] = []
    ended = False
    for id in tokens:
        if int(id) in tokenizer.turn_ends:
            ended = True
            break
        ids.append(int(id))
    reply = read_pieces(tokenizer.pieces(ids), tokenizer.wire, tools, ended=ended)
    return _read_bare_call(reply, tools) if lenient else reply


def parse_tool_calls(
    tokens_or_text: Iterable[int] | str, tokenizer: Tokenizer | None = None
) -> list[ToolCall]:
    """Return the good calls of a reply, or of all the model's turns of a conversation, in order.

    What begins with <bos> or <start_of_turn> is a conversation. Ids need the tokenizer; text is in
    its format, or in the Hermes format without one. Never raises on what a model wrote.

    Raises: TypeError for ids without a tokenizer.
    """
    if isinstance(tokens_or_text, str):
        wire = tokenizer.wire if tokenizer else HERMES
        turns = [split_text(turn, wire) for turn in _model_turns(tokens_or_text, wire)]
        return [call for turn in turns for call in read_pieces(turn, wire).calls]
    if tokenizer is None:
        raise TypeError("expected a tokenizer with ids; give one, or give text")
    replies = _model_turn_ids([int(id) for id in tokens_or_text], tokenizer)
    return [call for ids in replies for call in parse_reply(ids, tokenizer).calls]


def _model_turns(text: str, wire: WireFormat) -> list[str]:
    """Return the texts of the model's turns; any text but a conversation's is one."""
    # Text cannot show which <start_of_turn> is a token; ids can, so a caller with ids should pass
    # them
    turns = [f"model\n{text}"]
    if text.startswith(("<bos>", "<start_of_turn>")):
        turns = text.split("<start_of_turn>")[1:]
    bodies = [turn.removeprefix("model\n").rstrip() for turn in turns if turn.startswith("model\n")]
    turns = [body.removesuffix("<eos>").rstrip().removesuffix("<end_of_turn>") for body in bodies]
    if not wire.answers_in_turn:
        return turns
    # What follows a result in the same turn is a reply of its own
    opening, closing = map(re.escape, wire.result.tags)
    result = re.compile(f"{opening}(?:.*?{closing}|$)", re.DOTALL)
    return [reply for turn in turns for reply in result.split(turn)]


def _model_turn_ids(ids: list[int], tokenizer: Tokenizer) -> list[list[int]]:
    """Return the ids of the model's turns; any ids but a conversation's are one."""
    if not ids or ids[0] not in (tokenizer.bos_id, tokenizer.start_of_turn_id):
        return [ids]
    header = tokenizer.encode("model\n")
    starts = [place + 1 for place, id in enumerate(ids) if id == tokenizer.start_of_turn_id]
    # Each turn runs on to the end of all ids; `parse_reply` stops at the first id that ends it
    turns = [start + len(header) for start in starts if ids[start : start + len(header)] == header]
    if tokenizer.wire.answers_in_turn:
        # What follows a result in the same turn is a reply of its own
        closing = tokenizer.tag_ids[tokenizer.wire.result.tags[1]]
        turns += [place + 1 for place, id in enumerate(ids) if id == closing]
    return [ids[start:] for start in sorted(turns)]


def split_text(text: str, wire: WireFormat = HERMES) -> list[Piece]:
    """Cut a turn that came as text at its tags, except those inside a call's quoted strings."""
    any_tag = re.compile("|".join(map(re.escape, wire.tags)))
    blocks = {wire.thinking.open: wire.thinking, wire.call.open: wire.call}
    pieces: list[Piece] = []
    position = 0
    while match := any_tag.search(text, position):
        pieces += [text[position : match.start()], Tag(match.group())]
        start = position = match.end()
        block = blocks.get(Tag(match.group()))
        if block is None:
            continue
        if len(block.tags) < 2:
            return [*pieces, text[start:]]  # nothing closes it but the end of the turn
        # Values are skipped as wholes, so that the closing tag inside one of their strings does not
        # count
        while block is wire.call:
            gap = _VALUE_GAP.match(text, position)
            position = gap.end() if gap else position
            end = find_end(text, position) if text[position : position + 1] in ("{", "[") else None
            if end is None:
                break
            position = end
        close = block.tags[1]
        if not text.startswith(close, position):
            # After no value, or a broken one, the first closing tag counts
            position = _find_close(text, start, close, wire)
        if position < 0:
            return [*pieces, *_at_quotes(text[start:], wire)]
        pieces += [*_at_quotes(text[start:position], wire), Tag(close)]
        position += len(close)
    return [*pieces, text[position:]]


def _find_close(text: str, start: int, close: str, wire: WireFormat) -> int:
    """Where a tag stands outside the format's own quotes, or -1."""
    if wire.quote is None:
        return text.find(close, start)
    is_quoted, mark = False, re.escape(wire.quote.name)
    for match in re.compile(f"{mark}|{re.escape(close)}").finditer(text, start):
        if match.group() == wire.quote.name:
            is_quoted = not is_quoted
        elif not is_quoted:
            return match.start()
    return -1


def _at_quotes(text: str, wire: WireFormat) -> list[Piece]:
    """Cut the text of a block at the format's quotes; nothing else in it is a tag."""
    if wire.quote is None:
        return [text]
    parts = [part for text in text.split(wire.quote.name) for part in (wire.quote, text)]
    return [part for part in parts[1:] if part != ""]


def split_thinking(text: str) -> list[Piece]:
    """Cut <think>...</think> off the beginning of a text; all other tags in it stay text."""
    if not (text.lstrip().startswith("<think>") and "</think>" in text):
        return [text]
    thinking, content = text.split("</think>", 1)
    return [*HERMES.thinking.around(thinking.replace("<think>", "", 1)), content]


def read_pieces(
    pieces: Sequence[Piece],
    wire: WireFormat = HERMES,
    tools: Iterable[Tool] = (),
    *,
    ended: bool = True,
) -> Reply:
    """Put a turn's pieces together; never raises.

    Prose from before, between and after calls is kept as one content. Calls inside thinking are
    thinking.
    """
    # From here on thinking has Hermes' marks, in whatever format it came
    if not wire.thinking.tags:
        pieces = _mark_thinking(pieces, wire)
    thoughts: list[str] = []
    prose: list[str] = []
    outcomes: list[Outcome] = []
    repairs: list[str] = []
    position = 0
    while position < len(pieces):
        piece = pieces[position]
        position += 1
        if isinstance(piece, str):
            if piece.strip():
                prose.append(piece.strip())
                repairs += ["text_after_call"] if outcomes else []
            continue
        if piece not in (HERMES.thinking.open, wire.call.open):
            repairs.append("stray_tag")
            continue
        # The first end tag of the same kind closes: other tags in between belong to the block
        block = wire.call if piece == wire.call.open else HERMES.thinking
        # Not by a slice of what is left: many short blocks would copy it many times
        end = position
        while end < len(pieces) and pieces[end] != block.close:
            end += 1
        is_closed = end < len(pieces)
        body = pieces[position:end]
        position = end + 1
        if block is wire.call:
            # Only the end of the turn closes a block without a closing mark
            is_closed = ended if block.close is None else is_closed
            found, names = _read_call_block(body, wire, tools, is_closed=is_closed, ended=ended)
            outcomes += found
            repairs += names
        else:
            thought = "".join(map(str, body)).strip()
            thoughts += [thought] if thought else []
            repairs += [] if is_closed else ["unclosed_think"]
    if len(thoughts) > 1:
        repairs.append("several_thoughts")
    return Reply("\n\n".join(thoughts), "\n\n".join(prose), tuple(outcomes), tuple(repairs), ended)


def _mark_thinking(pieces: Sequence[Piece], wire: WireFormat) -> list[Piece]:
    """Mark the thinking in front of the calls, which came as plain text; skip stray tags there."""
    start = pieces.index(wire.call.open) if wire.call.open in pieces else len(pieces)
    before = "".join(piece for piece in pieces[:start] if isinstance(piece, str))
    return [*split_thinking(before), *pieces[start:]]


def _read_call_block(
    body: Sequence[Piece], wire: WireFormat, tools: Iterable[Tool], *, is_closed: bool, ended: bool
) -> tuple[list[Outcome], list[str]]:
    """Read what follows a call's tag; a call that was cut is never completed by guessing."""
    if wire.read_call is not None:
        text = "".join(map(str, body))
        if not is_closed and not ended:
            return [error_for("truncated", f"expected a complete call, got {shorten(text)}")], []
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


def _read_bare_call(reply: Reply, tools: Sequence[Tool]) -> Reply:
    """Take prose that is the JSON of calls to known tools, and nothing else, as these calls."""
    if reply.outcomes or not reply.content or not reply.ended:
        return reply
    outcomes, repairs = read_calls(reply.content, tools)
    # The name of a known tool is what tells a call from an answer that happens to be JSON
    names = {tool.name for tool in tools}
    if not all(isinstance(outcome, ToolCall) and outcome.name in names for outcome in outcomes):
        return reply
    repairs = [*reply.repairs, *repairs, "bare_json"]
    return dataclasses.replace(reply, content="", outcomes=tuple(outcomes), repairs=tuple(repairs))
