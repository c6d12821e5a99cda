"""Runs in processes of their own: their streams closed, interrupted early, killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.small_run import SmallRun, differences

ROOT = Path(__file__).parents[1]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def start(small: SmallRun, output: Path, *flags: str, **options: Any) -> subprocess.Popen[bytes]:
    command = [sys.executable, "train.py", *small.flags(output, *flags)]
    return subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.PIPE, **options)


def test_a_closed_stdout_stops_no_run(small: SmallRun, truth: Path, tmp_path: Path) -> None:
    """`train.py | head -c1`, and `train.py >&-`, at once: each has its imports to wait for."""
    pipe = start(small, tmp_path / "pipe", stdout=subprocess.PIPE)
    assert pipe.stdout and pipe.stderr
    closed = start(small, tmp_path / "closed", preexec_fn=lambda: os.close(1))
    pipe.stdout.read(1)
    pipe.stdout.close()
    while not (tmp_path / "closed" / "metrics.jsonl").exists() and closed.poll() is None:
        time.sleep(0.005)
    # The number of the closed stream is no other file's: what a library prints would go into it.
    assert os.readlink(f"/proc/{closed.pid}/fd/1") == os.devnull
    for process, name in ((pipe, "pipe"), (closed, "closed")):
        assert process.wait(120) == 0 and process.stderr and process.stderr.read() == b""
        assert differences(tmp_path / name, truth) == []


def test_ctrl_c_during_the_imports_is_no_traceback(small: SmallRun, tmp_path: Path) -> None:
    process = start(small, tmp_path / "out")
    maps = Path(f"/proc/{process.pid}/maps")
    while process.poll() is None and "libtorch" not in maps.read_text():
        time.sleep(0.005)  # torch takes a second more from here
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert process.stderr and b"Traceback" not in process.stderr.read()


def test_killed_runs_end_as_if_they_had_not_been() -> None:
    command = [sys.executable, "-m", "benchmarks.kill_runs", "--count", "1", "--points", "4"]
    done = subprocess.run(
        command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "4 of them tried" in done.stdout and "0 problems" in done.stdout
