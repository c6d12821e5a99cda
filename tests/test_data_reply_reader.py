"""A reply read while it is written is the reply read afterwards, however it is cut."""

import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_agent_guides import piece_tokenizer
from test_data_reply import BAD_OUTPUTS, ids_of
from test_data_tokenizer import small_tokenizer

from data.chat import parse_reply
from data.reply_reader import Part, ReplyReader, ReplyStream
from data.tokenizer import Tokenizer
from data.tool_calls import read_tool
from data.wire import FORMATS, Piece, Tag

TOOLS = [read_tool({"name": "get_weather", "parameters": {"city": "string"}})]
TOKENIZERS = {
    "bytes": small_tokenizer(),
    "mistral": small_tokenizer("mistral"),
    "pieces": piece_tokenizer(),
}


def joined(parts: Sequence[Part], kind: str) -> str:
    return "".join(part.text for part in parts if part.kind == kind)


def assert_stream_equals_whole(ids: list[int], tokenizer: Tokenizer) -> None:
    stream = ReplyStream(tokenizer, TOOLS)
    parts = [part for id in ids for part in stream.feed(id)]
    last, reply = stream.end()
    parts += last
    assert reply == parse_reply(ids, tokenizer, TOOLS)
    assert joined(parts, "thinking") == reply.thinking
    assert joined(parts, "content") == reply.content
    assert "\n\n".join(part.text for part in parts if part.kind == "thought") == reply.thinking
    assert tuple(one for part in parts for one in part.outcomes) == reply.outcomes


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("number", BAD_OUTPUTS)
def test_every_bad_output_streamed_is_the_same(number: int, name: str) -> None:
    text, tokenizer = BAD_OUTPUTS[number][0], TOKENIZERS[name]
    if name == "mistral":
        text = text.replace("«tool_call»", "«[TOOL_CALLS]»")
        text = text.replace("«think»", "<think>").replace("«/think»", "</think>")
    assert_stream_equals_whole(ids_of(text, tokenizer), tokenizer)


texts = st.lists(
    st.sampled_from(
        ["a", " ", "\n", "é", "🫨", "<think>", "</think>", '{"name": "f"}', "<th", "«"]
    ),
    max_size=8,
)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32), words=texts)
def test_any_ids_streamed_are_the_same(name: str, seed: int, words: list[str]) -> None:
    tokenizer, drawn = TOKENIZERS[name], random.Random(seed)
    ids: list[int] = []
    for word in words:  # text, tags, and single bytes, which may be no character
        ids += tokenizer.encode(word)
        ids += drawn.sample(sorted(tokenizer.tag_ids.values()), drawn.randrange(2))
        ids += [drawn.randrange(len(tokenizer)) for _ in range(drawn.randrange(3))]
    assert_stream_equals_whole(ids, tokenizer)


@pytest.mark.parametrize("format", FORMATS)
@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32), words=texts)
def test_texts_may_be_cut_anywhere(format: str, seed: int, words: list[str]) -> None:
    wire, drawn = FORMATS[format], random.Random(seed)
    pieces: list[Piece] = []
    for word in words:
        more: list[Piece] = [word * drawn.randrange(3), Tag(drawn.choice(wire.tags))]
        pieces += more[: drawn.randrange(3)]
    whole, cut = ReplyReader(wire, TOOLS), ReplyReader(wire, TOOLS)
    parts: list[Part] = []
    for piece in pieces:
        whole.feed(piece)
        for part in [piece] if isinstance(piece, Tag) else list(piece):
            parts += cut.feed(part)
    for ended in (True, False):
        parts += cut.end(ended=ended)
        whole.end(ended=ended)
        assert cut.reply(ended=ended) == whole.reply(ended=ended)
    assert joined(parts, "content") == cut.reply(ended=True).content


def test_a_text_comes_as_soon_as_it_is_certain() -> None:
    reader = ReplyReader()
    assert [reader.feed(text) for text in (" ", "a", " ", "b ")] == [
        [],
        [Part("content", "a")],
        [],
        [Part("content", " b")],
    ]
    assert reader.feed(Tag("<think>")) == []
    assert reader.feed("why") == [Part("thinking", "why")]
    assert reader.feed(Tag("</think>")) == [Part("thought", "why")]
    assert reader.feed("c") == [Part("content", "\n\nc")]
