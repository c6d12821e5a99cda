"""Names in calls are those on offer, whatever the model's weights say; all else is its own."""

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tokenizers
import torch
from builders import TOKENIZER
from test_data_tokenizer import META, small_tokenizer
from tokenizers import decoders, models, normalizers

from agent import evaluate
from agent.call_names import CallNames, State
from agent.guides import CallRule, NameGuide, guide_for
from data.conversation import Tool, ToolCall
from data.dataset import load_conversations
from data.reply import parse_reply
from data.tokenizer import Tokenizer
from data.wire import FORMATS
from model.generate import Sampling, choose, guided

ROWS = Path(evaluate.__file__).parents[1] / "embedded" / "rows" / "heldout.jsonl"


def tool(name: str, *arguments: str, **more: Any) -> Tool:
    properties = {argument: {"type": "string"} for argument in arguments}
    return Tool(name, "", {"type": "object", "properties": properties, **more})


TOOLS = (
    tool("get_weather", "city", "city_name", "days"),
    tool("get_weather_map", "zoom", required=["zoom"]),
    tool("now"),
    tool("Ärger.melden", "größe", 'a"b'),
)
OPEN = (*TOOLS, tool("post", "url", additionalProperties=True))
GOOD = [
    '{"name": "get_weather", "arguments": {"city": "R\\"o, {me", "days": 3}}',
    '\n{"name": "get_weather_map", "arguments": {"zoom": [{"evil": 1}, "x"]}}\n',
    '{"arguments": {"zoom": 1}, "name": "get_weather_map"}',
    '{ "id" : 7 , "name" : "now" , "arguments" : { } }',
    "{'name': 'get_weather', 'arguments': {'city': 'it\\'s', 'days': None,},}",
    '[{"name": "now", "arguments": {}}, {"name": "get_weather", "arguments": {"city_name": "x"}}]',
    '```json\n{"name": "now", "arguments": {}}\n```',
    '{"name": "Ärger.melden", "arguments": {"größe": {"a": {"b": [1, 2]}}, "a\\"b": "\\\\"}}',
    '{"name": "now", "arguments": {}} {"name": "get_weather", "arguments": {"days": -1e5}}',
]
# The first byte that may not come stands behind each of these
BAD = [
    '{"name": "get_wet',
    '{"name": "get_weather_"',
    '{"name": "get_weather", "arguments": {"z',
    '{"name": "now", "arguments": {"',
    '{"name": "get_weather", "arguments": {"city": "x", "citi',
    '{"arguments": {"zoom": 1}, "name": "get_weather"',
    '{"name": "get_weather", "arguments": {"city": 1, "city"',
    '{"name": "get_weather_map", "arguments": {"zoom": 1, "',
    '{"n\\',
    '{"name": "get_weather" "',
    '{"name": "get_weather", "arguments": "',
    '{"name": "get_weather", "arguments": {"city": """',
    '{"name": "get_weather", "arguments": {"city": 1 #',
    '{"name": n',
    '{"name": "get_weather", "arguments": {"city" "',
    '[{"name": "now", "arguments": {}}, {"name": "e',
    '{"name": "now", "arguments": {}}\n{"name": "g"',
    '{"name": "now"]',
    '[{"name": "now"}}',
    '{"name": "now", "arguments": {}}}',
    '{"name": "now", "more": [1, {"a": 2]',
]


def end(names: CallNames, text: str) -> State | None:
    return names.feed(names.start, text.encode())


@pytest.mark.parametrize("text", GOOD)
@pytest.mark.parametrize("tools", [TOOLS, OPEN], ids=["closed", "open"])
def test_calls_with_the_right_names_pass(text: str, tools: tuple[Tool, ...]) -> None:
    if not (tools is OPEN and text.startswith('{"arguments"')):
        assert end(CallNames(tools), text)


@pytest.mark.parametrize("text", BAD)
def test_the_first_byte_of_a_wrong_name_is_refused(text: str) -> None:
    names = CallNames(TOOLS)
    assert end(names, text[:-1]) and end(names, text) is None


def test_a_tool_that_takes_any_argument_may_have_any() -> None:
    names = CallNames(OPEN)
    assert end(names, '{"name": "post", "arguments": {"a\\"b": 1, "url": 2}}')
    assert end(names, '{"arguments": {"odd": 1}, "name": "post"}')
    assert end(names, '{"arguments": {"odd": 1}, "name": "n') is None


BOOK = tool("book", "city", "day", "note", required=["city", "day"])
# The last byte of each would end arguments that lack a required one
EARLY = [
    '{"name": "book", "arguments": {}',
    '{"name": "book", "arguments": {"city": "x", "note": 1}',
    '{"name": "book", "arguments": {"city": "x", "note": 1,}',
    '{"name": "book", "arguments": {"city": {"day": [1]}}',
    '[{"name": "now"}, {"name": "book", "arguments": {"city": "x"}',
]


@pytest.mark.parametrize("text", EARLY)
def test_arguments_cannot_end_before_every_required_one_is_there(text: str) -> None:
    names = CallNames((BOOK, tool("now")))
    before = end(names, text[:-1])
    assert before and names.feed(before, text[-1:].encode()) is None
    has_value = text[-2] not in "{,"
    assert names.ends_early(before) == has_value
    assert names.early_end(before, text[-1:].encode()) == (b"" if has_value else None)


def test_a_call_with_all_required_arguments_may_end_and_others_need_none() -> None:
    names = CallNames((BOOK, tool("now"), tool("ask", required=["unknown"])))
    for text in (
        '{"name": "book", "arguments": {"day": 1, "city": "x"}}',
        '{"arguments": {"city": "x", "day": 1}, "name": "book"}',
        '{"arguments": {}, "name": "now"}',
        '{"name": "now"}',
        '{"name": "ask", "arguments": {}}',  # no schema says how the argument would be spelled
    ):
        assert (after := end(names, text)) and not names.ends_early(after)
    assert end(names, '{"arguments": {}, "name": "b') is None  # the call is one of the others


@pytest.mark.parametrize("begun", ["", "[1, 2", '{"a": 1', '"x', "[", '"x", "da', '"x", "day"'])
def test_where_no_value_has_just_ended_a_reply_may_break_off(begun: str) -> None:
    tokenizer = Tokenizer.from_pretrained(TOKENIZER)
    guide = NameGuide(tokenizer, (BOOK,))
    text = '{"name": "book", "arguments": {"city": ' + begun
    for id in [*guide.opening, *tokenizer.encode(text)]:
        guide.advance(id)
    assert guide.state is not None
    named = guide.state.mode in ("argument", "colon")
    assert guide.accepts(tokenizer.end_of_turn_id) != named
    assert any((tokenizer.spelling(id) or b",")[:1] != b"," for id in guide.allowed())


@pytest.mark.parametrize(
    ("value", "written", "begins"),
    [('"x', '"}}', '"'), ("12", "}", ","), ("12", "3}", "3"), ('"x"', "</tool_call>", ",")],
)
def test_instead_of_an_early_end_comes_the_next_argument(
    value: str, written: str, begins: str
) -> None:
    tokenizer = Tokenizer.from_pretrained(TOKENIZER)
    guide = NameGuide(tokenizer, (BOOK,))
    begun = '{"name": "book", "arguments": {"city": ' + value
    for id in [*guide.opening, *tokenizer.encode(begun)]:
        guide.advance(id)
    data = written.encode()
    pieces = {tokenizer.spelling(id): id for id in range(len(tokenizer))}
    refused = tokenizer.tag_ids[written] if written in tokenizer.tag_ids else pieces.get(data)
    if refused is None:  # no piece of this vocabulary: its bytes one by one, the last one refused
        for id in tokenizer.encode(written[:-1]):
            guide.advance(id)
        begins, refused = ",", pieces[data[-1:]]
    assert not guide.accepts(refused)
    spelled = [(tokenizer.spelling(id) or b"").decode() for id in guide.allowed()]
    assert spelled and all(text.startswith(begins) and "}" not in text for text in spelled)


def piece_tokenizer() -> Tokenizer:
    """Gemma's kind: U+2581 for a space, <0x..> for the bytes of what has no piece."""
    letters = sorted(set("".join(GOOD).replace(" ", META)) - set("é漢"))
    pairs = [("{", '"'), ('"', ":"), (META, '"'), ('":', META + '"'), ('",', META + '"')]
    merges = [*pairs[:3], ('"', ","), *pairs[3:], ("c", "i"), ("t", "y"), ("ci", "ty")]
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    pieces += [f"<0x{byte:02X}>" for byte in range(256)] + letters
    pieces += ["".join(pair) for pair in merges]
    vocab = {piece: id for id, piece in enumerate(dict.fromkeys(pieces))}
    core = tokenizers.Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True))
    core.normalizer = normalizers.Replace(" ", META)
    core.decoder = decoders.Sequence(
        [decoders.Replace(META, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    core.add_special_tokens(pieces[:6])
    return Tokenizer(core.to_str(), {})


@pytest.fixture(scope="module", params=["bytes", "pieces", "mistral"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    """The embedded base's, whose pieces are bytes, one with Gemma's pieces, and another format."""
    if request.param == "bytes":
        return Tokenizer.from_pretrained(TOKENIZER)
    return piece_tokenizer() if request.param == "pieces" else small_tokenizer("mistral")


def test_spellings_joined_are_the_text(tokenizer: Tokenizer) -> None:
    for text in [*GOOD, "  ▁ \n\n\t x\x00\x7f é 漢 🫨 <table>"]:
        spelled = [tokenizer.spelling(id) for id in tokenizer.encode(text)]
        assert None not in spelled and b"".join(filter(None, spelled)) == text.encode()
    assert all(tokenizer.spelling(id) is None for id in tokenizer.control_ids)


def guide_at(tokenizer: Tokenizer, text: str) -> NameGuide:
    """A guide inside a call that has come so far."""
    guide = NameGuide(tokenizer, TOOLS)
    for id in [*guide.opening, *tokenizer.encode(text)]:
        guide.advance(id)
    return guide


PLACES = sorted({text[:length] for text in GOOD[:4] for length in range(0, len(text), 3)})


def test_the_allowed_ids_are_those_that_are_accepted(tokenizer: Tokenizer) -> None:
    for text in PLACES:
        guide = guide_at(tokenizer, text)
        assert guide.state is not None, text
        accepted = {id for id in range(len(tokenizer)) if guide.accepts(id)}
        ordinary = {id for id in accepted if tokenizer.spelling(id) is not None}
        guide = guide_at(tokenizer, text)  # none was refused yet, as one that ends the call early
        assert set(guide.allowed()) == ordinary | (accepted & tokenizer.control_ids), text
        assert accepted


def likely(state: State, drawn: random.Random) -> str:
    """A character that may well come next in a call; in a name it is any letter."""
    if state.mode == "call_key":
        key = "name" if len(state.tools) == len(TOOLS) else "arguments"
        return f'{key}"'[len(state.text)] if key.startswith(state.text.decode()) else '"'
    letters = {"name": 'getwahrn_"', "argument": 'citysdazom_"', "key": '"', "value": '"'}
    letters |= {"outside": "{", "arguments_value": "{", "colon": ":", "after": ",}"}
    return drawn.choice(letters.get(state.mode, '"'))


def test_a_format_whose_calls_are_no_json_has_no_guide() -> None:
    rule = CallRule()
    guides = {n: guide_for(small_tokenizer(n), TOOLS, rule, room=99) for n in FORMATS}
    assert [name for name, guide in guides.items() if guide is None] == ["functiongemma"]


@pytest.mark.parametrize("format", ["hermes", "mistral"])
def test_whatever_is_drawn_every_name_is_on_offer(format: str) -> None:
    tokenizer = Tokenizer.from_pretrained(TOKENIZER, format)
    opening, *closing = [tokenizer.tag_ids[tag] for tag in tokenizer.wire.call.tags]
    ends = [*closing, tokenizer.end_of_turn_id]
    drawn, offered = random.Random(0), {one.name: one for one in TOOLS}
    calls: list[ToolCall] = []
    for number in range(400):
        begun = "[" * (number % 2)
        guide, ids = guide_at(tokenizer, begun), [opening, *tokenizer.encode(begun)]
        for _ in range(100):
            assert guide.state is not None
            wanted = tokenizer.encode(likely(guide.state, drawn))[0]
            wanted = drawn.randrange(2048) if drawn.random() < 0.03 else wanted
            id = wanted if guide.accepts(wanted) else drawn.choice(guide.allowed())
            if id in tokenizer.control_ids:
                break
            guide.advance(id)
            ids.append(id)
            if guide.state and (guide.state.mode, guide.state.brackets) == (
                "outside",
                "l" * len(begun),
            ):
                break
        ids += tokenizer.encode("]" * len(begun))
        calls += parse_reply([*ids, *ends], tokenizer).calls
    assert len(calls) > 50 and {call.name for call in calls} == set(offered)
    for call in calls:
        one, given = offered[call.name], set(call.arguments)
        assert given <= set(one.parameters["properties"])
        assert set(one.required) <= given or not given  # it may have no arguments at all


def reply(tokenizer: Tokenizer, text: str) -> list[int]:
    opening, *closing = [tokenizer.tag_ids[tag] for tag in tokenizer.wire.call.tags]
    thought = tokenizer.encode('I "think" {of} names: "evil"')
    return [*thought, opening, *tokenizer.encode(text), *closing, tokenizer.end_of_turn_id]


@pytest.mark.parametrize("text", GOOD)
def test_a_reply_with_the_right_names_is_never_touched(tokenizer: Tokenizer, text: str) -> None:
    guide = NameGuide(tokenizer, TOOLS)
    for id in reply(tokenizer, text):
        assert guide.accepts(id)
        guide.advance(id)
    assert guide.state is None or not tokenizer.wire.call.close


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_refused_id_is_replaced_by_the_most_probable_that_is_allowed(temperature: float) -> None:
    class Odd:
        """Takes odd ids only."""

        def accepts(self, id: int) -> bool:
            return id % 2 == 1

        def allowed(self) -> list[int]:
            return [1, 3, 5]

        def advance(self, id: int) -> None:
            assert id % 2 == 1

    logits = torch.tensor([[2.0, 0.0, 1.0, 1.5, 3.0, -1.0]])
    sampling, generator = Sampling(temperature), torch.Generator().manual_seed(0)
    counts = torch.zeros(6)
    for _ in range(2000):
        first = int(choose(logits, sampling, generator))
        counts[guided(logits, first, Odd(), sampling, generator)] += 1
    if not temperature:
        assert counts[3] == 2000
        return
    expected = 2000 * torch.softmax(logits[0, [1, 3, 5]], 0)
    assert ((counts[[1, 3, 5]] - expected) ** 2 / expected).sum() < 14  # two degrees of freedom


@pytest.mark.parametrize("free", [False, True])
def test_the_evaluation_holds_each_row_to_its_own_tools_unless_it_is_free(
    monkeypatch: pytest.MonkeyPatch, free: bool
) -> None:
    tokenizer = Tokenizer.from_pretrained(TOKENIZER)
    rows = load_conversations(ROWS)[0][:5]
    names: list[Any] = []

    def fake(_: Any, prompts: Any, *__: Any, guides: Any = None) -> list[list[int]]:
        pairs = zip(prompts, guides or (), strict=True)
        names.extend((prompt, guide.names.names) for prompt, guide in pairs if guide)
        return [[7] for _ in prompts]

    monkeypatch.setattr(evaluate, "generate", fake)
    model: Any = SimpleNamespace(config=SimpleNamespace(max_position_embeddings=4096))
    evaluate.first_replies(model, tokenizer, rows, 10, free=free)
    assert len(names) == (0 if free else 5)
    for prompt, offered in names:
        shown = tokenizer.decode(prompt)
        assert all(f'"name": "{name.decode()}"' in shown for name in offered) and offered


def test_without_tools_there_is_nothing_to_hold_to(tokenizer: Tokenizer) -> None:
    assert guide_for(tokenizer, (), CallRule(), room=9) is None
    assert guide_for(tokenizer, TOOLS, CallRule("free"), room=9) is None


def test_a_reply_that_must_speak_does_not_end_at_once(tokenizer: Tokenizer) -> None:
    for tools in ((), TOOLS):
        guide = guide_for(tokenizer, tools, CallRule(), room=9, must_speak=True)
        assert guide
        assert not any(guide.accepts(id) for id in tokenizer.turn_ends)
        assert not set(guide.allowed()) & tokenizer.turn_ends
        guide.advance(tokenizer.encode("x")[0])
        assert all(guide.accepts(id) for id in tokenizer.turn_ends)
        assert set(guide.allowed()) >= tokenizer.turn_ends
