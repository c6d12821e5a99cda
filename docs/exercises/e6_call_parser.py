"""Exercise 6: the calls in a reply.

A reply is whatever a model wrote. Each <tool_call> holds a JSON object with a name and arguments;
an argument may contain any text, and the JSON may be broken, which the model is then told so that
it can try again. As it is here, the second upsets the program and the first cuts the call in two.
"""

import json
import re

from data.conversation import ToolCall
from data.reply import parse_tool_calls
from data.tool_calls import CallError, Outcome, error_for

OPEN, CLOSE = "<tool_call>", "</tool_call>"


def read_calls(reply: str) -> list[Outcome]:
    """A ToolCall for each call, or the CallError `error_for("invalid_json", why)`; never raises."""
    bodies = re.findall(f"{OPEN}(.*?){CLOSE}", reply, re.DOTALL)
    return [ToolCall(**json.loads(body)) for body in bodies]


def call(**arguments: object) -> str:
    body = json.dumps({"name": "send", "arguments": arguments})
    return f"{OPEN}\n{body}\n{CLOSE}"


def test_calls_are_read_as_the_project_reads_them() -> None:
    one, two = call(to="Ada", text="hello"), call(to="Bo", times=[1, 2])
    for reply in (one, f"<think>Both.</think>{one}\n{two}", "No call is due.", ""):
        assert read_calls(reply) == parse_tool_calls(reply)


def test_the_text_of_an_argument_ends_no_call() -> None:
    text = f"write {CLOSE} and then {OPEN}"
    assert read_calls(call(text=text)) == [ToolCall("send", {"text": text})]


def test_a_broken_call_is_an_error_in_its_place_and_the_next_one_is_read() -> None:
    for body in ('{"name": "send", ', "send(Ada)", "", "[1, 2]", '{"name": "send"}'):
        found = read_calls(f"{OPEN}{body}{CLOSE}{call(to='Bo')}")
        assert len(found) == 2, f"{body!r} gave {found}"
        assert isinstance(found[0], CallError) and found[1] == ToolCall("send", {"to": "Bo"})
    expected = error_for("invalid_json", "").code
    assert [error.code for error in read_calls(f"{OPEN}{{") if isinstance(error, CallError)] == [
        expected
    ]
