"""A run of a few seconds on a random base, started again and again in processes of its own.

The program is imported once and forked for each run: importing torch takes longer than the run.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import matplotlib.figure  # noqa: F401  (here, and not in each of the forked processes)
import torch

import train
from benchmarks.tiny_base import write_tiny_base

EMBEDDED = Path(__file__).parents[1] / "embedded"
NUM_ROWS = 12
TIMINGS = ("tokens_per_second", "peak_memory_bytes", "eval_seconds")  # where equal runs differ


@dataclass(frozen=True)
class SmallRun:
    """Where base and rows of the small run lie, and how many steps it has."""

    folder: Path
    steps: int
    save_every: int

    def make_inputs(self) -> None:
        """Writes a base of random weights and the shortest embedded rows."""
        torch.set_num_threads(1)  # OpenMP's other threads do not survive a fork
        write_tiny_base(self.folder / "base")
        with (EMBEDDED / "rows" / "train.jsonl").open(encoding="utf-8") as file:
            rows = sorted(file, key=len)[:NUM_ROWS]
        (self.folder / "rows.jsonl").write_text("".join(rows), encoding="utf-8")

    def flags(self, output: Path, *more: str) -> list[str]:
        """The command line of the run in `output`."""
        text = (
            f"--model {self.folder / 'base'} --dataset {self.folder / 'rows.jsonl'} "
            f"--output {output} --max-steps {self.steps} --save-every {self.save_every} "
            "--device cpu --dtype fp32 --rank 2 --lr 0.01 --dropout 0.1 --max-length 384 "
            "--accumulate 1 --eval-fraction 0.2 --eval-rows 1 --eval-calls 0 "
            "--eval-every 3"
        )
        return [*text.split(), *more]

    @contextmanager
    def started(
        self, output: Path, *more: str, before: Callable[[], None] | None = None
    ) -> Iterator[int]:
        """The number of a process that makes the run, after `before` was called in it.

        Its output goes into a file beside the run's folder.
        """
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                code = self._run(output, more, before)
            finally:
                os._exit(code)  # the parent's own clean-up is not this process's
        yield pid

    def _run(self, output: Path, more: tuple[str, ...], before: Callable[[], None] | None) -> int:
        log = os.open(log_of(output), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        if before:
            before()
        try:
            return train.main(self.flags(output, *more))
        finally:
            sys.stdout.flush()
            sys.stderr.flush()

    def finish(self, output: Path) -> None:
        """Goes on with a stopped run as a user would. Raises: RuntimeError where it cannot."""
        for flag in ("--resume", "--overwrite"):
            with self.started(output, flag) as pid:
                code = wait(pid)
            # Before the first checkpoint there is nothing to go on from.
            if not (code == 2 and "no checkpoint" in log_of(output).read_text()):
                break
        if code:
            raise RuntimeError(f"{flag}: exit code {code}: {log_of(output).read_text()[-2000:]}")


def log_of(output: Path) -> Path:
    """Where a run's standard output and error go."""
    return output.with_name(output.name + ".log")


def wait(pid: int) -> int:
    """The exit code of a process; minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def content(output: Path) -> dict[str, object]:
    """What two equal runs must leave alike, by file: bytes, or metrics without the timings."""
    found: dict[str, object] = {}
    for path in sorted(output.rglob("*")):
        name = str(path.relative_to(output))
        # The record has the time's versions and flags, the counters a line with timings.
        is_compared = path.is_file() and path.name not in ("run.json", "state.json")
        found[name] = path.read_bytes() if is_compared else None
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    found["metrics.jsonl"] = [
        {key: value for key, value in line.items() if key not in TIMINGS} for line in lines
    ]
    return found


def differences(output: Path, truth: Path) -> list[str]:
    """The files in which a run's folder differs from that of another run."""
    mine, other = content(output), content(truth)
    return [name for name in sorted({*mine, *other}) if mine.get(name, "") != other.get(name, "")]


def timed(run: SmallRun, output: Path) -> float:
    """Makes a run without a stop; returns its seconds. Raises: RuntimeError if it fails."""
    start = time.perf_counter()
    with run.started(output) as pid:
        code = wait(pid)
    if code:
        raise RuntimeError(f"exit code {code}: {log_of(output).read_text()[-2000:]}")
    return time.perf_counter() - start
