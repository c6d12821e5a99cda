"""Under --constrain every call is valid, whatever the weights say and wherever the limit cuts."""

import json
import random
from typing import Any

import pytest
from builders import TOKENIZER
from test_agent_guides import TOOLS, piece_tokenizer, tool

from agent.call_schema import bounded
from agent.constrain import CallGuide, is_in_string, repeats_key
from agent.guides import CallRule, MustCall, guide_for, writes_json
from benchmarks.constrained_calls import measure, problems_of
from data.call_check import check_arguments
from data.conversation import Conversation, Message, Tool
from data.reply import parse_reply
from data.tokenizer import Tokenizer
from data.wire import FORMATS
from model.generate import Guide

pytest.importorskip("llguidance")
STRING, WHOLE = {"type": "string"}, {"type": "integer"}


def schema(properties: dict[str, Any], *required: str, **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required), **more}


# What the schemas of real tools have: all of it somewhere in the Berkeley leaderboard's
SCHEMAS = [
    schema({"city": STRING, "days": WHOLE}, "city"),
    schema({"a": {"type": "number"}, "b": {"type": "boolean"}, "c": {"type": "null"}}, "a", "b"),
    schema({"unit": {"type": "string", "enum": ["C", 'F"', "\\"]}}, "unit"),
    schema({"free": {}, "any": {"type": "object"}, "list": {"type": "array"}}, "free", "any"),
    schema({"either": {"anyOf": [WHOLE, {"type": "array", "items": STRING}]}}, "either"),
    schema({"at": schema({"x": WHOLE, "y": schema({"z": STRING}, "z")}, "y")}, "at"),
    schema({"many": {"type": "array", "items": WHOLE, "minItems": 3}}, "many"),
    schema({"who": {"type": "object", "required": ["adults", "children"]}}, "who"),
    schema({"map": {"type": "object", "additionalProperties": {"type": "number"}}}, "map"),
    schema({"size": {"type": "integer", "minimum": 5, "maximum": 9}}, "size"),
    schema({"maybe": {"type": "string", "nullable": True}, "kinds": {"type": ["integer", "null"]}}),
    schema({"code": {"type": "string", "pattern": "^[A-Z]{3}$"}}, "code"),
    schema({"ref": {"$ref": "#/none"}, "odd": {"type": "any"}, "enum": {"enum": [1, "a", None]}}),
    schema({f"n{number}": STRING for number in range(12)}, *[f"n{n}" for n in range(12)]),
    schema({}),
    schema({"open": STRING}, additionalProperties=True),
]
ROWS = [
    Conversation((Message("user", "Go"),), (Tool(f"tool_{n}", "", one), *TOOLS[: n % 3]))
    for n, one in enumerate(SCHEMAS)
]


@pytest.fixture(scope="module", params=["hermes", "mistral", "pieces"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    if request.param == "pieces":
        return piece_tokenizer()
    return Tokenizer.from_pretrained(TOKENIZER, request.param)


@pytest.mark.parametrize("temperature", [0.0, 2.0])
def test_random_weights_write_valid_calls_only(tokenizer: Tokenizer, temperature: float) -> None:
    counts = measure(ROWS, tokenizer, temperature=temperature)
    assert counts["problems"] == [] and counts["valid"] == len(ROWS)


def held(guide: Guide | None) -> CallGuide:
    """The guide of the calls themselves."""
    inner = guide.inner if isinstance(guide, MustCall) else guide
    assert isinstance(inner, CallGuide)
    return inner


def walk(
    guide: Guide | None, room: int, drawn: random.Random, likely: list[int], tokenizer: Tokenizer
) -> list[int]:
    """A reply of random ids, which opens a call as soon as it may."""
    ids, own = list[int](), held(guide)
    assert guide is not None
    while len(ids) < room and (not ids or ids[-1] not in tokenizer.stop_ids):
        wanted = own.grammar.opening if own.matcher is None else drawn.choice(likely)
        wanted = tokenizer.end_of_turn_id if ids and own.matcher is None else wanted
        while not guide.accepts(wanted):
            wanted = drawn.choice(guide.allowed())
        guide.advance(wanted)
        ids.append(wanted)
    return ids


@pytest.mark.parametrize("number", range(len(SCHEMAS)))
def test_a_call_ends_within_every_limit(tokenizer: Tokenizer, number: int) -> None:
    """Each room from the least on; brackets and quotes are tried more often than other ids."""
    tools, drawn = ROWS[number].tools, random.Random(number)
    likely = tokenizer.encode('"{[}]:,0-.\\ab') + [drawn.randrange(len(tokenizer))]
    rule = CallRule("constrained", "required")
    least = len(held(guide_for(tokenizer, tools, rule, room=9999)).grammar.start_plan) + 1
    with pytest.raises(ValueError, match=f"a call takes {least} tokens, but there are {least - 1}"):
        guide_for(tokenizer, tools, rule, room=least - 1)
    for room in [*range(least, least + 8), least + 60]:
        guide = guide_for(tokenizer, tools, rule, room=room)
        ids = walk(guide, room, drawn, likely, tokenizer)
        assert problems_of(ids, tokenizer, tools) == [], tokenizer.decode(ids)


def test_a_call_that_has_no_room_is_not_begun(tokenizer: Tokenizer) -> None:
    least = guide_for(tokenizer, TOOLS, CallRule("constrained"), room=9999)
    assert isinstance(least, CallGuide)
    size = len(least.grammar.start_plan) + 1
    for room, may in ((size, True), (size - 1, False)):
        guide = guide_for(tokenizer, TOOLS, CallRule("constrained"), room=room)
        assert isinstance(guide, CallGuide)
        assert guide.accepts(guide.grammar.opening) is may
        assert all(guide.accepts(id) for id in [*tokenizer.stop_ids, *tokenizer.encode("Hi")])


def reply_of(tokenizer: Tokenizer, arguments: dict[str, Any], name: str = "get_weather") -> str:
    return json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)


def test_a_valid_call_as_the_format_writes_it_is_never_touched(tokenizer: Tokenizer) -> None:
    guide = guide_for(tokenizer, TOOLS, CallRule("constrained"), room=500)
    assert isinstance(guide, CallGuide)
    gap, calls = tokenizer.wire.call.gap, reply_of(tokenizer, {"city": 'R"ö\\m', "days": "x"})
    calls = f"[{calls}, {calls}]" if tokenizer.format == "mistral" else calls
    ids = [guide.grammar.opening, *tokenizer.encode(f"{gap}{calls}{gap}"), guide.grammar.ending]
    for id in [*tokenizer.encode("So: "), *ids]:
        assert guide.accepts(id), tokenizer.decode([id])
        guide.advance(id)
    assert guide.matcher is None


def test_the_choice_is_the_models_or_forced(tokenizer: Tokenizer) -> None:
    def guide(choice: str) -> Guide:
        made = guide_for(tokenizer, TOOLS, CallRule("constrained", choice), room=300)
        assert made is not None
        return made

    text, opening = tokenizer.encode("Hi")[0], held(guide("auto")).grammar.opening
    assert guide("auto").accepts(text) and guide("auto").accepts(opening)
    assert guide("none").accepts(text) and not guide("none").accepts(opening)
    forced = guide("required")
    assert not forced.accepts(text) and not forced.accepts(tokenizer.end_of_turn_id)
    thinking = [tokenizer.tag_ids[tag] for tag in tokenizer.wire.thinking.tags]
    assert set(forced.allowed()) == {opening, *thinking[:1]}
    for id in thinking[:1]:
        forced.advance(id)
        assert forced.accepts(text) and not forced.accepts(opening)
        assert not forced.accepts(tokenizer.end_of_turn_id)
        while forced.accepts(text):  # a thought without end
            forced.advance(text)
        assert forced.allowed() == [thinking[1]]
        forced.advance(thinking[1])
        assert forced.allowed() == [opening]
    drawn = random.Random(0)
    ids = walk(guide("now"), 300, drawn, tokenizer.encode('"ngm'), tokenizer)
    assert {call.name for call in parse_reply(ids, tokenizer).calls} == {"now"}
    with pytest.raises(ValueError, match="--call later: no such tool; the tools are get_weather"):
        guide("later")


@pytest.mark.parametrize("format", FORMATS)
def test_the_formats_that_guides_can_follow(format: str) -> None:
    assert writes_json(FORMATS[format]) == (format != "functiongemma")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a": 1, "a"', True),
        ('{"a": 1, "b": {"a": 1, "c": [{"a": "a"}, {"a"', False),
        ('{"a": ["a", "a", "a"', False),
        ('{"a": "b", "b": "a", "b"', True),
        ('{"a\\"": 1, "a', False),
        ('{"x": {"a": 1}, "y": {"a": 1}, "x"', True),
    ],
)
def test_keys_that_come_twice(text: str, expected: bool) -> None:
    assert repeats_key(text.encode()) is expected
    num_quotes = text.count('"') - text.count('\\"')
    assert is_in_string(text.encode()) is (num_quotes % 2 == 1)


def test_a_pattern_that_has_no_end_is_left_out(tokenizer: Tokenizer) -> None:
    endless = Tool("f", "", schema({"a": {"type": "string", "pattern": "(?<!x)y"}}, "a"))
    guide = guide_for(tokenizer, [endless], CallRule("constrained", "required"), room=99)
    ids = walk(guide, 99, random.Random(0), tokenizer.encode('"'), tokenizer)
    assert problems_of(ids, tokenizer, (endless,)) == []


def test_values_that_fit_a_bounded_schema_fit_the_tools_own() -> None:
    own = schema({"a": {"type": "integer", "enum": [1, "x"]}, "b": {"type": "dict"}})
    assert bounded(own)["properties"]["a"] == {"enum": [1]}
    assert check_arguments(own, {"b": {"any": [1]}}) == []
    maybe = bounded(schema({"a": {"type": "string", "nullable": True}}))["properties"]["a"]
    assert maybe == {"anyOf": [{"type": "string"}, {"type": "null"}]}
    assert bounded(schema({"a": WHOLE}))["additionalProperties"] is False
    assert tool("f", "x").required == ()
