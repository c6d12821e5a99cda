"""How a chat is written: one `WireFormat` for each format, the table that all of `data` shares.

Separate because rendering, parsing, the tokenizer and the template need the same table: `chat.py`
writes by it, `reply.py` reads by it, `tokenizer.py` gives its tags ids and `template.py` says the
same in Jinja. A further format is one
more entry of FORMATS, with writers of its own where its syntax differs; if its calls are not JSON
between two tags, `reply.py` gets a function that reads them.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from data.conversation import Tool, ToolCall, ToolResult
from data.tool_schema import write_tool


@dataclass(frozen=True)
class Tag:
    """A control token, by its name. A type of its own, so that no string ever equals a tag."""

    name: str

    def __str__(self) -> str:
        return self.name


Piece = str | Tag  # what a chat consists of: ordinary text and control tokens


@dataclass(frozen=True)
class Block:
    """A stretch between two marks; `gap` is written next to each mark, inside.

    A mark that is a string is written as ordinary text. Without a closing mark, the block runs to
    the end of the turn.
    """

    open: Piece
    close: Piece | None
    gap: str = ""

    def around(self, body: str) -> list[Piece]:
        """Return the pieces of a block that holds `body`."""
        closing = [] if self.close is None else [self.close]
        return [self.open, f"{self.gap}{body}{self.gap}", *closing]

    @cached_property
    def tags(self) -> tuple[str, ...]:
        """The names of the marks that are control tokens."""
        return tuple(mark.name for mark in (self.open, self.close) if isinstance(mark, Tag))


@dataclass(frozen=True)
class WireFormat:
    """How one format writes the four things that Gemma's own chat lacks.

    Only the model writes `thinking` and `call`; only the chat around it writes `tools` and
    `result`.
    """

    name: str
    # Where a block holds only strings as marks, the format has no token for it
    tools: Block
    thinking: Block
    call: Block
    result: Block
    # The texts inside the blocks. Calls may share one block, hence a list: one text for each block
    # of the turn.
    write_calls: Callable[[Sequence[ToolCall]], list[str]]
    write_result: Callable[[ToolResult], str]
    # A JSON list, as Transformers' `tojson` writes it
    write_tools: Callable[[Sequence[Tool]], str] = lambda tools: dump([*map(write_tool, tools)])

    @cached_property
    def tags(self) -> tuple[str, ...]:
        """The names of all tags."""
        # A vocabulary without them gets them in this order, so the order decides their ids
        return self.tools.tags + self.thinking.tags + self.call.tags + self.result.tags

    @property
    def turn_ends(self) -> tuple[str, ...]:
        """The tags that end the model's turn, besides Gemma's own."""
        # A result is the chat's to write: a model that wrote one would believe it
        return self.result.tags[:1]


def dump(value: object) -> str:
    """Write JSON in its one spelling: default separators, characters beyond ASCII as they are."""
    return json.dumps(value, ensure_ascii=False)


def _as_objects(calls: Sequence[ToolCall]) -> list[dict[str, object]]:
    return [{"name": call.name, "arguments": call.arguments} for call in calls]


def _named_result(result: ToolResult) -> str:
    # A row may not say which tool gave a result, and two calls may be of one tool
    named = {"content": result.content}
    return dump(named | ({"name": result.name} if result.name else {}))


HERMES = WireFormat(
    name="hermes",
    tools=Block(Tag("<tools>"), Tag("</tools>"), gap="\n"),
    thinking=Block(Tag("<think>"), Tag("</think>")),
    call=Block(Tag("<tool_call>"), Tag("</tool_call>"), gap="\n"),
    result=Block(Tag("<tool_response>"), Tag("</tool_response>"), gap="\n"),
    write_calls=lambda calls: [dump(call) for call in _as_objects(calls)],
    write_result=lambda result: result.content,  # bare text: only the order says whose result it is
)
MISTRAL = WireFormat(
    name="mistral",
    tools=Block(Tag("[AVAILABLE_TOOLS]"), Tag("[/AVAILABLE_TOOLS]")),
    thinking=Block("<think>", "</think>\n"),  # the format has no token for it
    call=Block(Tag("[TOOL_CALLS]"), None),
    result=Block(Tag("[TOOL_RESULTS]"), Tag("[/TOOL_RESULTS]")),
    write_calls=lambda calls: [dump(_as_objects(calls))] if calls else [],
    write_result=_named_result,
)
# A file with the tags of several formats is taken for the last of them, so the order counts
FORMATS = {wire.name: wire for wire in (HERMES, MISTRAL)}
