"""Rows of any accepted form -> `Conversation`.

Four forms, told apart by their keys: the course's `conversations` of {role, content}, ShareGPT's `conversations` of
{from, value}, OpenAI's `messages` with `tool_calls`, and the Mistral API's `messages` with `function_call`. In the
first two (Hermes) the tags <tools>, <think>, <tool_call> and <tool_response> are structure where the message's role
gives them a meaning; everywhere else, and in every user's text, the same characters are text.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from data.conversation import (
    DEFAULT_PROMPT,
    THINK_REQUEST,
    Conversation,
    Message,
    SystemPrompt,
    Tool,
    ToolCall,
    ToolResult,
)
from data.lenient_json import load_json, read_values, shorten
from data.row_messages import content_of, read_call, read_model, read_results, split_system, text_of
from data.tool_schema import as_shape, as_tools, read_tool, read_tools, write_tool

ROLES = {
    "system": "system",
    "developer": "system",
    "human": "user",
    "user": "user",
    "model": "model",
    "assistant": "model",
    "gpt": "model",
    "function_call": "call",
    "tool_call": "call",
    "tool": "tool",
    "observation": "tool",
    "function": "tool",
    "function_response": "tool",
    "tool_response": "tool",
}
FOLLOWS = {"": ("user",), "user": ("model",), "model": ("user", "tool"), "tool": ("model",)}

__all__ = [
    "DEFAULT_PROMPT",
    "THINK_REQUEST",
    "Conversation",
    "Message",
    "SystemPrompt",
    "Tool",
    "ToolCall",
    "ToolResult",
    "as_shape",
    "conversation_from",
    "parse_row",
    "read_tool",
    "read_tools",
    "write_tool",
]


def parse_row(row: Mapping[str, Any] | str | bytes, where: str = "row") -> Conversation:
    """Read one row, given as an object or as a line of JSON.

    Raises:
        ValueError: every problem of the row, one sentence a line; messages are numbered from 1.
    """
    fields = _load_row(row, where)
    key = next((key for key in ("conversations", "messages") if fields.get(key) is not None), None)
    if key is None:
        got = shorten(", ".join(map(str, fields))) or "no key"
        raise ValueError(
            f'{where}: expected the key "conversations" or "messages", got {got}; rename the column'
        )
    reader = _RowReader(where, is_hermes=key == "conversations")
    reader.read_tools(fields.get("tools") or fields.get("functions"))
    reader.read_messages(_load_messages(fields[key], fields.get("system"), where))
    if not any(message.role == "model" for message in reader.messages):
        reader.complain(
            "expected a model's message, got none; there is nothing to learn from this row"
        )
    return reader.finish()


def conversation_from(
    tools: Sequence[Tool | Mapping[str, Any]],
    messages: Sequence[Message | Mapping[str, Any]],
    prompt: SystemPrompt | None = None,
    where: str = "messages",
) -> Conversation:
    """Build a conversation to generate from, with the tools in the shape and between the words of `prompt`.

    Args:
        messages: `Message` objects, or objects of OpenAI's form; a system message may come first.
        prompt: usually `tokenizer.prompt`, the wording of the training rows.
    Raises:
        ValueError: as `parse_row`; but a model's message need not be there.
    """
    reader = _RowReader(where, is_hermes=False, wording=prompt or DEFAULT_PROMPT)
    reader.tools = as_tools(tools, reader.wording.shape)
    reader.prompt = reader.wording if tools else None
    reader.read_messages(messages)
    return reader.finish()


def _load_row(row: Mapping[str, Any] | str | bytes, where: str) -> Mapping[str, Any]:
    """Return the row's object; a line is decoded first."""
    if isinstance(row, str | bytes):
        try:
            row = load_json(row.decode() if isinstance(row, bytes) else row)
        except (
            ValueError,
            RecursionError,
        ) as error:  # UnicodeDecodeError, JSONDecodeError and LiteralError alike
            raise ValueError(
                f"{where}: expected one JSON object on the line, got {error}; repair the line"
            ) from None
    if not isinstance(row, Mapping):
        raise ValueError(
            f"{where}: expected a JSON object, got {shorten(repr(row))}; wrap it in {{...}}"
        )
    return row


def _load_messages(value: Any, system: Any, where: str) -> list[Any]:
    """Return the list of messages, which may itself be a JSON string; a `system` column becomes the first message."""
    if isinstance(value, str):
        try:
            values, _ = read_values(value)
        except ValueError as error:
            raise ValueError(
                f"{where}: expected a list of messages, got a string: {error}"
            ) from None
        value = values[0] if len(values) == 1 else values
    if not isinstance(value, list | tuple) or not value:
        raise ValueError(
            f"{where}: expected a list of messages, got {shorten(repr(value))}; give two or more"
        )
    has_system = isinstance(value[0], Mapping) and ROLES.get(_role_of(value[0])) == "system"
    return ([] if has_system or not system else [{"role": "system", "content": system}]) + list(
        value
    )


def _role_of(raw: Mapping[str, Any]) -> str:
    return str(raw.get("role") if raw.get("role") is not None else raw.get("from"))


class _RowReader:
    """Builds one conversation message by message and collects the problems, so that all of them are told at once."""

    def __init__(self, where: str, is_hermes: bool, wording: SystemPrompt = DEFAULT_PROMPT) -> None:
        self.where, self.is_hermes, self.wording = where, is_hermes, wording
        self.messages: list[Message] = []
        self.tools: tuple[Tool, ...] = ()
        self.prompt: SystemPrompt | None = None
        self.system = ""
        self.problems: list[str] = []
        self.repairs: list[str] = []

    def complain(self, problem: str, number: int = 0) -> None:
        """Add a problem of the row, or of its message `number`."""
        self.problems.append(f"{self.where}: {f'message {number}: ' if number else ''}{problem}")

    def read_tools(self, value: Any) -> None:
        """Read the row's own column of tools; they are written between the default words."""
        try:
            self.tools = read_tools(value)
        except ValueError as error:
            self.complain(f"tools: {error}; see the three shapes of data/tool_schema.py")
        if self.tools:
            self.prompt = dataclasses.replace(self.wording, shape=self.tools[0].shape)
            self.tools = as_tools(self.tools, self.prompt.shape)

    def read_messages(self, messages: Sequence[Message | Mapping[str, Any]]) -> None:
        """Read every message; a broken one leaves a problem, and its place in the order is still checked."""
        previous = ""
        for number, raw in enumerate(messages, start=1):
            role = self._check_role(raw, number, previous)
            if not role:
                continue
            try:
                message = raw if isinstance(raw, Message) else self._read_message(role, raw)
            except ValueError as error:
                self.complain(str(error), number)
                message = None
            if message:
                self._append(message, role)
            previous = {"system": previous, "call": "model"}.get(role, role)

    def _check_role(self, raw: Any, number: int, previous: str) -> str:
        """Return the message's role, or "" after complaining that it has none or comes at an impossible place."""
        if not isinstance(raw, Message | Mapping):
            self.complain(
                f"expected an object with role and content, got {shorten(repr(raw))}", number
            )
            return ""
        given = raw.role if isinstance(raw, Message) else _role_of(raw)
        role = ROLES.get(given, "")
        if not role:
            self.complain(
                f"expected a role out of {', '.join(ROLES)}, got {given!r}; rename it", number
            )
        elif role == "system":
            if number > 1:
                self.complain(
                    f"expected the system text as the first message, got {given!r} here; move it up",
                    number,
                )
                return ""
        elif not self._may_follow(role, previous):
            after = f"after a {previous} message" if previous else "as the first turn"
            expected = " or ".join(FOLLOWS[previous])
            remedy = "reorder or merge the messages"
            if role == "tool" and previous == "model":
                expected, remedy = "user", "give the call that this result answers"
                after = "after a model message without a call"
            self.complain(f"expected the role {expected} {after}, got {given!r}; {remedy}", number)
        return role

    def _may_follow(self, role: str, previous: str) -> bool:
        if role == previous == "tool":
            return True  # one message per call, as OpenAI's form has it
        if role == "call":
            return previous != ""
        if role == "tool" and previous == "model":
            return bool(self.problems) or bool(self.messages and self.messages[-1].calls)
        return role in FOLLOWS[previous]

    def _read_message(self, role: str, raw: Mapping[str, Any]) -> Message | None:
        """Return the turn; a system text is none, it is kept for the first user's turn."""
        if role == "system":
            self._read_system(text_of(content_of(raw)))
            return None
        if role == "user":
            return Message("user", text_of(content_of(raw)))
        if role == "tool":
            return read_results(raw, self.is_hermes)
        message, repairs = (
            read_call(raw, self.tools)
            if role == "call"
            else read_model(raw, self.is_hermes, self.tools)
        )
        self.repairs += repairs
        return message

    def _read_system(self, text: str) -> None:
        before, tools, after = split_system(text) if self.is_hermes else (text, None, "")
        if tools is None:
            self.system = text.strip()
            return
        # The block that the model will read counts, not a column that repeats it
        shape = tools[0].shape if tools else "openai"
        self.tools, self.prompt = (
            as_tools(tools, shape),
            SystemPrompt(before.lstrip(), after.rstrip(), shape),
        )

    def _append(self, message: Message, role: str) -> None:
        """Add a message; calls and results that came as messages of their own join the turn that they belong to."""
        last = self.messages[-1] if self.messages else None
        if last and last.role == message.role and role in ("call", "tool"):
            self.messages[-1] = dataclasses.replace(
                last, calls=last.calls + message.calls, results=last.results + message.results
            )
        else:
            self.messages.append(message)

    def finish(self) -> Conversation:
        """Return the conversation.

        Raises:
            ValueError: the problems that were collected, one a line.
        """
        messages, repairs, problems = _match_results(self.messages)
        self.repairs += repairs
        for problem in problems:
            self.complain(problem)
        if self.problems:
            raise ValueError("\n".join(self.problems))
        self._request_thinking()
        return Conversation(
            messages, self.tools, self.prompt, self.system, self.where, tuple(self.repairs)
        )

    def _request_thinking(self) -> None:
        """Ask for thinking in the system text where a turn thinks and the text does not ask yet."""
        said = self.system + (self.prompt.before + self.prompt.after if self.prompt else "")
        if THINK_REQUEST in said or not any(message.thinking for message in self.messages):
            return
        if self.prompt:
            self.prompt = dataclasses.replace(
                self.prompt, after=f"{self.prompt.after}\n{THINK_REQUEST}"
            )
        else:
            self.system = f"{self.system}\n{THINK_REQUEST}".lstrip()


def _match_results(messages: Sequence[Message]) -> tuple[tuple[Message, ...], list[str], list[str]]:
    """Put results into the order of their calls, by id, and give those without a name the name of their call.

    The Hermes format has neither ids nor names, so order alone tells the model which result belongs to which call. Where
    ids are absent, a result's place counts if there are as many results as calls.

    Returns:
        The messages, the repairs, and the problems: an id that no call of the turn before has, or one that came twice.
    """
    matched: list[Message] = []
    repairs: list[str] = []
    problems: list[str] = []
    for message in messages:
        calls = matched[-1].calls if matched and message.role == "tool" else ()
        places = {call.id: place for place, call in enumerate(calls) if call.id}
        ids = [result.id for result in message.results if result.id] if places else []
        unknown = [id for id in ids if id not in places] + [
            id for id in dict.fromkeys(ids) if ids.count(id) > 1
        ]
        if unknown:
            wanted = ", ".join(map(repr, places))
            problems.append(
                f"expected one result for each call id out of {wanted}, got {unknown[0]!r}; correct the id"
            )
        results = message.results
        if len(ids) == len(results) and not unknown:
            results = tuple(sorted(results, key=lambda result: places[result.id or ""]))
            repairs += ["reordered_results"] if results != message.results else []
        by_id = {call.id: call.name for call in calls if call.id}
        names = [by_id.get(result.id or "") for result in results]
        if len(calls) == len(results):
            names = [name or call.name for name, call in zip(names, calls, strict=True)]
        named = tuple(
            dataclasses.replace(r, name=r.name or name)
            for r, name in zip(results, names, strict=True)
        )
        matched.append(dataclasses.replace(message, results=named))
    return tuple(matched), repairs, problems
