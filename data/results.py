"""A tool's results: read from a row's message, and matched to the calls that they belong to."""

import dataclasses
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from data.api_calls import read_label
from data.conversation import Message, ToolResult
from data.lenient_json import check_value, find_end, read_text, shorten
from data.wire import HERMES, dump

# In the rows of the Hermes forms, whatever format is trained
_OPEN, _CLOSE = HERMES.result.tags
_SPACE = re.compile(r"\s*")
_BETWEEN_RESULTS = re.compile(rf"{_CLOSE}\s*{_OPEN}")


def read_results(raw: Mapping[str, Any], has_tags: bool) -> Message:
    """Read a tool's message: one result for each pair of tags, or without tags one in all.

    Tags inside a result stay text. A result ends at the tag that closes the message or is followed
    by the next opening tag, so that a lone `</tool_response>` in the middle of a result does not
    end it.
    """
    content = raw.get("content")
    is_parts = False
    if isinstance(content, list | tuple) and content:
        is_parts = all(isinstance(p, Mapping) and p.get("type") == "text" for p in content)
    if not (content is None or isinstance(content, str) or is_parts):
        content = dump(check_value(content))  # a result that came as data
    text = read_text(content)
    # A message's "id" is the call's only where there is no tool_call_id
    keys = ["name", "tool_call_id"] + ([] if raw.get("tool_call_id") else ["id"])
    labels = {key: read_label(raw, key) for key in keys if raw.get(key) is not None}
    name, id = labels.get("name"), labels.get(keys[-1])
    # Without tags the text is taken to the letter, space at its ends included
    stripped = text.strip()
    if not (has_tags and stripped.startswith(_OPEN)):
        return Message("tool", results=(ToolResult(text, name, id),))
    if not stripped.endswith(_CLOSE):
        got = shorten(stripped[-40:])
        raise ValueError(f"expected </tool_response> at the end, got {got}; close the tag")
    texts: list[str] = []
    position = 0
    while position < len(stripped):
        start = position + len(_OPEN)
        # A bracketed value is skipped whole, tags in its strings too
        space = _SPACE.match(stripped, start)  # it matches the empty string too
        value = space.end() if space else start
        end = find_end(stripped, value) if stripped[value : value + 1] in ("{", "[") else None
        gap = _BETWEEN_RESULTS.search(stripped, end or start)
        stop = gap.start() if gap else len(stripped) - len(_CLOSE)
        texts.append(stripped[start:stop].strip())
        position = gap.end() - len(_OPEN) if gap else len(stripped)
    if len(texts) > 1:
        name = id = None  # they belong to one call, and which one is not said
    return Message("tool", results=tuple(ToolResult(text, name, id) for text in texts))


def match_results(messages: Sequence[Message]) -> tuple[tuple[Message, ...], list[str], list[str]]:
    """Put results into the order of their calls, by id, and give each the name of its call.

    The Hermes format has neither ids nor names, so order alone tells the model which result belongs
    to which call. Where ids are absent, a result's place counts if there are as many results as
    calls.

    Also returns the repairs, and the problems: an id that no call of the turn before has, or one
    that came twice.
    """
    matched: list[Message] = []
    repairs: list[str] = []
    problems: list[str] = []
    for message in messages:
        calls = matched[-1].calls if matched and message.role == "tool" else ()
        places = {call.id: place for place, call in enumerate(calls) if call.id}
        ids = [result.id for result in message.results if result.id] if places else []
        # An unknown id, or one that came twice: the results then keep the order of the row
        wrong = [id for id in ids if id not in places]
        wrong += [id for id, count in Counter(ids).items() if count > 1]
        if wrong:
            known = ", ".join(map(repr, places))
            problem = f"expected one result for each call id out of {known}, got {wrong[0]!r}"
            problems.append(f"{problem}; correct the id")
        results = list(message.results)
        if len(ids) == len(results) and not wrong:
            results.sort(key=lambda result: places[result.id or ""])
            repairs += ["reordered_results"] if results != [*message.results] else []
        # Names by id where there are ids, else by place, but only where none is missing
        by_id = {call.id: call.name for call in calls if call.id}
        for place, result in enumerate(results):
            name = result.name or by_id.get(result.id or "")
            if not name and len(calls) == len(results):
                name = calls[place].name
            results[place] = dataclasses.replace(result, name=name)
        matched.append(dataclasses.replace(message, results=tuple(results)))
    return tuple(matched), repairs, problems
