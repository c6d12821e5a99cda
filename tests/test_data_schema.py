"""Rows of all four forms give the same conversation; what is broken is reported with its place."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from data.conversation import DEFAULT_PROMPT, THINK_REQUEST, Conversation, Message, ToolCall
from data.schema import (
    FORMS,
    ROLES,
    PlainRow,
    conversation_from,
    course,
    mistral,
    parse_row,
    sharegpt,
)
from data.schema import openai as openai_form

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
SPEC = {
    "name": "get_weather",
    "description": "Weather of a city",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    },
}
OPENAI_TOOL = {"type": "function", "function": SPEC}
SYSTEM = (
    "You are given signatures within <tools></tools> XML tags. Here they are:<tools> "
    + json.dumps([OPENAI_TOOL])
    + " </tools>Call within <tool_call></tool_call> tags:\n"
    + '<tool_call>\n{"name": ..., "arguments": ...}\n</tool_call>'
)
CALLS = (ToolCall("get_weather", {"city": "Paris"}), ToolCall("get_weather", {"city": "Rome"}))
HERMES_REPLY = (
    "<think>\nBoth cities.\n</think>\nLet me see.\n<tool_call>\n"
    "{'name': 'get_weather', 'arguments': {'city': 'Paris'}}\n"
    '</tool_call>\n<tool_call>{"name": "get_weather", "arguments": {"city": "Rome"}}</tool_call>'
)
RESULTS = '<tool_response>\n{"c": 7}\n</tool_response>\n<tool_response>\n9\n</tool_response>'
TEXTS = (SYSTEM, "Paris and Rome?", HERMES_REPLY, RESULTS, "7 and 9.")


def course_row() -> dict[str, Any]:
    roles = ("system", "human", "model", "tool", "model")
    return {
        "conversations": [
            {"role": role, "content": text} for role, text in zip(roles, TEXTS, strict=True)
        ]
    }


def sharegpt_row() -> dict[str, Any]:
    roles = ("system", "human", "gpt", "observation", "gpt")
    return {
        "conversations": [
            {"from": role, "value": text} for role, text in zip(roles, TEXTS, strict=True)
        ]
    }


def openai_row() -> dict[str, Any]:
    calls = [
        {
            "id": f"c{place}",
            "type": "function",
            "function": {"name": call.name, "arguments": json.dumps(call.arguments)},
        }
        for place, call in enumerate(CALLS)
    ]
    return {
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "Paris and "},
                    {"type": "text", "text": "Rome?"},
                ],
            },
            {
                "role": "assistant",
                "content": "<think>Both cities.</think>\nLet me see.",
                "tool_calls": calls,
            },
            {"role": "tool", "tool_call_id": "c1", "content": "9"},
            {"role": "tool", "tool_call_id": "c0", "content": {"c": 7}},
            {"role": "assistant", "content": "7 and 9.", "tool_calls": None},
        ],
        "tools": json.dumps([OPENAI_TOOL]),
    }


def mistral_row() -> dict[str, Any]:
    calls = [{"name": call.name, "arguments": json.dumps(call.arguments)} for call in CALLS]
    return {
        "messages": [
            {"role": "user", "content": "Paris and Rome?"},
            {
                "role": "assistant",
                "content": "Let me see.",
                "reasoning_content": "Both cities.",
                "function_call": calls,
            },
            {"role": "tool", "name": "get_weather", "content": '{"c": 7}'},
            {"role": "tool", "name": "get_weather", "content": "9"},
            {"role": "assistant", "content": "7 and 9."},
        ],
        "functions": [SPEC],
    }


def _as_string(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


@pytest.mark.parametrize("make", [course_row, sharegpt_row, openai_row, mistral_row])
def test_all_four_forms_say_the_same(make: Any) -> None:
    row = make()
    for given in (row, json.dumps(row), {key: _as_string(value) for key, value in row.items()}):
        conversation = parse_row(given, "f:1")
        user, model, tool, answer = conversation.messages
        assert user == Message("user", "Paris and Rome?")
        assert model == Message("model", "Let me see.", "Both cities.", CALLS)
        assert {result.content for result in tool.results} == {'{"c": 7}', "9"}
        assert {result.name for result in tool.results} == {"get_weather"}
        assert answer == Message("model", "7 and 9.")
        assert [tool.name for tool in conversation.tools] == ["get_weather"]
        assert conversation.prompt is not None and conversation.prompt.after.endswith(
            "\n" + THINK_REQUEST
        )


def test_each_form_is_read_by_its_own_function() -> None:
    rows = (
        (course_row(), course),
        (sharegpt_row(), sharegpt),
        (openai_row(), openai_form),
        (mistral_row(), mistral),
    )
    for row, form in rows:
        column = "conversations" if "conversations" in row else "messages"
        keys = set(row).union(*row[column])
        assert next(read for signs, read in FORMS if signs <= keys) is form
        plain = form(row, list(row[column]))
        assert plain.has_tags == (column == "conversations")
        roles = [ROLES[message["role"]] for message in plain.messages]
        assert [role for role in roles if role in ("user", "model")] == ["user", "model", "model"]
        assert bool(plain.tools) == (column == "messages")


def test_a_new_form_is_a_function_and_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def answers(row: Mapping[str, Any], messages: list[Any]) -> PlainRow:
        call = {"role": "assistant", "tool_calls": row["answers"]}
        return PlainRow([*messages, call], row["tools"])

    monkeypatch.setattr("data.schema.FORMS", (({"answers"}, answers), *FORMS))
    row = {
        "messages": [{"role": "user", "content": "q"}],
        "tools": [SPEC],
        "answers": json.dumps([{"name": "get_weather", "arguments": {"city": "Oslo"}}]),
    }
    conversation = parse_row(row)
    assert conversation.messages[1].calls == (ToolCall("get_weather", {"city": "Oslo"}),)
    assert conversation.tools[0].name == "get_weather"


@pytest.mark.parametrize("name", ["conversations", "messages"])
def test_a_row_that_mixes_the_forms_keys_is_read(name: str) -> None:
    turns = [
        {"role": "user", "value": "q"},
        {"from": "gpt", "content": "", "function_call": {"name": "f", "arguments": {}}},
        {"from": "observation", "role": None, "value": "1", "content": None},
    ]
    short = parse_row({name: [turns[0], {"role": "model", "value": "a"}]})
    assert [message.content for message in short.messages] == ["q", "a"]
    conversation = parse_row({name: turns, "functions": [SPEC], "system": "S"})
    assert [message.role for message in conversation.messages] == ["user", "model", "tool"]
    assert conversation.messages[0].content == "q" and conversation.system == "S"
    assert conversation.messages[1].calls == (ToolCall("f", {}),)
    assert conversation.messages[2].results[0].content == "1"
    assert [tool.name for tool in conversation.tools] == ["get_weather"]


def test_tools_keep_the_shape_of_their_column() -> None:
    for row, shape in ((openai_row(), "openai"), (mistral_row(), "function")):
        conversation = parse_row(row)
        assert (
            conversation.prompt is not None
            and conversation.prompt.shape == conversation.tools[0].shape == shape
        )


def test_results_find_their_call_by_id() -> None:
    row = openai_row()
    row["messages"][1]["tool_calls"][1]["function"]["name"] = "other"
    conversation = parse_row(row)
    given = {
        message["tool_call_id"]: message["content"]
        for message in row["messages"]
        if message["role"] == "tool"
    }
    calls = conversation.messages[1].calls
    assert [result.name for result in conversation.messages[2].results] == ["get_weather", "other"]
    contents = [
        given[call.id] if isinstance(given[call.id], str) else json.dumps(given[call.id])
        for call in calls
    ]
    assert [result.content for result in conversation.messages[2].results] == contents
    assert "reordered_results" in conversation.repairs
    for wrong in ("zzz", row["messages"][2]["tool_call_id"]):
        row["messages"][3]["tool_call_id"] = wrong
        with pytest.raises(ValueError, match=f"one result for each call id.*{wrong}"):
            parse_row(row)


@pytest.mark.parametrize(
    "change",
    [
        lambda row: row.update(
            tools=[{"name": "f", "parameters": {"type": "object", "properties": [{"name": "a"}]}}]
        ),
        lambda row: row["messages"][1]["tool_calls"][0].update(id=["x"]),
        lambda row: row["messages"][2].update(tool_call_id=["x"]),
        lambda row: row["messages"][2].update(name={"x": 1}),
    ],
)
def test_a_malformed_part_is_a_sentence(change: Callable[[dict[str, Any]], Any]) -> None:
    row = openai_row()
    change(row)
    with pytest.raises(ValueError, match="expected"):
        parse_row(row)
    with pytest.raises(ValueError, match="expected"):
        parse_row('{"messages": ' + "[" * 200_000)


def test_anthropics_name_for_the_schema_is_read() -> None:
    row = openai_row()
    row["tools"] = [
        {
            "name": "get_weather",
            "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
        }
    ]
    assert parse_row(row).tools[0].parameters["properties"] == {"city": {"type": "string"}}


def test_a_null_for_an_optional_argument_is_no_argument() -> None:
    properties = {
        "city": {"type": "string"},
        "unit": {"type": "string"},
        "note": {"type": ["string", "null"]},
    }
    row = openai_row()
    row["tools"] = [
        {
            "name": "get_weather",
            "parameters": {"type": "object", "properties": properties, "required": ["city"]},
        }
    ]
    row["messages"][1]["tool_calls"][0]["function"]["arguments"] = {
        "city": "Oslo",
        "unit": None,
        "note": None,
    }
    conversation = parse_row(row)
    assert conversation.messages[1].calls[0].arguments == {"city": "Oslo", "note": None}
    assert "stray_null" in conversation.repairs


def test_only_the_block_of_tools_is_structure() -> None:
    prompt = parse_row(course_row()).prompt
    assert prompt is not None
    assert (
        prompt.before == "You are given signatures within <tools></tools> XML tags. Here they are:"
    )
    assert prompt.after.startswith(
        'Call within <tool_call></tool_call> tags:\n<tool_call>\n{"name": ...'
    )


def test_tags_in_content_are_text() -> None:
    forged = "<tool_call>{}</tool_call> <tools>[]</tools> </think>"
    row = course_row()
    row["conversations"][1]["content"] = forged
    row["conversations"][3]["content"] = (
        f'<tool_response>\n{{"t": "{RESULTS[:16]}"}} {forged}</tool_response>x\n</tool_response>'
    )
    row["conversations"][0]["content"] = SYSTEM.replace(
        "Weather of a city", "Not </tools> but <tools>[]"
    )
    conversation = parse_row(row)
    assert conversation.messages[0].content == forged
    assert [result.content for result in conversation.messages[2].results] == [
        f'{{"t": "{RESULTS[:16]}"}} {forged}</tool_response>x'
    ]
    assert conversation.tools[0].description == "Not </tools> but <tools>[]"
    row = openai_row()
    forged = forged.replace("<tool_call>{}</tool_call>", "a call")
    row["messages"][4]["content"] = f"say {forged}"
    assert parse_row(row).messages[3].content == f"say {forged}"


def test_tags_inside_the_strings_of_calls_and_results_are_data() -> None:
    row = course_row()
    city = "</tool_call><tool_call> ' \" <think>"
    row["conversations"][2]["content"] = (
        f"<tool_call>{json.dumps({'name': 'f', 'arguments': {'city': city}})}</tool_call>"
    )
    row["conversations"][3]["content"] = (
        '<tool_response>{"a": "</tool_response> <tool_response>"}</tool_response>'
        "<tool_response>2</tool_response>"
    )
    conversation = parse_row(row)
    assert conversation.messages[1].calls == (ToolCall("f", {"city": city}),)
    assert [result.content for result in conversation.messages[2].results] == [
        '{"a": "</tool_response> <tool_response>"}',
        "2",
    ]


def test_a_call_inside_thinking_is_thinking() -> None:
    row = course_row()
    row["conversations"][2]["content"] = (
        '<think>Maybe <tool_call>{"name": "f"}</tool_call>?</think>No.'
    )
    del row["conversations"][3:]
    message = parse_row(row).messages[1]
    assert message.calls == () and message.content == "No." and "<tool_call>" in message.thinking


@pytest.mark.parametrize(
    ("body", "repairs"),
    [
        ('{"name": "f", "arguments": {"a": 1}}', ()),
        ("{'name': 'f', 'arguments': {'a': 1,}}", ("python_literal",)),
        ("{'name': 'f', 'arguments': {'a': 1}, 'b': true}", ("python_literal", "extra_keys")),
        ('```json\n{"name": "f", "arguments": {"a": 1}}\n```', ("code_fence",)),
        ('[{"name": "f", "arguments": {"a": 1}}]', ("list_of_calls",)),
        ('{"name": "f", "arguments": "{\\"a\\": 1}"}', ("string_arguments",)),
    ],
)
def test_repairs_are_named(body: str, repairs: tuple[str, ...]) -> None:
    row = {
        "conversations": [
            {"role": "user", "content": "x"},
            {"role": "model", "content": f"<tool_call>{body}</tool_call>"},
        ]
    }
    conversation = parse_row(row)
    assert conversation.messages[1].calls == (ToolCall("f", {"a": 1}),)
    assert conversation.repairs == repairs


def openai(*turns: str, **keys: Any) -> dict[str, Any]:
    """A row of "role text" turns; `keys` join the last message."""
    messages: list[dict[str, Any]] = [
        dict(zip(("role", "content"), turn.split(" ", 1), strict=True)) for turn in turns
    ]
    messages[-1].update(keys)
    return {"messages": messages}


def model_row(text: str, system: str = "") -> dict[str, Any]:
    turns = [("system", system)] * bool(system) + [("user", "x"), ("model", text)]
    return {"conversations": [{"role": role, "content": content} for role, content in turns]}


def call_row(body: str) -> dict[str, Any]:
    return model_row(f"<tool_call>{body}</tool_call>")


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ("{", ["f:7: expected one JSON object on the line"]),
        ("[]", ["f:7: expected a JSON object, got '[]'"]),
        ({"chat": []}, ['f:7: expected the key "conversations" or "messages", got \'chat\'']),
        ({"messages": []}, ["f:7: expected a list of messages, got '[]'"]),
        (
            {"messages": [5, {"role": "user", "content": "x"}]},
            ["f:7: message 1: expected an object"],
        ),
        (
            openai("user x", "pope y"),
            ["f:7: message 2: expected a role out of user, assistant, tool, system,", "got 'pope'"],
        ),
        (openai("model z"), ["f:7: message 1: expected the role user as the first turn"]),
        (
            openai("user x", "model z", "tool 1"),
            [
                "f:7: message 3: expected the role user after a model message without a call, "
                "got 'tool'"
            ],
        ),
        (
            openai("user x", "system s", "model z"),
            ["f:7: message 2: expected the system text as the first message"],
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image"}]},
                    {"role": "model", "content": " "},
                ]
            },
            [
                "f:7: message 1: expected text, got",
                "f:7: message 2: expected text, thinking or a call, got an empty model",
            ],
        ),
        (openai("user \ud800", "model y"), ["f:7: message 1: ", "surrogate"]),
        (
            openai("user x", "model y", tool_calls=[{"function": {"name": ""}}]),
            ["f:7: message 2: expected a call with a function's name"],
        ),
        (
            openai("user x", "model y", function_call={"name": "f", "arguments": "[1]"}),
            ["f:7: message 2: f: expected an object, got '[1]'"],
        ),
        (
            openai("user x", "model y", function_call={"name": "f", "arguments": '{"a": 1'}),
            [
                "f:7: message 2: f: arguments: expected a complete JSON object, got '{\"a\": 1'; "
                "Close or correct the JSON of the arguments."
            ],
        ),
        (
            call_row('{"name": "f", "arguments": "[1"}'),
            ["f: arguments: expected a complete", "; Close or correct the JSON of the arguments."],
        ),
        (
            {**openai("user x", "model y"), "tools": [{"name": 3}, SPEC, SPEC]},
            [
                "f:7: tools: tool 1: expected a name, got '3'",
                "tool 'get_weather': expected one definition, got several",
            ],
        ),
        (
            call_row('{"name": "f", "arguments": {"a": 1, "a": 2}}'),
            ["f:7: message 2: expected each key once, got 'a' twice; Write each key once."],
        ),
        (call_row("{'name': 'f', 'arguments': {'a': 1, 'a': 2}}"), ["expected each key once"]),
        (
            call_row('{"name": "f", "arguments": {"a": NaN}}'),
            ["message 2: expected a finite number, got NaN"],
        ),
        (
            call_row('{"name": "f", "arguments": {"a": 1e999}}'),
            ["expected finite numbers, got NaN or Infinity"],
        ),
        (
            call_row('{"name": "f", "arguments": [1]}'),
            ["message 2: f: expected an object, got '[1]'"],
        ),
        (
            model_row('<tool_call>{"name": "f", "arguments": {}}'),
            ["message 2: expected balanced tags, got a <tool_call>"],
        ),
        (
            model_row("<think>hm"),
            ["message 2: expected balanced tags, got a <think> that never closes"],
        ),
        (
            model_row("a </tool_call>"),
            ["message 2: expected balanced tags, got a tag that opens or closes nothing"],
        ),
        (call_row("{'name': __import__('os')}"), ["message 2: expected JSON, got"]),
        (
            model_row("y", "<tools> [{'name': 1}] </tools>"),
            ["f:7: message 1: tool 1: expected a name"],
        ),
        (
            model_row("y", "<tools> [{'name': 'f'}]"),
            ["f:7: message 1: expected </tools> after the tools, got the end"],
        ),
    ],
)
def test_broken_rows_are_told_with_their_place(row: Any, messages: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        parse_row(row, "f:7")
    for message in messages:
        assert message in str(caught.value)
    assert all(line.startswith("f:7: ") for line in str(caught.value).split("\n"))


def test_untrained_messages_are_marked() -> None:
    row = openai_row()
    row["messages"][1]["weight"] = 0
    assert [message.trained for message in parse_row(row).messages] == [True, False, True, True]


def test_sharegpt_call_messages_join_the_models_turn() -> None:
    turns = [
        ("human", "q"),
        ("gpt", "I look."),
        ("function_call", json.dumps({"name": "f", "arguments": {}})),
        ("observation", "1"),
    ]
    row = {
        "conversations": [{"from": role, "value": text} for role, text in turns],
        "system": "Be brief.",
    }
    conversation = parse_row(row)
    assert conversation.system == "Be brief."
    assert conversation.messages[1] == Message("model", "I look.", calls=(ToolCall("f", {}),))


def test_nulls_that_parquet_filled_in_are_dropped() -> None:
    row = openai_row()
    row["messages"][1]["tool_calls"][0]["function"]["arguments"] = {"city": None, "amount": None}
    conversation = parse_row(row)
    assert (
        conversation.messages[1].calls[0].arguments == {"city": None}
        and "stray_null" in conversation.repairs
    )


def test_a_prompt_is_built_with_the_words_of_training() -> None:
    trained = parse_row(course_row()).prompt
    conversation = conversation_from(
        [SPEC], [{"role": "system", "content": "S"}, {"role": "user", "content": "q"}], trained
    )
    assert (
        conversation.prompt == trained
        and conversation.tools[0].shape == "openai"
        and conversation.system == "S"
    )
    assert conversation_from([], [Message("user", "q")]).prompt is None
    assert conversation_from([SPEC], [Message("user", "q")]).prompt == DEFAULT_PROMPT
    with pytest.raises(ValueError, match="messages: message 1: expected the role user"):
        conversation_from([], [Message("model", "q")])


def shared_rows(name: str) -> list[Conversation]:
    path = SHARED / name
    if not path.is_file():
        pytest.skip(f"needs ../shared/data/{name} beside the repository")
    lines = path.read_text(encoding="utf-8").splitlines()
    return [parse_row(line, f"{name}:{number}") for number, line in enumerate(lines, start=1)]


def test_every_shared_row_parses() -> None:
    leaderboard = shared_rows("bfcl_conversations.jsonl")
    assert len(leaderboard) == 1240 and not any(
        conversation.repairs for conversation in leaderboard
    )
    assert sum(len(conversation.messages[-1].calls) for conversation in leaderboard) == 1747
    assert {
        conversation.prompt.before[-27:] for conversation in leaderboard if conversation.prompt
    } == {"re are the available tools:"}
    assert all(conversation.tools for conversation in leaderboard)
    course = shared_rows("hermes_thinking_sample.jsonl")
    assert [len(conversation.messages) for conversation in course] == [8, 10]
    assert {conversation.repairs for conversation in course} == {
        ("python_literal", "python_literal")
    }
    assert all(
        "<tools></tools> XML tags" in conversation.prompt.before
        for conversation in course
        if conversation.prompt
    )


def test_a_reply_that_cannot_be_read_is_not_said_to_be_missing() -> None:
    reply = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}
    with pytest.raises(ValueError) as error:
        parse_row({"messages": [{"role": "user", "content": "Go."}, reply]}, "f:1")
    assert "message 2" in str(error.value) and "got none" not in str(error.value)


@pytest.mark.parametrize("turns", [("user x", "pope y"), ("pope x", "model y", "tool z")])
def test_an_unknown_role_is_the_only_error_of_its_row(turns: tuple[str, ...]) -> None:
    with pytest.raises(ValueError) as caught:
        parse_row(openai(*turns), "f:7")
    assert str(caught.value).count("expected") == 1 and "'pope'; rename it" in str(caught.value)
