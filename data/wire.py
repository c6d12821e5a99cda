"""How a chat is written: one `WireFormat` for each format, the table that all of `data` shares.

Separate because rendering, parsing, the tokenizer and the template need the same table: `chat.py`
writes by it, `reply.py` reads by it, `tokenizer.py` gives its tags ids and `template.py` says the
same in Jinja. A further format is one more entry of FORMATS, with writers of its own where its
syntax differs, and a reader of its own if its calls are not JSON between two tags.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from data import functiongemma
from data.conversation import Tool, ToolCall, ToolResult
from data.pieces import Body
from data.pieces import Piece as Piece  # importable from here too, with the table they are for
from data.pieces import Tag as Tag
from data.tool_calls import Outcome
from data.tool_schema import write_tool

ReadCall = Callable[[Sequence[Piece], Iterable[Tool]], tuple[list[Outcome], list[str]]]


@dataclass(frozen=True)
class Block:
    """A stretch between two marks; `gap` is written next to each mark, inside.

    A mark that is a string is written as ordinary text. Without a closing mark, the block runs to
    the end of the turn.
    """

    open: Piece
    close: Piece | None
    gap: str = ""

    def around(self, body: Body) -> list[Piece]:
        """Return the pieces of a block that holds `body`; only text gets the gaps."""
        closing = [] if self.close is None else [self.close]
        inner = [f"{self.gap}{body}{self.gap}"] if isinstance(body, str) else body
        return [self.open, *inner, *closing]

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
    # What is inside the blocks. Calls or tools may share one block, hence a list: one body for each
    # block of the turn.
    write_calls: Callable[[Sequence[ToolCall]], list[Body]]
    write_result: Callable[[ToolResult], Body]
    # A JSON list, as Transformers' `tojson` writes it
    write_tools: Callable[[Sequence[Tool]], list[Body]] = lambda tools: [
        dump([*map(write_tool, tools)])
    ]
    # Reads what `write_calls` wrote into one block; None where that is JSON
    read_call: ReadCall | None = None
    quote: Tag | None = None  # opens and closes the strings inside the blocks, where JSON does not
    # A turn of its own for what the operator says, by its role; else it opens the first user's turn
    system_role: str | None = None
    # What stands in front of the tools, in place of the rows' own wording
    wording: str | None = None
    # Results belong to the turn that called, which ends with the opening mark of the first one, and
    # so does the answer behind them; else both have turns of their own
    answers_in_turn: bool = False

    @cached_property
    def tags(self) -> tuple[str, ...]:
        """The names of all tags."""
        # A vocabulary without them gets them in this order, so the order decides their ids
        quote = (self.quote.name,) if self.quote else ()
        return self.tools.tags + self.thinking.tags + self.call.tags + self.result.tags + quote

    @property
    def reply_tags(self) -> tuple[str, ...]:
        """The tags that a model writes inside its turn."""
        quote = (self.quote.name,) if self.quote else ()
        return self.thinking.tags + self.call.tags + quote

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
FUNCTIONGEMMA = WireFormat(
    name="functiongemma",
    tools=Block(Tag("<start_function_declaration>"), Tag("<end_function_declaration>")),
    thinking=Block("<think>", "</think>\n"),  # the format has no thinking; as in Mistral's
    call=Block(Tag("<start_function_call>"), Tag("<end_function_call>")),
    result=Block(Tag("<start_function_response>"), Tag("<end_function_response>")),
    write_calls=functiongemma.write_calls,
    write_result=functiongemma.write_result,
    write_tools=functiongemma.write_tools,
    read_call=functiongemma.read_call,
    quote=functiongemma.ESCAPE,
    system_role="developer",
    wording=functiongemma.WORDING,
    answers_in_turn=True,
)
# A file with the tags of several formats is taken for the last of them, so the order counts
FORMATS = {wire.name: wire for wire in (HERMES, MISTRAL, FUNCTIONGEMMA)}
