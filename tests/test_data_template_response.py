"""The response template: Transformers reads a reply as `data/reply.py` does, whole or in pieces."""

import json
from pathlib import Path
from typing import Any

import pytest
from test_data_tokenizer import small_tokenizer

from data.reply import read_pieces, split_text
from data.template import response_template
from data.tool_calls import ToolCall
from data.wire import FORMATS, FUNCTIONGEMMA, HERMES, MISTRAL

chat_parsing = pytest.importorskip("transformers.utils.chat_parsing")
PREFIX = "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n"
ONE = '{"name": "weather", "arguments": {"city": "A, \\"b\\" } é", "days": [1, {"name": 2}, {}]}}'
WRAPPED = (
    '<start_function_call>call:weather{city:<escape>A, "b" } é<escape>,days:[1,-2.5,{x:null}],'
    "on:true}<end_function_call>"
)
TWO = '{"name": "now", "arguments": {}}'
REPLIES = {
    "hermes": [
        "It is 7.",
        "<think>hm, {}</think>It is 7.",
        f"<tool_call>\n{ONE}\n</tool_call>",
        f"<think>hm</think><tool_call>\n{ONE}\n</tool_call><tool_call>\n{TWO}\n</tool_call>",
        f"<think>hm</think>I look.\n<tool_call>{TWO}</tool_call>\n",
        f"Before <tool_call>{TWO}</tool_call> after",
        "",
    ],
    "mistral": [
        "It is 7, {}.",
        f"<think>hm</think>\n[TOOL_CALLS][{ONE}]",
        f"I look. [TOOL_CALLS][{ONE}, {TWO}, {ONE}]",
        f"[TOOL_CALLS][ {TWO} , {TWO} ] ",
    ],
    "functiongemma": [
        "It is 7, {}.",
        f"<think>hm</think>\nI look.{WRAPPED}",
        WRAPPED + WRAPPED.replace("weather", "mcp.now-2"),
        "<start_function_call>call:now{}<end_function_call>",
        "",
    ],
}


def streamed(template: dict[str, Any], text: str) -> dict[str, Any]:
    """The message from one character at a time."""
    parser = chat_parsing.ResponseParser(template, prefix=PREFIX)
    for character in text:
        parser.feed(character)
    message, _ = parser.finalize()
    return message


def plain(message: dict[str, Any]) -> tuple[str, str, list[tuple[str, Any]]]:
    """Thinking, prose and calls, whatever type the arguments came in."""
    made = []
    for entry in message.get("tool_calls") or []:
        given = entry["function"]["arguments"]
        given = json.loads(given) if isinstance(given, str) else given
        made.append((entry["function"]["name"], given))
    return message.get("reasoning_content") or "", message.get("content") or "", made


@pytest.mark.parametrize(
    ("format", "text"), [(format, text) for format, texts in REPLIES.items() for text in texts]
)
def test_reads_a_reply_as_we_do(format: str, text: str) -> None:
    wire = FORMATS[format]
    template = response_template(wire)
    ours = read_pieces(split_text(text, wire), wire)
    made = [(call.name, call.arguments) for call in ours.outcomes if isinstance(call, ToolCall)]
    wanted = (ours.thinking, ours.content, made)
    for end in ("<end_of_turn>", "<eos>", ""):
        got = chat_parsing.parse_response(text + end, template, prefix=PREFIX)
        assert got["role"] == "assistant" and plain(got) == wanted
        assert plain(streamed(template, text + end)) == wanted


@pytest.mark.parametrize(
    "body",
    [
        "{broken",
        '{"name": "f", "arguments": {"a": 1,}}',
        '{"name": "f", "arguments": [1]}',
        '{"name": "f", "arguments": {"a": "\n"}}',
        '{"name": "f", "arguments": {"a": 01}}',
        '{"name": "f", "arguments": {"a": "</tool_call>"}}',
        '{"name": "f"}',
    ],
)
def test_a_broken_call_stays_text(body: str) -> None:
    """An error in the parser would leave a client of `transformers serve` without a reply."""
    for wire, text in (
        (HERMES, f"<tool_call>\n{body}\n</tool_call>"),
        (MISTRAL, f"[TOOL_CALLS][{body}]"),
        (FUNCTIONGEMMA, f"<start_function_call>call:f{body}<end_function_call>"),
    ):
        got = chat_parsing.parse_response(text, response_template(wire), prefix=PREFIX)
        if wire is HERMES or "</tool_call>" not in body:
            assert got["content"] == text and "tool_calls" not in got
        assert plain(streamed(response_template(wire), text)) == plain(got)


def test_a_result_that_the_model_wrote_is_not_read() -> None:
    text = f"<tool_call>{TWO}</tool_call><tool_response>12:00</tool_response>It is noon."
    got = chat_parsing.parse_response(text, response_template(HERMES), prefix=PREFIX)
    assert plain(got) == ("", "", [("now", {})])


def test_the_saved_tokenizer_has_it(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = small_tokenizer("hermes")
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ids = [tokenizer.tag_ids["<tool_call>"], *tokenizer.encode(TWO)]
    ids += [tokenizer.tag_ids["</tool_call>"], tokenizer.end_of_turn_id]
    assert plain(theirs.parse_response(ids, prefix=PREFIX))[2] == [("now", {})]
