"""Rows of any accepted form -> `Conversation`.

A form's function brings a row to one plain list of messages as OpenAI's API writes them, and its
tools; one reader makes a conversation of every such list. In the two Hermes forms (course and
ShareGPT) the tags <tools>, <think>, <tool_call> and <tool_response> are structure where the
message's role gives them a meaning; everywhere else, and in every user's text, the same characters
are text.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from data.api_calls import read_api_calls, read_label
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
from data.lenient_json import (
    LiteralError,
    check_size,
    check_value,
    find_end,
    load_json,
    read_values,
    shorten,
)
from data.reply import STRUCTURAL, explain_problems, read_pieces, split_text, split_thinking
from data.tool_calls import read_tool, read_tools, split_at_tools
from data.tool_schema import as_tools
from data.wire import HERMES, Piece, Tag, dump

# The names of the roles in all the forms. "call" is ShareGPT's message that holds only a call
ROLES = {
    **{"system": "system", "developer": "system", "human": "user", "user": "user"},
    **{"model": "model", "assistant": "model", "gpt": "model"},
    **{"function_call": "call", "tool_call": "call"},
    **{"tool": "tool", "observation": "tool", "function": "tool"},
    **{"function_response": "tool", "tool_response": "tool"},
}
# Which roles may follow which; "" is the beginning. A call as a message of its own begins or
# continues the model's turn
NEXT = {
    "": ("system", "user"),
    "user": ("model", "call"),
    "model": ("user", "tool", "call"),
    "tool": ("model", "tool", "call"),
}
MAX_MESSAGES = 10_000  # in one row; the results of one turn are joined one by one
# In the rows of the Hermes forms, whatever format is trained
_OPEN, _CLOSE = HERMES.result.tags
_SPACE = re.compile(r"\s*")
_BETWEEN_RESULTS = re.compile(rf"{_CLOSE}\s*{_OPEN}")


@dataclass(frozen=True)
class PlainRow:
    """What every form is brought to: messages with the keys of OpenAI's API, and a column of tools.

    Such a message has a role (any key of ROLES) and content, and may have tool_calls or
    function_call (OpenAI's older key), reasoning_content, name, tool_call_id, and weight: 0 for a
    message that is not to be learned.
    """

    messages: list[Any]
    tools: Any = None
    has_tags: bool = False  # are Hermes tags in the texts structure?


def course(row: Mapping[str, Any], messages: list[Any]) -> PlainRow:
    """The Agents Course: {"conversations": [{"role": "human", "content": text with tags}]}."""
    return PlainRow(messages, row.get("tools") or row.get("functions"), has_tags=True)


def sharegpt(row: Mapping[str, Any], messages: list[Any]) -> PlainRow:
    """ShareGPT: {"conversations": [{"from": "gpt", "value": text with tags}], "system", "tools"}.

    The two columns, a system text and a list, may be absent.
    """
    renamed = []
    for message in messages:
        if isinstance(message, Mapping):
            message = dict(message)
            for key, name in (("from", "role"), ("value", "content")):
                # Parquet gives every message all keys, with nulls
                if message.get(name) is None:
                    message[name] = message.get(key)
        renamed.append(message)
    # Under "messages" a tag is text, however the messages' own keys are called
    has_tags = row.get("conversations") is not None
    return PlainRow(renamed, row.get("tools") or row.get("functions"), has_tags)


def openai(row: Mapping[str, Any], messages: list[Any]) -> PlainRow:
    """OpenAI: {"messages": [{"role": "assistant", "content", "tool_calls": [...]}], "tools"}."""
    return PlainRow(messages, row.get("tools") or None)  # an empty column is none


def mistral(row: Mapping[str, Any], messages: list[Any]) -> PlainRow:
    """Mistral: {"messages": [{"role": "assistant", "function_call": [...]}], "functions"}."""
    return PlainRow(messages, row.get("tools") or row.get("functions"))


# The keys that give a form away, in the row or in one of its messages; the first form with one of
# them reads the row. A new form is one function above and one line here.
FORMS: tuple[tuple[set[str], Callable[[Mapping[str, Any], list[Any]], PlainRow]], ...] = (
    ({"from", "value"}, sharegpt),
    ({"conversations"}, course),
    ({"function_call", "functions"}, mistral),
    ({"messages"}, openai),
)


def parse_row(row: Mapping[str, Any] | str | bytes, where: str = "row") -> Conversation:
    """Read one row, given as an object or as a line of JSON.

    Raises: ValueError for all problems of the row, one sentence a line; the first message is 1.
    """
    if isinstance(row, str | bytes):
        try:
            row = load_json(row.decode() if isinstance(row, bytes) else row)
        except (ValueError, RecursionError) as error:
            # Errors of UTF-8, of JSON and of values that are refused are ValueErrors alike
            raise ValueError(
                f"{where}: expected one JSON object on the line, got {error}; repair the line"
            ) from None
    elif isinstance(row, Mapping):
        try:
            check_size(row)  # a line has been through it
        except LiteralError as error:
            raise ValueError(f"{where}: {error}; cut the row into several") from None
    if not isinstance(row, Mapping):
        got = shorten(repr(row))
        raise ValueError(f"{where}: expected a JSON object, got {got}; wrap it in {{...}}")
    columns = [name for name in ("conversations", "messages") if row.get(name) is not None]
    if not columns:
        got = shorten(", ".join(map(str, row))) or "no key"
        raise ValueError(
            f'{where}: expected the key "conversations" or "messages", got {got}; rename the column'
        )
    messages = row[columns[0]]
    if isinstance(messages, str):
        messages = _load_list(messages, where)
    if not isinstance(messages, list | tuple) or not messages:
        got = shorten(repr(messages))
        raise ValueError(f"{where}: expected a list of messages, got {got}; give two or more")
    if len(messages) > MAX_MESSAGES:
        got = f"got {len(messages)}; cut the row into several"
        raise ValueError(f"{where}: expected at most {MAX_MESSAGES} messages, {got}")

    # Parquet gives every row and message the keys of all others, with nulls: those do not count
    keys: set[str] = set()
    for part in (row, *messages):
        if isinstance(part, Mapping):
            keys.update(key for key in part if part[key] is not None)
    plain = next(read for signs, read in FORMS if signs & keys)(row, list(messages))

    # From here on problems are collected: one run over a file is to name them all
    reader = _Reader(where, plain.has_tags)
    try:
        reader.tools = read_tools(plain.tools)
    except ValueError as error:
        reader.complain(f"tools: {error}; see the three shapes of data/tool_schema.py")
    if reader.tools:
        reader.prompt = dataclasses.replace(DEFAULT_PROMPT, shape=reader.tools[0].shape)
    first = plain.messages[0]
    first_role = str(first.get("role")) if isinstance(first, Mapping) else ""
    if row.get("system") and ROLES.get(first_role) != "system":  # ShareGPT's column
        plain.messages.insert(0, {"role": "system", "content": row["system"]})
    reader.read(plain.messages)
    return reader.finish(needs_reply=True)


def _load_list(text: str, where: str) -> Any:
    """Load a column of messages that came as a string of JSON, or as Python's spelling of it."""
    try:
        values, _ = read_values(text)
    except ValueError as error:
        raise ValueError(f"{where}: expected a list of messages, got a string: {error}") from None
    return values[0] if len(values) == 1 else values


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
    tools: tuple[Tool, ...] = ()
    prompt: SystemPrompt | None = None
    system: str = ""
    messages: list[Message] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    repairs: list[str] = field(default_factory=list)

    def complain(self, problem: str, number: int = 0) -> None:
        """Add a problem of the row, or of its message `number`."""
        self.problems.append(f"{self.where}: {f'message {number}: ' if number else ''}{problem}")

    def read(self, messages: Sequence[Message | Mapping[str, Any]]) -> None:
        """Read every message; the order after a broken one is still checked."""
        previous = ""
        for number, raw in enumerate(messages, start=1):
            given = raw.get("role") if isinstance(raw, Mapping) else getattr(raw, "role", None)
            role = ROLES.get(str(given), "")
            is_late = role == "system" and number > 1
            # After a broken message nobody knows whether it had the call that this result answers
            is_lone = role == "tool" and previous == "model" and not self.problems
            is_lone = is_lone and not self.messages[-1].calls
            if role not in NEXT[previous] or is_late or is_lone:
                self.complain(_explain_place(raw, role, previous), number)
            if not role or is_late:
                continue
            try:
                message = raw if isinstance(raw, Message) else self._read_message(role, raw)
            except ValueError as error:
                self.complain(str(error), number)
                message = None
            last = self.messages[-1] if self.messages else None
            if message and last and last.role == message.role and role in ("call", "tool"):
                # Calls and results that came as messages of their own join their turn
                calls, results = last.calls + message.calls, last.results + message.results
                self.messages[-1] = dataclasses.replace(last, calls=calls, results=results)
            elif message:
                self.messages.append(message)
            # A broken message counts for the order too, or all after it would be complained about
            previous = {"system": previous, "call": "model"}.get(role, role)

    def _read_message(self, role: str, raw: Mapping[str, Any]) -> Message | None:
        """Return the turn; a system text is none, it precedes the first user's turn."""
        if role == "tool":
            return _read_results(raw, self.has_tags)
        text = _plain_text(raw.get("content"))
        if role == "user":
            return Message("user", text)
        if role != "system":
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
        before, tools, after = split_at_tools(text) if self.has_tags else (text, None, "")
        if tools is None:
            self.system = text.strip()
        else:
            # The block that the model will read counts, not a column that repeats it
            shape = tools[0].shape if tools else "openai"
            self.tools, self.prompt = tools, SystemPrompt(before.lstrip(), after.rstrip(), shape)
        return None

    def finish(self, needs_reply: bool = False) -> Conversation:
        """Return the conversation. Raises: ValueError for the collected problems, one a line."""
        if needs_reply and not any(message.role == "model" for message in self.messages):
            problem = (
                "expected a model's message, got none; there is nothing to learn from this row"
            )
            self.complain(problem)
        messages, repairs, problems = _match_results(self.messages)
        for problem in problems:
            self.complain(problem)
        if self.problems:
            raise ValueError("\n".join(self.problems))
        # Where a turn thinks and the system text does not ask for it yet, it asks from now on: the
        # model learns to think when asked, and only then
        system, prompt = self.system, self.prompt
        said = system + (prompt.before + prompt.after if prompt else "")
        if THINK_REQUEST not in said and any(message.thinking for message in messages):
            if prompt:
                prompt = dataclasses.replace(prompt, after=f"{prompt.after}\n{THINK_REQUEST}")
            else:
                system = f"{system}\n{THINK_REQUEST}".lstrip()
        repairs = [*self.repairs, *repairs]
        return Conversation(messages, self.tools, prompt, system, self.where, tuple(repairs))


def _explain_place(raw: Any, role: str, previous: str) -> str:
    """Return what is wrong with a message's role, or with its place after the role `previous`."""
    if not isinstance(raw, Message | Mapping):
        return f"expected an object with role and content, got {shorten(repr(raw))}"
    given = raw.role if isinstance(raw, Message) else str(raw.get("role"))
    if not role:
        return f"expected a role out of {', '.join(ROLES)}, got {given!r}; rename it"
    if role == "system":
        return f"expected the system text as the first message, got {given!r} here; move it up"
    if role in NEXT[previous]:
        problem = f"expected the role user after a model message without a call, got {given!r}"
        return f"{problem}; give the call that this result answers"
    # Only what every form has: a call or a second result as a message of its own is special
    others = ("system", "call", previous)
    expected = " or ".join(name for name in NEXT[previous] if name not in others)
    after = f"after a {previous} message" if previous else "as the first turn"
    return f"expected the role {expected} {after}, got {given!r}; reorder or merge the messages"


def _plain_text(content: Any) -> str:
    """Return a message's text: a string, null, or a list of {"type": "text", "text": ...} parts.

    Raises: ValueError for any other content, or half of a surrogate pair.
    """
    # Joined without a space: the parts are cuts through one text
    texts = []
    for part in content if isinstance(content, list | tuple) else [content]:
        is_text_part = isinstance(part, Mapping) and part.get("type", "text") == "text"
        text = part.get("text") if is_text_part else part
        if not isinstance(text, str | None):
            got = shorten(repr(part))
            raise ValueError(f"expected text, got {got}; only text parts can be trained on")
        texts.append(text or "")
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        raise ValueError(
            "expected whole characters, got half of a surrogate pair; repair the encoding"
        ) from None
    return "".join(texts)


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
    thinking = _plain_text(raw.get("reasoning_content") or raw.get("reasoning")).strip()
    thinking = thinking or reply.thinking  # never both: some servers repeat it in the text
    # Both are common ways to say that a turn is context and not an example
    is_trained = raw.get("weight") != 0 and raw.get("train") is not False
    message = Message("model", reply.content, thinking, tuple(calls), trained=is_trained)
    if not (message.content or message.thinking or message.calls):
        raise ValueError(
            "expected text, thinking or a call, got an empty model message; remove the message"
        )
    return message, repairs


def _read_results(raw: Mapping[str, Any], has_tags: bool) -> Message:
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
    text = _plain_text(content)
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


def _match_results(messages: Sequence[Message]) -> tuple[tuple[Message, ...], list[str], list[str]]:
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
