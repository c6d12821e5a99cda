"""What a request may say: read as it was meant, or refused with the field and the reason."""

import json
import re
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from serving import TOKENIZER
from test_data_tokenizer import small_tokenizer

from agent.guides import CallRule, NameGuide
from data.conversation import THINK_REQUEST
from data.tokenizer import Tokenizer
from model.generate import Sampling
from serve.batch import Request
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
        ({"n": 2}, "n: expected 1, got 2"),
        ({"n": True}, "n: expected 1, got true"),
        ({"best_of": 2}, "best_of: this server does not know the field; it knows model, "),
        ({"logprobs": True}, "logprobs: expected false, got true"),
        ({"logprobs": 0}, "logprobs: expected false, got 0"),
        ({"top_logprobs": 5}, "top_logprobs: expected 0, got 5"),
        ({"presence_penalty": 0.5}, "presence_penalty: expected 0, got 0.5"),
        ({"frequency_penalty": False}, "frequency_penalty: expected 0, got false"),
        ({"logit_bias": {"5": 100}}, 'logit_bias: expected {}, got {"5": 100}'),
        ({"response_format": {"type": "json_object"}}, 'expected {"type": "text"}, got'),
        ({"service_tier": "flex"}, 'service_tier: expected "auto" or "default", got "flex"'),
        ({"store": True}, "store: expected false, got true"),
        ({"reasoning_effort": "high"}, 'reasoning_effort: expected null, got "high"'),
        ({"modalities": ["text", "audio"]}, 'modalities: expected ["text"], got'),
        ({"user": 5}, "user: expected a text, got 5"),
        ({"metadata": "x"}, "metadata: expected an object, got"),
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
    with pytest.raises(ApiError) as refused:
        chat(**fields)
    error = refused.value.as_object()["error"]
    assert told in error["message"] or re.search(told, error["message"])
    assert refused.value.status == 400
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] in fields and error["message"].startswith(error["param"])


@pytest.mark.parametrize(
    "fields",
    [
        *({"user": "u1"}, {"safety_identifier": "u1"}, {"prompt_cache_key": "k"}),
        *({"metadata": {"a": "b"}}, {"store": False}, {"n": 1}, {"parallel_tool_calls": True}),
        *({"service_tier": "auto"}, {"service_tier": "default"}, {"modalities": ["text"]}),
        *({"presence_penalty": 0}, {"frequency_penalty": 0.0}, {"logit_bias": {}}),
        *({"logprobs": False}, {"top_logprobs": 0}, {"response_format": {"type": "text"}}),
        *({"top_logprobs": None}, {"logit_bias": None}, {"reasoning_effort": None}),
    ],
    ids=str,
)
def test_fields_that_change_nothing_are_taken(fields: dict[str, Any]) -> None:
    assert chat(**fields) == chat()


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
    with pytest.raises(ApiError, match=told) as refused:
        read_chat(body)
    assert refused.value.param == (None if "object" in told else "messages")


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
    # A reply that said nothing, as the server gives it out
    silent = {"role": "assistant", "content": None, "refusal": None}
    assert turns(USER, silent, USER) == turns(USER, USER)


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
    with pytest.raises(ApiError, match=told) as refused:
        turns(*messages, tools=[TOOL])
    assert refused.value.param == "messages"


NAMED = {"type": "function", "function": {"name": "f"}}


def prepared(rule: CallRule, tokenizer: Tokenizer = TOKENIZER, **fields: Any) -> Request:
    """What a body with a tool asks the engine for, of a server with this rule."""
    served: Any = SimpleNamespace(
        tokenizers={"base": tokenizer},
        base="base",
        positions=2000,
        max_new_tokens=200,
        sampling=Sampling(),
        rule=rule,
    )
    body = {"model": "base", "messages": [USER], "tools": [TOOL], **fields}
    return prepare(served, json.dumps(body).encode())[1]


@pytest.mark.parametrize("names", ["constrained", "offered", "free"])
def test_a_choice_forces_a_whole_call_or_is_refused(names: Any) -> None:
    pytest.importorskip("llguidance")
    rule = CallRule(names)
    for choice, must, may in (("auto", 0, 1), ("none", 0, 0), ("required", 1, 1), (NAMED, 1, 1)):
        guide = prepared(rule, tool_choice=choice).guide
        if guide is None or isinstance(guide, NameGuide):
            assert not must and names != "constrained"  # the call is the model's own
            continue
        assert guide.accepts(TOKENIZER.tag_ids["<tool_call>"]) == may
        assert guide.accepts(TOKENIZER.encode("a")[0]) != must
        guide.advance(TOKENIZER.tag_ids["<tool_call>"])
        assert not must or not guide.accepts(TOKENIZER.encode("N")[0])  # the N of "None fits"
    told = "tool_choice: a call takes [0-9]+ tokens, but there are 3"
    with pytest.raises(ApiError, match=told) as refused:
        prepared(rule, tool_choice="required", max_tokens=3)
    assert (refused.value.status, refused.value.param) == (400, "tool_choice")


@pytest.mark.parametrize("choice", ["required", NAMED], ids=["required", "named"])
def test_a_required_call_that_cannot_be_promised_is_refused(
    monkeypatch: pytest.MonkeyPatch, choice: Any
) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "llguidance", None)  # as if it were not installed
        with pytest.raises(ApiError, match=r"pip install '\.\[constrain\]'") as refused:
            prepared(CallRule(), tool_choice=choice)
        assert (refused.value.status, refused.value.param) == (400, "tool_choice")
        told = "tool_choice: a call that is required needs llguidance"
        assert str(refused.value).startswith(told)
        for free in ("auto", "none"):
            assert prepared(CallRule(), tool_choice=free).prompt
    pytest.importorskip("llguidance")
    foreign = small_tokenizer("functiongemma")
    told = "tool_choice: calls of the format functiongemma are no JSON; leave it out"
    with pytest.raises(ApiError, match=told):
        prepared(CallRule(), foreign, tool_choice=choice)
    assert prepared(CallRule(), foreign).guide is None
