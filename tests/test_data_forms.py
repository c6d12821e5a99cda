"""Every form that people have says the same conversation; what cannot be read says what to do."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.conversation import Conversation, ToolCall
from data.dataset import load_conversations, split
from data.files import read_rows
from data.forms.python_types import read_type
from data.forms.spellings import find_tools, read_bracket_calls
from data.schema import parse_row

EXAMPLES = Path(__file__).parents[1] / "data" / "examples"
QUESTION = "What will the weather be in Oslo for 2 days?"
THOUGHT = "The forecast for Oslo is needed."
CALL = ToolCall("get_weather", {"city": "Oslo", "days": 2})
ANSWER = "It stays clear in Oslo."
# The file, whether it thinks, whether result and answer follow the call, and its system text
FORMS: list[tuple[str, bool, bool, str]] = [
    ("course.jsonl", True, True, ""),
    ("sharegpt.jsonl", False, True, ""),
    ("openai.jsonl", False, True, ""),
    ("openai_tags.jsonl", True, True, ""),
    ("mistral.jsonl", False, True, ""),
    ("xlam.jsonl", False, False, ""),
    ("glaive.jsonl", False, True, ""),
    ("glaive_sharegpt.jsonl", False, True, ""),
    ("glaive_chatml.jsonl", False, True, ""),
    ("toolace.jsonl", False, True, ""),
    ("when2call.jsonl", False, False, ""),
    ("when2call_pref.jsonl", False, False, ""),
    ("bfcl.json", False, False, ""),
    ("mobile_actions.jsonl", False, False, "Current date and time given in YYYY-MM-DDTHH:MM:SS"),
    ("smolagents.jsonl", False, True, ""),
    ("anthropic.jsonl", True, True, "Be brief."),
    ("gpt_oss.jsonl", True, True, "Be brief."),
    ("llama.jsonl", False, True, ""),
    ("prompt_completion.jsonl", True, False, ""),
]


def example(name: str) -> list[Conversation]:
    return [parse_row(row, place) for place, row in read_rows(EXAMPLES / name)]


@pytest.mark.parametrize(("name", "thinks", "goes_on", "system"), FORMS, ids=lambda v: str(v))
def test_every_form_says_the_same(name: str, thinks: bool, goes_on: bool, system: str) -> None:
    for conversation in example(name):
        roles = [message.role for message in conversation.messages]
        assert roles == ["user", "model"] + ["tool", "model"] * goes_on
        question, reply, *rest = conversation.messages
        assert question.content == QUESTION
        assert reply.calls == (CALL,) and reply.content == ""
        assert reply.thinking == (THOUGHT if thinks else "")
        if goes_on:
            assert [result.content for result in rest[0].results] == ['{"sky": "clear"}']
            assert rest[0].results[0].name == "get_weather" and rest[1].content == ANSWER
        assert conversation.system.startswith(system) and bool(conversation.system) == bool(system)
        (tool,) = conversation.tools
        properties = tool.parameters["properties"]
        assert tool.name == "get_weather" and tool.required == ("city",)
        assert [properties[key]["type"] for key in ("city", "days")] == ["string", "integer"]
        assert properties["city"]["description"] == "Name of the city"
        # The wording of another spelling would teach what the calls here are not
        assert conversation.prompt and "functioncall" not in conversation.prompt.before


def test_blocks_of_one_message_become_turns() -> None:
    use = {"type": "tool_use", "id": "a", "name": "f", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "a", "content": "1"}
    text = {"type": "text", "text": "and <functioncall> hurry"}
    row = chat(("user", "q"), ("assistant", [use]), ("user", [result, text]), ("assistant", "ok"))
    messages = parse_row(row).messages
    assert [message.role for message in messages] == ["user", "model", "tool", "user", "model"]
    assert messages[2].results[0].content == "1" and messages[3].content == text["text"]


def test_every_example_is_in_the_table() -> None:
    assert {name for name, *_ in FORMS} == {path.name for path in EXAMPLES.glob("*.json*")}
    page = EXAMPLES.parents[1] / "docs" / "your-own-data.md"
    described = page.read_text(encoding="utf-8")
    for name, *_ in FORMS:  # whose first row follows, as it lies in the file
        line = (EXAMPLES / name).read_text(encoding="utf-8").splitlines()[0]
        assert f"`{name}`" in described and f"```json\n{line}\n```" in described, name


def test_rows_marked_as_evaluation_are_held_out() -> None:
    conversations, _ = load_conversations(EXAMPLES / "mobile_actions.jsonl")
    for fraction in (0.0, 0.5):
        train, held_out = split(conversations, fraction, seed=0)
        assert [row.where[-1] for row in train] == ["1"]
        assert [row.where[-1] for row in held_out] == ["2"]


def test_the_first_accepted_value_is_learned() -> None:
    accepted = {"o": [{"k": ["v", "w"], "n": ["", 1]}], "l": [[{"a": [1]}, 2]], "u": ["", 1]}
    question = [[{"role": "user", "content": "q"}]]
    row = {"question": question, "function": [], "ground_truth": [{"f": accepted}]}
    (call,) = parse_row(row).messages[1].calls
    assert call == ToolCall("f", {"o": {"k": "v"}, "l": [{"a": 1}, 2]})


def test_a_folder_of_the_leaderboard_joins_its_answers(tmp_path: Path) -> None:
    (tmp_path / "possible_answer").mkdir()
    for name in ("bfcl.json", "possible_answer/bfcl.json"):
        (tmp_path / name).write_text((EXAMPLES / name).read_text(), encoding="utf-8")
    (conversation,), report = load_conversations(tmp_path)
    assert report.rows == 1 and conversation.messages[1].calls == (CALL,)


@pytest.mark.parametrize(
    ("text", "schema", "is_optional"),
    [
        ("str", {"type": "string"}, False),
        ("int, optional", {"type": "integer"}, True),
        ("List[int]", {"type": "array", "items": {"type": "integer"}}, False),
        (
            "List[List[float]], optional",
            {"type": "array", "items": {"type": "array", "items": {"type": "number"}}},
            True,
        ),
        ("Dict[str, int]", {"type": "object", "additionalProperties": {"type": "integer"}}, False),
        ("Tuple[float, float]", {"type": "array", "items": {"type": "number"}}, False),
        ("Tuple[str, int]", {"type": "array"}, False),
        ("Optional[str]", {"type": ["string", "null"]}, True),
        ("Union[int, float], default 1", {"type": ["integer", "number"]}, True),
        ("str | None", {"type": ["string", "null"]}, False),
        ("Callable[[float], float]", {}, False),
        ("Literal['a', 'b']", {"enum": ["a", "b"]}, False),
        ("Any", {}, False),
        ("", {}, False),
    ],
)
def test_types_of_python_become_schemas(
    text: str, schema: dict[str, Any], is_optional: bool
) -> None:
    assert read_type(text) == (schema, is_optional)


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ("[f()]", [("f", {})]),
        (
            '[Market Trends API(kind="A, B", n=-1.5)]',
            [("Market Trends API", {"kind": "A, B", "n": -1.5})],
        ),
        (
            "[f.g(a=[1, 2], b={'x': (3)}), h(c=true, d=None)]",
            [("f.g", {"a": [1, 2], "b": {"x": 3}}), ("h", {"c": True, "d": None})],
        ),
        ("""[f(a="it's (so)", b='say "]"')]""", [("f", {"a": "it's (so)", "b": 'say "]"'})]),
    ],
)
def test_calls_in_brackets(text: str, calls: list[tuple[str, dict[str, Any]]]) -> None:
    assert [(call["name"], call["arguments"]) for call in read_bracket_calls(text)] == calls


@pytest.mark.parametrize(
    "text", ["[f(1)]", "[f(a=x)]", "[f(a=1, a=2)]", "[f(a=1)] then", "[f(a=(]"]
)
def test_broken_calls_in_brackets_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        read_bracket_calls(text)


def test_tools_without_a_tag_are_found() -> None:
    spec = {"name": "f", "parameters": {}}
    assert (
        find_tools(f"Use [these] {{ones}}:\n{json.dumps(spec)}\n{json.dumps(spec)}\nNow.")
        == [spec] * 2
    )
    assert find_tools(f"a [b]: {json.dumps([spec])}.") == [spec]
    assert find_tools("no list { here [") == []


def chat(*turns: tuple[str, Any], **keys: Any) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": text} for role, text in turns], **keys}


TAGGED = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'


def test_tags_of_a_call_in_a_messages_row_are_calls() -> None:
    tagged = chat(
        ("user", f"say {TAGGED}"),
        ("assistant", f"Yes. {TAGGED}"),
        ("tool", "<tool_response>1</tool_response>"),
        ("assistant", "1"),
    )
    question, reply, result, _ = parse_row(tagged).messages
    assert question.content == f"say {TAGGED}"
    assert reply.content == "Yes." and reply.calls == (ToolCall("f", {}),)
    assert result.results[0].content == "1"
    with pytest.raises(ValueError, match="message 2: expected a JSON object"):
        parse_row(chat(("user", "x"), ("assistant", "<tool_call>f()</tool_call>")))


def test_glaives_quoted_arguments_may_hold_apostrophes() -> None:
    for arguments in ("""{"text": "It's 5 o'clock"}""", """{"text": "It\\'s 5 o\\'clock"}"""):
        call = f"""<functioncall> {{"name": "f", "arguments": '{arguments}'}} <|endoftext|>"""
        row = {"system": "SYSTEM: Help.", "chat": f"USER: q\n\n\nASSISTANT: Well.\n\n{call}"}
        conversation = parse_row(row)
        assert conversation.messages[1].calls == (ToolCall("f", {"text": "It's 5 o'clock"}),)
        assert conversation.messages[1].content == "Well." and conversation.system == "Help."


@pytest.mark.parametrize(
    ("row", "messages", "repairs"),
    [
        (chat(("user", "a"), ("user", "b"), ("model", "c")), ["a\n\nb", "c"], ("joined_turns",)),
        (chat(("user", "a"), ("model", "b"), ("model", "c")), ["a", "b\n\nc"], ("joined_turns",)),
        (chat(("system", "s"), ("developer", "t"), ("user", "a"), ("model", "b")), ["a", "b"], ()),
        (chat(("user", {"type": "text", "text": "a"}), ("model", "b")), ["a", "b"], ()),
    ],
)
def test_turns_are_read_as_people_mean_them(
    row: dict[str, Any], messages: list[str], repairs: tuple[str, ...]
) -> None:
    conversation = parse_row(row)
    assert [message.content for message in conversation.messages] == messages
    assert conversation.repairs == repairs
    assert conversation.system == ("s\n\nt" if len(row["messages"]) == 4 else "")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            chat(("user", {"a": 1}), ("model", "b")),
            "f:1: message 1: expected text, got \"{'a': 1}\"",
        ),
        (chat(("user", "a"), ("model", {"name": "f", "arguments": {}})), "a call under tool_calls"),
        (chat(("user", [{"type": "text"}]), ("model", "b")), "message 1: expected text, got"),
        (
            chat(("user", "a"), ("model", "b"), ("system", "s")),
            "message 3: expected the system text",
        ),
        (
            '{"messages": [{"role": "user", "content": "a", "content": "b"}]}',
            "f:1: expected each key once",
        ),
        (
            {"query": "q", "tools": "[]", "answers": "[]"},
            "a row without a due call needs a reply in words",
        ),
        ({"query": "q", "tools": "[]", "answers": "[{"}, "f:1: answers: expected"),
        (
            {"question": [[{"role": "user", "content": "q"}]], "function": []},
            "possible_answer/ beside",
        ),
        (
            {"question": [[], []], "function": [], "ground_truth": [{"f": {}}]},
            "rows of several turns",
        ),
        ({"system": "s", "chat": "Hello"}, "expected \"USER: ...\" first, got 'Hello'"),
        ({"question": "q", "answers": {}, "correct_answer": "x"}, "use the training files"),
        ({"prompt": "p", "chosen": "c", "rejected": "r"}, "give the chosen one as messages"),
        (
            {"instruction": "i", "output": "o"},
            "rename instruction to prompt and output to completion",
        ),
        ({"text": "<bos>..."}, "a written-out chat has no roles; give its messages"),
        (
            {"a": 1},
            "query + answers, question + function, system + chat or prompt + completion are",
        ),
        (
            chat(("user", [{"type": "tool_result", "content": "1"}, {"type": "image"}])),
            "expected a block of",
        ),
    ],
)
def test_what_cannot_be_read_says_what_to_do(row: Any, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_row(row, "f:1")
    assert message in str(caught.value) and str(caught.value).startswith("f:1: ")


def test_one_key_twice_costs_one_row_of_a_file(tmp_path: Path) -> None:
    good = json.dumps(chat(("user", "a"), ("model", "b")))
    twice = good.replace('"role": "user"', '"role": "user", "role": "system"')
    (tmp_path / "a.jsonl").write_text(f"{good}\n{twice}\n", encoding="utf-8")
    conversations, report = load_conversations(tmp_path / "a.jsonl")
    assert len(conversations) == 1 and report.rows == 2
    assert report.dropped == [
        "a.jsonl:2: expected each key once, got 'role' twice; Write each key once."
    ]
    (tmp_path / "a.json").write_text(f"[{good}, {twice}]", encoding="utf-8")
    with pytest.raises(ValueError, match="a.json: expected each key once"):
        load_conversations(tmp_path / "a.json")


JUNK = st.recursive(
    st.none() | st.integers() | st.sampled_from(["", "user", "[f(", "<functioncall> {", "USER: a"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "type", "name", "from"]), inner, max_size=3
        )
    ),
    max_leaves=6,
)
COLUMNS = """messages conversations query answers tools question function ground_truth system chat
prompt completion chosen_response functions system_message""".split()


@settings(max_examples=400, deadline=None)
@given(row=st.dictionaries(st.sampled_from(COLUMNS), JUNK, max_size=6))
def test_no_row_raises_anything_but_a_sentence(row: dict[str, Any]) -> None:
    try:
        parse_row(row, "f:1")
    except ValueError as error:
        assert all(line.startswith("f:1: ") for line in str(error).split("\n"))
