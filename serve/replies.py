"""A model's ids -> the deltas of OpenAI's stream, and the message that they add up to.

The message that is not streamed is made of the same deltas, so the two cannot differ.
"""

import json
import uuid
from collections.abc import Iterable, Sequence
from typing import Any

from data.conversation import Tool, ToolCall
from data.reply_reader import Part, ReplyStream
from data.tokenizer import Tokenizer


class StopTexts:
    """Text up to the first of some texts that is complete, given out as far as it is certain."""

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops, self.held, self.is_over = tuple(filter(None, stops)), "", False

    def feed(self, text: str) -> str:
        """The characters that are certain now."""
        if self.is_over:
            return ""
        text = self.held + text
        # The one that is complete first ends the text, however the text was cut
        found = [(text.find(stop) + len(stop), text.find(stop)) for stop in self.stops]
        found = [(end, start) for end, start in found if start >= 0]
        if found:
            self.is_over, self.held = True, ""
            return text[: min(found)[1]]
        # The end of the text may be the beginning of a stop
        longest = max(map(len, self.stops), default=1) - 1
        starts = range(max(0, len(text) - longest), len(text))
        cut = next((i for i in starts if self._may_begin(text[i:])), len(text))
        self.held = text[cut:]
        return text[:cut]

    def end(self) -> str:
        """What was held back, for no stop has come of it."""
        held, self.held = self.held, ""
        return held

    def _may_begin(self, text: str) -> bool:
        return any(stop.startswith(text) for stop in self.stops)


class Answer:
    """One reply as deltas; `finish_reason` and `is_over` say how far it is.

    Reasoning and prose come as they are written, each call as a whole once it is known to be good.
    A call that was cut or cannot be read is left out: what runs calls must not take it for one, and
    what shows answers must not show it.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        tools: Sequence[Tool],
        stops: Sequence[str] = (),
        *,
        one_call: bool = False,
    ) -> None:
        """stops: texts that end the reply and are not part of it. one_call: end after a call."""
        self.stream = ReplyStream(tokenizer, tools)
        self.stops, self.one_call = StopTexts(stops), one_call
        self.num_calls = 0
        self.num_ids = 0  # that were written, also those that a stop text keeps back
        self.is_over = False  # nothing more is to be written
        self.finish_reason = "stop"

    def feed(self, id: int) -> list[dict[str, Any]]:
        """The deltas that the next id brings."""
        self.num_ids += 1
        return [] if self.is_over else self._deltas(self.stream.feed(id))

    def end(self, *, is_cut: bool = False) -> list[dict[str, Any]]:
        """The last deltas; `is_cut` where the reply had no more room."""
        deltas: list[dict[str, Any]] = []
        # The stream first: its last text may complete a stop, and then nothing held back comes out
        if not self.is_over:
            deltas = self._deltas(self.stream.end()[0])
        if not self.is_over:
            deltas += _content_deltas(self.stops.end())
        # What a stop text or the only call has ended was not cut, though it ends with no stop id
        if is_cut and not self.is_over:
            self.finish_reason = "length"
        elif self.num_calls:
            self.finish_reason = "tool_calls"
        self.is_over = True
        return deltas

    def _deltas(self, parts: Iterable[Part]) -> list[dict[str, Any]]:
        deltas: list[dict[str, Any]] = []
        for part in parts:
            if self.is_over:
                break
            if part.kind == "thinking":
                deltas.append({"reasoning_content": part.text})
            elif part.kind == "content":
                deltas += _content_deltas(self.stops.feed(part.text))
            elif part.kind == "outcomes":
                deltas += self._good_calls(part)
            self.is_over = self.is_over or self.stops.is_over
        return deltas

    def _good_calls(self, part: Part) -> list[dict[str, Any]]:
        deltas: list[dict[str, Any]] = []
        good = [outcome for outcome in part.outcomes if isinstance(outcome, ToolCall)]
        for call in good[:1] if self.one_call else good:
            deltas += _call_deltas(self.num_calls, call)
            self.num_calls += 1
        self.is_over = self.one_call and bool(good)
        return deltas


def _content_deltas(text: str) -> list[dict[str, Any]]:
    return [{"content": text}] if text else []


def _call_deltas(index: int, call: ToolCall) -> list[dict[str, Any]]:
    """Name and id first, then the arguments: as clients expect a call to come."""
    function = {"name": call.name, "arguments": ""}
    head = {"index": index, "id": f"call_{uuid.uuid4().hex[:24]}", "type": "function"}
    text = json.dumps(call.arguments, ensure_ascii=False)
    rest = {"index": index, "function": {"arguments": text}}
    return [{"tool_calls": [{**head, "function": function}]}, {"tool_calls": [rest]}]


def joined(deltas: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The message that deltas add up to."""
    texts: dict[str, str] = {}
    calls: list[dict[str, Any]] = []
    for delta in deltas:
        for key in ("content", "reasoning_content"):
            texts[key] = texts.get(key, "") + delta.get(key, "")
        for part in delta.get("tool_calls", ()):
            if part["index"] == len(calls):
                calls.append({key: part[key] for key in ("id", "type")})
                calls[-1]["function"] = dict(part["function"])
            else:
                calls[part["index"]]["function"]["arguments"] += part["function"]["arguments"]
    # Null where nothing was said, as in a stream that has no content
    content = texts.get("content") or None
    message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
    if texts.get("reasoning_content"):
        message["reasoning_content"] = texts["reasoning_content"]
    if calls:
        message["tool_calls"] = calls
    return message
