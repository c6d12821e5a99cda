"""A model's turn, as ids or as text -> thinking, prose, calls and errors: the inverse of rendering.

Both are first cut into pieces, ordinary text and tags, and everything after that is shared. Among
ids a tag is an id of its own, so the characters "</tool_call>" inside a JSON string stay data; text
needs the rule of `split_text` for that.
"""

import dataclasses
import re
from collections.abc import Iterable, Sequence

from data.conversation import Tool, ToolCall
from data.lenient_json import find_end
from data.reply_reader import Reply as Reply  # importable from here too
from data.reply_reader import ReplyReader
from data.tokenizer import Tokenizer
from data.tool_calls import read_calls
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
    """Put a turn's pieces together; never raises."""
    reader = ReplyReader(wire, tools)
    for piece in pieces:
        reader.feed(piece)
    reader.end(ended=ended)
    return reader.reply(ended=ended)


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
