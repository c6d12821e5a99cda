"""A model's reply -> thinking, prose, calls and errors: the inverse of rendering.

Separate from `chat.py`, which writes; ids delimit here, never text, so the characters "</tool_call>" inside a JSON
string stay data.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Literal

from data.conversation import Tool, ToolCall
from data.replies import Reply, Segment, assemble, split_mistral, split_text
from data.tokenizer import Tokenizer
from data.tool_calls import read_calls


def parse_reply(
    tokens: Iterable[int], tokenizer: Tokenizer, tools: Sequence[Tool] = (), lenient: bool = False
) -> Reply:
    """Read the ids that a model wrote after `<start_of_turn>model\\n`; never raises.

    Args:
        tokens: the ids, with the stop id if one came. Without it the turn counts as cut, and a call that was not
            closed is the error "truncated". Everything from a stop id, a new turn or a tool's response on is ignored.
        tools: tell whether a call without arguments lacks any.
        lenient: take a turn that is nothing but the bare JSON of a call to one of `tools` as that call.
    """
    ids, ended = _cut_turn(tokens, tokenizer)
    segments = (
        _split_mistral_ids(ids, tokenizer, ended)
        if tokenizer.format == "mistral"
        else _split_ids(ids, tokenizer)
    )
    reply = assemble(segments, ended, tools)
    return _read_bare_call(reply, tools) if lenient else reply


def parse_tool_calls(
    tokens_or_text: Iterable[int] | str, tokenizer: Tokenizer | None = None
) -> list[ToolCall]:
    """Return the good calls of a reply; of a whole rendered conversation, those of all model turns, in order.

    Never raises on what a model wrote. A conversation is told by its first id or characters, <bos> or <start_of_turn>.

    Args:
        tokens_or_text: ids, delimited by ids, which need the tokenizer; or text, delimited by the tags in it.
    Raises:
        TypeError: ids without a tokenizer.
    """
    if isinstance(tokens_or_text, str):
        format = tokenizer.format if tokenizer else "hermes"
        turns = _model_turns(tokens_or_text)
        return [call for turn in turns for call in assemble(split_text(turn, format)).calls]
    if tokenizer is None:
        raise TypeError("expected a tokenizer with ids; give one, or give text")
    replies = _model_turn_ids([int(id) for id in tokens_or_text], tokenizer)
    return [call for ids in replies for call in parse_reply(ids, tokenizer).calls]


def _model_turns(text: str) -> list[str]:
    """Return the texts of the model's turns; text that does not begin like a conversation is one of them."""
    turns = [f"model\n{text}"]
    if text.startswith(("<bos>", "<start_of_turn>")):
        turns = text.split("<start_of_turn>")[1:]
    bodies = [turn.removeprefix("model\n").rstrip() for turn in turns if turn.startswith("model\n")]
    return [body.removesuffix("<eos>").rstrip().removesuffix("<end_of_turn>") for body in bodies]


def _model_turn_ids(ids: list[int], tokenizer: Tokenizer) -> list[list[int]]:
    """Return the ids of the model's turns; ids that do not begin like a conversation are one of them."""
    if not ids or ids[0] not in (tokenizer.bos_id, tokenizer.start_of_turn_id):
        return [ids]
    header = tokenizer.encode("model\n")
    starts = [place + 1 for place, id in enumerate(ids) if id == tokenizer.start_of_turn_id]
    return [
        ids[start + len(header) :] for start in starts if ids[start : start + len(header)] == header
    ]


def _cut_turn(tokens: Iterable[int], tokenizer: Tokenizer) -> tuple[list[int], bool]:
    """Return the ids of the model's own turn, and whether it ended."""
    responses = ("<tool_response>", "[TOOL_RESULTS]")
    ends = {*tokenizer.stop_ids, tokenizer.start_of_turn_id}
    ends |= {id for tag, id in tokenizer.tag_ids.items() if tag in responses}
    ids: list[int] = []
    for id in tokens:
        if int(id) in ends:
            return ids, True
        ids.append(int(id))
    return ids, False


def _split_ids(ids: list[int], tokenizer: Tokenizer) -> list[Segment]:
    """Cut at the tags' ids. The first end tag of the same kind closes; a call's id inside thinking is thinking."""
    kinds: dict[int, tuple[Literal["think", "call"], int]] = {
        tokenizer.tag_ids["<think>"]: ("think", tokenizer.tag_ids["</think>"]),
        tokenizer.tag_ids["<tool_call>"]: ("call", tokenizer.tag_ids["</tool_call>"]),
    }
    segments: list[Segment] = []
    run: list[int] = []
    position = 0
    while position < len(ids):
        id = ids[position]
        position += 1
        if id not in tokenizer.control_ids:
            run.append(id)
            continue
        segments.append(Segment("text", tokenizer.decode(run)))
        run = []
        if id not in kinds:
            segments.append(Segment("stray", tokenizer.decode([id])))
            continue
        kind, close = kinds[id]
        end = ids.index(close, position) if close in ids[position:] else len(ids)
        segments += _inner(kind, ids[position:end], end < len(ids), id, tokenizer)
        position = end + 1
    return [*segments, Segment("text", tokenizer.decode(run))]


def _inner(
    kind: Literal["think", "call"], ids: list[int], closed: bool, opening: int, tokenizer: Tokenizer
) -> list[Segment]:
    """Return what stands between two tags.

    Where a call's tag opens again before it closes, complete calls in front of it count as calls of their own. Any
    other control id inside a call makes it an error: the call was forged or garbled.
    """
    if kind == "think":
        return [Segment(kind, tokenizer.decode(ids), closed)]
    parts: list[list[int]] = [[]]
    for id in ids:
        if id == opening:
            parts.append([])
        else:
            parts[-1].append(id)
    *earlier, last = [_call_segment(part, True, tokenizer) for part in parts]
    if not all(segment.clean and _is_complete(segment.text) for segment in earlier):
        return [Segment(kind, tokenizer.decode(ids), closed, clean=False)]
    stray = Segment("stray", tokenizer.decode([opening]))
    return [item for segment in earlier for item in (segment, stray)] + [
        dataclasses.replace(last, closed=closed)
    ]


def _call_segment(ids: list[int], closed: bool, tokenizer: Tokenizer) -> Segment:
    return Segment(
        "call", tokenizer.decode(ids), closed, clean=tokenizer.control_ids.isdisjoint(ids)
    )


def _is_complete(text: str) -> bool:
    return all(isinstance(outcome, ToolCall) for outcome in read_calls(text)[0])


def _split_mistral_ids(ids: list[int], tokenizer: Tokenizer, ended: bool) -> list[Segment]:
    """Cut a Mistral turn at its [TOOL_CALLS]; the list of calls runs to the end of the turn."""
    tag = tokenizer.tag_ids["[TOOL_CALLS]"]
    start = ids.index(tag) if tag in ids else len(ids)
    segments = split_mistral(tokenizer.decode(ids[:start], skip_control=True))
    if start == len(ids):
        return segments
    calls = _call_segment(ids[start + 1 :], ended, tokenizer)
    return [*segments, dataclasses.replace(calls, kind="calls")]


def _read_bare_call(reply: Reply, tools: Sequence[Tool]) -> Reply:
    """Take prose that is the JSON of calls to known tools, and nothing else, as these calls."""
    if reply.outcomes or not reply.content or not reply.ended:
        return reply
    outcomes, repairs = read_calls(reply.content, tools)
    names = {tool.name for tool in tools}
    if not all(isinstance(outcome, ToolCall) and outcome.name in names for outcome in outcomes):
        return reply
    return dataclasses.replace(
        reply, content="", outcomes=tuple(outcomes), repairs=(*reply.repairs, *repairs, "bare_json")
    )
