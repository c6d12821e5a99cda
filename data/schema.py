"""Rows of any accepted form -> `Conversation`.

A form's function (`course` here, the others in data/forms/) brings a row to one plain list of
messages as OpenAI's API writes them, and its tools; one reader makes a conversation of every such
list. In the two Hermes forms (course and ShareGPT) the tags <tools>, <think>, <tool_call> and
<tool_response> are structure where the message's role gives them a meaning. In other rows they are
structure once a model's text makes a call with them; in every user's text they are text.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from data.api_calls import read_api_calls
from data.conversation import (
    DEFAULT_PROMPT,
    Conversation,
    Message,
    SystemPrompt,
    Tool,
    ToolCall,
    ask_to_think,
)
from data.forms.chats import anthropic, mistral, openai, sharegpt, smolagents
from data.forms.plain import Form, PlainRow, explain_columns
from data.forms.questions import bfcl, prompt_completion, xlam
from data.forms.spellings import MARKS, glaive, preference, respelt
from data.lenient_json import (
    LiteralError,
    check_size,
    load_json,
    read_text,
    read_values,
    shorten,
)
from data.reply import STRUCTURAL, explain_problems, read_pieces, split_text, split_thinking
from data.results import match_results, read_results
from data.roles import NEXT, ROLES, explain_place
from data.tool_calls import read_tool, read_tools, split_at_tools
from data.tool_schema import as_tools
from data.wire import HERMES, Piece, Tag

MAX_MESSAGES = 10_000  # in one row; the results of one turn are joined one by one


def course(row: Mapping[str, Any], messages: list[Any]) -> PlainRow:
    """The Agents Course: {"conversations": [{"role": "human", "content": text with tags}]}."""
    return PlainRow(messages, row.get("tools") or row.get("functions"), has_tags=True)


# What gives a form away: keys of the row or of one of its messages, types of blocks, roles, and the
# marks of data/forms/spellings.py. The first form all of whose signs are there reads the row. A new
# form is one function in data/forms/ and one line here.
FORMS: tuple[tuple[set[str], Form], ...] = (
    ({"messages", "chosen_response"}, preference),
    ({"tool_use"}, anthropic),
    ({"tool_result"}, anthropic),
    ({"tool-call"}, smolagents),
    ({"calls_in_text"}, respelt),
    ({"tools_in_text"}, respelt),
    ({"conversations", "system_message"}, respelt),
    ({"from"}, sharegpt),
    ({"value"}, sharegpt),
    ({"conversations"}, course),
    ({"messages", "functions"}, mistral),
    ({"messages", "function_call"}, mistral),
    ({"messages"}, openai),
    ({"query", "answers"}, xlam),
    ({"question", "function"}, bfcl),
    ({"system", "chat"}, glaive),
    ({"prompt", "completion"}, prompt_completion),
)
# A row for the held-out side says so in one of these columns (FunctionGemma's, and a common one)
_SPLIT_COLUMNS = ("metadata", "split")
_HELD_OUT = ("eval", "evaluation", "test", "validation")


def parse_row(row: Mapping[str, Any] | str | bytes, where: str = "row") -> Conversation:
    """Read one row, given as an object or as a line of JSON.

    Raises: ValueError for all problems of the row, one sentence a line; the first message is 1.
    """
    if isinstance(row, str | bytes):
        try:
            row = load_json(row.decode() if isinstance(row, bytes) else row)
        except LiteralError as error:
            raise ValueError(f"{where}: {error}; {error.hint}") from None
        except (ValueError, RecursionError) as error:
            # Errors of UTF-8 and of JSON are ValueErrors alike
            got = str(error)
            if isinstance(error, json.JSONDecodeError):
                # The parser's own line and offset would be a second place beside the row's
                got = f"{shorten(error.doc) or 'nothing'} ({error.msg}, column {error.colno})"
            problem = f"expected one JSON object on the line, got {got}; repair or remove the line"
            raise ValueError(f"{where}: {problem}") from None
    if not isinstance(row, Mapping):
        got = shorten(repr(row))
        raise ValueError(f"{where}: expected a JSON object, got {got}; wrap it in {{...}}")
    columns = [name for name in ("conversations", "messages") if row.get(name) is not None]
    messages = row[columns[0]] if columns else []
    try:
        check_size(row)
        if isinstance(messages, str):  # the column may have come as JSON, or as Python spells it
            values, _ = read_values(messages)
            messages = values[0] if len(values) == 1 else values
        if columns and not (isinstance(messages, list | tuple) and messages):
            got = shorten(repr(messages))
            raise ValueError(f"expected a list of messages, got {got}; give two or more")
        if len(messages) > MAX_MESSAGES:
            got = f"got {len(messages)}; cut the row into several"
            raise ValueError(f"expected at most {MAX_MESSAGES} messages, {got}")
        signs = {key for key in row if row[key] is not None}  # Parquet fills in all rows' keys
        for message in messages:
            if isinstance(message, Mapping):
                signs.update(key for key in message if message[key] is not None)
                signs.add(str(message.get("role") or message.get("from")))
                content = message.get("content") or message.get("value")
                if isinstance(content, str):
                    signs.update(str(mark.lastgroup) for mark in MARKS.finditer(content))
                elif isinstance(content, list | tuple):
                    signs.update(str(b.get("type")) for b in content if isinstance(b, Mapping))
        read = next((read for needed, read in FORMS if needed <= signs), None)
        if read is None:
            raise ValueError(explain_columns(row))
        plain = read(row, list(messages))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    # From here on problems are collected: one run over a file is to name them all
    reader = _Reader(where, plain.has_tags, is_row=True)
    reader.read(plain.messages, plain.tools, system=row.get("system"))
    return reader.finish(is_held_out=any(row.get(name) in _HELD_OUT for name in _SPLIT_COLUMNS))


def conversation_from(
    tools: Sequence[Tool | Mapping[str, Any]],
    messages: Sequence[Message | Mapping[str, Any]],
    prompt: SystemPrompt | None = None,
    where: str = "messages",
) -> Conversation:
    """Build a conversation to generate from out of foreign tools and messages.

    Messages are `Message` objects, or objects of OpenAI's form; a system message may come first.
    The tools get the shape and the wording of `prompt`, usually `tokenizer.prompt`. A program's own
    turns need none of this: it builds a `Conversation`.

    Raises: ValueError as `parse_row`; but there need not be a model's message.
    """
    wording = prompt or DEFAULT_PROMPT
    reader = _Reader(where)
    read = [tool if isinstance(tool, Tool) else read_tool(tool) for tool in tools]
    reader.tools = as_tools(read, wording.shape)
    reader.prompt = wording if tools else None
    reader.read(messages)
    return reader.finish()


@dataclass
class _Reader:
    """Builds one conversation, message by message, and collects all its problems."""

    where: str
    has_tags: bool = False
    is_row: bool = False  # False for a program's messages: nothing in them is mended
    tools: tuple[Tool, ...] = ()
    prompt: SystemPrompt | None = None
    system: str = ""
    has_reply: bool = False  # a model's message came, whether or not it could be read
    messages: list[Message] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    repairs: list[str] = field(default_factory=list)

    def complain(self, problem: str, number: int = 0) -> None:
        """Add a problem of the row, or of its message `number`."""
        self.problems.append(f"{self.where}: {f'message {number}: ' if number else ''}{problem}")

    def read(
        self, messages: Sequence[Message | Mapping[str, Any]], tools: Any = None, system: Any = None
    ) -> None:
        """Read a row's columns and every message; the order after a broken one is still checked.

        After a role that is none, nothing more is read.
        """
        try:
            self.tools = read_tools(tools) or self.tools
        except ValueError as error:
            self.complain(f"tools: {error}; see the three shapes of data/tool_schema.py")
        if self.tools and not self.prompt:
            self.prompt = dataclasses.replace(DEFAULT_PROMPT, shape=self.tools[0].shape)
        first = messages[0] if messages else None
        has_system = isinstance(first, Mapping) and ROLES.get(str(first.get("role"))) == "system"
        # ShareGPT's and Anthropic's column; as message 0 it leaves the others their numbers
        is_extra = bool(system) and not has_system
        messages = [{"role": "system", "content": system}] * is_extra + list(messages)
        previous = ""
        for number, raw in enumerate(messages, start=1 - is_extra):
            given = raw.get("role") if isinstance(raw, Mapping) else getattr(raw, "role", None)
            role = ROLES.get(str(given), "")
            last = self.messages[-1] if self.messages else None
            is_late = role == "system" and previous != ""
            # After a broken message nobody knows whether it had the call that this result answers
            is_lone = role == "tool" and previous == "model" and not self.problems
            is_lone = is_lone and not self.messages[-1].calls
            # Two turns of one role are meant as one; not after a call, which ends the model's turn
            is_split = self.is_row and role == previous in ("user", "model")
            is_split = is_split and not (last and last.calls)
            if not (role in NEXT[previous] or is_split) or is_late or is_lone:
                self.complain(explain_place(raw, role, previous), number)
            if not role:
                # Whose turn it is nobody knows, so what follows would only be its consequences
                self.has_reply = True
                break
            if is_late:
                continue
            self.has_reply |= role in ("model", "call")
            try:
                message = raw if isinstance(raw, Message) else self._read_message(role, raw)
            except ValueError as error:
                self.complain(str(error), number)
                message = None
            if message and last and last.role == message.role:
                # Calls and results that came as messages of their own join their turn
                self.messages[-1] = last.joined(message)
                self.repairs += ["joined_turns"] if is_split else []
            elif message:
                self.messages.append(message)
            # A broken message counts for the order too, or all after it would be complained about
            previous = {"system": previous, "call": "model"}.get(role, role)

    def _read_message(self, role: str, raw: Mapping[str, Any]) -> Message | None:
        """Return the turn; a system text is none, it precedes the first user's turn."""
        if role == "tool":
            return read_results(raw, self.has_tags)
        text = read_text(raw.get("content"))
        if role == "user":
            return Message("user", text)
        if role != "system":
            # A row that writes its calls as tags writes its results so too
            self.has_tags |= self.is_row and HERMES.call.tags[0] in text
            if role == "call" and HERMES.call.tags[0] not in text:
                # ShareGPT's message of its own, whose whole text is a call or a list of calls
                pieces: list[Piece] = [Tag("<tool_call>"), text, Tag("</tool_call>")]
            elif role == "call" or self.has_tags:
                pieces = split_text(text)
            else:
                pieces = split_thinking(text)
            message, repairs = _read_model(raw, pieces, self.tools, is_call=role == "call")
            self.repairs += repairs
            return message
        # A block of tools in a row that has no column for them is what the model is to read
        finds_tools = self.has_tags or (self.is_row and not self.tools)
        before, tools, after = split_at_tools(text) if finds_tools else (text, None, "")
        if tools is None:
            self.system = f"{self.system}\n\n{text}".strip()
        else:
            # The block that the model will read counts, not a column that repeats it
            shape = tools[0].shape if tools else "openai"
            self.tools, self.prompt = tools, SystemPrompt(before.lstrip(), after.rstrip(), shape)
        return None

    def finish(self, is_held_out: bool = False) -> Conversation:
        """Return the conversation. Raises: ValueError for the collected problems, one a line."""
        if self.is_row and not self.has_reply:
            problem = (
                "expected a model's message, got none; there is nothing to learn from this row"
            )
            self.complain(problem)
        messages, repairs, problems = match_results(self.messages)
        for problem in problems:
            self.complain(problem)
        if self.problems:
            raise ValueError("\n".join(self.problems))
        names = tuple(self.repairs + repairs)
        conversation = Conversation(
            messages, self.tools, self.prompt, self.system, self.where, names, held_out=is_held_out
        )
        # Where a turn thinks, the system text asks for it: the model learns to think when asked,
        # and only then
        thinks = any(message.thinking for message in messages)
        return ask_to_think(conversation) if thinks else conversation


def _read_model(
    raw: Mapping[str, Any], pieces: Sequence[Piece], tools: Sequence[Tool], *, is_call: bool
) -> tuple[Message, list[str]]:
    """Read a model's message from the pieces of its text and its calls, and name the repairs.

    Raises: ValueError for a broken call, a tag that is not closed or at a wrong place, or nothing
    at all.
    """
    reply = read_pieces(pieces, HERMES, tools)
    calls = [outcome for outcome in reply.outcomes if isinstance(outcome, ToolCall)]
    if len(calls) < len(reply.outcomes) or not STRUCTURAL.keys().isdisjoint(reply.repairs):
        raise ValueError(explain_problems(reply))
    repairs = list(reply.repairs)
    if is_call:  # its keys are read no further: the text was all
        return Message("model", reply.content, reply.thinking, tuple(calls)), repairs
    for key in ("tool_calls", "function_call"):
        if raw.get(key):
            found, names = read_api_calls(raw[key], tools)
            calls += found
            repairs += names
    # vLLM's name, OpenRouter's, and gpt-oss'
    keys = ("reasoning_content", "reasoning", "thinking")
    thinking = read_text(next((raw[name] for name in keys if raw.get(name)), None)).strip()
    thinking = thinking or reply.thinking  # never both: some servers repeat it in the text
    # Both are common ways to say that a turn is context and not an example
    is_trained = raw.get("weight") != 0 and raw.get("train") is not False
    message = Message("model", reply.content, thinking, tuple(calls), trained=is_trained)
    if not (message.content or message.thinking or message.calls):
        raise ValueError(
            "expected text, thinking or a call, got an empty model message; remove the message"
        )
    return message, repairs
