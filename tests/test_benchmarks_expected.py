"""docs/expected-results.md is what the rows say, and says so where there is none."""

import json
from pathlib import Path

import pytest
from builders import metrics

from benchmarks.expected import NOT_MEASURED, PAGE, RESULTS, TABLES, main, page, read_rows, row_of

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


def test_a_finished_run_becomes_a_row_and_another_folder_is_refused(
    truth: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results, written = tmp_path / "results", tmp_path / "page.md"
    results.mkdir()
    flags = ["--results", str(results), "--page", str(written)]
    assert main(["--add", str(truth), *flags]) == 0
    (row,) = read_rows(results)
    first, *_, last = metrics(truth)
    assert row["before"]["eval_loss"] == first["eval_loss"]
    assert row["after"]["eval_loss"] == last["eval_loss"] and row["steps"] == 4
    assert row["seconds"] > 0 and row["device"].startswith("cpu") and row["versions"]["torch"]
    # The embedded default's line has it once the run is one of the embedded base.
    shown = lines_of(page([row | {"model": None}]), "the embedded default")[0]
    ends = f"{first['eval_loss']:.2f} before, {last['eval_loss']:.2f} after"
    assert shown[0] == row["device"] and f"held-out loss {ends}" in shown[1]

    assert main(["--add", str(tmp_path / "none"), *flags]) == 2
    cut = tmp_path / "cut"
    cut.mkdir()
    (cut / "run.json").write_bytes((truth / "run.json").read_bytes())
    (cut / "metrics.jsonl").write_text(json.dumps(first) + "\n")
    with pytest.raises(ValueError, match="expected a finished run"):
        row_of(cut)
    (results / "broken.jsonl").write_text("{}\n{\n")
    capsys.readouterr()
    assert main(flags) == 2
    assert capsys.readouterr().err.startswith("expected: broken.jsonl:2: expected a row of JSON")
