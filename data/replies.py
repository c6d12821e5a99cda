"""A model's turn taken apart: segments between tags, and the thinking, prose and calls that they hold.

Separate because the turn arrives as text (rows) or as ids (generation): both are cut into the same segments, and
everything after that is shared.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from data.conversation import Tool, ToolCall
from data.lenient_json import find_end, shorten
from data.tool_calls import CallError, Outcome, error_for, read_calls

HERMES_TAGS = (
    "<tools>",
    "</tools>",
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
)
MISTRAL_TAGS = (
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[TOOL_CALLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
)
TAGS = {"hermes": HERMES_TAGS, "mistral": MISTRAL_TAGS}

_ANY_TAG = re.compile("|".join(map(re.escape, HERMES_TAGS)))
_VALUE_GAP = re.compile(r"(?:[\s,;]|```[a-zA-Z]*)*")
# Repairs that a reply survives but that a row of training data must not have: the model would learn them.
STRUCTURAL = {
    "unclosed_think": "a <think> that never closes",
    "stray_tag": "a tag that opens or closes nothing here",
    "missing_end_tag": "a <tool_call> that never closes",
}


@dataclass(frozen=True)
class Segment:
    """A stretch of a turn. `closed`: its end tag was there; `clean`: no control id stood inside.

    A "call" is what stands between two tags, one call as a rule; "calls" is the list that the Mistral format writes.
    """

    kind: Literal["text", "think", "call", "calls", "stray"]
    text: str
    closed: bool = True
    clean: bool = True


@dataclass(frozen=True)
class Reply:
    """What a turn says. `outcomes` holds calls and errors in their order; `ended` is False if generation was cut."""

    thinking: str = ""
    content: str = ""
    outcomes: tuple[Outcome, ...] = ()
    repairs: tuple[str, ...] = ()
    ended: bool = True

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        """The calls that can be run."""
        return tuple(outcome for outcome in self.outcomes if isinstance(outcome, ToolCall))

    @property
    def errors(self) -> tuple[CallError, ...]:
        """The calls that cannot."""
        return tuple(outcome for outcome in self.outcomes if isinstance(outcome, CallError))


def split_text(text: str, format: str = "hermes") -> list[Segment]:
    """Cut a turn that came as text at its tags. A tag inside a quoted string of a call is part of the string."""
    if format == "mistral":
        before, opening, calls = text.partition("[TOOL_CALLS]")
        return split_mistral(before, calls if opening else None)
    segments: list[Segment] = []
    position = 0
    while tag := _ANY_TAG.search(text, position):
        segments.append(Segment("text", text[position : tag.start()]))
        if tag.group() not in ("<think>", "<tool_call>"):
            segments.append(Segment("stray", tag.group()))
            position = tag.end()
            continue
        kind: Literal["think", "call"] = "think" if tag.group() == "<think>" else "call"
        close = tag.group().replace("<", "</")
        end = text.find(close, tag.end()) if kind == "think" else find_close(text, tag.end(), close)
        segments.append(Segment(kind, text[tag.end() : end if end >= 0 else None], closed=end >= 0))
        position = end + len(close) if end >= 0 else len(text)
    return [*segments, Segment("text", text[position:])]


def split_mistral(before: str, calls: str | None = None, ended: bool = True) -> list[Segment]:
    """Cut a Mistral turn: thinking is plain text in front, and the list of calls runs to the end of the turn."""
    segments = [Segment("text", before)]
    if before.lstrip().startswith("<think>") and "</think>" in before:
        thinking, content = before.split("</think>", 1)
        segments = [Segment("think", thinking.replace("<think>", "", 1)), Segment("text", content)]
    return segments + ([Segment("calls", calls, closed=ended)] if calls is not None else [])


def find_close(text: str, start: int, close: str) -> int:
    """Return where the tag `close` stands after the values that begin at `start`, or -1.

    Values are skipped as wholes, so that `close` inside one of their strings does not count. Where no value stands,
    or one is broken, the first `close` counts.
    """
    position = _skip_gap(text, start)
    while text[position : position + 1] in ("{", "["):
        end = find_end(text, position)
        if end is None:
            break
        position = _skip_gap(text, end)
    return position if text.startswith(close, position) else text.find(close, start)


def _skip_gap(text: str, position: int) -> int:
    match = _VALUE_GAP.match(text, position)
    return match.end() if match else position


def assemble(segments: Iterable[Segment], ended: bool = True, tools: Iterable[Tool] = ()) -> Reply:
    """Read every segment and put the turn together; never raises.

    Prose from before, between and after calls is kept as one content. Calls inside thinking are thinking.
    """
    thoughts: list[str] = []
    prose: list[str] = []
    outcomes: list[Outcome] = []
    repairs: list[str] = []
    for segment in segments:
        text = segment.text.strip()
        if segment.kind in ("call", "calls"):
            found, repair = _read_segment(segment, ended, tools)
            outcomes += found
            repairs += repair
        elif segment.kind == "stray":
            repairs.append("stray_tag")
        elif segment.kind == "think":
            thoughts += [text] if text else []
            repairs += [] if segment.closed else ["unclosed_think"]
        elif text:
            prose.append(text)
            repairs += ["text_after_call"] if outcomes else []
    if len(thoughts) > 1:
        repairs.append("several_thoughts")
    return Reply("\n\n".join(thoughts), "\n\n".join(prose), tuple(outcomes), tuple(repairs), ended)


def _read_segment(
    segment: Segment, ended: bool, tools: Iterable[Tool]
) -> tuple[list[Outcome], list[str]]:
    """Read the calls of one segment; a call that was cut is never completed by guessing."""
    if not segment.closed and not ended:
        return [
            error_for(
                "truncated", f"expected a complete call, got {shorten(segment.text) or 'nothing'}"
            )
        ], []
    if not segment.clean:
        return [
            error_for(
                "control_token", f"expected plain text in the call, got {shorten(segment.text)}"
            )
        ], []
    outcomes, repairs = read_calls(segment.text, tools)
    if segment.kind == "calls":
        repairs = [repair for repair in repairs if repair != "list_of_calls"]
    return outcomes, repairs + ([] if segment.closed else ["missing_end_tag"])
