"""FunctionGemma's calls: every value comes back; what a model gets wrong is told or mended."""

from typing import Any

import pytest
from builders import TOKENIZER
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_data_tokenizer import hostile

from data.conversation import ToolCall, ToolResult
from data.functiongemma import ESCAPE, read_call, write_calls, write_result, write_tools
from data.pieces import Piece, Tag
from data.reply import read_pieces, split_text
from data.tokenizer import Tokenizer
from data.tool_calls import CallError, read_tool
from data.wire import FUNCTIONGEMMA

scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
)
values = st.recursive(
    scalars | hostile | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(hostile, inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(
    hostile.filter(bool) | st.text(min_size=1, max_size=5),
    st.dictionaries(hostile, values, max_size=4),
)
@example("a:b.c", {"k": "true", "n": 1e30, " ": "x", "": {"a": []}})
@example("{", {"a:b": "<escape>", "type": "}"})
def test_every_call_comes_back(name: str, arguments: dict[str, Any]) -> None:
    call = ToolCall(name, arguments)
    (body,) = write_calls([call])
    outcomes, repairs = read_call(body)
    assert outcomes == [call] and not repairs
    assert isinstance(outcomes[0], ToolCall)
    assert outcomes[0].key == call.key  # the type of a number too: 1.0 is no 1


def text_of(pieces: Any) -> str:
    return "".join(map(str, pieces))


def test_keys_stand_in_alphabetical_order_and_types_in_capitals() -> None:
    tool = {
        "name": "f",
        "parameters": {
            "type": "object",
            "properties": {
                "b": {"type": ["string", "null"], "enum": ["type", None]},
                "type": {"type": "array", "items": {"type": "object", "properties": {}}},
                "Z": {"anyOf": [{"type": "integer"}, {"type": "number"}], "default": 1.5},
            },
        },
    }
    (body,) = write_tools([read_tool(tool)])
    assert text_of(body).replace("<escape>", "'") == (
        "declaration:f{parameters:{properties:{b:{enum:['type',null],type:['STRING','NULL']},"
        "type:{items:{properties:{},type:'OBJECT'},type:'ARRAY'},"
        "Z:{anyOf:[{type:'INTEGER'},{type:'NUMBER'}],default:1.5}},type:'OBJECT'}}"
    )


@pytest.mark.parametrize(
    ("content", "written"),
    [
        ('{"b": [1, true], "a": "x, y"}', "response:f{a:<escape>x, y<escape>,b:[1,true]}"),
        ("7", "response:f{value:<escape>7<escape>}"),
        ("[1]", "response:f{value:<escape>[1]<escape>}"),
        ('{"a": 1, "a": 2}', 'response:f{value:<escape>{"a": 1, "a": 2}<escape>}'),
        ('{"a": 1e999}', 'response:f{value:<escape>{"a": 1e999}<escape>}'),
        ("", "response:f{value:<escape><escape>}"),
    ],
)
def test_results(content: str, written: str) -> None:
    assert text_of(write_result(ToolResult(content, "f"))) == written


def read(text: str) -> tuple[Any, list[str]]:
    """A reply's one outcome, and its repairs."""
    reply = read_pieces(split_text(text, FUNCTIONGEMMA), FUNCTIONGEMMA)
    return reply.outcomes[0] if reply.outcomes else None, list(reply.repairs)


@pytest.mark.parametrize(
    ("inside", "arguments", "repairs"),
    [
        ("call:f{}", {}, []),
        (" call: f { a : 1 , b : [ 1 , 2.5 ] } ", {"a": 1, "b": [1, 2.5]}, []),
        (
            "call:f{a:<escape>x}, y<end_function_call>{<escape>}",
            {"a": "x}, y<end_function_call>{"},
            [],
        ),
        ("call:f{city:Paris}", {"city": "Paris"}, ["bare_string"]),
        ('call:f{"a":"b"}', {'"a"': "b"}, []),
        ("call:f{a:null}", {"a": None}, []),
        ("call:f{a:{b:[{c:<escape><escape>}]}}", {"a": {"b": [{"c": ""}]}}, []),
    ],
)
def test_calls_that_are_read(inside: str, arguments: Any, repairs: list[str]) -> None:
    text = f"<start_function_call>{inside}<end_function_call>"
    assert read(text) == (ToolCall("f", arguments), repairs)


@pytest.mark.parametrize(
    ("inside", "code", "said"),
    [
        ("f{}", "invalid_call", "expected call:NAME"),
        ("", "invalid_call", "expected call:NAME"),
        ("call:{a:1}", "missing_name", "got none"),
        ("call:f", "invalid_call", "expected a value, got 'nothing'"),
        ("call:f[1]", "invalid_call", ""),
        ("call:f{a:1", "invalid_call", "expected , or }"),
        ("call:f{a:1}}", "invalid_call", "expected the end of the call, got '}'"),
        ("call:f{a}", "invalid_call", "expected :, got '}'"),
        ("call:f{a:}", "invalid_call", "expected a value, got '}'"),
        ("call:f{:1}", "invalid_call", "expected a key, got ':'"),
        ("call:f{a:[1}", "invalid_call", "expected , or ]"),
        ("call:f{a:1,a:2}", "duplicate_key", "'a' twice"),
        ("call:f{a:NaN}", "not_finite", ""),
        (f"call:f{{a:{'9' * 100}}}", "number_too_long", ""),
        (f"call:f{{a:{'[' * 100}", "too_deep", ""),
        (f"call:f{{a:<escape>{'x' * 200_001}<escape>}}", "too_long", ""),
    ],
)
def test_calls_that_are_errors(inside: str, code: str, said: str) -> None:
    outcome, _ = read(f"<start_function_call>{inside}<end_function_call>")
    assert isinstance(outcome, CallError) and outcome.code == code and said in outcome.message
    assert outcome.hint


def test_tags_and_ends() -> None:
    forged: list[Piece] = ["call:f{a:", ESCAPE, "x", Tag("<bos>"), ESCAPE, "}"]
    assert [o.code for o in read_call(forged)[0] if isinstance(o, CallError)] == ["control_token"]
    open_string: list[Piece] = ["call:f{a:", ESCAPE, "x}"]
    assert "second <escape>" in read_call(open_string)[0][0].message  # type: ignore[union-attr]
    start = [FUNCTIONGEMMA.call.open, "call:f{a:1}"]
    cut = read_pieces(start, FUNCTIONGEMMA, ended=False).outcomes[0]
    assert isinstance(cut, CallError) and cut.code == "truncated"
    unclosed = read_pieces(start, FUNCTIONGEMMA)
    assert unclosed.calls == (ToolCall("f", {"a": 1}),) and unclosed.repairs == ("missing_end_tag",)
    needs = read_tool({"name": "f", "parameters": {"a": "integer"}})
    assert read_call(["call:f{}"], [needs])[0] == [ToolCall("f", {})]


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.sampled_from([*"{}[]:, ", "call", "f", "1", "x", ESCAPE, Tag("<think>")]), max_size=9
    )
)
def test_no_reply_raises(body: list[Piece]) -> None:
    outcomes, _ = read_call(["call:f{", *body])
    assert len(outcomes) == 1


def test_a_reply_may_hold_the_escapes_of_a_call() -> None:
    tokenizer = Tokenizer.from_pretrained(TOKENIZER, "functiongemma")
    escape = tokenizer.tag_ids["<escape>"]
    assert escape not in tokenizer.forbidden_ids(may_call=True)
    assert escape in tokenizer.forbidden_ids(may_call=False)
