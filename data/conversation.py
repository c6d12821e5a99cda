"""What every other file of this package works with: tools, calls, messages, conversations.

Separate from `schema.py`, which fills them from rows, so that the parsers of single parts can
return them too.
"""

import json
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

Role = Literal["user", "model", "tool"]
# How a prompt shows a tool: {"type": "function", "function": {...}}, or the inner object alone, or
# that with the parameters as {argument: "string" | "integer?" | [allowed values] | schema}
Shape = Literal["openai", "function", "compact"]
SHAPES: tuple[Shape, ...] = get_args(Shape)

# The sentence with which the Agents Course asks for thinking. In the Hermes format its <think> and
# </think> become the control tokens (`chat._system`), as they do in Transformers.
THINK_REQUEST = (
    "Also, before making a call to a function take the time to plan the function to take. "
    "Make that thinking process between <think>{your thoughts}</think>"
)


@dataclass(frozen=True)
class Tool:
    """One function on offer. `shape` is how the row wrote it, and how `write_tool` writes it."""

    name: str
    description: str = ""
    # Always a JSON schema of an object, whatever the row's shape was
    parameters: dict[str, Any] = field(default_factory=lambda: {"type": "object", "properties": {}})
    shape: Shape = "openai"
    # Unknown keys, so that nothing of a row is lost: of the inner object, and beside it in "openai"
    extras: dict[str, Any] = field(default_factory=dict)
    outer: dict[str, Any] = field(default_factory=dict)

    @property
    def required(self) -> tuple[str, ...]:
        """Names of the arguments that a call must give."""
        return tuple(self.parameters.get("required") or ())


@dataclass(frozen=True)
class ToolCall:
    """One call by the model."""

    name: str
    arguments: dict[str, Any]
    # Ties a result to its call where a row has ids; the formats write none, so equality ignores it
    id: str | None = field(default=None, compare=False)

    @property
    def key(self) -> str:
        """Equal for two calls that are equal as JSON, whatever the order of their keys."""
        return json.dumps([self.name, self.arguments], sort_keys=True, ensure_ascii=False)


@dataclass(frozen=True)
class ToolResult:
    """What one call gave. `content` is the text that the model reads, a row's string as it came."""

    content: str
    name: str | None = None
    id: str | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Message:
    """One turn: a model's has thinking, content and calls, in this order; a tool's only results."""

    role: Role
    content: str = ""
    thinking: str = ""
    calls: tuple[ToolCall, ...] = ()
    results: tuple[ToolResult, ...] = ()
    trained: bool = True  # False: the model reads the turn, but does not learn to write it

    def joined(self, other: "Message") -> "Message":
        """Return this message and a following one of the same role as one turn."""
        texts = [text for text in (self.content, other.content) if text]
        thoughts = [text for text in (self.thinking, other.thinking) if text]
        return Message(
            self.role,
            "\n\n".join(texts),
            "\n\n".join(thoughts),
            self.calls + other.calls,
            self.results + other.results,
            trained=self.trained and other.trained,
        )


@dataclass(frozen=True)
class SystemPrompt:
    """The wording around the block of tools, and the shape of the tools in it."""

    before: str
    after: str = ""
    shape: Shape = "openai"

    @property
    def asks_to_think(self) -> bool:
        """Whether it asks for thinking before a call."""
        return THINK_REQUEST in self.before + self.after


# No literal tag in this wording: a tag in a system text becomes the control token (see
# `chat._system`), which would open a call inside the prompt. Only THINK_REQUEST, which is added
# where a row thinks, has tags; a data set's own wording may have them too.
DEFAULT_PROMPT = SystemPrompt(
    before=(
        "You are a function calling AI model. You are provided with the signatures of the "
        "functions that you may call, as a JSON list. You may call one or more functions to "
        "assist with the user query. Don't make assumptions about what values to plug into "
        "functions. Here are the available tools: "
    ),
    after=(
        "\nFor each function call return a JSON object with the function's name and its arguments: "
        '{"name": ..., "arguments": {...}}'
    ),
)


@dataclass(frozen=True)
class Conversation:
    """One row, ready to be rendered."""

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()  # written into the first turn only if there is a `prompt`
    prompt: SystemPrompt | None = None  # the wording around the tools
    system: str = ""  # system text in front of that wording
    # The row's "file:line", and one name for each leniency that reading it took, such as
    # "python_literal". Neither counts when rows are compared: the same text twice is the same row.
    where: str = field(default="", compare=False)
    repairs: tuple[str, ...] = field(default=(), compare=False)
    held_out: bool = field(default=False, compare=False)  # the row says that it is for evaluation

    @property
    def tool_names(self) -> frozenset[str]:
        """Names of all tools that are offered or called."""
        called = {call.name for message in self.messages for call in message.calls}
        return frozenset({tool.name for tool in self.tools} | called)


def ask_to_think(conversation: Conversation) -> Conversation:
    """The conversation with a system text that asks for thinking, behind the tools if any."""
    prompt, system = conversation.prompt, conversation.system
    if THINK_REQUEST in system or (prompt and prompt.asks_to_think):
        return conversation
    if prompt:
        prompt = replace(prompt, after=f"{prompt.after}\n{THINK_REQUEST}")
        return replace(conversation, prompt=prompt)
    return replace(conversation, system=f"{system}\n{THINK_REQUEST}".lstrip())
