"""The files that a run leaves: whole after a stop, honest about what is not a number. And progress
and flags."""

import argparse
import io
import json
import math
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread
from rich.console import Console

from common import atomic
from common.cli import float_in, int_at_least
from training.progress import Progress, StopSignal
from training.report import draw_loss
from training.run_folder import (
    append_metrics,
    git_commit,
    keep_metrics_until,
    read_best,
    read_metrics,
    versions,
    write_json,
)

ACCURACY = {
    "overall": 0.5,
    "seen": 0.5,
    "unseen": None,
    "no_call": None,
    "parallel": None,
    "n": {"overall": 2},
}
START = {"step": 0, "eval_loss": 3.0, "tool_call_accuracy": ACCURACY | {"overall": 0.0}}
END = {"step": 3, "loss": 1.0, "eval_loss": 1.5, "tool_call_accuracy": ACCURACY}
STEPS: list[dict[str, Any]] = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}]


def picture(folder: Path) -> Any:
    """Draws the loss; returns the image (height, width, 4), a PNG of a sensible size."""
    draw_loss(folder)
    content = (folder / "loss.png").read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n") and 8_000 < len(content) < 300_000
    image = imread(folder / "loss.png")
    assert image.shape[:2] == (480, 840) and sorted(os.listdir(folder)) == [
        "loss.png",
        "metrics.jsonl",
    ]
    return image


def count_pixels(image: Any, red: Any, green: Any, blue: Any) -> Any:
    """Pixels of about this colour inside the axes, where no legend stands."""
    return int((abs(image[..., :3] - [red, green, blue]) < 0.1).all(-1).sum())


BLUE, ORANGE, GREEN = (0.122, 0.467, 0.706), (1.0, 0.498, 0.055), (0.173, 0.627, 0.173)


def draw(folder: Path, lines: list[dict[str, Any]]) -> Any:
    for line in lines:
        append_metrics(folder, line)
    return picture(folder)


def test_the_picture_shows_training_evaluation_and_calls(tmp_path: Path) -> None:
    image = draw(tmp_path, [START, *STEPS, END])
    blue, orange, green = (count_pixels(image, *colour) for colour in (BLUE, ORANGE, GREEN))
    # Points: a line from one evaluation to the next would have a thousand pixels.
    assert blue > 200 and 100 < orange < 600 and 100 < green < 600


@pytest.mark.parametrize(
    "lines",
    [
        [START],
        [{"step": 0, "eval_loss": None, "tool_call_accuracy": None}, *STEPS],
        [{"step": n, "loss": math.nan} for n in range(1, 4)],
        [{"step": 1, "loss": math.inf}, {"step": 2, "loss": 1.0}, {"step": 3, "loss": math.nan}],
        [START | {"eval_loss": math.nan}, *STEPS],
        [START | {"tool_call_accuracy": ACCURACY | {"overall": None}}, *STEPS, END],
    ],
    ids=[
        "only the start",
        "nothing held out",
        "all nan",
        "inf and nan",
        "held-out nan",
        "no share",
    ],
)
def test_there_is_always_a_picture(tmp_path: Path, lines: list[dict[str, Any]]) -> None:
    draw(tmp_path, lines)


def test_no_evaluation_leaves_no_colour_of_it(tmp_path: Path) -> None:
    image = draw(tmp_path, [{"step": 0, "eval_loss": None, "tool_call_accuracy": None}, *STEPS])
    assert (
        count_pixels(image, *BLUE) > 200
        and count_pixels(image, *ORANGE) == count_pixels(image, *GREEN) == 0
    )


def test_a_single_step_is_seen_as_a_point(tmp_path: Path) -> None:
    image = draw(tmp_path, STEPS[:1])
    # Left of the legend, which stands at the right: the point in the middle of the axes.
    assert count_pixels(image[:, 300:600], *BLUE) > 10


def test_metrics_keep_what_is_no_number_and_every_digit(tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [
        {"step": 1, "loss": math.nan, "grad_norm": math.inf},
        {"step": 2, "loss": 0.1 + 0.2, "text": "ö\u2028"},
    ]
    for line in lines:
        append_metrics(tmp_path, line)
    assert repr(read_metrics(tmp_path)) == repr(lines) and read_metrics(tmp_path / "nowhere") == []


def test_keep_metrics_until(tmp_path: Path) -> None:
    for line in [START, *STEPS, END]:
        append_metrics(tmp_path, line)
    keep_metrics_until(tmp_path, 2)
    assert read_metrics(tmp_path) == [START, *STEPS]
    append_metrics(tmp_path, END)
    assert read_metrics(tmp_path) == [START, *STEPS, END]
    keep_metrics_until(tmp_path, -1)
    assert read_metrics(tmp_path) == []


def test_a_line_that_a_stop_cut_does_not_hinder_a_resumed_run(tmp_path: Path) -> None:
    append_metrics(tmp_path, STEPS[0])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    keep_metrics_until(tmp_path, 1)
    append_metrics(tmp_path, STEPS[1])
    assert read_metrics(tmp_path) == STEPS


def test_a_stop_while_writing_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.json"
    write_json(path, {"a": "ö", "path": tmp_path})
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": "ö", "path": str(tmp_path)}
    append_metrics(tmp_path, STEPS[0])

    def stop(self: Path, text: str, **_: Any) -> None:
        with self.open("w") as file:
            file.write(text[: len(text) // 2])
        raise KeyboardInterrupt

    monkeypatch.setattr(atomic.Path, "write_text", stop)
    with pytest.raises(KeyboardInterrupt):
        write_json(path, {"b": 2})
    with pytest.raises(KeyboardInterrupt):
        keep_metrics_until(tmp_path, 0)
    assert (
        json.loads(path.read_text(encoding="utf-8"))["a"] == "ö"
        and read_metrics(tmp_path) == STEPS[:1]
    )


def test_versions_and_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    found = versions()
    assert found["torch"] and {"python", "platform", "triton", "safetensors"} <= set(found)
    commit = git_commit()
    assert commit is None or len(commit.removesuffix("+changes")) == 40

    def absent(*_: Any, **__: Any) -> None:
        raise subprocess.CalledProcessError(128, "git")

    monkeypatch.setattr(subprocess, "run", absent)
    assert git_commit() is None


def line_of(step: int, loss: Any = 1.0) -> Any:
    return {"step": step, "loss": loss, "tokens_per_second": 10.0}


def shown(total: Any, steps: Any, start: Any = 0, **options: Any) -> Any:
    out = io.StringIO()
    with Progress(total, start, Console(file=out, width=100, **options)) as progress:
        for step in steps:
            progress.show(line_of(step, math.nan if step == 2 else 1.0))
    return out.getvalue()


def test_progress_without_a_terminal_prints_about_twenty_lines() -> None:
    text = shown(1000, range(1, 1001))
    assert 20 <= text.count("\n") <= 22 and "step 1/1000" in text and "step 1000/1000" in text
    assert shown(2, [1, 2]).count("\n") == 2 and "loss nan" in shown(2, [1, 2])
    assert "step 501/1000" in shown(1000, [501, 502], start=500) and shown(5, []) == ""


def test_progress_on_a_terminal_is_a_bar() -> None:
    assert "3/3" in shown(3, [1, 2, 3], force_terminal=True)


def test_the_first_signal_asks_and_the_second_interrupts() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    out = io.StringIO()
    with StopSignal(Console(file=out)) as stop:
        assert not stop.requested
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested and "Ctrl-C again" in out.getvalue()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_flags() -> None:
    assert int_at_least(1)("3") == 3 and float_in(0, 1)("0") == 0.0 and float_in(0)("1e3") == 1000.0
    wrong = [
        (int_at_least(1), "0", "at least 1"),
        (float_in(0, 1), "1", "at least 0 and below 1"),
        (float_in(0), "-1", "at least 0"),
        (float_in(0), "nan", "got nan"),
        (float_in(0), "inf", "got inf"),
    ]
    for read, text, limits in wrong:
        with pytest.raises(argparse.ArgumentTypeError, match=limits):
            read(text)
    with pytest.raises(ValueError):
        int_at_least(1)("1.5")


@pytest.mark.parametrize("text", ["", "[]", "{", '{"step": 1}', '{"step": 1, "eval_loss": "x"}'])
def test_a_broken_record_of_the_best_evaluation_is_none(tmp_path: Path, text: str) -> None:
    record = tmp_path / "best.json"
    assert read_best(record) is None
    record.write_text(text, encoding="utf-8")
    assert read_best(record) is None
    write_json(record, {"step": 4, "eval_loss": 0.5, "tool_call_accuracy": None})
    assert read_best(record) == (4, 0.5)
