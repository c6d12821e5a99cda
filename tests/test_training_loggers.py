"""Metrics sent elsewhere: the same numbers as in metrics.jsonl, and never at the price of a run."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from builders import metrics

import train
from benchmarks.small_run import SmallRun
from training import loggers

Fake = Callable[..., list[tuple[str, Any]]]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    """fake(name, **failing) -> the calls of a module of that name; failing: errors, by function."""

    def make(name: str, **failing: Exception) -> list[tuple[str, Any]]:
        calls: list[tuple[str, Any]] = []
        module = ModuleType(name)

        def function(called: str) -> Callable[..., None]:
            def record(*args: Any, **options: Any) -> None:
                calls.append((called, (args, options)))
                if called in failing:
                    raise failing[called]

            return record

        for called in ("init", "log", "finish"):
            setattr(module, called, function(called))
        module.__spec__ = type(sys.__spec__)(name, None)
        monkeypatch.setitem(sys.modules, name, module)
        return calls

    return make


@pytest.fixture
def run(small: SmallRun, tmp_path: Path) -> Callable[..., int]:
    def start(*flags: str) -> int:
        return train.main(small.flags(tmp_path / "out", *flags))

    return start


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_every_line_of_metrics_is_sent(
    fake: Fake, run: Callable[..., int], tmp_path: Path, name: str
) -> None:
    calls = fake(name)
    assert run("--logger", name) == 0
    assert [called for called, _ in calls] == ["init", *["log"] * 5, "finish"]
    options = calls[0][1][1]
    assert options["project"] == loggers.PROJECT and options["name"] == "out"
    assert options["config"]["rank"] and json.dumps(options["config"], default=str)
    lines = metrics(tmp_path / "out")
    for (_, (args, sent)), line in zip(calls[1:-1], lines, strict=True):
        assert sent["step"] == line["step"]
        for key in ("loss", "lr", "grad_norm", "eval_loss"):
            assert args[0].get(key) == line.get(key)
    assert calls[-1][1][1] == ({"exit_code": 0} if name == "wandb" else {})


def test_nested_numbers_get_a_path_and_words_are_left_out() -> None:
    line = {"step": 3, "loss": 0.5, "skipped": True, "shown": ["a"], "eval_loss": None}
    line["tool_call_accuracy"] = {"overall": 0.25, "seen": None, "n": {"overall": 4}}
    line["free"] = {"tool_call_accuracy": {"overall": 0.125}}
    assert dict(loggers.numbers_of(line)) == {
        "loss": 0.5,
        "skipped": 1.0,
        "tool_call_accuracy/overall": 0.25,
        "free/tool_call_accuracy/overall": 0.125,
    }


def test_a_missing_library_is_one_sentence_before_anything_is_read(
    run: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda name: None)
    assert run("--logger", "wandb") == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "pip install -e '.[wandb]'" in said
    assert not (tmp_path / "out").exists()


def test_one_that_does_not_start_ends_the_run_before_it_begins(
    fake: Fake, run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake("wandb", init=RuntimeError("no API key\nmore"))
    assert run("--logger", "wandb") == 2
    said = capsys.readouterr().err
    assert "does not start (RuntimeError: no API key); log in to it" in said
    assert said.count("\n") == 1 and not (tmp_path / "out").exists()


@pytest.mark.parametrize("failing", ["log", "finish"])
def test_one_that_fails_later_costs_no_step(
    fake: Fake,
    run: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    failing: str,
) -> None:
    calls = fake("trackio", **{failing: OSError("the server is gone")})
    assert run("--logger", "trackio") == 0
    assert [line["step"] for line in metrics(tmp_path / "out")] == [0, 1, 2, 3, 4]
    said = capsys.readouterr().out
    assert said.count("--logger trackio: has failed (OSError: the server is gone)") == 1
    assert [called for called, _ in calls].count(failing) == 1


def test_a_run_that_breaks_off_is_told_so(
    fake: Fake, run: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = fake("wandb")
    monkeypatch.setattr(train, "train_step", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert run("--logger", "wandb") == 130
    assert calls[-1] == ("finish", ((), {"exit_code": 1}))


def curve(folder: Path) -> list[tuple[int, float]]:
    """What TensorBoard shows of the loss of the run in the folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder / "out" / loggers.EVENTS)).Reload()
    return [(event.step, event.value) for event in found.Scalars("loss")]


def test_tensorboard_reads_what_a_run_and_its_resumption_wrote(
    run: Callable[..., int], tmp_path: Path
) -> None:
    pytest.importorskip("tensorboard")
    assert run("--logger", "tensorboard") == 0
    lines = metrics(tmp_path / "out")[1:]
    assert curve(tmp_path) == [(line["step"], pytest.approx(line["loss"])) for line in lines]
    assert run("--logger", "tensorboard", "--resume", "--max-steps", "6") == 0
    assert [step for step, _ in curve(tmp_path)] == [1, 2, 3, 4, 5, 6]
    # Started anew, it shows the new run alone.
    assert run("--logger", "tensorboard", "--overwrite", "--max-steps", "2") == 0
    assert [step for step, _ in curve(tmp_path)] == [1, 2]


def test_tensorboard_shows_a_step_that_was_done_again_once(
    run: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    real = train.train_step

    def stopped(made: Any, step: int) -> Any:
        if step == 4:
            raise KeyboardInterrupt  # the last checkpoint is that of step 2
        return real(made, step)

    with monkeypatch.context() as patch:
        patch.setattr(train, "train_step", stopped)
        assert run("--logger", "tensorboard") == 130
    assert [step for step, _ in curve(tmp_path)] == [1, 2, 3]
    assert run("--logger", "tensorboard", "--resume") == 0
    assert [step for step, _ in curve(tmp_path)] == [1, 2, 3, 4]
