"""Two processes on the CPU against one: the same losses, the same adapter, and only the first of
them writes."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from builders import RUN_FILES, metrics
from safetensors.torch import load_file

from train import main

ROOT = Path(__file__).parents[1]
FLAGS = (
    "--device cpu --dtype fp32 --dropout 0 --max-steps 3 --max-length 256 --micro-batch 1 "
    "--eval-rows 2 --eval-calls 1"
).split()
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


Train = Callable[..., str]


@pytest.fixture(scope="module")
def train(small_base: Path, small_rows: Path) -> Train:
    """train(output, *flags): two ranks by torchrun; returns what they printed."""
    inputs = ("--model", str(small_base), "--dataset", str(small_rows))

    def start(output: Path, *flags: str) -> str:
        command = [*FLAGS, *inputs, "--output", str(output), *flags]
        done = subprocess.run(
            [*TORCHRUN, "train.py", *command],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout + done.stderr

    return start


@pytest.fixture(scope="module")
def alone(small_base: Path, small_rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process with twice the accumulation."""
    folder = tmp_path_factory.mktemp("ranks") / "alone"
    inputs = ["--model", str(small_base), "--dataset", str(small_rows), "--accumulate", "2"]
    assert main([*FLAGS, *inputs, "--output", str(folder)]) == 0
    return folder


@pytest.mark.parametrize("flags", [[], ["--shard"]], ids=["ddp", "shard"])
def test_two_ranks_train_as_one_with_twice_the_accumulation(
    train: Train, alone: Path, tmp_path: Path, flags: list[str]
) -> None:
    text = train(tmp_path / "two", "--accumulate", "1", *flags)
    assert text.count("done; this took") == 1 and text.count("; exact calls") == 2
    assert metrics(alone)[0]["tool_call_accuracy"]["n"]["overall"] == 1
    assert {path.name for path in (tmp_path / "two").iterdir()} == RUN_FILES
    for ours, theirs in zip(metrics(tmp_path / "two"), metrics(alone), strict=True):
        assert ours["step"] == theirs["step"]
        for name in ("loss", "grad_norm", "eval_loss"):
            assert ours.get(name, 0.0) == pytest.approx(theirs.get(name, 0.0), rel=1e-5), name
        assert ours.get("tokens") == theirs.get("tokens")
    found, truth = (load_file(f / "adapter_model.safetensors") for f in (tmp_path / "two", alone))
    assert found.keys() == truth.keys()
    assert max((found[name] - truth[name]).abs().max().item() for name in truth) < 1e-5
    # A finished run, resumed, reads the checkpoint on both ranks and writes the same adapter's
    # metrics again.
    if flags:  # whole weights go back as on one rank, slices do not
        again = train(tmp_path / "two", "--accumulate", "1", "--resume", *flags)
        assert "done; this took" in again
    states = [load_file(f / "checkpoint" / "state.safetensors") for f in (tmp_path / "two", alone)]
    moments = [name for name in states[1] if name.startswith("exp_avg.")]
    assert moments and all((states[0][n] - states[1][n]).abs().max() < 1e-5 for n in moments)
    assert {"rng.cpu.0", "rng.cpu.1"} <= states[0].keys()


def test_shard_needs_several_ranks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*FLAGS, "--output", str(tmp_path / "one"), "--shard"]) == 2
    assert "torchrun" in capsys.readouterr().err
