"""How a question is answered step by step: as it is written, within its limits, from one cache."""

import json
from pathlib import Path
from typing import Any

import pytest
from test_agent_agent import CALL, MODEL, Box, Model, answered, spell
from test_agent_agent import tokenizer as tokenizer
from torch import Tensor

from agent import agent as loop
from agent.agent import Agent
from agent.limits import Event, Limits, is_loop
from agent.loading import load_model
from agent.toolbox import ToolBox
from benchmarks.tiny_base import write_tiny_base
from data.tokenizer import Tokenizer
from model.generate import Context, Sampling

TOOLS = '''
from agent.confirm import confirm

@confirm
def erase(name: str) -> str:
    """Erases a file."""
    return "gone"

def look(name: str) -> str:
    """Looks."""
    return "there"
'''


def say(monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer, *replies: str) -> Model:
    model = Model(tokenizer, *replies)
    monkeypatch.setattr(loop, "decode", model)
    return model


def box(result: Any = "7") -> Any:
    return Box(result)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_base(tmp_path_factory.mktemp("base"))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_chat_computes_each_id_once_and_says_what_it_would_say_anew(
    base: Path, monkeypatch: pytest.MonkeyPatch, temperature: float
) -> None:
    """A window of 16: every turn but the first lies across its edge."""
    model, tokenizer = load_model(str(base), None, dtype="fp32")
    sampling = Sampling(temperature, seed=3)
    kept, anew = (
        Agent(model, tokenizer, box(), sampling=sampling, limits=Limits(9)) for _ in range(2)
    )
    hidden, computed = model.hidden, list[int]()

    def count(tokens: Tensor, **keywords: Any) -> Tensor:
        computed.append(tokens.shape[1])
        return hidden(tokens, **keywords)

    monkeypatch.setattr(model, "hidden", count)
    for number, question in enumerate(("Hello there", "And what is this?", "Well", "No")):
        known, before = len(kept.context.ids), len(kept.ids)
        computed.clear()
        told = [event for event in kept.ask(question, stream=True) if event.kind != "done"]
        # The question's own tokens, and the few that closed the turn before it
        assert sum(computed) == len(kept.context.ids) - known
        assert not number or computed[0] < len(kept.ids) - before
        anew.context = Context()
        assert told == [e for e in anew.ask(question, stream=True) if e.kind != "done"]
        assert kept.ids == anew.ids and len(kept.ids) > 40


REPLIES = {
    "answer": ["Two  words.\n\nAnd é 🫨 more."],
    "thought": ["<think>Why not?</think>Because."],
    "prose and a call": ["Let me <look>.", CALL, "It is 7."],
    "thought and calls": [f"<think>a</think>{CALL} {CALL}", "<think>b</think>7."],
    "broken": ["<tool_call>{oops</tool_call>", "Sorry."],
}


@pytest.mark.parametrize("name", REPLIES)
def test_the_pieces_of_a_stream_are_the_texts(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    replies = REPLIES[name]
    replies = ["".join(replies[:2]), *replies[2:]] if name == "prose and a call" else replies
    say(monkeypatch, tokenizer, *replies)
    whole = answered(Agent(MODEL, tokenizer, box()), "Go")
    say(monkeypatch, tokenizer, *replies)
    *streamed, done = Agent(MODEL, tokenizer, box()).ask("Go", stream=True)
    assert [event for event in streamed if not event.kind.endswith("_delta")] == whole
    assert done.content["replies"] == len(replies) and done.content["tokens"] > 2
    written = ""
    for event in streamed:
        if event.kind.endswith("_delta"):
            written += event.content
        elif event.kind in ("think", "text", "answer"):
            assert event.content == written
            written = ""
    assert not written


def test_a_call_is_told_before_the_next_one_is_written(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    say(monkeypatch, tokenizer, f"Look.{CALL}{CALL}", "7.")
    taken: list[int] = []

    def steps(*_: Any, **__: Any) -> Any:
        for id in spell(f"Look.{CALL}{CALL}<end_of_turn>", tokenizer):
            taken.append(id)
            yield [id]

    monkeypatch.setattr(loop, "decode", steps)
    events = Agent(MODEL, tokenizer, box()).ask("Go", stream=True)
    while next(events).kind != "tool_call":
        pass
    assert taken == spell(f"Look.{CALL}", tokenizer)


@pytest.mark.parametrize("more", ["And it is warm", "<think>", "<tool_response>"])
def test_a_turn_is_over_at_the_end_of_its_calls(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, more: str
) -> None:
    model = say(monkeypatch, tokenizer, f"{CALL}\n{CALL}\n{more} 30 degrees.", "7.")
    events = answered(Agent(MODEL, tokenizer, box()), "Go")
    kinds = [event.kind for event in events]
    assert kinds == ["tool_call"] * 2 + ["tool_response"] * 2 + ["answer"]
    assert f"{CALL}\n{CALL}\n<end_of_turn>\n<start_of_turn>tool" in tokenizer.decode(
        model.prompts[1]
    )


def test_an_empty_turn_is_tried_once_more(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = say(monkeypatch, tokenizer, "", "Yes.", "", "")
    agent = Agent(MODEL, tokenizer, box())
    assert answered(agent, "Go") == [Event("answer", "Yes.")]
    assert model.prompts[0] == model.prompts[1]
    assert not any(model.guides[1].accepts(id) for id in tokenizer.stop_ids)
    assert all(model.guides[0].accepts(id) for id in tokenizer.stop_ids)
    assert [event.kind for event in answered(agent, "Go")] == ["error"]


LOOPS = ["no " * 200, "<think>" + "ab, cd. " * 100, '<tool_call>{"name": "' + "[" * 300]


@pytest.mark.parametrize("text", LOOPS)
def test_a_reply_that_repeats_itself_is_cut(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    model = say(monkeypatch, tokenizer, text, "Sorry.", text)
    agent = Agent(MODEL, tokenizer, box(), limits=Limits(2000, loop=48))
    *_, error, done = agent.ask("Go")
    assert done.content["tokens"] < 120
    if "tool_call" not in text:  # a broken call is answered, and the model goes on
        assert error.kind == "error" and "again and again" in error.content
    say(monkeypatch, tokenizer, text, "Sorry.")
    free = Agent(MODEL, tokenizer, box(), limits=Limits(2000, loop=0))
    *_, done = free.ask("Go")
    assert done.content["tokens"] > 200 and model.prompts


def test_what_a_loop_is() -> None:
    assert is_loop([9, *[1, 2, 3] * 16], 48) and is_loop([7] * 16, 16)
    assert not is_loop([1, 2, 3] * 15, 48) and not is_loop([*[1, 2, 3] * 16, 9], 48)
    assert is_loop([*range(24)] * 4, 96) and not is_loop([*range(32)] * 3, 96)


def test_limits_of_rounds_tokens_and_seconds(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = [CALL.replace("Rome", city) for city in "ABCD"]
    model = say(monkeypatch, tokenizer, *calls[:2], "Done.")
    answered(Agent(MODEL, tokenizer, box(), limits=Limits(rounds=2)), "Go")
    call = tokenizer.tag_ids["<tool_call>"]
    assert [call in sampling.forbidden for sampling in model.samplings] == [False, False, True]

    size = len(spell(f"{calls[0]}<end_of_turn>", tokenizer))
    model = say(monkeypatch, tokenizer, *calls, "one two three four five")
    limits = Limits(question_tokens=size + 3)
    *_, error, done = Agent(MODEL, tokenizer, box(), limits=limits).ask("Go")
    assert model.limits == [size + 3, 3] and done.content["tokens"] == size + 3
    assert "--question-tokens" in error.content

    say(monkeypatch, tokenizer, "one two three four five six seven")
    limits = Limits(reply_seconds=1e-9)
    answer, error, done = Agent(MODEL, tokenizer, box(), limits=limits).ask("Go")
    assert (answer.kind, done.content["tokens"]) == ("answer", 1)
    assert "--reply-seconds" in error.content


@pytest.mark.parametrize("says_yes", [True, False])
def test_a_tool_that_changes_something_asks_first(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, says_yes: bool
) -> None:
    path, asked = tmp_path / "tools.py", []
    path.write_text(TOOLS)

    def ask(name: str, arguments: dict[str, Any]) -> bool:
        asked.append((name, arguments))
        return says_yes

    calls = [
        f'<tool_call>{{"name": "{name}", "arguments": {{"name": "x"}}}}</tool_call>'
        for name in ("look", "erase")
    ]
    say(monkeypatch, tokenizer, "".join(calls), "Done.")
    with ToolBox(path, ask=ask) as toolbox:
        assert toolbox.asks_first == {"erase"}
        events = answered(Agent(MODEL, tokenizer, toolbox), "Go")
    results = [event.content["content"] for event in events if event.kind == "tool_response"]
    assert results[0] == "there" and asked == [("erase", {"name": "x"})]
    if says_yes:
        assert results[1] == "gone"
    else:
        assert json.loads(results[1])["error"]["code"] == "declined"
