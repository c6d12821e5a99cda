"""Kills small runs, resumes them, and compares what they leave with a run that was never stopped.

    python -m benchmarks.kill_runs --count 100     # at random moments, one to three times each
    python -m benchmarks.kill_runs --points all    # at every file operation in the run's folder
    python -m benchmarks.kill_runs --soak 2000     # memory and open files over many steps

Adapter, metrics (without timings), picture, tokenizer and checkpoint must be the same bytes, and no
other file may be there. A point is a file operation that Python announces (an audit event): the
process is killed before it, and where it opens a file for writing also with half of it written.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import lora.adapter
import training.checkpoint
from benchmarks.small_run import SmallRun, differences, log_of, timed, wait
from common import atomic

# os.remove is unlink's event too; safetensors writes in Rust, which announces nothing.
EVENTS = "open os.rename os.remove os.rmdir os.mkdir os.chmod os.truncate save_file".split()
WRITERS: tuple[Any, ...] = (atomic, lora.adapter, training.checkpoint)  # they call save_file
WRITING = os.O_WRONLY | os.O_RDWR


class Points:
    """Counts the file operations in a folder; kills the process at the one called `number`."""

    def __init__(self, folder: Path, number: int | None = None, tally: Path | None = None) -> None:
        self.folder, self.number, self.tally = str(folder), number, tally
        self.names: list[str] = []

    def watch(self) -> None:
        """Called in the process that is to be watched."""
        sys.addaudithook(self._on_event)
        for module in WRITERS:
            if hasattr(module, "save_file"):
                module.save_file = self._wrapped(module.save_file)

    def _wrapped(self, save_file: Any) -> Any:
        def save(tensors: Any, path: Path, **options: Any) -> None:
            # As safetensors does it: into a file of another name, readable by its owner alone.
            half = Path(path).with_name(".tmpAbCdEf")
            self._pass("save_file", half, "")
            save_file(tensors, path, **options)

        return save

    def _on_event(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in EVENTS:
            return
        path, options = arguments[0], arguments[1:]
        # rmtree removes names inside a folder that it has opened: the folder stands as a number.
        is_inside = str(path).startswith(self.folder + "/") or (
            event in ("os.remove", "os.rmdir") and options[-1] != -1
        )
        if event == "open":
            is_inside = is_inside and bool(options[1] & WRITING)
        if is_inside:
            mode = "a" if event == "open" and options[1] & os.O_APPEND else "w"
            self._pass(event, Path(path) if event == "open" else None, mode)

    def _pass(self, event: str, half: Path | None, mode: str) -> None:
        self._reach(event)
        if half is not None and self._reach(f"half of {half.name}"):
            descriptor = os.open(half, os.O_WRONLY | os.O_CREAT | os.O_TRUNC * (mode != "a"), 0o600)
            os.lseek(descriptor, 0, os.SEEK_END)
            os.write(descriptor, b'{"step": 1, "lo')
            os.kill(os.getpid(), signal.SIGKILL)

    def _reach(self, name: str) -> bool:
        """Notes one point; at the one that is asked for, kills or (for a half) says so."""
        is_here = len(self.names) == self.number
        self.names.append(name)
        if self.tally:
            self.tally.write_text("\n".join(self.names))
        if is_here and not name.startswith("half"):
            os.kill(os.getpid(), signal.SIGKILL)
        return is_here


def kill_at_points(run: SmallRun, truth: Path, chosen: str) -> list[str]:
    """One run for each point, or for a sample of so many; returns what went wrong."""
    tally = run.folder / "points.txt"
    output = run.folder / "counted"
    with run.started(output, before=Points(output, tally=tally).watch) as pid:
        wait(pid)
    names = tally.read_text().splitlines()
    numbers = list(range(len(names)))
    if chosen != "all":
        numbers = sorted(random.Random(0).sample(numbers, min(int(chosen), len(numbers))))
    print(f"{len(names)} points, {len(numbers)} of them tried")
    problems = []
    for number in numbers:
        output = run.folder / f"point-{number}"
        with run.started(output, before=Points(output, number).watch) as pid:
            code = wait(pid)
        found = [f"was not killed (exit code {code})"] if code != -signal.SIGKILL else []
        problems += check(run, output, truth, f"point {number} ({names[number]})", found)
    return problems


def kill_at_random(run: SmallRun, truth: Path, count: int, seconds: float) -> list[str]:
    """Runs killed at random moments, one to three times; returns what went wrong."""
    problems, chance = [], random.Random(0)
    for number in range(count):
        output, more = run.folder / f"random-{number}", [[], ["--resume"], ["--resume"]]
        moments = []
        for flags in more[: chance.randint(1, 3)]:
            moments.append(round(chance.uniform(0, seconds), 3))
            with run.started(output, *flags) as pid:
                time.sleep(moments[-1])
                os.kill(pid, signal.SIGKILL)  # one that has ended stays until it is waited for
                wait(pid)
        problems += check(run, output, truth, f"random {number} (killed after {moments} s)", [])
    return problems


def check(run: SmallRun, output: Path, truth: Path, name: str, found: list[str]) -> list[str]:
    """Finishes a killed run and compares it; returns what is wrong with it, and removes it."""
    try:
        run.finish(output)
        found = found + [f"{file} differs" for file in differences(output, truth)]
    except (RuntimeError, OSError, ValueError) as error:
        found = [*found, str(error)]
    if found:
        print(f"{name}: {'; '.join(found)}", flush=True)
    else:
        shutil.rmtree(output)
        log_of(output).unlink()
    return [f"{name}: {problem}" for problem in found]


def soak(run: SmallRun, seconds: float) -> list[str]:
    """One run of many steps; prints memory and open files on the way; returns what grew."""
    output, samples = run.folder / "soak", []
    with run.started(output) as pid:
        start = time.perf_counter()
        while os.waitpid(pid, os.WNOHANG) == (0, 0):
            time.sleep(0.5)
            step = count_lines(output / "metrics.jsonl") - 1
            try:
                sample = (step, resident_bytes(pid), len(os.listdir(f"/proc/{pid}/fd")))
            except OSError:  # it has just ended
                continue
            if step > 0 and sample[1]:
                samples.append(sample)
            if time.perf_counter() - start > seconds:
                os.kill(pid, signal.SIGTERM)
    for step, memory, files in samples[:: max(1, len(samples) // 10)] + samples[-1:]:
        print(f"step {step}: {memory / 2**20:.1f} MiB resident, {files} open files")
    # Allocators and caches need a while to fill; from a quarter on nothing may grow.
    late = [sample for sample in samples if sample[0] > samples[-1][0] / 4]
    early, end = late[: len(late) // 3], late[-len(late) // 3 :]
    growth = median([s[1] for s in end]) - median([s[1] for s in early])
    print(f"{samples[-1][0]} steps in {time.perf_counter() - start:.0f} s, grown by {growth} bytes")
    problems = [f"memory grew by {growth} bytes"] if growth > 8 * 2**20 else []
    if max(s[2] for s in end) > max(s[2] for s in early):
        problems.append("more files are open at the end")
    return problems


def count_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def median(values: list[int]) -> int:
    return sorted(values)[len(values) // 2]


def main(argv: list[str] | None = None) -> int:
    """Returns 0 if every run ended as it should, 1 otherwise."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--count", type=int, default=0, help="runs killed at random moments")
    parser.add_argument(
        "--points", default="0", help="file operations to kill at: a number, or all"
    )
    parser.add_argument(
        "--soak", type=int, default=0, metavar="STEPS", help="steps of one long run"
    )
    parser.add_argument("--seconds", type=float, default=600, help="at which a long run is stopped")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        run = SmallRun(Path(name), steps=8, save_every=3)
        run.make_inputs()
        problems: list[str] = []
        if args.count or args.points != "0":
            truth = run.folder / "truth"
            seconds = timed(run, truth)
            print(f"{run.steps} steps without a stop: {seconds:.1f} s", flush=True)
            if args.points != "0":
                problems += kill_at_points(run, truth, args.points)
            problems += kill_at_random(run, truth, args.count, seconds)
        if args.soak:
            problems += soak(SmallRun(Path(name), steps=args.soak, save_every=100), args.seconds)
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"{len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
