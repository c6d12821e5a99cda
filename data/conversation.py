"""The objects that every other file of this package speaks in: tools, calls, messages, conversations.

Separate from `schema.py`, which fills them from rows, so that the parsers of single parts can
return them too.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["user", "model", "tool"]
Shape = Literal["openai", "function", "compact"]

# The sentence with which the Agents Course asks for thinking; it is plain text in the prompt.
THINK_REQUEST = (
    "Also, before making a call to a function take the time to plan the function to take. "
    "Make that thinking process between <think>{your thoughts}</think>"
)


@dataclass(frozen=True)
class Tool:
    """One function on offer.

    Attributes:
        parameters: always a JSON schema of an object, whatever the row's shape was. shape: how the
        row wrote the tool and how `write_tool` writes it back: "openai" is {"type": "function",
            "function": {...}}, "function" the inner object alone, "compact" the inner object with
            parameters {argument: "string" | "integer?" | [allowed values] | schema}.
        extras: unknown keys of the inner object, written back after the known ones.
        outer: unknown keys beside "type" and "function" in the shape "openai".
    """

    name: str
    description: str = ""
    parameters: dict[str, Any] = field(default_factory=lambda: {"type": "object", "properties": {}})
    shape: Shape = "openai"
    extras: dict[str, Any] = field(default_factory=dict)
    outer: dict[str, Any] = field(default_factory=dict)

    @property
    def required(self) -> tuple[str, ...]:
        """Names of the arguments that a call must give."""
        return tuple(self.parameters.get("required") or ())


@dataclass(frozen=True)
class ToolCall:
    """One call by the model. `id` ties a result to it where a row has ids; it is not rendered and not compared."""

    name: str
    arguments: dict[str, Any]
    id: str | None = field(default=None, compare=False)


@dataclass(frozen=True)
class ToolResult:
    """What one call gave. `content` is the text that the model reads; a string in the row stays that string."""

    content: str
    name: str | None = None
    id: str | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Message:
    """One turn. A model's turn has thinking, content and calls, in this order; a tool's turn has only results."""

    role: Role
    content: str = ""
    thinking: str = ""
    calls: tuple[ToolCall, ...] = ()
    results: tuple[ToolResult, ...] = ()
    trained: bool = True


@dataclass(frozen=True)
class SystemPrompt:
    """The wording around the block of tools, and the shape in which the tools stand in it."""

    before: str
    after: str = ""
    shape: Shape = "openai"


# No literal tag in the wording: Transformers reads every tag in a prompt's text as the control
# token, so only a wording without tags gives the same ids there and here. A data set's own wording
# may quote tags; here they stay plain text.
DEFAULT_PROMPT = SystemPrompt(
    before=(
        "You are a function calling AI model. You are provided with the signatures of the functions that you may call, "
        "as a JSON list. You may call one or more functions to assist with the user query. Don't make assumptions "
        "about what values to plug into functions. Here are the available tools: "
    ),
    after=(
        "\nFor each function call return a JSON object with the function's name and its arguments: "
        '{"name": ..., "arguments": {...}}'
    ),
)


@dataclass(frozen=True)
class Conversation:
    """One row, ready to be rendered.

    Attributes:
        tools: what is on offer; written into the system text only if there is a `prompt`.
        prompt: the wording around the tools; None if the system text has no block of tools.
        system: system text that stands before the wording.
        where: "file:line" of the row, for messages.
        repairs: one name for each leniency that reading the row took, such as "python_literal".
    """

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    prompt: SystemPrompt | None = None
    system: str = ""
    where: str = field(default="", compare=False)
    repairs: tuple[str, ...] = field(default=(), compare=False)

    @property
    def tool_names(self) -> frozenset[str]:
        """Names of all tools that are offered or called."""
        called = {call.name for message in self.messages for call in message.calls}
        return frozenset({tool.name for tool in self.tools} | called)
