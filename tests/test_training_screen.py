"""What a run shows: three lines and one conversation, bars, replies before and after, the table,
the adapter in use; and that nothing of it ends a run."""

import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from builders import metrics
from rich.console import Console

import train
from agent import evaluate, trial
from agent.limits import Event
from agent.toolbox import ToolBox
from agent.trial import Trial, describe_replies, measure_calls, read_trials
from common.device import rng_state
from common.screen import Screen
from data.chat import render
from data.conversation import Conversation, Message, SystemPrompt, ToolCall, ToolResult
from data.dataset import load_conversations
from data.masks import MARKS, mask_text
from data.tokenizer import Tokenizer
from training import finale, opening, report
from training.progress import Progress, working
from training.reading import EMBEDDED_ROWS, SHOWN, read_shown
from training.sample import first_exchange, pick_conversation

Start = Callable[..., tuple[int, Path, str]]


def screen(**options: Any) -> Console:
    return Console(file=io.StringIO(), width=80, markup=False, highlight=False, **options)


def text_of(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.fixture
def start(
    small_base: Path,
    small_rows: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Start:
    """start(*flags) -> (exit code, output folder, what was printed), of a run of one step."""
    # A random base writes every reply to its limit.
    monkeypatch.setattr(evaluate, "SHORTEST_LIMIT", 24)
    monkeypatch.setattr(evaluate, "REPLY_MARGIN", -400)
    monkeypatch.setattr(trial, "MAX_NEW_TOKENS", 24)
    # And one with a result, without which the adapter would not be tried.
    rows = tmp_path / "rows.jsonl"
    embedded = (EMBEDDED_ROWS / "train.jsonl").read_text(encoding="utf-8").splitlines()
    results = sorted((line for line in embedded if "tool_response" in line), key=len)
    rows.write_text(
        small_rows.read_text(encoding="utf-8") + "\n".join([*results[:4], ""]), encoding="utf-8"
    )

    def run(*flags: str) -> tuple[int, Path, str]:
        folder = tmp_path / "out"
        paths = ["--model", small_base, "--dataset", rows, "--output", folder]
        small = "--device cpu --max-length 512 --max-steps 1 --accumulate 1 --eval-calls 2"
        code = train.main([str(flag) for flag in (*paths, *small.split(), *flags)])
        return code, folder, capsys.readouterr().out

    return run


# ------------------------------------------------------------------------------------ a whole run


def test_a_run_says_what_comes_shows_it_and_marks_what_came(start: Start) -> None:
    code, folder, said = start("--eval-fraction", "0.2")
    assert code == 0
    lines = [line for line in said.splitlines() if not line.endswith(" ...")]
    assert [line.split(":")[0] for line in lines[:3]] == ["What", "On what", "How long"]
    assert re.search(r"about \d+ s on this machine \(cpu .*; just measured\) for 1 steps", said)
    assert json.loads((folder / "run.json").read_text())["seconds_per_step"] > 0
    places = [
        said.index(word)
        for word in (
            f"between {MARKS[0]} and {MARKS[1]}",
            f"{MARKS[0]}<think>",
            "this test took",
            "step 1/1",
            "before and after ─",
            "one call: ",
            "exact calls: how often",
            "the adapter in use",
            "done; this took",
        )
    ]
    assert places == sorted(places)
    marks = re.findall(r"(before|after): (?:right|wrong)", said)
    assert marks == ["before", "after"] * 5
    assert said.count("\nquestion ") == 3 == said.count("\nright ") + said.count("\nwrong ")
    assert "of 2" in said and max(map(len, said[places[4] : places[-1]].splitlines())) <= 80
    first, *_, last = metrics(folder)
    assert len(first["shown"]) == 5 == len(last["shown"]) and last["free"]["tool_call_accuracy"]


@pytest.mark.parametrize("name", ["try_out", "show_replies"])
def test_what_cannot_be_shown_is_one_sentence(
    start: Start, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("the tools\nbroke")

    monkeypatch.setattr(train if name == "try_out" else finale, name, fail)
    code, folder, said = start()
    assert (
        code == 0 and "done; this took" in said and (folder / "adapter_model.safetensors").exists()
    )
    assert "this cannot be shown (RuntimeError: the tools); the adapter is saved\n" in said


def test_quiet_leaves_the_lines_that_a_log_wants(start: Start) -> None:
    code, _, said = start("--quiet", "--eval-fraction", "0.2")
    assert code == 0
    for word in (MARKS[0], "before and after ─", "exact calls: how often", "real tools", "─"):
        assert word not in said
    wanted = "What: |On what: |How long: |step 0: held-out|step 1/1|step 1: held-out|done; "
    assert all(word in said for word in wanted.split("|"))


def test_a_plain_screen_is_no_terminal_and_gets_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    shown = Screen()
    assert shown.is_terminal and Progress(3, 0, shown).bar
    shown.is_plain = True
    assert not shown.is_terminal and Progress(3, 0, shown).bar is None


def test_without_scored_calls_nothing_is_asked(start: Start) -> None:
    code, folder, said = start("--eval-calls", "0", "--eval-fraction", "0.2")
    assert code == 0 and "shown" not in metrics(folder)[0]
    assert "before and after ─" not in said and "the adapter in use" not in said


def test_fewer_rows_are_scored_before_training_than_after(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train.settings, "CALLS_BEFORE", 1)
    _, folder, _ = start("--eval-fraction", "0.2")
    scored = [line["tool_call_accuracy"]["n"]["overall"] for line in metrics(folder)]
    assert scored == [1, 2]


def test_timing_a_step_leaves_no_trace(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, real = [], opening.time_step

    def watched(run: Any) -> float | None:
        before = rng_state(run.device)
        seconds = real(run)
        parameters = opening.trainable_parameters(run.model).values()
        is_clean = all(parameter.grad is None for parameter in parameters)
        seen.append((torch.equal(before["cpu"], rng_state(run.device)["cpu"]), is_clean))
        return seconds

    monkeypatch.setattr(opening, "time_step", watched)
    assert start("--dropout", "0.5", "--eval-calls", "0")[0] == 0
    assert seen == [(True, True)]


def test_the_sentence_about_the_rest_reckons_with_the_rows_of_the_last_test(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"seconds_per_step": 0.5}')
    data = SimpleNamespace(held_out=[0] * 300, questions=[0] * 6, shown={})
    args = SimpleNamespace(eval_calls=160)
    run: Any = SimpleNamespace(
        output=tmp_path, data=data, args=args, total_steps=60, ranks=SimpleNamespace(is_first=True)
    )
    line = {"step": 0, "eval_seconds": 4.0, "tool_call_accuracy": {"n": {"overall": 14}}}
    (sentence,) = report.describe_rest(run, line)
    assert "took about 4 s; about 30 s of training and about 33 s of the last test" in sentence
    assert report.describe_rest(run, line | {"step": 3}) == []


@pytest.mark.parametrize(
    ("steps", "per_step", "shown", "words"),
    [
        (165, 1, 597, "of which 165 steps show about 600, each once"),
        (4, 8, 2000, "which 4 steps of 8 packs show once each"),
        (40, 4, 5000, "which 40 steps of 4 packs show about 2.5 times each"),
        (1650, 1, 330_000, "which 1,650 steps show about 165 times each"),
    ],
)
def test_how_much_of_the_rows_the_steps_see(
    steps: int, per_step: int, shown: int, words: str
) -> None:
    packing = {"packs_per_step": per_step, "conversations_shown": shown}
    data = {"rendering": {"examples": 2000}, "held_out_rows": 30}
    run = {"data": data, "packing": packing, "total_steps": steps, "arguments": {"dataset": ["a"]}}
    sentence = f"On what: 2,000 conversations (a), {words}; kept to test it: 30 more."
    assert opening.describe_rows(run) == sentence


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "about 1 s"), (99, "about 99 s"), (150, "about 2 minutes"), (9000, "about 2.5 hours")],
)
def test_times_in_words(seconds: float, words: str) -> None:
    assert opening.in_words(seconds) == words


# ------------------------------------------------------------------------------- the conversation


def talk(question: str, *, call: bool = True, result: bool = True) -> Conversation:
    calls = (ToolCall("get_time", {"city": "Oslo"}),) if call else ()
    messages = [Message("user", question), Message("model", "" if call else "Yes.", calls=calls)]
    if result:
        messages.append(Message("tool", results=(ToolResult("12:00"),)))
        messages.append(Message("model", "It is noon."))
    return Conversation((*messages, Message("user", "And?"), Message("model", "No.")))


NO_VALUE = Message("model", calls=(ToolCall("get_time", {}),))


def test_the_shown_row_is_whole_short_and_in_known_words() -> None:
    whole, half, none = talk("Time now?"), talk("T?", result=False), talk("T", call=False)
    assert pick_conversation([none, half, whole]).messages == whole.messages[:4]
    assert pick_conversation([none, half]) == first_exchange(half)
    longer = talk("What is the time now, please, in this city?")
    assert pick_conversation([longer, whole]) == first_exchange(whole)
    empty = replace(whole, messages=(whole.messages[0], NO_VALUE, *whole.messages[2:]))
    assert pick_conversation([empty, longer]) == first_exchange(longer)
    odd = talk("Zorb flim?")  # shorter, but of words that no other row has
    assert pick_conversation([odd, *[longer] * 3]) == first_exchange(longer)


def test_marks_stand_where_the_colours_do() -> None:
    tokenizer = Tokenizer.from_pretrained(EMBEDDED_ROWS.parent / "weights")
    example = render(talk("Time now?"), tokenizer)
    coloured, marked = (mask_text(example, tokenizer, marked=m) for m in (False, True))
    parts = [coloured.plain[s.start : s.end] for s in coloured.spans if "green" in str(s.style)]
    assert len(parts) == 3
    assert re.findall(r"\[\+(.*?)\+\]", marked.plain, re.DOTALL) == parts


@pytest.mark.parametrize("is_terminal", [True, False])
def test_the_legend_names_colours_and_made_up_results_only_where_there_are_some(
    is_terminal: bool,
) -> None:
    tokenizer = Tokenizer.from_pretrained(EMBEDDED_ROWS.parent / "weights")
    example = render(talk("Time now?"), tokenizer)
    args = SimpleNamespace(dataset=["a"] if is_terminal else None)
    data = SimpleNamespace(sample=example, tokenizer=tokenizer)
    run: Any = SimpleNamespace(args=args, data=data)
    console = screen(force_terminal=is_terminal, color_system="standard" if is_terminal else None)
    opening.show_conversation(run, console)
    assert ("\x1b[1;32mgreen" in text_of(console)) == is_terminal
    assert text_of(console).count(MARKS[0]) == (0 if is_terminal else 4)  # one in the legend
    assert ("result is made up" in " ".join(text_of(console).split())) != is_terminal


# --------------------------------------------------------------------------------------- the bars


def test_work_is_a_bar_on_a_terminal_and_few_lines_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bar, plain = screen(force_terminal=True), screen()
    for console in (bar, plain):
        with working(console, "testing", 3) as count:
            count(2)
            monkeypatch.setattr("training.progress.PLAIN_SECONDS", 0.0)
            count(0)
            count(1)
            monkeypatch.setattr("training.progress.PLAIN_SECONDS", 20.0)
    assert "3/3" in text_of(bar)
    assert text_of(plain) == "testing ...\ntesting: 2 of 3\n"


def test_another_bar_fits_into_the_steps() -> None:
    console = screen(force_terminal=True)
    with Progress(2, 0, console) as progress:
        with progress.aside():
            assert progress.bar and not progress.bar.live.is_started  # older rich shows one only
            with working(console, "testing", 1) as count:
                count(1)
        progress.show({"step": 2, "loss": 1.0, "tokens_per_second": 1.0})
    assert "testing" in text_of(console) and "2/2" in text_of(console)


# ----------------------------------------------------------------------- the questions, the table


def test_the_shown_questions_and_tools_fit_and_no_row_of_training_has_them() -> None:
    rows, dropped = load_conversations(SHOWN / "questions.jsonl", bad_calls="error")
    assert len(rows) == 5 and not dropped.dropped
    with ToolBox(SHOWN / trial.TOOLS) as toolbox:
        for question in read_trials(SHOWN):
            for call in question.due:
                assert "error" not in toolbox.call(call.name, call.arguments)
        names = {name for row in rows for name in row.tool_names} | set(toolbox.by_name)
    shipped, _ = load_conversations(EMBEDDED_ROWS / "train.jsonl")
    assert not names & {name for row in shipped for name in row.tool_names}


def test_shown_questions_are_asked_as_the_rows_ask() -> None:
    prompt = SystemPrompt("Tools: ", shape="openai")
    shown = read_shown(prompt, set())
    assert len(shown) == 5 and all(row.prompt == prompt for row in shown.values())
    assert all(tool.shape == "openai" for row in shown.values() for tool in row.tools)
    assert "one call" not in read_shown(prompt, {"divide_cost"})
    assert read_shown(None, set()) == {}


def reply(text: str, tokens: int | None = None, verdict: str = "right") -> dict[str, Any]:
    shown = {"kind": "one", "question": "Q?", "tools": ["t"], "due": ["t()"]}
    return {**shown, "reply": text, "verdict": verdict, "tokens": tokens}


@pytest.mark.parametrize(
    ("text", "tokens", "end"),
    [
        ("le" * 400, 160, "... and so on: it was stopped after 160 tokens"),
        ('{"a": ' + '{"grents": ' * 9 + "}" * 9, None, "... and so on: it repeats itself"),
        ("word " * 3 + "end of a long reply that says many different things. " * 2, None, None),
    ],
)
def test_only_a_reply_without_end_is_cut(text: str, tokens: int | None, end: str | None) -> None:
    lines = finale._shortened(reply(text, tokens), 36, screen()).plain.split("\n")
    assert (lines[-1] == end and len(lines) == 3) if end else "\n".join(lines) == text.strip()


def test_a_trial_is_shown_event_by_event_and_a_loop_is_cut() -> None:
    question = Trial("Q?", (ToolCall("f", {"x": 1}),), ("f", "g"))
    events = [
        Event("think", "f fits."),
        Event("tool_call", {"name": "f", "arguments": {"x": 1}}),
        Event("tool_response", {"name": "f", "content": "2"}),
        Event("answer", "ing" * 200),
        Event("done", {"replies": 2}),
    ]
    console = screen()
    finale.show_trials(lambda: iter([(question, events), (question, [])]), console)
    lines = text_of(console).split("question Q?")
    assert lines[1].split("\n")[1:5] == [
        "tools    f, g",
        "think    f fits.",
        'call     f {"x": 1}',
        "result   2",
    ]
    assert (
        lines[1].count("\n") < 11
        and "done" not in lines[1]
        and "... and so on: it repeats itself" in lines[1]
    )
    assert "right    this is the call" in lines[1] and "wrong    due: f(x=1)" in lines[2]


@pytest.mark.parametrize("dataset", [None, ["rows.jsonl"]])
def test_whoever_brings_rows_is_told_that_the_questions_are_not_about_them(
    tmp_path: Path, dataset: list[str] | None
) -> None:
    line = json.dumps({"step": 0, "shown": [reply("x")]})
    (tmp_path / "metrics.jsonl").write_text(f"{line}\n{line}\n", encoding="utf-8")
    run: Any = SimpleNamespace(
        output=tmp_path,
        args=SimpleNamespace(shard=False, quiet=False, dataset=dataset),
        ranks=SimpleNamespace(is_first=True),
        data=SimpleNamespace(has_results=True),
    )
    console = screen()
    finale.show(run, lambda: iter([(Trial("Q?", ()), [])]), console)
    said = " ".join(text_of(console).split())
    assert "before and after" in said and "question Q?" in said
    for words in ("The questions are not about your tools", "They are not your tools,"):
        assert (words in said) == bool(dataset)


@pytest.mark.parametrize("has_results", [True, False])
def test_the_adapter_is_tried_where_its_rows_hold_results(
    tmp_path: Path, has_results: bool
) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "shown": [1]}\n', encoding="utf-8")
    run: Any = SimpleNamespace(
        output=tmp_path,
        args=SimpleNamespace(shard=False, quiet=False, dataset=None),
        ranks=SimpleNamespace(is_first=True),
        data=SimpleNamespace(has_results=has_results),
    )
    console = screen()
    finale.show(run, lambda: iter([(Trial("Q?", ()), [])]), console)
    said = text_of(console)
    assert ("question Q?" in said) == has_results != ("hold no results" in said)


def test_the_table_has_a_column_for_each_way_of_asking() -> None:
    n = {"overall": 4, "seen": 3, "unseen": 0, "no_call": 1, "parallel": 0}
    before = {
        "overall": 0.25,
        "seen": 0.0,
        "unseen": None,
        "no_call": 1.0,
        "parallel": None,
        "n": n,
    }
    line = {"step": 0, "eval_loss": 3.0, "tool_call_accuracy": before}
    after = {**line, "free": {"tool_call_accuracy": before | {"overall": 0.5}}}
    console = screen()
    finale.show_accuracy([line, {"step": 1}, after], console)
    said = text_of(console)
    assert "after, free" in said and "50% of 4" in said and "25% of 4" in said
    assert (
        "has never shown" not in said and "two calls" not in said
    )  # nothing of the kind was asked
    assert "that would be 25% of these." in " ".join(said.split())
    assert "Only calls are judged, not the words of an answer." in " ".join(said.split())
    with_no_free = screen()
    finale.show_accuracy([line, line], with_no_free)
    plain = text_of(with_no_free)
    assert "free" not in plain and "someone else" not in plain.lower()
    by_hand = {"overall": 0.5, "unseen": 0.2, "parallel": 0.0, "no_call": 0.75}
    counts = {"unseen": 30, "parallel": 10, "no_call": 20, "overall": 60}
    asked = {"questions_accuracy": by_hand | {"n": counts}}
    console = screen()
    finale.show_accuracy([line, line | asked], console)
    said = " ".join(text_of(console).split())
    assert "else's questions: one call" in said and "20% of 30" in said and "75% of 20" in said
    assert "Someone else's questions are plain English" in said
    assert "25% of these and 33% of someone else's questions" in said
    assert "asked, to save time" not in said  # as many before as after
    fewer = line | {"tool_call_accuracy": before | {"n": n | {"overall": 2}}}
    assert any("only 2 of the 4 were asked" in s for s in finale.explain_accuracy(fewer, line))
    calls = line | {"tool_call_accuracy": before | {"seen": 0.5}}
    assert not any("No call of the base" in s for s in finale.explain_accuracy(calls, line))
    lossless = line | {"eval_loss": None}
    assert not any("loss" in sentence for sentence in finale.explain_accuracy(line, lossless))


@pytest.mark.parametrize(
    ("text", "verdict", "due", "heading"),
    [
        ("I cannot.", "right", [], "after: right: no call"),
        ('{"name": "t"}', "right", [], f"after: right: {finale.OTHER_FORM}"),
        ('{\n "name": "t"}', "no call", ["t()"], f"after: wrong ({finale.OTHER_FORM})"),
        ("t(x=1)", "no call", ["t()"], f"after: wrong ({finale.OTHER_FORM})"),
        ("(none fits: sorry) I cannot {x}.", "right", [], "after: right: no call"),
        ("I cannot.", "no call", ["t()"], "after: wrong (no call is made)"),
        ("x", "right", ["t()"], "after: right"),
    ],
)
def test_a_call_in_another_form_is_named(
    text: str, verdict: str, due: list[str], heading: str
) -> None:
    shown = reply(text, verdict=verdict) | {"due": due}
    assert finale._heading("after", shown).plain == heading


def test_a_reply_is_asked_again_only_where_a_name_is_not_offered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokenizer = Tokenizer.from_pretrained(EMBEDDED_ROWS.parent / "weights")
    shown = read_shown(SystemPrompt("Tools: "), set())
    rows = list(shown.values())[:2]
    right = [render(row, tokenizer) for row in rows]
    ids = [[i for i, t in zip(e.tokens, e.trainable, strict=True) if t] for e in right]
    call = tokenizer.decode(ids[0]).replace('"divide_cost"', '"divide_costs"')
    tag = tokenizer.tag_ids["<tool_call>"]
    body = call.split("<tool_call>")[1].split("</tool_call>")[0]
    wrong = [tag, *tokenizer.encode(body), tokenizer.tag_ids["</tool_call>"], *ids[0][-1:]]
    asked: list[tuple[int, bool]] = []

    def write(
        _: Any, __: Any, conversations: Any, *args: Any, free: bool = False, **more: Any
    ) -> Any:
        asked.append((len(conversations), free))
        return [wrong, ids[1]] if free else [ids[0]]

    monkeypatch.setattr(trial, "first_replies", write)
    model: Any = None
    line = measure_calls(model, tokenizer, trial.Asked(rows, [], {}, set()))
    assert asked == [(2, True), (1, False)]
    assert line["tool_call_accuracy"]["overall"] == 1.0
    assert line["free"]["tool_call_accuracy"]["overall"] == 0.5


def test_a_reply_is_described_with_what_was_due() -> None:
    tokenizer = Tokenizer.from_pretrained(EMBEDDED_ROWS.parent / "weights")
    shown = {k: r for k, r in read_shown(SystemPrompt("Tools: "), set()).items() if k == "one call"}
    said = tokenizer.encode("la la la")
    (cut,) = describe_replies(tokenizer, shown, [said])
    (ended,) = describe_replies(tokenizer, shown, [[*said, *tokenizer.stop_ids[:1]]])
    assert cut["tokens"] == len(said) and cut["verdict"] == "cut"
    assert ended["tokens"] is None and ended["verdict"] == "no call"
    assert cut["reply"] == ended["reply"] == "la la la"
    assert cut["due"] == ["divide_cost(total=84, people=3)"]


def test_a_trial_is_right_with_the_calls_that_are_due_and_an_answer() -> None:
    question = Trial("Q?", (ToolCall("f", {"x": 1}),))
    call, answer = Event("tool_call", {"name": "f", "arguments": {"x": 1}}), Event("answer", "One.")
    assert question.is_right([call, answer]) and not question.is_right([call])
    assert not question.is_right([call, call, answer]) and not question.is_right([answer])
    assert question.due_text == "f(x=1)" and Trial("Q?", ()).due_text == "no call"
