"""What the pages' pictures and rows are made of: counted bytes, and a run's evaluations."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import pictures, run_rows
from benchmarks.pictures import RANK, Traffic

ROWS, WIDTH = 126, 2304


def test_bytes_of_activations_are_counted_and_nothing_else() -> None:
    x = torch.ones(ROWS, WIDTH, dtype=torch.bfloat16)
    weight, factor = torch.ones(WIDTH, WIDTH).bfloat16(), torch.ones(RANK, WIDTH).bfloat16()
    matrix = 2 * ROWS * WIDTH
    cases = {
        "read and written": (lambda: x + 1.0, 2 * matrix),
        "in place": (lambda: x.add_(1.0), 2 * matrix),
        "a view": (lambda: x.T[:100].reshape(100, ROWS)[0], 0),
        "a weight is not counted": (lambda: x @ weight, 2 * matrix),
        "nor are a factor and what is as narrow": (lambda: x @ factor.T, matrix),
        "to four bytes": (lambda: x.float(), 3 * matrix),
    }
    for name, (call, expected) in cases.items():
        with Traffic(ROWS) as counted:
            call()
        assert counted.bytes == expected, name


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's record and metrics: one line with an evaluation between two without."""
    arguments = {"seed": 3, "model": None, "adapt": "rows"}
    record: dict[str, Any] = {"arguments": arguments, "parameters": 10, "device": "cpu"}
    record |= {"trainable_parameters": 2, "versions": {}, "git_commit": "c", "total_steps": 6}
    (tmp_path / "run.json").write_text(json.dumps(record))
    scored = {"step": 5, "eval_loss": 0.5, "tool_call_accuracy": {"overall": 1.0}, "lr": 1.0}
    scored |= {"eval_seconds": 7.0, "tokens": 30, "tokens_per_second": 10.0}
    lines = [{"step": 4, "tokens": 20, "tokens_per_second": 10.0}, scored, {"step": 6}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def test_the_evaluations_of_a_run_become_rows_with_its_own_facts(run: Path) -> None:
    out = run / "rows.jsonl"
    assert run_rows.main([str(run), "--out", str(out)]) == 0
    (row,) = [json.loads(line) for line in out.read_text().splitlines()]
    assert (row["step"], row["seed"], row["device"], row["commit"]) == (5, 3, "cpu", "c")
    assert row["tool_call_accuracy"] == {"overall": 1.0} and "lr" not in row
    assert row["seconds"] == 12.0  # two steps and an evaluation


def test_what_is_no_scored_run_is_one_sentence(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "metrics.jsonl").write_text('{"step": 1}\n')
    for folder in (run, run / "missing"):
        assert run_rows.main([str(folder), "--out", str(run / "rows.jsonl")]) == 2
        assert capsys.readouterr().err.startswith("run_rows: ")
    assert not (run / "rows.jsonl").exists()


def test_a_picture_of_rows_is_drawn(tmp_path: Path) -> None:
    assert pictures.main(["kinds", "before_after", "--out", str(tmp_path)]) == 0
    for name in ("kinds", "before_after"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
