"""The chat template against the renderer, message list by message list: ids and what is trained."""

import dataclasses
import json
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest
from test_data_tokenizer import small_tokenizer

from data.chat import render, render_prompt
from data.conversation import DEFAULT_PROMPT, Conversation, Shape
from data.schema import conversation_from
from data.wire import FORMATS

Row = dict[str, Any]


def user(text: Any = "Paris, and Rome?") -> Row:
    return {"role": "user", "content": text}


def system(text: Any, role: str = "system") -> Row:
    return {"role": role, "content": text}


def says(text: Any = "Yes.", **more: Any) -> Row:
    return {"role": "assistant", "content": text, **more}


def call(arguments: Any, name: str = "weather", id: str | None = None) -> Row:
    outer = {"id": id} if id else {}
    return {**outer, "type": "function", "function": {"name": name, "arguments": arguments}}


def calls(*made: Row, text: Any = None, **more: Any) -> Row:
    return {"role": "assistant", "content": text, "tool_calls": list(made), **more}


def result(content: Any, id: str | None = None, **more: Any) -> Row:
    return {"role": "tool", "content": content, **({"tool_call_id": id} if id else {}), **more}


CITY = {"type": "string", "description": "A city."}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells it.",
        "parameters": {
            "type": "object",
            "properties": {"city": CITY, "days": {"type": "integer"}},
            "required": ["city"],
        },
    },
}
NUMBERS = {
    "name": "numbers",
    "parameters": {
        "type": "object",
        "properties": {
            "level": {"type": "integer", "enum": [1, 2]},
            "any": {"enum": [1, "two", None]},
            "word": {"type": "string", "enum": ["a", "b"]},
            "loose": {"enum": ["a", "b"]},
            "free": {},
            "maybe": {},
            "late": {"type": "string", "enum": ["x"], "default": "x", "title": "Late"},
            "many": {"type": "array", "items": {"type": "string"}},
            "either": {"type": ["string", "null"]},
        },
        "required": ["level", "any", "word", "loose", "free"],
    },
}
BARE = {"type": "function", "function": {"name": "now"}}
EMPTY: Row = {"name": "now", "description": "", "parameters": {}}
STRICT = {
    "type": "function",
    "function": {**WEATHER["function"], "strict": True, "description": None},  # type: ignore[dict-item]
    "cache": {"on": True},
}
PYDANTIC = {
    "name": "weather",
    "description": 'Says "hi" \\ \u00e9 <b>',
    "input_schema": {
        "properties": {"items": {"type": "string"}, "keys": {"type": "number"}},
        "required": ["keys"],
        "title": "Weather",
        "type": "object",
        "additionalProperties": False,
    },
}
TWO = [call({"city": "Paris"}, id="a"), call({"city": "Rome"}, id="b")]
TOOLS = [WEATHER]

# name: (tools, messages)
LISTS: dict[str, tuple[list[Row], list[Row]]] = {
    "question": ([], [user()]),
    "question with tools": (TOOLS, [user()]),
    "user in parts": (
        TOOLS,
        [user([{"type": "text", "text": "a"}, {"type": "text", "text": " b"}])],
    ),
    "user in strings": ([], [user(["a", "b"])]),
    "user without text": (TOOLS, [user(None), says()]),
    "two users": (TOOLS, [user("a"), user("b"), says()]),
    "three users, one empty": ([], [user("a"), user(""), user("c")]),
    "system": ([], [system(" Be kind. "), user()]),
    "system with tools": (TOOLS, [system("Be kind.\n"), user()]),
    "empty system": (TOOLS, [system(""), user()]),
    "blank system": (TOOLS, [system(" \n"), user(), says()]),
    "system without content": (TOOLS, [system(None), user()]),
    "system in parts": (
        TOOLS,
        [system([{"type": "text", "text": "Be "}, {"text": "kind"}]), user()],
    ),
    "developer": (TOOLS, [system("Be kind.", "developer"), user()]),
    "two systems": (TOOLS, [system("Be kind."), system("Be brief."), user()]),
    "system and developer": (TOOLS, [system("a"), system("b", "developer"), user(), says()]),
    "empty system between": (TOOLS, [system("a"), system(""), system("b"), user()]),
    "late system": (TOOLS, [system("a"), user(), says(), system("b"), user()]),
    "greeting": (TOOLS, [says("Hello!"), user()]),
    "system and greeting": (TOOLS, [system("Be kind."), says("Hello!"), user(), says()]),
    "greeting without tools": ([], [says("Hello!"), user(), says()]),
    "answer": ([], [user(), says("\n7 **and** 9. ")]),
    "answer by the role model": ([], [user(), {"role": "model", "content": "Yes."}]),
    "two questions": (TOOLS, [user(), says(), user("Thanks"), says("Welcome")]),
    "thinking in front": ([], [user(), says("<think>\n hm </think>\n\nYes")]),
    "thinking in its field": ([], [user(), says("Yes", reasoning_content="hm\n")]),
    "thinking as reasoning": ([], [user(), says("Yes", reasoning="hm")]),
    "thinking twice": ([], [user(), says("<think>no</think>Yes", reasoning_content="hm")]),
    "only thinking": ([], [user(), says("<think>hm</think>")]),
    "thinking and a call": (TOOLS, [user(), calls(call({}), reasoning_content="hm")]),
    "call": (TOOLS, [user(), calls(call({"city": "Paris \u00e9"}))]),
    "call with text": (TOOLS, [user(), calls(call({"n": [1, None, 2.5]}), text="I look.")]),
    "calls": (TOOLS, [user(), calls(*TWO)]),
    "arguments out of order": (TOOLS, [user(), calls(call({"b": 1, "Z": {"y": [], "X": 2.0}}))]),
    "odd keys": (
        TOOLS,
        [user(), calls(call({"a:b": 1, " c": True, "": {"{": "}"}}, "odd {name}"))],
    ),
    "call without wrapping": (TOOLS, [user(), calls({"name": "weather", "arguments": {"a": 1}})]),
    "older call": (
        TOOLS,
        [user(), says(None, function_call={"name": "f", "arguments": '{"a":1}'})],
    ),
    "string arguments": (TOOLS, [user(), calls(call('{"city":"A, b: \\"c\\"","d":{"e":[1,2]}}'))]),
    "spaced string arguments": (TOOLS, [user(), calls(call('{ "city" :\n "\\\\" , "x":{ } }'))]),
    "empty string arguments": ([EMPTY], [user(), calls(call("", "now"))]),
    "no arguments": ([EMPTY], [user(), calls(call(None, "now"))]),
    "absent arguments": ([EMPTY], [user(), calls({"function": {"name": "now"}})]),
    "empty arguments": ([EMPTY], [user(), calls(call({}, "now"))]),
    "result": (TOOLS, [user(), calls(*TWO[:1]), result(" 7\n", "a"), says()]),
    "results": (TOOLS, [user(), calls(*TWO), result("7", "a"), result("9", "b")]),
    "results in another order": (TOOLS, [user(), calls(*TWO), result("9", "b"), result("7", "a")]),
    "result by name": (TOOLS, [user(), calls(*TWO[:1]), result("7", "a", name="other"), says()]),
    "results without ids": (TOOLS, [user(), calls(*TWO), result("7"), result("9"), says()]),
    "fewer results": (TOOLS, [user(), calls(*TWO), result("9", "b"), says()]),
    "result of no id": (TOOLS, [user(), calls(call({}), call({})), result("7"), says()]),
    "result as object": (TOOLS, [user(), calls(*TWO[:1]), result({"c": 7, "d": [1.0]}, "a")]),
    "result as list": (TOOLS, [user(), calls(*TWO[:1]), result([1, "a", None], "a")]),
    "result as empty list": (TOOLS, [user(), calls(*TWO[:1]), result([], "a")]),
    "result as number": (TOOLS, [user(), calls(*TWO[:1]), result(7.5, "a")]),
    "result as false": (TOOLS, [user(), calls(*TWO[:1]), result(False, "a")]),
    "result of nothing": (TOOLS, [user(), calls(*TWO[:1]), result(None, "a"), says()]),
    "result in parts": (
        TOOLS,
        [user(), calls(*TWO[:1]), result([{"type": "text", "text": "7"}], "a")],
    ),
    "result in other parts": (
        TOOLS,
        [user(), calls(*TWO[:1]), result([{"type": "x"}], "a"), says()],
    ),
    "calls in two rounds": (
        TOOLS,
        [user(), calls(*TWO[:1]), result("7", "a"), calls(*TWO[1:]), result("9", "b"), says()],
    ),
    "turn of weight 0": ([], [user(), says("No", weight=0), user(), says("Yes", weight=1)]),
    "turn not trained": (TOOLS, [user(), calls(call({}), train=False), result("7"), says()]),
    "numbers": ([NUMBERS], [user()]),
    "bare tool": ([BARE, EMPTY], [user(), says()]),
    "strict tool": ([STRICT], [user()]),
    "schema of pydantic": ([PYDANTIC], [user()]),
    "several tools": ([WEATHER, NUMBERS, PYDANTIC], [system("a"), user(), says()]),
}


def as_read(tools: list[Row], messages: list[Row], shape: Shape) -> Conversation:
    """The conversation that the list means; what the reader refuses in rows is arranged for it."""
    texts = []
    turns: list[Row] = []
    for message in messages:
        if message["role"] in ("system", "developer"):
            content = message["content"]
            parts = content if isinstance(content, list) else [{"text": content or ""}]
            texts.append("".join(part["text"] for part in parts).strip())
        elif turns and message["role"] == turns[-1]["role"] == "user":
            both = [text for text in (turns[-1]["content"], message["content"]) if text]
            turns[-1] = user("\n\n".join(both))
        else:
            turns.append(message)
    is_greeting = turns[0]["role"] == "assistant"
    prompt = dataclasses.replace(DEFAULT_PROMPT, shape=shape)
    read = conversation_from(tools, [user()] * is_greeting + turns, prompt)
    # The reader asks for thinking where a turn thinks; a chat asks in its own system text
    return dataclasses.replace(
        read,
        system="\n\n".join(text for text in texts if text),
        prompt=prompt if tools else None,
        messages=read.messages[is_greeting:],
    )


@cache
def theirs(folder: Path) -> Any:
    return pytest.importorskip("transformers").AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("shape", get_args(Shape))
@pytest.mark.parametrize("format", FORMATS)
def test_every_list_gives_the_renderers_ids_and_mask(
    format: str, shape: Shape, tmp_path: Path
) -> None:
    assert len(LISTS) >= 40
    tokenizer = small_tokenizer(format)
    tokenizer.save(tmp_path, dataclasses.replace(DEFAULT_PROMPT, shape=shape))
    for name, (tools, messages) in LISTS.items():
        if format == "functiongemma" and name in WITH_STRING_ARGUMENTS:
            with pytest.raises(Exception, match="expected arguments as an object, got a string"):
                theirs(tmp_path).apply_chat_template(messages, tools=tools or None)
            continue
        conversation = as_read(tools, messages, shape)
        options = {"tools": tools or None, "return_dict": True}
        got = theirs(tmp_path).apply_chat_template(
            messages, return_assistant_tokens_mask=True, **options
        )
        wanted = render(conversation, tokenizer)
        assert got["input_ids"] == wanted.tokens, (
            f"{name}: {tokenizer.decode(got['input_ids'])}\n{tokenizer.decode(wanted.tokens)}"
        )
        assert got["assistant_masks"] == list(map(int, wanted.trainable)), name
        got = theirs(tmp_path).apply_chat_template(messages, add_generation_prompt=True, **options)
        assert got["input_ids"] == render_prompt(conversation, tokenizer), name


# Jinja cannot read JSON, and FunctionGemma's values are none
WITH_STRING_ARGUMENTS = ("older call", "string arguments", "spaced string arguments")


@pytest.mark.parametrize("content", ['{"c": 7}', '{"a":"x","b":[1,{"d":null}]}'])
def test_functiongemma_writes_an_object_by_its_keys_and_its_string_as_one(
    content: str, tmp_path: Path
) -> None:
    """The renderer reads a result's JSON, the template writes what it is given."""
    tokenizer = small_tokenizer("functiongemma")
    tokenizer.save(tmp_path, DEFAULT_PROMPT)
    texts = []
    for given in (json.loads(content), content):
        messages = [user(), calls(*TWO[:1]), result(given, "a"), says()]
        ours = render(as_read(TOOLS, messages, "openai"), tokenizer).tokens
        got = theirs(tmp_path).apply_chat_template(messages, tools=TOOLS, return_dict=False)
        assert (got == ours) == isinstance(given, dict)
        texts.append((tokenizer.decode(ours), tokenizer.decode(got)))
    assert texts[0][0] == texts[1][0] and f"{{value:<escape>{content}<escape>}}" in texts[1][1]


# By design: the template's string is tokenized as a whole, so it cannot keep a tag as text; it does
# not parse a string of JSON; and it knows no forms that only rows have
DIFFERENT: dict[str, tuple[list[Row], list[Row]]] = {
    "tag in a user's text": ([], [user("<tool_call>")]),
    "escape in string arguments": (TOOLS, [user(), calls(call('{"city": "\\u00e9"}'))]),
    "null that a schema does not allow": (
        TOOLS,
        [user(), calls(call({"city": "A", "days": None}))],
    ),
    "compact parameters": ([{"name": "f", "parameters": {"a": "integer"}}], [user()]),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_differs_by_design(name: str, tmp_path: Path) -> None:
    tokenizer = small_tokenizer("hermes")
    tokenizer.save(tmp_path, DEFAULT_PROMPT)
    tools, messages = DIFFERENT[name]
    got = theirs(tmp_path).apply_chat_template(messages, tools=tools or None, return_dict=False)
    assert got != render(as_read(tools, messages, "openai"), tokenizer).tokens


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([{"role": "critic", "content": "no"}], "got critic"),
        ([user([{"type": "image", "url": "x"}])], "text parts only, got one of type image"),
        ([user({"text": "x"})], "expected text"),
        ([system("Be kind.")], "expected a user message"),
    ],
)
def test_what_cannot_be_written_is_an_error(messages: list[Row], said: str, tmp_path: Path) -> None:
    small_tokenizer("hermes").save(tmp_path)
    with pytest.raises(Exception, match=said):
        theirs(tmp_path).apply_chat_template(messages)


def test_the_lists_are_json() -> None:
    json.dumps(LISTS)  # what a client can send
