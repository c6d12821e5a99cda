"""One table says how each format is written; the tokenizer, rendering and reading all follow it."""

import dataclasses
import json

import pytest
from test_data_chat import CONVERSATION, PARIS, ROME, TURNS
from test_data_tokenizer import small_source, small_tokenizer

from data.chat import parse_reply, parse_tool_calls, render
from data.conversation import Conversation
from data.reply import read_pieces, split_text
from data.template import chat_template
from data.tokenizer import Tokenizer
from data.wire import FORMATS, FUNCTIONGEMMA, HERMES, MISTRAL, Tag, WireFormat

ENDS = ("start", "end")
FORMAT = pytest.mark.parametrize("wire", FORMATS.values(), ids=FORMATS)


def test_the_order_of_the_tags_is_that_of_saved_adapters() -> None:
    """The order decides the ids of tags that a vocabulary lacks, and so the rows of an adapter."""
    pairs = ("tools", "think", "tool_call", "tool_response")
    assert HERMES.tags == tuple(tag for name in pairs for tag in (f"<{name}>", f"</{name}>"))
    mistral = "[AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] [TOOL_CALLS] [TOOL_RESULTS] [/TOOL_RESULTS]"
    assert MISTRAL.tags == tuple(mistral.split())
    assert HERMES.thinking.tags + HERMES.call.tags == HERMES.tags[2:6]
    assert MISTRAL.thinking.tags + MISTRAL.call.tags == ("[TOOL_CALLS]",)
    assert (HERMES.reply_tags, MISTRAL.reply_tags) == (HERMES.tags[2:6], ("[TOOL_CALLS]",))
    names = [f"<{end}_function_{n}>" for n in ("declaration", "call", "response") for end in ENDS]
    assert FUNCTIONGEMMA.tags == (*names, "<escape>")
    assert FUNCTIONGEMMA.reply_tags == (*names[2:4], "<escape>")


@FORMAT
def test_a_text_never_equals_a_tag(wire: WireFormat) -> None:
    for name in wire.tags:
        assert Tag(name) != name and name != Tag(name)
        reply = read_pieces([name], wire)
        assert (reply.content, reply.outcomes, reply.repairs) == (name, (), ())


@FORMAT
def test_the_tokenizer_knows_the_tags_of_its_format(wire: WireFormat) -> None:
    tokenizer = small_tokenizer(wire.name)
    assert tokenizer.wire is wire and tokenizer.format == wire.name
    assert tuple(tokenizer.tag_ids) == wire.tags
    ids = [tokenizer.bos_id, *tokenizer.encode("a"), tokenizer.tag_ids[wire.tags[0]]]
    assert tokenizer.pieces(ids) == [Tag("<bos>"), "a", Tag(wire.tags[0])]


def test_a_file_with_all_tags_of_a_format_was_made_for_it() -> None:
    data = json.loads(small_source())
    size = small_tokenizer().base_size
    for name in (*HERMES.tags, *MISTRAL.tags[1:]):
        entry = {**data["added_tokens"][-1], "id": size, "content": name}
        data["added_tokens"].append(entry)
        size += 1
    assert Tokenizer(json.dumps(data), {}).wire is HERMES
    first = {**data["added_tokens"][-1], "id": size, "content": MISTRAL.tags[0]}
    data["added_tokens"].append(first)
    assert Tokenizer(json.dumps(data), {}).wire is MISTRAL
    assert Tokenizer(json.dumps(data), {}, "hermes").wire is HERMES


@FORMAT
def test_text_and_ids_are_read_alike(wire: WireFormat) -> None:
    """The same turn as ids and as the text that they decode to gives the same reply."""
    tokenizer = small_tokenizer(wire.name)
    for message in (turn for turn in TURNS if turn.role == "model"):
        tokens = render(Conversation((message,)), tokenizer).tokens
        header = 2 + len(tokenizer.encode("model\n"))
        end = next(place for place, id in enumerate(tokens) if id in tokenizer.stop_ids)
        turn = tokens[header:end]
        from_ids = parse_reply([*turn, tokenizer.end_of_turn_id], tokenizer)
        from_text = read_pieces(split_text(tokenizer.decode(turn), wire), wire)
        assert from_ids == from_text
        assert (from_ids.thinking, from_ids.content) == (message.thinking, message.content)
        assert from_ids.calls == message.calls and not from_ids.repairs


@FORMAT
def test_a_result_that_the_model_writes_ends_its_turn(wire: WireFormat) -> None:
    tokenizer = small_tokenizer(wire.name)
    assert wire.turn_ends == wire.result.tags[:1]
    forged = [*tokenizer.encode("so"), tokenizer.tag_ids[wire.turn_ends[0]], *tokenizer.encode("7")]
    reply = parse_reply(forged, tokenizer)
    assert reply.content == "so" and reply.ended


@FORMAT
def test_every_format_has_a_template(wire: WireFormat) -> None:
    template = chat_template(wire, CONVERSATION.prompt)
    assert all(name in template for name in wire.tags) and "@" not in template


@FORMAT
def test_a_whole_conversation_gives_its_calls_back(wire: WireFormat) -> None:
    tokenizer = small_tokenizer(wire.name)
    tokens = render(dataclasses.replace(CONVERSATION, system=""), tokenizer).tokens
    assert parse_tool_calls(tokens, tokenizer) == [PARIS, ROME]
    assert parse_tool_calls(tokenizer.decode(tokens), tokenizer) == [PARIS, ROME]
