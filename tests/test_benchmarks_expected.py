"""docs/expected-results.md is what the rows say, and says so where there is none."""

from pathlib import Path

import pytest

from benchmarks.expected import NOT_MEASURED, PAGE, RESULTS, TABLES, main, page, read_rows

STEP = {"name": "train_step", "impl": "ours", "config": "2b", "dtype": "bf16", "packs": 1}
STEP |= {
    "length": 512,
    "documents": 1,
    "p50_ms": 14571.7,
    "tokens_per_second": 35.1,
    "peak_bytes": 7796752384,
}


def lines_of(text: str, start: str) -> list[list[str]]:
    """The cells behind the first of each line that begins with this one."""
    found = [line for line in text.splitlines() if line.startswith(f"| {start} |")]
    return [[cell.strip() for cell in line.strip("|").split("|")][1:] for line in found]


def test_the_committed_page_is_that_of_the_committed_rows() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text == page(read_rows(RESULTS)), "run python -m benchmarks.expected"
    assert len(text.splitlines()) < 200


def test_a_figure_stands_with_its_device_and_what_is_missing_is_said() -> None:
    what = "Gemma-2-2B, bf16, 1 x 512 tokens"
    assert "tokens/s" not in page([]) and lines_of(page([]), what) == [
        ["CPU", NOT_MEASURED, NOT_MEASURED],
        ["Mac", NOT_MEASURED, NOT_MEASURED],
    ]
    cpu = STEP | {"device": "cpu (x86_64, 2 threads)"}
    peer = cpu | {"impl": "peft", "p50_ms": 23000.0, "peak_bytes": None}
    assert lines_of(page([cpu, peer]), what) == [
        [
            "cpu (x86_64, 2 threads)",
            "14.57 s, 35 tokens/s, peak 7.8 GB",
            "23.00 s, 35 tokens/s",
        ],
        ["Mac", NOT_MEASURED, NOT_MEASURED],
    ]
    # Several: the smallest and the largest. Another machine has a line of its own.
    again, other = cpu | {"p50_ms": 15000.0}, cpu | {"device": "cpu (arm64, 8 threads)"}
    found = lines_of(page([cpu, again, other]), what)
    assert found[0][1] == "14.57 to 15.00 s, 35 tokens/s, peak 7.8 GB (2 measurements)"
    assert [cells[0] for cells in found] == ["cpu (x86_64, 2 threads)", other["device"], "Mac"]


def test_another_shape_and_a_card_that_only_counts_are_no_measurement() -> None:
    what, shape = "Gemma-2-2B, bf16, 4 x 1024 tokens", {"packs": 4, "length": 1024}
    card = STEP | shape | {"device": "NVIDIA H100 80GB HBM3"}
    assert lines_of(page([card]), what)[0][:2] == [
        "NVIDIA H100 80GB HBM3",
        "14.57 s, 35 tokens/s, peak 7.8 GB",
    ]
    wrong = [card | {"length": 2048}, card | {"device": "Fake NVIDIA H100"}, card | {"dtype": "x"}]
    assert lines_of(page(wrong), what) == [["NVIDIA GPU", NOT_MEASURED, NOT_MEASURED]]


def test_every_line_names_a_command_of_the_repository() -> None:
    for command in (line.command for table in TABLES for line in table.lines):
        words = command.split()
        module = words[2].replace(".", "/") + ".py" if words[1] == "-m" else words[1]
        assert words[0] == "python" and (PAGE.parents[1] / module).is_file()


def test_the_evaluations_of_runs_are_told_by_their_ends() -> None:
    calls = {"unseen": 0.5, "seen": 0.25, "n": {"unseen": 4, "seen": 4}}
    run = {"name": "whole_run", "commit": "a", "device": "cpu (x)", "tool_call_accuracy": calls}
    rows = [
        run
        | {"seed": seed, "step": step, "eval_loss": 3.2 - step / 60 + seed / 10, "seconds": step}
        for seed in (0, 1)
        for step in (0, 60, 165)
    ]
    what = "the embedded default"
    # Without a commit's seconds no minutes are told.
    assert lines_of(page([row | {"seconds": None} for row in rows[:3]]), what)[0][1] == (
        "held-out loss 3.20 before, 0.45 after; tools never seen in training 50%; "
        "tools seen in training 25%"
    )
    told = lines_of(page(rows), what)[0][1]
    assert told.startswith("2.8 minutes; held-out loss 3.20 to 3.30 before, 0.45 to 0.55 after")
    assert told.endswith(" (2 measurements)")
    # Another model's run is no run of the embedded base.
    other = page([row | {"model": "google/gemma-2-2b-it", "adapt": "rows"} for row in rows])
    assert lines_of(other, what)[0] == ["CPU", NOT_MEASURED]


def test_a_broken_row_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.jsonl").write_text("{}\n{\n")
    assert main(["--results", str(tmp_path), "--page", str(tmp_path / "page.md")]) == 2
    assert capsys.readouterr().err.startswith("expected: broken.jsonl:2: expected a row of JSON")
    assert not (tmp_path / "page.md").exists()
