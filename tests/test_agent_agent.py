"""The `Agent` as other programs use it: plain values in, events out, and the ids of its prompts."""

import json
import re
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from agent import agent as loop
from agent.agent import Agent
from agent.guides import CallRule
from agent.limits import Event, Limits
from data.conversation import SystemPrompt, Tool
from data.tokenizer import Tokenizer
from model.generate import Sampling

MODEL: Any = SimpleNamespace(config=SimpleNamespace(max_position_embeddings=2048))
WEATHER = Tool(
    "weather",
    "weather of a city",
    {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city"],
    },
)
CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Rome"}}</tool_call>'


class Box:
    """A `ToolBox` without a child process."""

    def __init__(self, result: Any, takes: float = 0.0) -> None:
        self.tools, self.result, self.takes = [WEATHER], result, takes
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.seconds: list[float] = []

    def approves(self, name: str, arguments: dict[str, Any]) -> bool:
        return True

    def call(self, name: str, arguments: dict[str, Any], seconds: float) -> Any:
        self.calls.append((name, arguments))
        self.seconds.append(seconds)
        time.sleep(self.takes)
        return self.result


def answered(agent: Agent, question: str) -> list[Event]:
    """The events of a question but the last one, which says that it is done."""
    *events, done = agent.ask(question)
    assert done.kind == "done"
    return events


@pytest.fixture
def tokenizer() -> Tokenizer:
    return Tokenizer.from_pretrained(loop.__file__.replace("agent/agent.py", "embedded/weights"))


def spell(text: str, tokenizer: Tokenizer) -> list[int]:
    """Text to ids, with Gemma's control tokens and the tags as control ids."""
    control = {"<bos>": tokenizer.bos_id, "<start_of_turn>": tokenizer.start_of_turn_id}
    control |= {"<end_of_turn>": tokenizer.end_of_turn_id} | tokenizer.tag_ids
    ids: list[int] = []
    for part in re.split(f"({'|'.join(map(re.escape, control))})", text):
        ids += [control[part]] if part in control else tokenizer.encode(part)
    return ids


class Model:
    """Replaces `decode`: writes the given replies and records what it was asked."""

    def __init__(self, tokenizer: Tokenizer, *replies: str) -> None:
        self.replies = [spell(f"{reply}<end_of_turn>", tokenizer) for reply in replies]
        self.prompts: list[list[int]] = []
        self.limits: list[int] = []
        self.samplings: list[Sampling] = []
        self.guides: list[Any] = []

    def __call__(
        self,
        _: Any,
        prompts: list[list[int]],
        limit: int,
        stop_ids: Any,
        sampling: Sampling,
        guides: list[Any],
        context: Any,
    ) -> Iterator[list[int]]:
        self.guides += guides
        self.prompts.append(list(prompts[0]))
        self.limits.append(limit)
        self.samplings.append(sampling)
        return ([id] for id in self.replies.pop(0))


def test_prompts_have_the_words_and_the_tool_shape_of_the_training_rows(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer.prompt = SystemPrompt("Tools: ", "\nCall them.", "compact")
    model = Model(tokenizer, CALL, "Warm.", "Yes.")
    monkeypatch.setattr(loop, "decode", model)
    box: Any = Box({"degrees": 30})
    agent = Agent(MODEL, tokenizer, box)
    assert [event.kind for event in answered(agent, "Rome?")][-1] == "answer"
    assert [event.kind for event in answered(agent, "Sure?")] == ["answer"]
    assert box.calls == [("weather", {"city": "Rome"})]
    tool = (
        '{"name": "weather", "description": "weather of a city", '
        '"parameters": {"city": "string", "days": "integer?"}}'
    )
    first = (
        f"<bos><start_of_turn>user\nTools: <tools>\n[{tool}]\n</tools>\nCall them.\n\nRome?"
        "<end_of_turn>\n<start_of_turn>model\n"
    )
    second = (
        f'{first}{CALL}<end_of_turn>\n<start_of_turn>tool\n<tool_response>\n{{"degrees": 30}}\n'
        "</tool_response><end_of_turn>\n<start_of_turn>model\n"
    )
    third = (
        f"{second}Warm.<end_of_turn>\n<start_of_turn>user\nSure?"
        "<end_of_turn>\n<start_of_turn>model\n"
    )
    # Ids, not text: the pieces between two control ids are encoded as one.
    assert model.prompts == [spell(text, tokenizer) for text in (first, second, third)]


def test_limits_and_sampling_are_plain_values(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model(tokenizer, "One.", "Two.", "Three.")
    monkeypatch.setattr(loop, "decode", model)
    agent = Agent(MODEL, tokenizer, sampling=Sampling(0.7, 0.9, seed=5), limits=Limits(7))
    for question in ("1?", "2?"):
        assert [event.kind for event in answered(agent, question)] == ["answer"]
    assert model.limits == [7, 7]
    assert [(s.temperature, s.top_p, s.seed) for s in model.samplings] == [
        (0.7, 0.9, 5),
        (0.7, 0.9, 6),
    ]
    assert [event.kind for event in answered(Agent(MODEL, tokenizer), "3?")] == ["answer"]
    assert model.limits[-1] == 512 and model.samplings[-1].temperature == 0


def test_names_are_held_to_the_tools_unless_the_agent_is_free(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model(tokenizer, "One.", "Two.", "Three.")
    monkeypatch.setattr(loop, "decode", model)
    box: Any = Box("7")
    for agent in (
        Agent(MODEL, tokenizer, box),
        Agent(MODEL, tokenizer, box, rule=CallRule("free")),
        Agent(MODEL, tokenizer),
    ):
        list(agent.ask("Rome?"))
    assert model.guides[0].names.names == [b"weather"] and model.guides[1:] == [None, None]


def test_a_question_that_cannot_be_asked_leaves_the_chat_as_it_was(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model(tokenizer, "One.", "Two.", "Three.")
    monkeypatch.setattr(loop, "decode", model)
    agent = Agent(MODEL, tokenizer)
    list(agent.ask("first"))
    with pytest.raises(ValueError, match="half of a surrogate pair") as refused:
        list(agent.ask("caf\udce9"))
    assert "\n" not in str(refused.value)
    with pytest.raises(ValueError, match="2048 positions"):
        list(agent.ask("7" * 3000))
    list(agent.ask("second"))
    prompt = tokenizer.decode(model.prompts[1])
    assert "first" in prompt and prompt.endswith(
        "user\nsecond<end_of_turn>\n<start_of_turn>model\n"
    )
    assert "caf" not in prompt and "777" not in prompt


def test_a_question_whose_events_nobody_reads_to_the_end_is_forgotten(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model(tokenizer, CALL, "Cold.")
    monkeypatch.setattr(loop, "decode", model)
    agent = Agent(MODEL, tokenizer, Box("30"))  # type: ignore[arg-type]
    assert next(agent.ask("Rome?")).kind == "tool_call"
    list(agent.ask("Oslo?"))
    assert "Rome" not in tokenizer.decode(model.prompts[1])


def test_the_calls_of_a_question_share_its_seconds(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = [CALL.replace("Rome", city) for city in ("Rome", "Oslo", "Bonn", "Lima")]
    model = Model(tokenizer, calls[0], calls[1], calls[2], "Late.", calls[3], "Early.")
    monkeypatch.setattr(loop, "decode", model)
    box: Any = Box("7", takes=0.3)
    agent = Agent(MODEL, tokenizer, box, limits=Limits(tool_seconds=0.5))
    events = answered(agent, "Where?")
    results = [event.content["content"] for event in events if event.kind == "tool_response"]
    assert results[:2] == ["7", "7"] and json.loads(results[2])["error"]["code"] == "timeout"
    assert events[-1].content == "Late." and len(box.calls) == 2
    assert box.seconds[0] == 0.5 and box.seconds[1] < 0.21
    assert [event.kind for event in answered(agent, "And Lima?")][-1] == "answer"
    assert box.seconds[2] == 0.5  # a new question has all of them again


HEX = "0x" + "f" * 3600
# What a model may write between the tags of a call, and the code of the error that it reads.
BROKEN = [
    (f'{{"name": "weather", "arguments": {{"city": {HEX}}}}}', "number_too_long"),
    (f"{{'name': 'weather', 'arguments': {{'days': -{HEX}}}}}", "number_too_long"),
    (f"{{'name': 'weather', 'arguments': {{{HEX}: 1}}}}", "invalid_json"),
    (f"[{{{HEX}}}]", "number_too_long"),
    (f"[{HEX} + 1j]", "number_too_long"),
    (f"[0b{'1' * 190_000}]", "number_too_long"),
    (f"[{'9' * 5000}]", "number_too_long"),
    (f"[{HEX[:50]}]", "not_an_object"),
    ("[1e999j]", "invalid_json"),
    ("[-1e999]", "not_finite"),
    (f"[{'-' * 190_000}1]", "invalid_json"),
    (f"[{'1+' * 90_000}1j]", "invalid_json"),
    (f"[{'not ' * 9_000}1]", "invalid_json"),
    ("[" * 100_000, "too_deep"),
    (f"[ # '\n{'[' * 150}{']' * 150} # '\n]", "too_deep"),
    ("[b'x', {1, 2}, ...]", "invalid_json"),
    ("['\\ud800']", "invalid_unicode"),
    ("[1,\x00]", "invalid_json"),
    ("x" * 300_000, "too_long"),
]


@pytest.mark.parametrize(("text", "code"), BROKEN, ids=[text[:12] for text, _ in BROKEN])
def test_nothing_that_a_model_writes_ends_the_agent(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, text: str, code: str
) -> None:
    monkeypatch.setattr(loop, "decode", Model(tokenizer, f"<tool_call>{text}</tool_call>", "Ok."))
    # Long replies have many tokens, and what counts is not how many fit.
    roomy: Any = SimpleNamespace(config=SimpleNamespace(max_position_embeddings=1_000_000))
    box: Any = Box("7")
    events = answered(Agent(roomy, tokenizer, box, limits=Limits(loop=0)), "Go")
    assert [event.kind for event in events] == ["tool_response", "answer"]
    assert json.loads(events[0].content["content"])["error"]["code"] == code
