"""The whole job on a tiny random base: what a run leaves behind, resuming, accumulation, wrong
inputs."""

import itertools
import json
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import CITIES, RUN_FILES, metrics, time_row
from safetensors.torch import load_file

import train
from agent import trial
from common.constants import EMBEDDED_MODEL
from model.config import Gemma2Config
from training import opening, saving
from training import run as run_module

Runner = Callable[..., tuple[int, Path]]


@pytest.fixture
def run(small_base: Path, small_rows: Path, tmp_path: Path) -> Any:
    """run(*flags, output=...) -> (exit code, output folder); the flags come after the tiny
    defaults."""

    def start(*flags: str, output: str = "out") -> tuple[int, Path]:
        folder = tmp_path / output
        defaults = [
            "--model",
            small_base,
            *(() if "--dataset" in flags else ("--dataset", small_rows)),
            "--output",
            folder,
            "--device",
            "cpu",
            "--max-length",
            "256",
            "--eval-calls",
            "0",
            "--eval-fraction",
            "0.2",
            "--rank",
            "4",
            "--lr",
            "0.01",
        ]
        return train.main([str(flag) for flag in (*defaults, *flags)]), folder

    return start


def test_a_run_leaves_every_file_and_a_line_per_step(run: Runner) -> None:
    code, folder = run("--max-steps", "3", "--accumulate", "2", "--eval-calls", "2")
    assert code == 0
    assert {path.name for path in folder.iterdir()} == RUN_FILES
    first, *steps = metrics(folder)
    assert first["step"] == 0 and first["eval_loss"] > 0
    assert [line["step"] for line in steps] == [1, 2, 3]
    wanted = {
        "step",
        "loss",
        "grad_norm",
        "lr",
        "tokens",
        "supervised_tokens",
        "tokens_per_second",
        "peak_memory_bytes",
    }
    assert all(wanted <= set(line) for line in steps)
    assert set(steps[-1]["tool_call_accuracy"]) == {
        "overall",
        "seen",
        "unseen",
        "no_call",
        "parallel",
        "n",
    }
    content = json.loads((folder / "run.json").read_text())
    assert content["arguments"]["rank"] == 4 and content["data"]["reading"]["dropped"] == 0
    assert content["choices"]["lora"][0] == "torch" and torch.__version__.startswith(
        content["versions"]["torch"]
    )
    rows = Gemma2Config.from_json(EMBEDDED_MODEL).vocab_size
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["trainable_token_indices"] == list(range(rows, rows + 8))
    assert {
        tensor.dtype for tensor in load_file(folder / "adapter_model.safetensors").values()
    } == {torch.float32}


@pytest.mark.parametrize(
    "flags",
    [
        ("--dtype", "fp32"),
        ("--dtype", "bf16"),
        ("--dtype", "fp16"),
        ("--adapt", "course"),
        ("--format", "mistral"),
        ("--train-on", "tool-calls"),
        ("--checkpoint-activations", "full"),
    ],
    ids=" ".join,
)
def test_the_loss_falls(run: Runner, flags: tuple[str, ...]) -> None:
    code, folder = run("--max-steps", "12", "--accumulate", "1", *flags)
    assert code == 0
    losses = [line["loss"] for line in metrics(folder)[1:]]
    assert losses[-1] < 0.85 * losses[0]


def test_one_batch_of_four_equals_four_of_one(run: Runner) -> None:
    common = ("--max-steps", "1", "--dropout", "0", "--max-length", "200", "--dtype", "fp32")
    _, whole = run(*common, "--micro-batch", "4", "--accumulate", "1", output="whole")
    _, parts = run(*common, "--micro-batch", "1", "--accumulate", "4", output="parts")
    (a, b) = (metrics(folder)[1] for folder in (whole, parts))
    assert a["supervised_tokens"] == b["supervised_tokens"]
    for name in ("loss", "grad_norm"):
        assert a[name] == pytest.approx(b[name], rel=1e-5)


def test_a_short_last_step_weighs_its_tokens_alike(run: Runner) -> None:
    """10 rows, one a pack, 4 a step: the third step has 2 packs, and its loss is still the mean
    over its own tokens."""
    code, folder = run(
        "--max-length",
        "200",
        "--lr",
        "0",
        "--dropout",
        "0",
        "--eval-fraction",
        "0.17",
        "--save-every",
        "0",
    )
    assert code == 0
    steps = metrics(folder)[1:]
    assert len(steps) == 3 and steps[2]["supervised_tokens"] < steps[0]["supervised_tokens"]
    assert steps[2]["loss"] == pytest.approx(steps[0]["loss"], rel=0.05)
    assert steps[2]["grad_norm"] == pytest.approx(steps[0]["grad_norm"], rel=0.5)


def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(
    run: Runner, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--max-steps", "6", "--accumulate", "1")
    _, straight = run(*flags, output="straight")
    real = train.report.record

    def record_and_interrupt(a_run: Any, line: dict[str, Any], console: Any) -> None:
        real(a_run, line, console)
        if line["step"] == 3:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(train.report, "record", record_and_interrupt)
    code, stopped = run(*flags, output="stopped")
    assert code == 130 and f"--resume --output {stopped}" in capsys.readouterr().err
    assert [line["step"] for line in metrics(stopped)] == [0, 1, 2, 3]
    monkeypatch.setattr(train.report, "record", real)
    assert run(*flags, "--resume", output="stopped")[0] == 0
    for a, b in zip(metrics(straight), metrics(stopped), strict=True):
        assert [a.get(key) for key in ("step", "loss", "grad_norm", "lr", "eval_loss")] == [
            b.get(key) for key in ("step", "loss", "grad_norm", "lr", "eval_loss")
        ]
    one, other = (load_file(folder / "adapter_model.safetensors") for folder in (straight, stopped))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_resuming_with_other_settings_is_refused(
    run: Runner, capsys: pytest.CaptureFixture[str]
) -> None:
    _, folder = run("--max-steps", "2", "--accumulate", "1")
    before = (folder / "run.json").read_bytes()
    code, _ = run("--max-steps", "2", "--accumulate", "1", "--resume", "--rank", "8")
    assert code == 2 and "--rank was 4 and is 8" in capsys.readouterr().err
    assert (folder / "run.json").read_bytes() == before
    assert len(metrics(folder)) == 3


def test_resuming_in_another_precision_or_with_other_ranks_is_refused(
    run: Runner, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, folder = run("--max-steps", "1", "--dtype", "auto")
    state = json.loads((folder / "checkpoint" / "state.json").read_text())
    del state["sha256"]  # as in a checkpoint from before there were checksums
    other = "fp32" if state["precision"] == "bf16" else "bf16"
    (folder / "checkpoint" / "state.json").write_text(json.dumps(state | {"precision": other}))
    assert run("--max-steps", "1", "--dtype", "auto", "--resume")[0] == 2
    assert f"was trained in {other}" in capsys.readouterr().err
    state["fingerprint"]["ranks"] = 2
    (folder / "checkpoint" / "state.json").write_text(json.dumps(state))
    assert run("--max-steps", "1", "--dtype", "auto", "--resume")[0] == 2
    assert "--ranks was 2 and is 1" in capsys.readouterr().err


def test_a_used_folder_is_kept_unless_overwritten(
    run: Runner, capsys: pytest.CaptureFixture[str]
) -> None:
    _, folder = run("--max-steps", "1")
    (folder / "notes.txt").write_text("mine")
    before = (folder / "adapter_model.safetensors").read_bytes()
    assert run("--max-steps", "1")[0] == 2 and "not empty" in capsys.readouterr().err
    assert (folder / "adapter_model.safetensors").read_bytes() == before
    assert run("--max-steps", "2", "--overwrite", "--dataset", "nowhere.jsonl")[0] == 2
    assert run("--max-steps", "2", "--overwrite", "--model", "nowhere/")[0] == 2
    assert (folder / "adapter_model.safetensors").read_bytes() == before and len(
        metrics(folder)
    ) == 2
    assert run("--max-steps", "2", "--overwrite")[0] == 0
    assert len(metrics(folder)) == 3 and (folder / "notes.txt").read_text() == "mine"


def test_a_loss_that_is_not_a_number_stops_the_run_and_stays_in_the_log(
    run: Runner, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = run_module.supervised_loss
    monkeypatch.setattr(
        run_module, "supervised_loss", lambda *args: (real(*args)[0] * float("nan"), real(*args)[1])
    )
    code, folder = run("--max-steps", "3", "--eval-rows", "0", "--eval-fraction", "0")
    assert code == 1 and "lower --lr" in capsys.readouterr().err
    assert str(metrics(folder)[-1]["loss"]) == "nan"


@pytest.mark.parametrize(
    ("dtype", "steps", "overflowing", "code"),
    # The scaler begins so high that this base skips its first steps by itself
    [("fp32", 2, 1, 1), ("fp16", 8, 1, 0), ("fp16", 2, 2, 1)],
)
def test_a_gradient_that_overflows_skips_a_step_only_under_a_scaler(
    run: Runner,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    dtype: str,
    steps: int,
    overflowing: int,
    code: int,
) -> None:
    real, losses = run_module.supervised_loss, []

    def overflow(*args: Any) -> Any:
        loss, count = real(*args)
        if loss.requires_grad:
            losses.append(loss)
            if len(losses) <= overflowing:
                loss.register_hook(lambda grad: grad * float("inf"))
        return loss, count

    monkeypatch.setattr(run_module, "supervised_loss", overflow)
    monkeypatch.setattr(opening, "time_step", lambda _: None)  # its pass would be the first
    flags = ("--max-steps", str(steps), "--dtype", dtype, "--accumulate", "1")
    got, folder = run(*flags, "--eval-fraction", "0")
    skipped = [line.get("skipped", False) for line in metrics(folder)[1:]]
    assert got == code and skipped[0] == (dtype == "fp16")
    assert len(skipped) == (1 if dtype == "fp32" else steps)
    assert all(skipped) == (overflowing == 2)
    if all(skipped):
        assert "every step so far was skipped" in capsys.readouterr().err


def test_a_last_step_that_ruins_the_weights_is_not_saved(
    run: Runner, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = train.train_step

    def ruin(a_run: train.Run, step: int) -> dict[str, Any]:
        line = real(a_run, step)
        with torch.no_grad():
            for parameter in train.trainable_parameters(a_run.model).values():
                parameter.fill_(math.inf)
        return line

    monkeypatch.setattr(train, "train_step", ruin)
    flags = ("--max-steps", "1", "--accumulate", "1", "--dtype", "fp32", "--eval-fraction", "0")
    code, folder = run(*flags)
    error = capsys.readouterr().err
    assert code == 1 and "weights or the held-out loss are not finite" in error, error
    assert math.isfinite(metrics(folder)[-1]["loss"])
    assert not (folder / "adapter_model.safetensors").exists()
    assert not (folder / "checkpoint").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--dataset", "missing.jsonl"), "missing.jsonl"),
        (("--model", "missing/folder/here"), "missing/folder/here"),
        (("--targets", "q_prj"), "did you mean"),
        (("--targets", ".*("), "regular expression"),
        (("--lora-impl", "triton"), "Triton"),
        (("--max-length", "8"), "--max-length"),
        (("--overlong", "error", "--max-length", "64"), "rows.jsonl:"),
        (("--device", "cuda:99"), "--device"),
        (("--resume",), "no checkpoint"),
        (("--max-length", "5000"), "1024 positions"),
        (("--rank", "1000000000"), "--rank: expected at most 32"),
        (("--dataset", "~nobody-here/x"), "~nobody-here/x"),
        (("--model", "~nobody-here/x"), "~nobody-here/x"),
        (("--targets", "(?i)x", "--adapt", "course"), "'((?i)x)"),
        (("--targets", "a{4294967296}"), "'a{4294967296}' is not a regular"),
        (("--device", "cpu:" + "1" * 5000), "--device"),
        (("--seed", "1" + "0" * 400), "--seed"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_wrong_input_is_one_sentence_and_code_2(
    run: Runner, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], words: str
) -> None:
    code, _ = run("--max-steps", "1", *flags)
    error = capsys.readouterr().err
    assert code == 2 and words in error and "Traceback" not in error


@pytest.mark.parametrize(
    "flags",
    [
        ("--rank", "0"),
        ("--lr", "nan"),
        ("--dropout", "1"),
        ("--epochs", "0"),
        ("--lr", "x"),
        ("--max-steps", "1" + "0" * 400),
        ("--max-steps", "1" * 5000),
        ("--epochs", "1e308"),
        ("--lr", "1e300"),
        ("--alpha", "1e300"),
        ("--row-lr-scale", "1e300"),
        ("--weight-decay", "1e300"),
        ("--clip", "1e300"),
    ],
)
def test_a_number_out_of_range_is_refused_by_the_command_line(
    run: Runner, flags: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        run(*flags)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and flags[0] in error and len(error) < 600


def test_a_flag_that_nobody_knows_does_not_steer_the_terminal(
    run: Runner, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run("--x\x1b[31mred")
    assert "--x\ufffd[31mred" in capsys.readouterr().err


@pytest.mark.parametrize("device", ["cpu:00", "cpu:0"])
def test_a_number_of_the_cpu_is_no_error(run: Runner, device: str) -> None:
    assert run("--max-steps", "1", "--device", device)[0] == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"RANK": "x", "WORLD_SIZE": "2"},
        {"RANK": "0", "WORLD_SIZE": "-1"},
        {"RANK": "0", "WORLD_SIZE": "2"},
        {"RANK": "5", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "x", "MASTER_PORT": "1"},
        {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "²", "MASTER_ADDR": "x", "MASTER_PORT": "1"},
    ],
)
def test_ranks_that_torchrun_has_not_made_are_one_sentence(
    run: Runner,
    changes: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in changes.items():
        monkeypatch.setenv(name, value)
    assert run("--max-steps", "1")[0] == 2
    error = capsys.readouterr().err
    assert error.startswith("train.py: environment:") and f"RANK='{changes['RANK']}'" in error


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        torch.OutOfMemoryError("CUDA"),
    ],
)
def test_no_memory_is_one_sentence_on_every_device(
    run: Runner,
    error: Exception,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(train, "train_step", fail)
    assert run("--max-steps", "1")[0] == 1
    assert "out of memory" in capsys.readouterr().err


def test_no_supervised_token_is_an_error(
    run: Runner, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    silent = time_row("Oslo")
    silent["conversations"][2]["weight"] = 0
    path = tmp_path / "silent.jsonl"
    path.write_text((json.dumps(silent) + "\n") * 5)
    assert run("--dataset", path, "--eval-fraction", "0")[0] == 2
    assert "supervised" in capsys.readouterr().err


def test_held_out_rows_without_a_supervised_token_are_no_error(run: Runner, tmp_path: Path) -> None:
    lines = [json.dumps(time_row(city)) for city in CITIES]
    long = time_row("Oslo")
    long["conversations"][1]["content"] = "word " * 400
    path = tmp_path / "mixed.jsonl"
    path.write_text(
        "\n".join([*lines, *(json.dumps(long).replace("Oslo", city) for city in CITIES)]) + "\n"
    )
    for seed in range(3):
        code, folder = run(
            "--dataset",
            path,
            "--max-steps",
            "1",
            "--eval-rows",
            "1",
            "--seed",
            seed,
            output=f"out{seed}",
        )
        assert code == 0 and "eval_loss" in metrics(folder)[0]


def test_a_full_disk_is_a_sentence_and_code_1(
    run: Runner, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saving, "save_adapter", full)
    code, folder = run("--max-steps", "1")
    error = capsys.readouterr().err
    assert code == 1 and "No space left" in error and "--resume" in error
    assert error.startswith(f"train.py: {folder}: ")
    assert (folder / "checkpoint" / "state.json").is_file()


def test_the_rate_rises_then_falls_and_never_loses_a_step() -> None:
    rates = [train.learning_rate(step, 20, 1.0, 0.1) for step in range(1, 21)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert all(a > b for a, b in zip(rates[2:], rates[3:], strict=False)) and 0 < rates[-1] < 0.02


@pytest.fixture
def updates(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What AdamW sees in each step: (rate, weight decay, gradient norm, parameters) by group."""
    seen = []
    step = torch.optim.AdamW.step

    def watched(self: torch.optim.AdamW, *args: Any, **kwargs: Any) -> Any:
        groups = []
        for group in self.param_groups:
            norms = torch.stack([p.grad.norm() for p in group["params"]])
            groups.append(
                (group["lr"], group["weight_decay"], norms.norm().item(), group["params"])
            )
        seen.append(groups)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    return seen


def total_norm(groups: Any) -> float:
    return math.hypot(*(norm for _, _, norm, _ in groups))


def test_the_clip_reaches_the_optimizer(run: Runner, updates: list[Any]) -> None:
    _, folder = run("--max-steps", "2", "--clip", "0.001", "--eval-fraction", "0")
    assert all(line["grad_norm"] > 0.01 for line in metrics(folder)[1:])
    assert [total_norm(groups) for groups in updates] == [pytest.approx(0.001, rel=0.01)] * 2


def test_a_clip_of_zero_never_clips(run: Runner, updates: list[Any]) -> None:
    flags = ("--max-steps", "1", "--clip", "0", "--eval-fraction", "0", "--dtype", "fp32")
    _, folder = run(*flags)
    assert total_norm(updates[0]) == pytest.approx(metrics(folder)[1]["grad_norm"], rel=1e-5)


def test_rates_and_weight_decay_reach_the_optimizer(run: Runner, updates: list[Any]) -> None:
    flags = ("--max-steps", "1", "--warmup", "0.9", "--lr", "0.02", "--eval-fraction", "0")
    run(*flags, "--row-lr-scale", "3", "--weight-decay", "0.25")
    (factors, rows) = updates[0]
    assert factors[:2] == (pytest.approx(0.02), 0.25) and rows[:2] == (pytest.approx(0.06), 0.25)
    assert [tuple(p.shape) for p in rows[3]] == [(8, 32)]  # the eight new tokens, alone
    assert len(factors[3]) == 2 * 7 * 2  # A and B of seven linears in two layers


def test_a_step_is_in_training_mode_and_an_evaluation_is_not(
    run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes, real, replies = [], run_module.supervised_loss, trial.first_replies

    def loss(model: Any, *args: Any) -> Any:
        modes.append(("loss", model.training, torch.is_grad_enabled()))
        return real(model, *args)

    def answer(model: Any, *args: Any, **options: Any) -> Any:
        modes.append(("reply", model.training, torch.is_grad_enabled()))
        return replies(model, *args, **options)

    monkeypatch.setattr(run_module, "supervised_loss", loss)
    monkeypatch.setattr(trial, "first_replies", answer)
    monkeypatch.setattr(opening, "time_step", lambda _: None)
    run("--max-steps", "2", "--accumulate", "1", "--eval-calls", "1")
    evaluation = [("loss", False, False), ("reply", False, False)]
    phases = [mode for mode, _ in itertools.groupby(modes)]
    assert phases == [*evaluation, ("loss", True, True), *evaluation]
    assert modes.count(("loss", True, True)) == 2


def test_a_checkpoint_of_before_the_later_flags_goes_on(run: Runner) -> None:
    _, folder = run("--max-steps", "2", "--accumulate", "1")
    path = folder / "checkpoint" / "state.json"
    state = json.loads(path.read_text())
    then = state["fingerprint"]
    (then["dataset"],) = then["dataset"]
    del then["eval_dataset"], then["bad_calls"]
    for name in set(state) - {"step", "scaler", "precision", "fingerprint"}:
        del state[name]
    path.write_text(json.dumps(state))
    assert run("--max-steps", "2", "--accumulate", "1", "--resume")[0] == 0
