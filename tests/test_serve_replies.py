"""Deltas of a stream: joined, they are the whole reply, wherever it is cut."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agent.guides import MustCall, NameGuide
from data.conversation import Tool
from data.reply import parse_reply
from data.tokenizer import Tokenizer
from serve.replies import Answer, StopTexts, joined

WEIGHTS = Path(__file__).parents[1] / "embedded" / "weights"
TOKENIZERS = {name: Tokenizer.from_pretrained(WEIGHTS, name) for name in ("hermes", "mistral")}
TOOLS = (Tool("f", "", {"type": "object", "properties": {"a": {"type": "string"}}}),)
CALL = '{"name": "f", "arguments": {"a": "é😀"}}'
# What a reply may consist of: tags, good calls and broken ones, space, characters of several ids
PIECES = [
    *("<think>", "</think>", "<tool_call>", "</tool_call>", "<end_of_turn>", "<tools>"),
    *("[TOOL_CALLS]", f"<tool_call>\n{CALL}\n</tool_call>", f"[TOOL_CALLS][{CALL}]"),
    *(CALL, '{"name": "f"', "[]", " ", "\n\n", "yes", "Stop here", "St", "op", "😀", "日本", "é"),
    *("<think>plan</think>", "<0xE6>", "<0xF0><0x9F>", "x"),
]


def spell(text: str, tokenizer: Tokenizer) -> list[int]:
    """Text to ids; tags and byte pieces as themselves."""
    control = {"<end_of_turn>": tokenizer.end_of_turn_id} | tokenizer.tag_ids
    ids: list[int] = []
    for part in re.split(f"({'|'.join(map(re.escape, control))}|<0x[0-9A-F]{{2}}>)", text):
        if part in control:
            ids.append(control[part])
        elif re.fullmatch("<0x[0-9A-F]{2}>", part):
            ids.append(BYTES[tokenizer.format][bytes([int(part[3:5], 16)])])
        else:
            ids += tokenizer.encode(part)
    return ids


BYTES = {
    name: {tokenizer.spelling(id): id for id in range(len(tokenizer))}
    for name, tokenizer in TOKENIZERS.items()
}


@given(
    st.sampled_from(sorted(TOKENIZERS)),
    st.lists(st.sampled_from(PIECES), max_size=12).map("".join),
    st.integers(0, 200),
    st.sampled_from([(), ("Stop",), ("here", "Stop here"), ("\n\n",)]),
)
@settings(max_examples=400, deadline=None)
def test_deltas_add_up_to_the_reply_for_every_cut(
    name: str, text: str, cut: int, stops: tuple[str, ...]
) -> None:
    tokenizer = TOKENIZERS[name]
    ids = spell(text, tokenizer)[:cut]
    answer = Answer(tokenizer, TOOLS, stops)
    deltas = [delta for id in ids for delta in answer.feed(id)]
    deltas += answer.end(is_cut=not ids or ids[-1] != tokenizer.end_of_turn_id)
    message = joined(deltas)
    reply = parse_reply(ids, tokenizer, TOOLS)
    found = [
        (reply.content.find(stop) + len(stop), stop) for stop in stops if stop in reply.content
    ]
    places = [reply.content.find(min(found)[1])] if found else []
    # A call that is broken or cut leaves no text, and all good ones are still calls
    if not places:
        assert (message["content"] or "") == reply.content
        assert message.get("reasoning_content", "") == reply.thinking
        calls = [call["function"] for call in message.get("tool_calls", ())]
        expected = [
            {"name": c.name, "arguments": json.dumps(c.arguments, ensure_ascii=False)}
            for c in reply.calls
        ]
        assert calls == expected
    else:
        assert (message["content"] or "") == reply.content[: places[0]]
        assert answer.finish_reason in ("stop", "tool_calls")
    # Each delta says something, and a client that joins what it has at any time has a beginning
    for end in range(len(deltas)):
        part = joined(deltas[: end + 1])
        assert (message["content"] or "").startswith(part["content"] or "")


@given(
    st.text("abc", max_size=12),
    st.lists(st.integers(0, 12), max_size=5),
    st.lists(st.text("abc", min_size=1, max_size=3), max_size=3),
)
@settings(max_examples=500, deadline=None)
@example("abc", [2], ["abc", "b"])
@example("aab", [1, 2], ["ab"])
def test_stop_texts_are_found_however_the_text_is_cut(
    text: str, cuts: list[int], stops: list[str]
) -> None:
    filter, places = StopTexts(stops), [0, *sorted(cuts), len(text)]
    given_out = "".join(filter.feed(text[a:b]) for a, b in zip(places, places[1:], strict=False))
    given_out += filter.end()
    found = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    assert given_out == text[: min(found)[1] if found else len(text)]
    assert filter.is_over == bool(found)


def feed(text: str, **options: Any) -> tuple[dict[str, Any], Answer]:
    tokenizer = TOKENIZERS["hermes"]
    answer = Answer(tokenizer, TOOLS, **options)
    deltas = [delta for id in spell(text, tokenizer) for delta in answer.feed(id)]
    return joined([*deltas, *answer.end(is_cut="<end_of_turn>" not in text)]), answer


@pytest.mark.parametrize(
    "text, reason",
    [
        ("Yes.<end_of_turn>", "stop"),
        ("Yes", "length"),
        (f"<tool_call>{CALL}</tool_call><end_of_turn>", "tool_calls"),
        (f"<tool_call>{CALL}</tool_call><tool_call>{CALL[:9]}", "length"),
        ("<tool_call>no</tool_call><end_of_turn>", "stop"),
    ],
)
def test_reasons_to_end(text: str, reason: str) -> None:
    assert feed(text)[1].finish_reason == reason


def test_one_call_ends_the_reply_where_there_may_be_no_second() -> None:
    block = f"<tool_call>{CALL}</tool_call>"
    message, answer = feed(block + block, one_call=True)
    assert len(message["tool_calls"]) == 1 and answer.finish_reason == "tool_calls"
    assert len(feed(block + block)[0]["tool_calls"]) == 2
    assert message["content"] is None
    call = message["tool_calls"][0]
    assert call["type"] == "function" and call["id"].startswith("call_")
    assert json.loads(call["function"]["arguments"]) == {"a": "é😀"}


@pytest.mark.parametrize(
    "text, content, calls, reason",
    [
        ("<tool_call>\n{", None, 0, "length"),
        ("<tool_call>", None, 0, "length"),
        ("<think>Hm</think>Well.<tool_call>\nNone fits", "Well.", 0, "length"),
        (f"<tool_call>{CALL}</tool_call><tool_call>{CALL}", None, 1, "length"),
        ("<tool_call>\nNone fits</tool_call><end_of_turn>", None, 0, "stop"),
        (f"Well.<tool_call>{CALL[:9]}</tool_call>So.<end_of_turn>", "Well.\n\nSo.", 0, "stop"),
        (f"<tool_call>{{</tool_call><tool_call>{CALL}</tool_call><end_of_turn>", None, 1, None),
        ("<end_of_turn>", None, 0, "stop"),
    ],
)
def test_calls_that_are_cut_or_broken_leave_no_text(
    text: str, content: str | None, calls: int, reason: str | None
) -> None:
    message, answer = feed(text)
    assert (message["content"], len(message.get("tool_calls", ()))) == (content, calls)
    assert answer.finish_reason == (reason or "tool_calls")
    assert message["refusal"] is None


def test_a_call_comes_whole_once_it_is_known_to_be_good() -> None:
    """Nothing before its end, then its name and its arguments; and docs/serving.md says so."""
    page = (WEIGHTS.parents[1] / "docs" / "serving.md").read_text("utf-8")
    assert "a call comes whole" in page and "piece by piece" not in page
    tokenizer = TOKENIZERS["hermes"]
    answer = Answer(tokenizer, TOOLS)
    *begun, end = spell(f"<tool_call>{CALL}</tool_call>", tokenizer)
    assert [delta for id in begun for delta in answer.feed(id)] == []
    parts = [delta["tool_calls"][0]["function"] for delta in answer.feed(end)]
    assert parts == [{"name": "f", "arguments": ""}, {"arguments": '{"a": "é😀"}'}]


def test_a_reply_that_must_call_thinks_or_calls_and_then_calls() -> None:
    tokenizer = TOKENIZERS["hermes"]
    tags = tokenizer.tag_ids
    word = tokenizer.encode("a")[0]

    def free(*ids: int, thoughts: int = 9) -> set[int]:
        guide = MustCall(tokenizer, NameGuide(tokenizer, TOOLS), thoughts)
        for id in ids:
            assert guide.accepts(id)
            guide.advance(id)
        found = {id for id in range(len(tokenizer)) if guide.accepts(id)}
        assert set(guide.allowed()) == found
        return found

    think, close, call = tags["<think>"], tags["</think>"], tags["<tool_call>"]
    assert free() == {think, call}
    assert word in free(think) and not {call, tokenizer.end_of_turn_id} & free(think)
    assert free(think, word, word, thoughts=2) == {close}
    assert free(think, word, close) == {call}
    inner = NameGuide(tokenizer, TOOLS)
    inner.advance(call)
    assert free(call) == set(inner.allowed())
    mistral = TOKENIZERS["mistral"]
    guide = MustCall(mistral, NameGuide(mistral, TOOLS), 9)
    assert list(guide.allowed()) == [mistral.tag_ids["[TOOL_CALLS]"]]
