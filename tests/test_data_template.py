"""The exported chat template gives Transformers the ids that the renderer gives."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from test_data_chat import TOOL
from test_data_tokenizer import gemma_tokenizer, needs_gemma, small_tokenizer

from data.chat import render, render_prompt
from data.conversation import SystemPrompt
from data.schema import conversation_from, parse_row
from data.tool_schema import write_tool
from data.wire import FORMATS

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"

MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": " Be kind. "},
    {"role": "user", "content": "Paris, and Rome? "},
    {
        "role": "assistant",
        "content": "I look.",
        "tool_calls": [
            {
                "id": "1",
                "type": "function",
                "function": {"name": "get_weather", "arguments": {"city": "Paris é"}},
            },
            {
                "id": "2",
                "type": "function",
                "function": {"name": "get_weather", "arguments": {"n": [1, None, 2.5]}},
            },
        ],
    },
    {"role": "tool", "tool_call_id": "1", "name": "get_weather", "content": " 7\n"},
    {"role": "tool", "tool_call_id": "2", "name": "get_weather", "content": '{"c": 9}'},
    {"role": "assistant", "content": "\n7 **and** 9. "},
    {"role": "user", "content": "Thanks"},
]
PLAIN = SystemPrompt("It's {{ here }} %} \\ \U0001f600\r\n@AFTER@: ", "\n{%- end -%} '\"", "openai")


@pytest.mark.parametrize(
    ("make", "format"),
    [
        (small_tokenizer, "hermes"),
        (small_tokenizer, "mistral"),
        pytest.param(gemma_tokenizer, "hermes", marks=needs_gemma),
    ],
)
def test_transformers_renders_the_same_ids(make: Any, format: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("jinja2")
    tokenizer = make(format)
    for shape in ("openai", "function", "compact") if make is small_tokenizer else ("compact",):
        prompt = dataclasses.replace(PLAIN, shape=shape)
        tokenizer.save(tmp_path, prompt)
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
        assert len(theirs) == len(tokenizer)
        conversation = conversation_from([TOOL], MESSAGES, prompt)
        got = theirs.apply_chat_template(
            MESSAGES, tools=[TOOL], add_generation_prompt=True, return_dict=False
        )
        assert got == render_prompt(conversation, tokenizer)
    plain = theirs.apply_chat_template(MESSAGES[1:2], add_generation_prompt=True, return_dict=False)
    assert plain == render_prompt(conversation_from([], MESSAGES[1:2]), tokenizer)
    default = parse_row({"messages": MESSAGES, "tools": [TOOL]})
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert (
        theirs.apply_chat_template(MESSAGES, tools=[TOOL], return_dict=False)
        == render(default, tokenizer).tokens
    )


def test_transformers_renders_the_same_thinking(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("jinja2")
    tokenizer = small_tokenizer()
    turns = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "<think>\n hm </think>\n\nYes"},
        {"role": "user", "content": "q"},
        {
            "role": "assistant",
            "reasoning_content": "ok\n",
            "content": None,
            "tool_calls": [{"function": {"name": "f", "arguments": {}}}],
        },
    ]
    conversation = parse_row({"messages": turns})
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    system = [{"role": "system", "content": conversation.system}]
    assert "<think>" in conversation.system  # the operator's tags are tags for both
    assert (
        theirs.apply_chat_template(system + turns, return_dict=False)
        == render(conversation, tokenizer).tokens
    )
    without = dataclasses.replace(conversation, system="")
    assert theirs.apply_chat_template(turns, return_dict=False) == render(without, tokenizer).tokens


@needs_gemma
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("file", ["bfcl_conversations.jsonl", "hermes_thinking_sample.jsonl"])
def test_real_rows_are_served_the_ids_that_they_were_trained_on(
    format: str, file: str, tmp_path: Path
) -> None:
    """Their wording quotes the tags; whoever serves the adapter must get the ids of training."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("jinja2")
    tokenizer = gemma_tokenizer(format)
    rows = [
        parse_row(line) for line in (SHARED / file).read_text(encoding="utf-8").splitlines()[:15]
    ]
    tokenizer.save(tmp_path, rows[0].prompt)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for row in (row for row in rows if row.prompt == rows[0].prompt):
        question = dataclasses.replace(row, messages=row.messages[:1])
        tools = [write_tool(tool) for tool in row.tools]
        turns = [{"role": "user", "content": row.messages[0].content}]
        got = theirs.apply_chat_template(
            turns, tools=tools, add_generation_prompt=True, return_dict=False
        )
        assert got == render_prompt(question, tokenizer)
