"""What models do wrong, row by row: the loop answers each, streamed and not, constrained and not.

A reply is written as its ids would come; «tag» is a control id and everything else is text.
"""

import json
import random
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from builders import TOKENIZER
from test_data_reply import ids_of

from agent import agent as loop
from agent.agent import Agent
from agent.guides import CallRule
from agent.limits import Event, Limits
from agent.toolbox import ToolBox
from data.conversation import Tool
from data.lenient_json import HINTS
from data.tokenizer import Tokenizer

WEATHER = Tool(
    "weather",
    "",
    {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "wind": {"type": "number"},
            "unit": {"type": "string", "enum": ["C", "F"]},
        },
        "required": ["city"],
    },
)
NOW = Tool("now", "", {"type": "object", "properties": {}})


class Box(ToolBox):
    """The checks of a `ToolBox` without its process; every call that passes them gives a result."""

    def __init__(self, result: Any = "7") -> None:
        self.tools, self.timeout, self.result = [WEATHER, NOW], 1.0, result
        self.by_name = {tool.name: tool for tool in self.tools}
        self.asks_first = set()

    def _exchange(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        return {"result": self.result}


def call(body: str) -> str:
    return f"«tool_call»{body}«/tool_call»"


def weather(**arguments: Any) -> str:
    return call(json.dumps({"name": "weather", "arguments": arguments}))


ROME, BAD = weather(city="Rome"), "invalid_arguments"
ROME_JSON = '{"name": "weather", "arguments": {"city": "Rome"}}'
# number: what the model writes, reply by reply, and what it reads: "" for a result, or error codes
TABLE: dict[int, tuple[list[str], list[str]]] = {
    1: ([call("{'name': 'weather', 'arguments': {'city': 'Rome', 'days': None}}")], [""]),
    2: ([call('{"name": "weather", "arguments": {"city": "Rome",},}')], [""]),
    3: ([weather(city="R & <ome")], [""]),
    4: (['«tool_call»{"name": "weather", "arguments": {"city": "Ro«cut»'], ["truncated"]),
    5: ([f"«tool_call»{ROME_JSON}"], [""]),
    6: ([call(f"```json\n{ROME_JSON}\n```")], [""]),
    7: ([ROME_JSON], []),
    8: ([call('{"name": "weather", "arguments": "{\\"city\\": \\"Rome\\"}"}')], [""]),
    9: ([call('{"name": "weather", "parameters": {"city": "Rome"}}')], ["missing_arguments"]),
    10: ([call('{"name": "now"}') + call('{"name": "weather"}')], ["", "missing_arguments"]),
    11: ([call('{"name": "weather", "arguments": ["Rome"]}')], ["arguments_not_object"]),
    12: ([call('{"arguments": {"city": "Rome"}}')], ["missing_name"]),
    13: ([call('{"name": "requests", "arguments": {}}')], ["unknown_tool"]),
    14: ([weather(days=3)], [BAD]),
    15: ([weather(city=5)], [BAD]),
    16: ([weather(city=0)], [BAD]),
    17: ([weather(city="Rome", days=True)], [BAD]),
    18: ([weather(city="Rome", unit="K")], [BAD]),
    19: ([weather(city="Rome", country="Italy")], [BAD]),
    20: ([call('{"name": "weather", "arguments": {"city": "a", "city": "b"}}')], ["duplicate_key"]),
    21: (
        [call('{"name": "weather", "arguments": {"city": "Rome", "wind": NaN}}')],
        ["not_finite"],
    ),
    22: ([call('{"name": "weather", "arguments": {"city": "Ro\nme"}}')], [""]),
    23: ([call(f"{ROME_JSON}\n{ROME_JSON}")], ["", ""]),
    24: ([call(f"[{ROME_JSON}, {ROME_JSON}]")], ["", ""]),
    25: ([call("42") + call("")], ["not_an_object"] * 2),
    26: ([call("{oops}") + ROME], ["invalid_json", ""]),
    27: ([weather(city="</tool_call><tool_call>")], [""]),
    28: ([f"«think»perhaps {ROME}«/think»No."], []),
    29: ([f"{ROME}«tool_response»30«/tool_response»30 degrees."], [""]),
    30: ([call("[" * 100_000)], ["too_deep"]),
    31: ([call('{"name": "weather", "arguments": {"days": DIGITS}}')], ["number_too_long"]),
    32: ([ROME] * 9, ["", "", "", "repeated_call"]),
    33: (["«think»" + "well, " * 300], []),
    34: ([f"I look.{ROME}"], [""]),
    35: (["", "Yes."], []),
    36: ([ROME * 12], [""] * 8 + ["too_many_calls"] * 4),
    37: ([ROME], [""]),
    38: ([ROME] * 3, [""] * 3),
    39: (["🫨 é"], []),
    40: ([ROME.replace("«", "<").replace("»", ">")], []),
}
LAST = {7: ROME_JSON, 28: "No.", 35: "Yes.", 39: "🫨 é", 40: TABLE[40][0][0]}


class Model:
    """Writes the replies; where a guide refuses an id, it draws one of those that are allowed."""

    def __init__(self, tokenizer: Tokenizer, replies: list[str]) -> None:
        self.tokenizer, self.drawn = tokenizer, random.Random(0)
        self.replies = [self._ids(reply) for reply in [*replies, "Fine."]]

    def _ids(self, text: str) -> list[int]:
        text = text.replace("DIGITS", "9" * 5000)
        ids = ids_of(text.removesuffix("«cut»"), self.tokenizer)
        return ids if text.endswith("«cut»") else [*ids, self.tokenizer.end_of_turn_id]

    def __call__(
        self,
        model: Any,
        prompts: Any,
        most: int,
        stop_ids: Any,
        sampling: Any,
        guides: Any,
        **_: Any,
    ) -> Iterator[list[int]]:
        (guide,), ids = guides, self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        for number in range(most if guide else len(ids)):
            wanted = ids[number] if number < len(ids) else self.tokenizer.end_of_turn_id
            while guide and not guide.accepts(wanted):
                wanted = self.drawn.choice(guide.allowed())
            if guide:
                guide.advance(wanted)
            yield [wanted]
            if wanted in stop_ids:
                return


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_pretrained(TOKENIZER)


def run(
    monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer, number: int, names: Any, stream: bool
) -> list[Event]:
    monkeypatch.setattr(loop, "decode", Model(tokenizer, TABLE[number][0]))
    box = Box("x" * 10_000_000 if number in (37, 38) else "7")
    positions = 1200 if number == 38 else 500_000
    model: Any = SimpleNamespace(config=SimpleNamespace(max_position_embeddings=positions))
    limits = Limits(
        400 if names == "constrained" else 400_000, loop=0 if number in (30, 31) else 96
    )
    agent = Agent(model, tokenizer, box, limits=limits, rule=CallRule(names))
    events = list(agent.ask("Go", stream=stream))
    assert events[-1].kind == "done" and [event.kind for event in events].count("done") == 1
    assert events[-2].kind in ("answer", "error")
    # Whatever was said stands in the cache as it was written, and the chat goes on
    assert agent.num_answered == 0 or agent.num_answered == len(agent.ids)
    return events


def codes(events: list[Event]) -> list[str]:
    results = [event.content["content"] for event in events if event.kind == "tool_response"]
    return [
        json.loads(text)["error"]["code"] if text.startswith('{"error"') else "" for text in results
    ]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("number", TABLE)
def test_every_failure_is_answered(
    monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer, number: int, stream: bool
) -> None:
    events = run(monkeypatch, tokenizer, number, "free", stream)
    assert codes(events) == TABLE[number][1]
    answers = [event.content for event in events if event.kind == "answer"]
    if number in (32, 33):  # it never stops by itself
        assert answers == [] and events[-2].kind == "error"
    else:
        assert answers == [LAST.get(number, "Fine.")]
    calls = [event for event in events if event.kind == "tool_call"]
    assert len(calls) >= codes(events).count("")
    if number == 34:
        assert Event("text", "I look.") in events
    if number in (37, 38):
        results = [e.content["content"] for e in events if e.kind == "tool_response"]
        assert all(text.endswith("[cut: 10000000 characters]") for text in results)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("number", TABLE)
def test_under_constrain_no_call_is_broken(
    monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer, number: int, stream: bool
) -> None:
    pytest.importorskip("llguidance")
    events = run(monkeypatch, tokenizer, number, "constrained", stream)
    broken = {*HINTS, "unknown_tool", BAD} - {"too_many_calls"}
    assert not broken & set(codes(events))
    calls = [event.content for event in events if event.kind == "tool_call"]
    box = Box()
    for made in calls:
        assert box.call(made["name"], made["arguments"]) == "7"
    if TABLE[number][1]:
        assert calls  # the model's choice to call stands
