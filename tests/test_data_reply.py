"""Whatever a model writes is read without raising: good calls, structured errors, in their order.

The numbers of BAD_OUTPUTS below 100 are the cases that every tool loop meets; those above are
further ones.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_data_chat import HERMES_TEXT, PARIS, PARIS_JSON, ROME, ROME_JSON, TOOL
from test_data_tokenizer import small_tokenizer

from data.chat import parse_reply, parse_tool_calls
from data.tokenizer import Tokenizer
from data.tool_calls import read_tool
from data.wire import FORMATS

GOOD = f"<tool_call>\n{PARIS_JSON}\n</tool_call>"


def ids_of(text: str, tokenizer: Tokenizer) -> list[int]:
    """Ids of a text in which «tag» is a control id and everything else is text."""
    known = {
        "end": tokenizer.end_of_turn_id,
        "eos": tokenizer.eos_id,
        "start": tokenizer.start_of_turn_id,
    }
    known |= {tag.strip("<>"): id for tag, id in tokenizer.tag_ids.items()}
    ids: list[int] = []
    for part in text.replace("»", "«").split("«"):
        ids += [known[part]] if part in known else tokenizer.encode(part)
    return ids


CALL = f"«tool_call»{PARIS_JSON}«/tool_call»"
BAD_OUTPUTS = {
    1: (
        "«tool_call»{'name': 'f', 'arguments': {'a': True, 'b': None}}«/tool_call»«end»",
        1,
        [],
        ("python_literal",),
    ),
    2: (
        '«tool_call»{"name": "f", "arguments": {"a": 1,},}«/tool_call»«end»',
        1,
        [],
        ("python_literal",),
    ),
    3: ('«tool_call»{"name": "f", "arguments": {"a": "x & <y"}}«/tool_call»«end»', 1, [], ()),
    4: ('«tool_call»{"name": "f", "arguments": {"a": "x', 0, ["truncated"], ()),
    5: (f"«tool_call»{PARIS_JSON}«end»", 1, [], ("missing_end_tag",)),
    6: (f"«tool_call»```json\n{PARIS_JSON}\n```«/tool_call»«end»", 1, [], ("code_fence",)),
    7: (f"{PARIS_JSON}«end»", 0, [], ()),
    8: (
        '«tool_call»{"name": "f", "arguments": "{\\"a\\": 1}"}«/tool_call»«end»',
        1,
        [],
        ("string_arguments",),
    ),
    9: (
        '«tool_call»{"name": "f", "parameters": {"a": 1}}«/tool_call»«end»',
        0,
        ["missing_arguments"],
        (),
    ),
    10: (
        '«tool_call»{"name": "f"}«/tool_call»«tool_call»{"name": "get_weather"}«/tool_call»«end»',
        1,
        ["missing_arguments"],
        ("no_arguments",),
    ),
    11: (
        '«tool_call»{"name": "f", "arguments": [1]}«/tool_call»«end»',
        0,
        ["arguments_not_object"],
        (),
    ),
    12: ('«tool_call»{"arguments": {}}«/tool_call»«end»', 0, ["missing_name"], ()),
    20: (
        '«tool_call»{"name": "f", "arguments": {"a": 1, "a": 2}}«/tool_call»«end»',
        0,
        ["duplicate_key"],
        (),
    ),
    21: (
        '«tool_call»{"name": "f", "arguments": {"a": -Infinity}}«/tool_call»«end»',
        0,
        ["not_finite"],
        (),
    ),
    22: (
        '«tool_call»{"name": "f", "arguments": {"a": "x\ny"}}«/tool_call»«end»',
        1,
        [],
        ("control_character",),
    ),
    23: (f"«tool_call»{PARIS_JSON}\n{ROME_JSON}«/tool_call»«end»", 2, [], ("several_values",)),
    24: (f"«tool_call»[{PARIS_JSON}, {ROME_JSON}]«/tool_call»«end»", 2, [], ("list_of_calls",)),
    25: (
        "«tool_call»42«/tool_call»«tool_call»«/tool_call»«end»",
        0,
        ["not_an_object", "not_an_object"],
        (),
    ),
    26: (f"«tool_call»{{oops}}«/tool_call»{CALL}«end»", 1, ["invalid_json"], ()),
    27: (
        '«tool_call»{"name": "f", "arguments": {"a": "</tool_call><tool_call>"}}«/tool_call»«end»',
        1,
        [],
        (),
    ),
    270: (
        '«tool_call»{"name": "f", "arguments": {"a": "«tool_call»"}}«/tool_call»«end»',
        0,
        ["control_token"],
        (),
    ),
    271: (
        '«tool_call»{"name": "f", "arguments": {"a": "«think»"}}«/tool_call»«end»',
        0,
        ["control_token"],
        (),
    ),
    28: (f"«think»maybe {CALL}«/think»No.«end»", 0, [], ()),
    29: (f"{CALL}«tool_response»7«/tool_response»{CALL}«end»", 1, [], ()),
    30: ("«tool_call»" + "[" * 20_000 + "«/tool_call»«end»", 0, ["too_deep"], ()),
    31: (
        '«tool_call»{"name": "f", "arguments": {"a": ' + "7" * 5_000 + "}}«/tool_call»«end»",
        0,
        ["number_too_long"],
        (),
    ),
    34: (f"I look.{CALL}«end»", 1, [], ()),
    35: ("«end»", 0, [], ()),
    40: (f"{GOOD}«eos»", 0, [], ()),
    100: (f"«tool_call»{PARIS_JSON}«tool_call»{ROME_JSON}«/tool_call»«end»", 2, [], ("stray_tag",)),
    101: (f"{CALL}«start»model\n{CALL}«end»", 1, [], ()),
    102: (f"«/tool_call»{CALL}«/think»", 1, [], ("stray_tag", "stray_tag")),
    103: (
        "«tool_call»[" + ", ".join([PARIS_JSON] * 70) + "]«/tool_call»«end»",
        64,
        ["too_many_calls"],
        ("list_of_calls",),
    ),
    104: ("«think»on and on", 0, [], ("unclosed_think",)),
    105: (f"«tool_call»{PARIS_JSON}", 0, ["truncated"], ()),
}


@pytest.mark.parametrize("number", BAD_OUTPUTS)
def test_bad_outputs(number: int) -> None:
    text, num_calls, codes, repairs = BAD_OUTPUTS[number]
    tokenizer = small_tokenizer()
    reply = parse_reply(ids_of(text, tokenizer), tokenizer, [read_tool(TOOL)])
    assert (len(reply.calls), [error.code for error in reply.errors], reply.repairs) == (
        num_calls,
        codes,
        repairs,
    )
    assert all(error.message and error.hint for error in reply.errors)
    assert parse_tool_calls(ids_of(text, tokenizer), tokenizer)[: len(reply.calls)] == list(
        reply.calls
    )


def test_calls_and_errors_keep_their_order_and_prose_is_kept() -> None:
    tokenizer = small_tokenizer()
    reply = parse_reply(
        ids_of(f"A «tool_call»{{oops}}«/tool_call» B {CALL} C«end»", tokenizer), tokenizer
    )
    assert (
        reply.outcomes == (*reply.errors, *reply.calls)
        and reply.content == "A\n\nB\n\nC"
        and reply.ended
    )
    assert not parse_reply(ids_of("so", tokenizer), tokenizer).ended


def test_a_bare_call_counts_only_when_asked_for() -> None:
    tokenizer, tools = small_tokenizer(), [read_tool(TOOL)]
    ids = ids_of(f"{PARIS_JSON}«end»", tokenizer)
    assert parse_reply(ids, tokenizer, tools).content == PARIS_JSON
    assert parse_reply(ids, tokenizer, tools, lenient=True).calls == (PARIS,)
    assert parse_reply(ids, tokenizer, [], lenient=True).calls == ()
    assert (
        parse_reply(
            ids_of(f"So: {PARIS_JSON}«end»", tokenizer), tokenizer, tools, lenient=True
        ).calls
        == ()
    )


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.one_of(st.integers(0, 320), st.sampled_from(range(310, 330))), max_size=40),
    st.sampled_from(list(FORMATS)),
)
def test_any_ids_are_survived(ids: list[int], format: str) -> None:
    tokenizer = small_tokenizer(format)
    ids = [id % len(tokenizer) for id in ids]
    parse_reply(ids, tokenizer, lenient=True)
    parse_tool_calls(tokenizer.decode(ids))


def test_calls_from_text() -> None:
    assert parse_tool_calls(f"I look.{GOOD}\n<tool_call>oops</tool_call>") == [PARIS]
    assert parse_tool_calls(
        '<tool_call>{"name": "f", "arguments": {"a": "</tool_call>"}}</tool_call>'
    )[0].arguments == {"a": "</tool_call>"}
    second = '{"name": "g", "arguments": {"a": "</tool_call>"}}'
    both = parse_tool_calls(f"<tool_call>{PARIS_JSON}\n{second}</tool_call>")
    assert [call.name for call in both] == ["get_weather", "g"]
    assert parse_tool_calls(HERMES_TEXT) == [PARIS, ROME]
    assert parse_tool_calls(
        f"[TOOL_CALLS][{PARIS_JSON}]<end_of_turn>", small_tokenizer("mistral")
    ) == [PARIS]
    assert parse_tool_calls("") == parse_tool_calls([], small_tokenizer()) == []
    with pytest.raises(TypeError, match="expected a tokenizer with ids"):
        parse_tool_calls([1, 2])
