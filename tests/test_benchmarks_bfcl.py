"""The leaderboard's questions asked of a model: what is due, what is kept, what the tables say."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from builders import make_adapter

from benchmarks import bfcl
from benchmarks.bfcl_cases import CATEGORIES, KINDS, UNSEEN, Case, changed, load_cases, sample
from benchmarks.bfcl_check import our_judge
from benchmarks.bfcl_table import tables, wilson
from data.augment import NEAR
from data.chat import render, render_prompt
from data.conversation import DEFAULT_PROMPT, Conversation, SystemPrompt, ToolCall
from data.lenient_json import HINTS
from data.reply import Reply
from data.tokenizer import Tokenizer
from data.tool_calls import CallError
from data.tool_schema import write_tool

TEXT = {"type": "string", "description": "The one."}
SIZE = {"type": "integer", "description": "How many."}
WEATHER = {"city": TEXT, "days": SIZE}
CITIES = ("Oslo", "Rome", "Lima", "Cairo", "Quito")


def function(name: str, properties: dict[str, Any], *required: str) -> dict[str, Any]:
    parameters = {"type": "dict", "properties": properties, "required": list(required)}
    return {"name": name, "description": f"Does {name}.", "parameters": parameters}


def question(id: str, text: str, *turns: str) -> dict[str, Any]:
    functions = [function("get.weather", WEATHER, "city"), function("get_time", {"city": TEXT})]
    messages = [{"role": "user", "content": turn} for turn in (*turns, text)]
    return {"id": id, "question": [messages], "function": functions}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A few questions as the leaderboard's package has them."""
    weather = {"city": ["Oslo", "Oslo, Norway"], "days": [2, ""]}
    rows: dict[str, list[dict[str, Any]]] = {
        "multiple": [question(f"m{i}", f"The weather in {city}?") for i, city in enumerate(CITIES)],
        "parallel": [question("p0", "The weather and the time in Oslo?")],
        "irrelevance": [question("i0", "How are you?", "Hello")],
        "live_relevance": [question("r0", "What is it like outside?")],
    }
    truths: dict[str, list[Any]] = {
        "multiple": [[{"get.weather": weather | {"city": [city]}}] for city in CITIES],
        "parallel": [[{"get.weather": weather}, {"get_time": {"city": ["Oslo"]}}]],
    }
    data = tmp_path / "data"
    (data / "possible_answer").mkdir(parents=True)
    for name, found in rows.items():
        lines = [json.dumps(row) + "\n" for row in found]
        (data / f"BFCL_v4_{name}.json").write_text("".join(lines))
    for name, answers in truths.items():
        pairs = zip(rows[name], answers, strict=True)
        lines = [json.dumps({"id": row["id"], "ground_truth": a}) + "\n" for row, a in pairs]
        (data / "possible_answer" / f"BFCL_v4_{name}.json").write_text("".join(lines))
    monkeypatch.setattr(bfcl, "data_folder", lambda: data)
    return data


def only(folder: Path, category: str, place: int = 0) -> Case:
    return load_cases(folder, category)[place]


def due_calls(case: Case) -> list[ToolCall]:
    return list(case.row.messages[-1].calls)


def test_a_case_is_the_question_without_its_answer(folder: Path) -> None:
    case = only(folder, "multiple")
    asked = case.question(DEFAULT_PROMPT)
    assert [turn.content for turn in asked.messages] == ["The weather in Oslo?"] == [case.text]
    assert [tool.name for tool in asked.tools] == ["get.weather", "get_time"]
    shown = write_tool(asked.tools[0])["function"]["parameters"]
    assert (shown["type"], shown["required"]) == ("object", ["city"])  # JSON schema's words
    assert case.functions[0]["parameters"]["type"] == "dict"  # the leaderboard's
    assert our_judge(case, [ToolCall("get.weather", {"city": "oslo"})])
    # Two turns of one role are one, and no call is listed.
    none = only(folder, "irrelevance")
    assert [turn.content for turn in none.question(DEFAULT_PROMPT).messages] == [
        "Hello\n\nHow are you?"
    ]
    assert (none.due, only(folder, "live_relevance").due, case.due) == ("none", "some", "calls")


BROKEN = CallError("not_json", "no JSON", HINTS["not_an_object"])
GOOD, OTHER = ToolCall("get.weather", {"city": "Oslo"}), ToolCall("get_time", {})


@pytest.mark.parametrize(
    ("category", "outcomes", "expected"),
    [
        ("multiple", (GOOD,), "right"),
        ("multiple", (OTHER,), "expected get.weather, got get_time"),
        ("multiple", (GOOD, BROKEN), "broken call: not_json"),
        ("multiple", (), "expected 1 calls, got 0"),
        ("irrelevance", (), "right"),
        ("irrelevance", (BROKEN,), "right"),  # as on the leaderboard, which reads no call in it
        ("irrelevance", (OTHER,), "a call where none is due"),
        ("live_relevance", (OTHER,), "right"),
        ("live_relevance", (), "no call"),
        ("live_relevance", (BROKEN,), "broken call: not_json"),
    ],
)
def test_a_reply_has_a_verdict(
    folder: Path, category: str, outcomes: tuple[Any, ...], expected: str
) -> None:
    assert bfcl.verdict(only(folder, category), Reply(outcomes=outcomes)) == expected


def test_what_is_due_follows_the_change(folder: Path) -> None:
    case, pool = only(folder, "multiple"), only(folder, "parallel").row.tools
    found = {kind: changed(case, kind, pool, seed=1) for kind in KINDS}
    assert all(found.values()) or found["shuffle"] is None  # two tools may stay in their order
    near, names, none, missing = (found[kind] for kind in ("near", "names", "none", "missing"))
    assert near and names and none and missing
    assert len(near.question(DEFAULT_PROMPT).tools) > 2 and our_judge(near, due_calls(case))
    # New names are due, and the old ones are wrong.
    assert our_judge(names, due_calls(names)) and not our_judge(names, due_calls(case))
    (call,), (tool, _) = due_calls(names), names.question(DEFAULT_PROMPT).tools
    assert call.name == tool.name == names.functions[0]["name"] != "get.weather"
    assert set(call.arguments) <= set(names.functions[0]["parameters"]["properties"])
    assert (
        names.functions[0]["parameters"]["required"] == list(tool.required) == [*call.arguments][:1]
    )
    days = [*tool.parameters["properties"]][1]
    assert our_judge(names, [ToolCall(call.name, call.arguments | {days: 2})])
    assert [tool.name for tool in none.question(DEFAULT_PROMPT).tools] == ["get_time"]
    assert missing.text == "The weather?" and missing.question(DEFAULT_PROMPT).tools
    assert (none.due, missing.due, near.due, names.due) == ("none", "none", "calls", "calls")
    assert changed(case, "names", pool, seed=1) == names != changed(case, "names", pool, seed=2)
    assert changed(only(folder, "irrelevance"), "none", pool, seed=1) is None


def test_a_sample_is_drawn_by_the_seed(folder: Path) -> None:
    cases = load_cases(folder, "multiple")
    drawn = {tuple(case.id for case in sample(cases, 3, seed)) for seed in range(12)}
    assert len(drawn) > 3 and all(len(ids) == 3 and [*ids] == sorted(ids) for ids in drawn)
    assert sample(cases, 3, 5) == sample(cases, 3, 5) and sample(cases, None, 5) == cases


class Script:
    """Replaces `write_replies`: the due reply to the questions of these cases, none to others."""

    def __init__(self, cases: Sequence[Case]) -> None:
        self.due = {case.text: case.row.messages[-1] for case in cases}
        self.asked: list[str] = []
        self.models: list[tuple[bool, str]] = []  # has an adapter; the wording of a question

    def __call__(
        self, model: Any, tokenizer: Tokenizer, asked: Sequence[Conversation], *_: Any, **__: Any
    ) -> list[list[int]]:
        replies = []
        has_adapter = any("lora_" in name for name, _ in model.named_parameters())
        for one in asked:
            self.models.append((has_adapter, one.prompt.before if one.prompt else ""))
            text = one.messages[-1].content
            self.asked.append(text)
            turns = (*one.messages, self.due[text]) if text in self.due else one.messages
            whole = Conversation(turns, one.tools, one.prompt, one.system)
            replies.append(render(whole, tokenizer).tokens[len(render_prompt(one, tokenizer)) :])
        return replies


@pytest.fixture
def flags(small_base: Path, folder: Path) -> list[str]:
    categories = "multiple,parallel,irrelevance,live_relevance"
    return [*f"--model {small_base} --device cpu --categories {categories}".split()]


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rows_and_tables(
    flags: list[str],
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    script = Script(
        [case for name in ("multiple", "parallel") for case in load_cases(folder, name)]
    )
    monkeypatch.setattr(bfcl, "write_replies", script)
    out = tmp_path / "rows.jsonl"
    assert bfcl.main([*flags, "--perturb", "near,near-unseen,none", "--out", str(out)]) == 0
    head, *rows = read(out)
    assert head["settings"]["names"] == "offered" and "commit" in head
    assert str(tmp_path.parent) not in out.read_text()  # no folder of this machine
    right = {(row["change"], row["id"]): row["right"] for row in rows}
    assert len(rows) == len(right) == 8 + 6 + 6 + 5  # both tools of the parallel one would go
    assert all(right["plain", f"m{i}"] and right["near", f"m{i}"] for i in range(5))
    # The script calls where the tool is gone; it says nothing where it knows no answer.
    assert not any(ok for (kind, _), ok in right.items() if kind == "none")
    assert right["plain", "i0"] and not right["plain", "r0"]
    shown = (tmp_path / "rows.md").read_text()
    assert shown in capsys.readouterr().out
    assert "| multiple | 5 | 100.0% (56.6 to 100.0) |" in shown
    assert "| live_relevance | 1 | 0.0% (0.0 to 79.3) |" in shown
    assert "| **all with due calls** | 6 | 100.0% (61.0 to 100.0) |" in shown
    assert "| near | the same | 6 | 100.0% (61.0 to 100.0) | 100.0% (61.0 to 100.0) |" in shown
    assert (
        "| near-unseen | the same | 6 | 100.0% (61.0 to 100.0) | 100.0% (61.0 to 100.0) |" in shown
    )
    assert "| none | no call | 5 | 100.0% (56.6 to 100.0) | 0.0% (0.0 to 43.4) |" in shown


def test_a_stopped_run_goes_on(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, script = tmp_path / "rows.jsonl", Script([])
    monkeypatch.setattr(bfcl, "write_replies", script)
    assert bfcl.main([*flags, "--out", str(out)]) == 0
    whole, table = out.read_text(), out.with_suffix(".md").read_text()
    assert len(script.asked) == 8
    lines = whole.splitlines(keepends=True)
    out.write_text("".join(lines[:4]) + lines[4][:20])  # the process ended while it wrote
    assert bfcl.main([*flags, "--out", str(out)]) == 0
    assert len(script.asked) == 8 + 5 and len(read(out)) == 9
    assert out.with_suffix(".md").read_text() == table
    assert bfcl.main([*flags, "--out", str(out)]) == 0 and len(script.asked) == 13


def test_rows_of_other_settings_are_not_mixed(
    flags: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "rows.jsonl"
    monkeypatch.setattr(bfcl, "write_replies", Script([]))
    assert bfcl.main([*flags, "--limit", "1", "--out", str(out)]) == 0
    before = out.read_text()
    assert bfcl.main([*flags, "--names", "free", "--out", str(out)]) == 2
    assert "expected the rows of {'names': 'free'" in capsys.readouterr().err
    assert out.read_text() == before


def test_a_random_base_is_asked(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    more = "--limit 1 --max-new-tokens 3 --categories multiple,irrelevance"
    assert bfcl.main([*flags, *more.split()]) == 0
    shown = capsys.readouterr().out
    assert "base: 2/2 answers, 1 of the last 2 right" in shown
    assert "| multiple | 1 | 0.0% (0.0 to 79.3) |" in shown


def test_base_and_adapter_are_asked_in_the_wording_of_the_adapter(
    flags: list[str], small_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = make_adapter(small_base, tmp_path)
    tokenizer = Tokenizer.from_pretrained(adapter)
    tokenizer.prompt = SystemPrompt("Own words: ", "", "function")
    tokenizer.save(adapter)
    script = Script([])
    monkeypatch.setattr(bfcl, "write_replies", script)
    more = ["--adapter", str(adapter), "--limit", "1", "--categories", "multiple"]
    assert bfcl.main([*flags[2:], *more]) == 0  # the adapter names its base
    assert script.models == [(False, "Own words: "), (True, "Own words: ")]
    assert bfcl.main([*flags[2:], *more, "--only", "adapter"]) == 0
    assert script.models[2:] == [(True, "Own words: ")]


def test_what_an_adapter_has_seen_is_left_out(
    flags: list[str],
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, rows = tmp_path / "run", tmp_path / "rows.jsonl"
    run.mkdir()
    turns = [{"role": "user", "content": "The weather in Rome?"}]
    rows.write_text(
        json.dumps({"messages": [*turns, {"role": "assistant", "content": "7"}]}) + "\n"
    )
    arguments = {"dataset": [str(rows)], "eval_fraction": 0.0, "eval_dataset": None, "seed": 0}
    arguments |= {"bad_calls": "keep", "max_dropped": 1.0}
    (run / "run.json").write_text(json.dumps({"arguments": arguments}))
    args = bfcl.parse_args([*flags, "--adapter", str(run)])
    assert args.only == ("base", "adapter")
    assert "Rome" not in "".join(case.text for case in bfcl.gather(args))
    assert f"1 of 8 questions left out: {run} has seen them" in capsys.readouterr().out
    args.with_trained = True
    assert len(bfcl.gather(args)) == 8
    rows.unlink()
    args.with_trained = False
    assert len(bfcl.gather(args)) == 8
    assert f"{rows}: not here, so that questions which" in capsys.readouterr().out


def test_wilson() -> None:
    # Values of R's prop.test(..., correct = FALSE)
    for right, number, low, high in ((8, 10, 0.4902, 0.9433), (0, 10, 0.0, 0.2775)):
        assert wilson(right, number) == (
            pytest.approx(low, abs=1e-4),
            pytest.approx(high, abs=1e-4),
        )
    assert wilson(200, 400) == (pytest.approx(0.4512, abs=1e-4), pytest.approx(0.5488, abs=1e-4))


def test_base_and_adapter_stand_side_by_side() -> None:
    rows = [
        {"who": who, "change": "plain", "category": "live_simple", "id": str(i), "right": i < n}
        for who, n in (("base", 0), ("adapter", 2))
        for i in range(4)
    ]
    lines = tables(rows).splitlines()
    assert lines[0] == "| category | n | base | adapter |"
    assert lines[2] == "| live_simple | 4 | 0.0% (0.0 to 49.0) | 50.0% (15.0 to 85.0) |"
    assert [line.split(" | ")[0] for line in lines[3:]] == [
        "| **all with due calls**",
        "| **live**",
    ]


def test_wrong_input_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for flags, said in (
        ("--categories simple,parallel", f"expected some of {', '.join(CATEGORIES)}, got simple"),
        ("--only adapter", "--only adapter: expected --adapter RUN too, got none"),
        (
            "--perturb names,x",
            f"expected some of {', '.join(KINDS)}, got names,x",
        ),
    ):
        with pytest.raises(SystemExit) as ended:
            bfcl.main(flags.split())
        assert ended.value.code == 2 and said in capsys.readouterr().err
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert bfcl.main(["--check-rules", "5"]) == 2
    assert "pip install --no-deps bfcl-eval" in capsys.readouterr().err


def test_a_category_without_its_file_is_named(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match="expected a file BFCL_v4_live_simple.json, got"):
        load_cases(folder, "live_simple")


def test_near_duplicates_of_the_benchmark_are_not_those_of_training(folder: Path) -> None:
    case = load_cases(folder, "multiple")[0]
    ours = changed(case, UNSEEN, [], seed=0)
    assert ours is not None and ours.truth == case.truth and ours.due == case.due
    new = {tool.name for tool in ours.row.tools} - {tool.name for tool in case.row.tools}
    assert new and not {name.rsplit("_", 1)[1] for name in new} & {word for word, _ in NEAR}
