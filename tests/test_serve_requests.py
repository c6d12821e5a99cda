"""What a request may say: read as it was meant, or refused with the field and the reason."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
from serving import TOKENIZER

from agent.guides import CallRule
from data.conversation import THINK_REQUEST
from model.generate import Sampling
from serve.completions import prepare
from serve.errors import ApiError
from serve.requests import Chat, conversation_of, read_chat

TOOL = {
    "type": "function",
    "function": {
        "name": "f",
        "description": "Does it.",
        "parameters": {"type": "object", "properties": {"a": {"type": "string"}}},
        "strict": True,
    },
}
USER = {"role": "user", "content": "Hi"}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": "x"}'}}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "7"}


def chat(**fields: Any) -> Chat:
    body = {"model": "base", "messages": [USER], **fields}
    return read_chat(json.dumps(body).encode())


def turns(*messages: dict[str, Any], **fields: Any) -> list[tuple[str, Any]]:
    """Role and what a turn says, of each turn that the model reads."""
    read = conversation_of(chat(messages=list(messages), **fields), TOKENIZER)
    return [
        (m.role, m.content or [*m.calls] or [result.content for result in m.results])
        for m in read.messages
    ]


@pytest.mark.parametrize(
    "fields, told",
    [
        ({"messages": []}, "messages: expected a list of messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "message 1: role: expected system"),
        ({"messages": [{**USER, "audio": "x"}]}, "message 1: expected role.*got audio"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "text parts"),
        ({"messages": [{"role": "user", "content": 5}]}, "message 1: content: expected text"),
        ({"messages": ["Hi"]}, "message 1: expected an object"),
        ({"model": 5}, "model: expected a text, got 5"),
        ({"n": 2}, "n: expected 1, one reply"),
        ({"logprobs": True}, "logprobs: this server does not know the field"),
        ({"temperature": 2.5}, "temperature: expected a number from 0 to 2, got 2.5"),
        ({"temperature": True}, "temperature: expected a number"),
        ({"top_p": 0}, "top_p: expected a number"),
        ({"max_tokens": 0}, "max_tokens: expected a whole number from 1"),
        ({"max_completion_tokens": 1.5}, "max_completion_tokens: expected a whole number"),
        ({"seed": "x"}, "seed: expected a whole number"),
        ({"stop": ["a"] * 5}, "stop: expected a text or a list of up to 4"),
        ({"stop": ""}, "stop: expected"),
        ({"stream": "yes"}, "stream: expected true or false"),
        ({"stream_options": {"include_usage": True}}, "only beside stream: true"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options: expected an object"),
        ({"tools": {}}, "tools: expected a list"),
        ({"tools": [{"type": "web_search"}]}, 'tool 1: expected an object of the type "function"'),
        ({"tools": [{"type": "function"}]}, "tool 1: expected a name"),
        ({"tools": [TOOL, TOOL]}, "tools: expected different names, got f twice"),
        ({"tool_choice": "required"}, "expected auto or none without tools, got required"),
        ({"tools": [TOOL], "tool_choice": "any"}, "tool_choice: expected auto, none, required or"),
        (
            {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}},
            "tool_choice: expected one of f, got g",
        ),
        ({"parallel_tool_calls": 1}, "parallel_tool_calls: expected true or false"),
        ({"adapter_scale": 9}, "adapter_scale: expected a number from 0 to 4"),
    ],
)
def test_what_is_not_served_is_refused(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ApiError, match=told) as refused:
        chat(**fields)
    assert refused.value.status == 400
    assert set(refused.value.as_object()["error"]) == {"message", "type", "code"}


@pytest.mark.parametrize(
    "body, told",
    [
        (b"{", "expected one JSON object"),
        (b"[]", "expected an object"),
        (b'"\xff"', "expected one JSON object"),
        (b'{"model": "a", "model": "b"}', "expected one JSON object"),
        (b'{"temperature": NaN}', "expected one JSON object"),
        (b"[" * 100_000, "expected one JSON object"),
        (b'{"model": "base"}', "messages: expected in every request"),
    ],
)
def test_what_is_no_request_is_refused(body: bytes, told: str) -> None:
    with pytest.raises(ApiError, match=told):
        read_chat(body)


def test_every_field_arrives() -> None:
    named = {"type": "function", "function": {"name": "f"}}
    read = chat(
        tools=[TOOL],
        tool_choice=named,
        parallel_tool_calls=False,
        max_completion_tokens=9,
        temperature=0.5,
        top_p=0.9,
        stop="x",
        seed=-3,
        stream=True,
        stream_options={"include_usage": True},
        n=1,
        adapter_scale=0.5,
        logprobs=None,
    )
    assert (read.choice, read.name, read.one_call, read.stops) == ("named", "f", True, ("x",))
    assert (read.max_new_tokens, read.stream, read.include_usage) == (9, True, True)
    assert (read.scale, [tool.name for tool in read.tools]) == (0.5, ["f"])
    assert read.sampling == {"temperature": 0.5, "top_p": 0.9, "seed": -3}
    assert "strict" not in read.tools[0].extras
    assert chat(parallel_tool_calls=True, max_tokens=4).max_new_tokens == 4


def test_turns_of_every_role() -> None:
    system = {"role": "system", "content": "Be brief."}
    developer = {"role": "developer", "content": [{"type": "text", "text": "Be kind."}]}
    parts = {"role": "user", "content": [{"type": "text", "text": t} for t in ("He", "llo")]}
    called = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    messages = [system, developer, {"role": "system", "content": ""}, parts, called, RESULT]
    read = conversation_of(chat(messages=messages, tools=[TOOL]), TOKENIZER)
    assert read.system == "Be brief.\n\nBe kind." and read.prompt is not None
    assert [m.role for m in read.messages] == ["user", "model", "tool"]
    assert read.messages[0].content == "Hello" and read.messages[2].results[0].name == "f"
    assert turns(USER, USER) == [("user", "Hi\n\nHi")]
    said = {"role": "assistant", "content": "Yes."}
    assert turns(USER, said, said, USER)[1] == ("model", "Yes.\n\nYes.")


def test_thoughts_that_come_back_change_nothing_before_them() -> None:
    thought = {"role": "assistant", "content": "Yes.", "reasoning_content": "Why not?"}
    read = conversation_of(chat(messages=[USER, thought, USER], tools=[TOOL]), TOKENIZER)
    first = conversation_of(chat(tools=[TOOL]), TOKENIZER)
    assert read.messages[1].thinking == "Why not?"
    assert (read.system, read.prompt) == (first.system, first.prompt)
    asking = {"role": "system", "content": f"Well.\n{THINK_REQUEST}"}
    read = conversation_of(chat(messages=[asking, USER, thought, USER]), TOKENIZER)
    assert read.system == asking["content"]
    read = conversation_of(chat(messages=[USER, thought, USER]), TOKENIZER)
    assert read.system == ""


def test_calls_that_smolagents_writes_in_words_are_calls() -> None:
    call = "Calling tools:\n[{'id': 'c1', 'type': 'function', 'function': {'name': 'f', "
    call += "'arguments': {'a': 'x'}}}]"
    spoken = {"role": "assistant", "content": [{"type": "text", "text": f"I see.\n{call}"}]}
    seen = {"role": "user", "content": "Observation:\n7"}
    found = turns(USER, spoken, seen, tools=[TOOL])
    assert [role for role, _ in found] == ["user", "model", "tool"]
    read = conversation_of(chat(messages=[USER, spoken, seen], tools=[TOOL]), TOKENIZER)
    assert read.messages[1].content == "I see." and read.messages[1].calls[0].name == "f"
    assert found[2] == ("tool", ["7"])
    # An error of smolagents follows the call as the user's word, and words may only look like it
    failed = {"role": "user", "content": "Call id: c1\nError:\nno"}
    assert turns(USER, spoken, failed)[2] == ("user", failed["content"])
    chatter = {"role": "assistant", "content": "Calling tools: is fun"}
    assert turns(USER, chatter, USER)[1] == ("model", "Calling tools: is fun")
    assert turns({"role": "user", "content": "Observation: rain"})[0][0] == "user"


@pytest.mark.parametrize(
    "messages, told",
    [
        ([USER, {"role": "assistant", "content": "Yes."}], "the last one from user or tool"),
        ([{"role": "system", "content": "x"}], "at least one from the user"),
        ([USER, RESULT], "message 2"),
        ([{"role": "assistant", "content": "Yes."}, USER], "message 1"),
        (
            [USER, {"role": "assistant", "tool_calls": [CALL]}, {**RESULT, "tool_call_id": "c2"}],
            "one result for each call id",
        ),
    ],
)
def test_turns_that_do_not_follow_one_another_are_refused(
    messages: list[dict[str, Any]], told: str
) -> None:
    with pytest.raises(ApiError, match=told):
        turns(*messages, tools=[TOOL])


def test_under_constrain_a_choice_forces_a_whole_call_or_is_refused() -> None:
    pytest.importorskip("llguidance")
    served: Any = SimpleNamespace(
        tokenizers={"base": TOKENIZER},
        base="base",
        positions=2000,
        max_new_tokens=200,
        sampling=Sampling(),
        rule=CallRule("constrained"),
    )

    def guide_of(**fields: Any) -> Any:
        said = [{"role": "user", "content": "Hi"}]
        body = {"model": "base", "messages": said, "tools": [TOOL], **fields}
        return prepare(served, json.dumps(body).encode())[1].guide

    named = {"type": "function", "function": {"name": "f"}}
    for choice, must, may in (("auto", 0, 1), ("none", 0, 0), ("required", 1, 1), (named, 1, 1)):
        guide = guide_of(tool_choice=choice)
        assert guide.accepts(TOKENIZER.tag_ids["<tool_call>"]) == may
        assert guide.accepts(TOKENIZER.encode("a")[0]) != must
    with pytest.raises(ApiError, match="a call takes [0-9]+ tokens, but there are 3"):
        guide_of(tool_choice="required", max_tokens=3)
