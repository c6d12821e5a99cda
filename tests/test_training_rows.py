"""What a run says of its rows: losses, bad calls, several data sets, held-out files, the check."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from builders import CITIES, RUN_FILES, metrics, time_row

import train
from data.call_check import bad_calls
from data.dataset import load_conversations, weighted
from data.schema import parse_row
from training.reading import parse_dataset

Start = Callable[..., tuple[int, Path, str]]
EXAMPLES = Path(__file__).parents[1] / "data" / "examples"
CALL = '"arguments": {"city": '


@pytest.fixture
def start(small_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Start:
    """start(*flags) -> (exit code, output folder, what it printed on both streams)."""

    def run(*flags: Any, output: str = "out") -> tuple[int, Path, str]:
        folder = tmp_path / output
        defaults = ["--model", small_base, "--output", folder, "--device", "cpu", "--rank", "4"]
        defaults += ["--max-length", "256", "--eval-calls", "0", "--max-steps", "1"]
        code = train.main([str(flag) for flag in (*defaults, *flags)])
        streams = capsys.readouterr()
        return code, folder, " ".join((streams.out + streams.err).split())

    return run


def write(path: Path, *rows: Any) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def good_rows(count: int = 12) -> list[dict[str, Any]]:
    return [time_row(city) for city in CITIES[:count]]


def with_call(arguments: str, name: str = "get_time") -> dict[str, Any]:
    row = time_row("Oslo")
    call = f'{{"name": "{name}", "arguments": {arguments}}}'
    row["conversations"][2]["content"] = f"<tool_call>{call}</tool_call>"
    return row


def test_unreadable_rows_are_shown_and_all_written(start: Start, tmp_path: Path) -> None:
    broken = [{"conversations": [{"role": "pope", "content": str(i)}]} for i in range(7)]
    path = write(tmp_path / "a.jsonl", *good_rows(), *broken)
    code, folder, said = start("--dataset", path)
    assert code == 2 and "expected at most 5% unreadable rows, got 7 of 19" in said
    assert "a.jsonl:13: message 1: expected a role" in said and "and 2 more" in said
    code, folder, said = start("--dataset", path, "--max-dropped", "0.5")
    assert code == 0 and "7 rows could not be read; the first of them:" in said
    assert "a.jsonl:13: message 1: expected a role" in said
    lines = [json.loads(line) for line in (folder / "dropped.jsonl").read_text().splitlines()]
    assert [line["place"] for line in lines] == [f"a.jsonl:{n}" for n in range(13, 20)]
    assert {line["kind"] for line in lines} == {"unreadable"}
    assert all("expected a role" in line["reason"] for line in lines)
    assert start("--dataset", write(tmp_path / "b.jsonl", *good_rows()), "--overwrite")[0] == 0
    assert {item.name for item in folder.iterdir()} == RUN_FILES  # the old reasons are gone


@pytest.mark.parametrize(
    ("arguments", "name", "problem"),
    [
        ('{"city": "Oslo"}', "get_time", ""),
        ('{"city": "Oslo", "day": 1}', "get_time", "get_time: unknown argument 'day'"),
        ('{"city": 5}', "get_time", "get_time: city must be string, got 5;"),
        ("{}", "get_time", "get_time: missing argument 'city'"),
        (
            '{"city": "Oslo"}',
            "get_tim",
            "calls 'get_tim', which is not offered; the tools are 'get_",
        ),
    ],
)
def test_a_call_that_its_tools_do_not_allow_is_found(
    arguments: str, name: str, problem: str
) -> None:
    found = bad_calls(parse_row(with_call(arguments, name), "f:1"))
    assert len(found) == bool(problem)
    assert not problem or found[0].startswith(f"f:1: {problem}")
    assert not problem or found[0].endswith(
        "; correct the row, or leave such rows out with --bad-calls drop"
    )
    row = with_call(arguments, name)
    row["conversations"][2]["weight"] = 0  # context, which nobody learns
    assert bad_calls(parse_row(row)) == []


@pytest.mark.parametrize(
    "schema", [{"type": {}}, {"enum": 3}, {"anyOf": 1}, {"items": []}, {"required": True}]
)
def test_a_malformed_schema_allows_every_value(schema: dict[str, Any]) -> None:
    # Further inside than the reader of tools looks
    inner = {"type": "object", "properties": {"b": schema}}
    outer = {"type": "object", "properties": {"a": {"type": "array", "items": inner}}}
    tool = {"name": "f", "parameters": outer}
    call = {"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"a": [{"b": 1}]}}]}
    row = {"messages": [{"role": "user", "content": "x"}, call], "tools": [tool]}
    assert bad_calls(parse_row(row)) == []


def test_bad_calls_are_kept_dropped_or_refused(start: Start, tmp_path: Path) -> None:
    bad = with_call('{"town": "Oslo"}')
    path = write(tmp_path / "a.jsonl", *good_rows(), bad)
    flags = ("--dataset", path, "--eval-fraction", "0")
    code, folder, said = start(*flags)
    assert code == 0 and "2 calls do not fit their tools (trained on all the same" in said
    assert "a.jsonl:13: get_time: missing argument 'city'" in said
    reading = json.loads((folder / "run.json").read_text())["data"]["reading"]
    assert (reading["bad_calls"], reading["dropped_for_calls"], reading["calls"]) == (2, 0, 13)
    code, folder, said = start(*flags, "--bad-calls", "drop", output="drop")
    assert code == 0 and "(left out; see --bad-calls)" in said
    reading = json.loads((folder / "run.json").read_text())["data"]["reading"]
    assert (reading["dropped_for_calls"], reading["calls"]) == (1, 12)
    code, _, said = start(*flags, "--bad-calls", "error", output="error")
    assert code == 2 and "a.jsonl:13: get_time: unknown argument 'town'" in said


def test_rows_without_calls_are_warned_about(start: Start, tmp_path: Path) -> None:
    prose = time_row("Oslo")
    prose["conversations"][2]["content"] = "get_time(city=Oslo)"
    path = write(tmp_path / "a.jsonl", *[prose] * 4)
    code, _, said = start("--dataset", path, "--eval-fraction", "0")
    assert code == 0 and "tools: offered in 4 rows, 0 calls made" in said
    assert "warning: no row makes a call" in said
    del prose["conversations"][0]
    _, _, said = start(
        "--dataset", write(path, *[prose] * 4), "--eval-fraction", "0", "--overwrite"
    )
    assert "warning: no row offers a tool" in said
    _, _, said = start("--dataset", write(path, *good_rows()), "--overwrite")
    assert "12 calls made" in said and "warning" not in said


def test_toolace_rows_are_calls_to_a_run(start: Start) -> None:
    flags = ("--dataset", EXAMPLES / "toolace.jsonl", "--eval-fraction", "0")
    code, _, said = start(*flags, "--max-length", "512")
    assert code == 0 and "tools: offered in 1 rows, 1 calls made" in said


def test_several_data_sets_with_weights(start: Start, tmp_path: Path) -> None:
    one = write(tmp_path / "one.jsonl", *good_rows(4))
    other = write(tmp_path / "other=2.jsonl", *good_rows(12)[4:])
    flags = ("--eval-fraction", "0", "--dataset", f"{one}=2.5", "--dataset", other)
    code, folder, _ = start(*flags)
    assert code == 0
    data = json.loads((folder / "run.json").read_text())["data"]
    assert data["reading"]["rows"] == 12 and data["rendering"]["examples"] == 2.5 * 4 + 8
    assert data["rendering"]["duplicates"] == 0
    for text in (f"{one}=0", f"{one}=x", f"{one}=nan", "=2"):
        code, _, said = start("--dataset", text, output="wrong")
        assert code == 2 and "expected NAME=WEIGHT with a number above 0" in said


def test_weights_are_drawn_by_the_seed(tmp_path: Path) -> None:
    rows, _ = load_conversations(write(tmp_path / "a.jsonl", *good_rows()))
    half = weighted(rows, 0.5, seed=1)
    assert len(half) == 6 and half == weighted(rows, 0.5, seed=1) != weighted(rows, 0.5, seed=2)
    assert parse_dataset("owner/set=0.25") == ("owner/set", 0.25)
    assert parse_dataset("owner/set") == ("owner/set", 1.0)


def test_a_file_of_its_own_is_held_out(start: Start, tmp_path: Path) -> None:
    rows = write(tmp_path / "a.jsonl", *good_rows(8))
    held_out = write(tmp_path / "b.jsonl", *good_rows()[7:])
    flags = ("--dataset", rows, "--eval-dataset", held_out, "--eval-fraction", "0.5")
    code, folder, said = start(*flags)
    assert code == 0 and "rows: 8 to train on, 5 held out;" in said
    assert "warning: 1 rows of --eval-dataset are trained on too" in said
    assert metrics(folder)[0]["eval_loss"] > 0
    assert start("--dataset", rows, "--eval-dataset", "nowhere.jsonl", output="no")[0] == 2


def test_rows_that_a_held_out_file_loses_are_named(start: Start, tmp_path: Path) -> None:
    rows = write(tmp_path / "a.jsonl", *good_rows(8))
    held_out = write(tmp_path / "b.jsonl", *good_rows()[7:], {"messages": 5})
    flags = ("--dataset", rows, "--eval-dataset", held_out, "--max-dropped", "0.5")
    code, folder, said = start(*flags)
    assert code == 0 and "b.jsonl:6" in said
    assert "b.jsonl:6" in (folder / "dropped.jsonl").read_text()


def test_the_best_evaluation_is_kept(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses, real = iter([3.0, 2.0, 1.0, 2.5]), train.evaluate
    monkeypatch.setattr(train, "evaluate", lambda *args: {**real(*args), "eval_loss": next(losses)})
    rows = write(tmp_path / "a.jsonl", *good_rows())
    flags = ("--dataset", rows, "--accumulate", "1", "--eval-every", "2", "--save-every", "0")
    code, folder, said = start(*flags, "--max-steps", "5", "--lr", "0.01")
    assert code == 0 and "best evaluation: step 4, held-out loss 1.000" in said
    assert [line["step"] for line in metrics(folder) if line.get("eval_loss")] == [0, 2, 4, 5]
    best = folder / "best"
    assert json.loads((best / "best.json").read_text())["step"] == 4
    last = (folder / "adapter_model.safetensors").read_bytes()
    assert (best / "adapter_model.safetensors").read_bytes() != last
    assert {"adapter_config.json", "tokenizer.json"} <= {path.name for path in best.iterdir()}
    monkeypatch.setattr(train, "evaluate", real)
    assert start(*flags, "--eval-every", "0", "--overwrite")[0] == 0 and not best.exists()


def test_check_says_what_a_run_needs_and_writes_nothing(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = write(tmp_path / "a.jsonl", *good_rows(), {"messages": []})
    flags = ("--dataset", rows, "--max-dropped", "1", "--accumulate", "1", "--max-steps", "50")
    code, folder, said = start(*flags, "--check")
    assert code == 0 and not folder.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl"]
    assert "a.jsonl:13: expected a list of messages" in said and "all of them are in" not in said
    assert said.count("What time is it in") == 2  # two rows with their masks
    assert len(set(re.findall(r"What time is it in (\w+)", said))) == 2  # not one of them twice
    assert "which 50 steps show about" in said
    assert re.search(r"check: these steps are \d+\.?\d* passes over the rows", said)
    assert "a share of fewer than 20 says little" in said
    assert "check: 50 steps of" in said and "take about" in said and "GB of memory" in said
    assert "nothing was trained and nothing was written" in said
    code, folder, _ = start(*flags)
    before = (folder / "run.json").read_bytes()
    assert code == 0 and start(*flags, "--check", "--overwrite")[0] == 2
    assert (folder / "run.json").read_bytes() == before
    assert start(*flags, "--check", "--resume")[0] == 2


def test_augmented_rows_are_counted_and_held_out_ones_stay(
    start: Start, small_rows: Path, tmp_path: Path
) -> None:
    """run.json says how many rows each kind has changed, and nothing without the flag."""
    runs = {}
    for name, flags in (("plain", []), ("changed", ["--augment", "names=1,missing=0"])):
        flags = [*flags, "--eval-calls", "1"]
        code, folder, printed = start("--dataset", small_rows, *flags, output=name)
        assert code == 0, printed
        # A tool that training shows under another name is no unseen one.
        assert metrics(folder)[0]["tool_call_accuracy"]["n"]["seen"] == 1
        runs[name] = json.loads((folder / "run.json").read_text())
    assert "augmented" not in runs["plain"]["data"]
    counted = runs["changed"]["data"]["augmented"]
    assert (
        set(counted) == {"names", "missing"}
        and counted["names"] + 1 == 12
        and not counted["missing"]
    )
    losses = {name: metrics(tmp_path / name)[0]["eval_loss"] for name in runs}
    assert losses["plain"] == losses["changed"]  # before the first step, on the same rows
    assert metrics(tmp_path / "plain")[1]["loss"] != metrics(tmp_path / "changed")[1]["loss"]
    code, _, printed = start("--dataset", "missing.jsonl", "--augment", "nams", output="wrong")
    assert code == 2 and "--augment: expected all, or some of" in printed
