"""The folder that a run leaves: who may use it, its metrics and its record. Nothing in the metrics
is filtered, nothing is smoothed."""

import argparse
import importlib.metadata
import json
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from common.atomic import PARTIAL, write_text
from common.cli import USER_ERRORS
from common.json_file import read_object
from training.checkpoint import COUNTERS, PREVIOUS, TENSORS, mend, read_counters, settle
from training.lock import LOCK, Lock
from training.loggers import EVENTS
from training.ranks import Ranks
from training.settings import LATER_DEFAULTS, LENGTH, fingerprint

METRICS, RUN, PICTURE, CHECKPOINT = "metrics.jsonl", "run.json", "loss.png", "checkpoint"
CARD = "README.md"
DROPPED = "dropped.jsonl"  # rows that are not trained on, with their reasons
BEST, BEST_RECORD = "best", "best.json"  # the best evaluation's adapter, and which one that was
PACKAGES = ("torch", "triton", "safetensors", "tokenizers", "huggingface_hub", "numpy", "pyarrow")
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "new_rows.safetensors")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
FILES = (METRICS, PICTURE, DROPPED, CARD, *ADAPTER_FILES, *TOKENIZER_FILES, RUN)


@contextmanager
def opened(args: argparse.Namespace, ranks: Ranks, say: Callable[[str], None]) -> Iterator[Path]:
    """The output folder, chosen and locked by the first rank and known on every rank.

    New, or an earlier run's: with --resume, whose settings must be these, or with --overwrite,
    cleared later by `clear_run`. `say` is called with what a resumed run should know.
    Raises: ValueError for a folder in use or flags that do not go together, on every rank: the
    others would wait for ever for one that has left.
    """
    chosen, problem, lock, is_new = "", "", None, False
    if ranks.is_first:
        try:
            folder = _choose(args)
            is_new = not folder.exists()
            folder.mkdir(parents=True, exist_ok=True)
            lock = Lock(folder)
            _check(folder, args, say)
            chosen = str(folder)
        except (*USER_ERRORS, OSError) as error:
            problem = str(error)
            if lock:
                lock.release()
    chosen, problem = ranks.share(chosen), ranks.share(problem)
    if problem:
        raise ValueError(problem)
    try:
        yield Path(chosen)
    finally:
        if lock:
            remove_leftovers(Path(chosen))
            lock.release()
            if is_new:  # a wrong input leaves no empty folder; one that holds something stays
                with suppress(OSError):
                    Path(chosen).rmdir()


def _choose(args: argparse.Namespace) -> Path:
    """The folder that the flags name. Raises: ValueError for flags that do not go together."""
    folder = Path(args.output or Path("runs") / time.strftime("%Y-%m-%d_%H-%M-%S"))
    if args.resume and (not args.output or args.overwrite):
        raise ValueError(
            "--resume needs --output, the folder of the run to go on with, and no --overwrite"
        )
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output {folder}: is a file; give a folder")
    if args.resume and not folder.is_dir():
        raise FileNotFoundError(
            f"{folder}: no checkpoint to resume from, there is no such folder; start without "
            "--resume"
        )
    return folder


def _check(folder: Path, args: argparse.Namespace, say: Callable[[str], None]) -> None:
    """Raises: ValueError or FileNotFoundError for a folder that this run may not use."""
    directory = folder / CHECKPOINT
    # A save replaces the whole folder by a rename: of a link it would leave what it points to.
    if directory.is_symlink() or (directory.exists() and not directory.is_dir()):
        raise ValueError(
            f"{directory}: expected a folder, got a link or a file; move it away, or let the whole "
            "--output be a link"
        )
    if args.resume:
        remove_leftovers(folder)
        if notice := settle(directory):
            say(notice)
        _check_settings(folder, fingerprint(args))
    elif args.overwrite:
        _check_own(folder)
    # Never mixed with another run's files, and never emptied without being asked.
    elif any(path.name != LOCK for path in folder.iterdir()):
        raise ValueError(
            f"--output {folder}: not empty; use --resume to go on, --overwrite, or another folder"
        )


def _check_settings(folder: Path, now: dict[str, Any]) -> None:
    """Raises: ValueError naming every setting that differs from the checkpoint's own."""
    counters = read_counters(folder / CHECKPOINT)
    then = counters.get("fingerprint", {})
    # A checkpoint of before there were several data sets has one name, and lacks the later flags:
    # it was made with what are their defaults.
    if isinstance(then.get("dataset"), str):
        then = then | {"dataset": [then["dataset"]]}
    then = LATER_DEFAULTS | then
    other = {name for name, value in now.items() if value != then.get(name)}
    # The schedule spans the whole run, so its length may change only once it has been run through.
    done, planned = counters["step"], counters.get("total_steps", then.get("max_steps"))
    if done == planned:
        other -= set(LENGTH)
    if other:
        differences = [
            f"--{name.replace('_', '-')} was {then.get(name)!r} and is {now[name]!r}"
            for name in now
            if name in other
        ]
        hint = f" (longer: once its {planned} steps are done)" if other <= set(LENGTH) else ""
        raise ValueError(
            f"{folder}: cannot go on with other settings: {'; '.join(differences)}{hint}"
        )


def _check_own(folder: Path) -> None:
    """Raises: ValueError for a folder with files of a run's names that no run has left there."""
    there = [name for name in (*FILES, CHECKPOINT) if (folder / name).exists()]
    # Written first and removed last: without it the files came from somewhere else.
    if there and not _is_record(folder / RUN):
        raise ValueError(
            f"--output {folder}: --overwrite would replace {', '.join(there)}, but there is no "
            f"{RUN} of a run beside them; move them away, or choose another folder"
        )
    odd = sorted(path.name for path in _foreign(folder / CHECKPOINT))
    if odd:
        raise ValueError(
            f"--output {folder}: --overwrite would delete {CHECKPOINT}/, which holds files that no "
            f"run has written ({', '.join(odd[:5])}); move them away, or choose another folder"
        )


def _is_record(path: Path) -> bool:
    """True for a `run.json` of this program."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and {"arguments", "choices", "total_steps"} <= set(content)


def _foreign(directory: Path) -> list[Path]:
    """What is in the folder of a checkpoint and none of its files."""
    if not directory.is_dir():
        return []
    inside = [path for path in directory.iterdir() if path.name not in (TENSORS, COUNTERS)]
    previous = directory / PREVIOUS
    if previous in inside and not previous.is_symlink():
        inside.remove(previous)
        inside += _foreign(previous)
    return inside


def refuse_base(output: Path, base: Path) -> None:
    """Raises: ValueError where the run would write into the folder of the base it is made from."""
    if output.exists() and output.samefile(base):
        raise ValueError(
            f"--output {output}: is the folder of the base, whose tokenizer the run would replace; "
            "give another folder"
        )


def remove_leftovers(folder: Path) -> None:
    """Removes what a stop in the middle of a write has left, by the names that this program uses;
    completes a checkpoint's save."""
    mend(folder / CHECKPOINT)
    for place in (folder, folder / BEST):
        for name in (*FILES, BEST_RECORD):
            (place / (name + PARTIAL)).unlink(missing_ok=True)
        # safetensors writes into a file of such a name first, readable by its owner alone.
        for path in place.glob(".tmp??????"):
            if path.is_file() and not path.is_symlink() and path.stat().st_mode & 0o777 == 0o600:
                path.unlink()


def clear_run(folder: Path) -> None:
    """Removes what an earlier run left in a folder, its checkpoint too, and nothing else."""
    # By name: the folder may hold files of other people's; `opened` has refused those with a
    # run's names. The record goes last: with it a run that was stopped here can be cleared again.
    remove_leftovers(folder)
    shutil.rmtree(folder / CHECKPOINT, ignore_errors=True)
    if (folder / BEST / BEST_RECORD).is_file() and not (folder / BEST).is_symlink():
        for name in (*ADAPTER_FILES, *TOKENIZER_FILES, BEST_RECORD):
            (folder / BEST / name).unlink(missing_ok=True)
        with suppress(OSError):
            (folder / BEST).rmdir()  # one that holds something else stays
    if not (folder / EVENTS).is_symlink():
        for path in (folder / EVENTS).glob("events.out.tfevents.*"):
            path.unlink()
        with suppress(OSError):
            (folder / EVENTS).rmdir()
    for name in FILES:
        (folder / name).unlink(missing_ok=True)


def checkpoint_left(folder: Path | None) -> str:
    """One clause for the end of a stopped run: what there is to go on from."""
    if folder is None or not (folder / CHECKPOINT).is_dir():
        return "no checkpoint had been written yet"
    return f"the last checkpoint is kept; go on with --resume --output {folder}"


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a JSON file in one step: a stop leaves the old or the new one, never half of one."""
    write_text(path, json.dumps(content, indent=2, default=str, ensure_ascii=False) + "\n")


def append_metrics(folder: Path, line: dict[str, Any]) -> None:
    """Adds one line to `metrics.jsonl`; a loss that is not a number is written as it is (NaN)."""
    # Appended, not replaced: a line per step of a long run must not rewrite all earlier ones.
    with (folder / METRICS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl` that this program wrote; empty without the file."""
    path = folder / METRICS
    # A last line without an end was being written when the run was stopped; what a bad disk or an
    # editor made of another one is no reason not to go on.
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    lines = (_read_line(line) for line in text[: text.rfind("\n") + 1].split("\n"))
    return [line for line in lines if line is not None]


def _read_line(text: str) -> dict[str, Any] | None:
    """A line of metrics; None for anything else."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(line, dict) or type(line.get("step")) is not int:
        return None
    numbers = (line.get("loss"), line.get("eval_loss"))
    is_ours = all(isinstance(x, int | float | None) for x in numbers)
    is_ours &= isinstance(line.get("tool_call_accuracy"), dict | None)
    return line if is_ours and isinstance(line.get("shown"), list | None) else None


def read_best(path: Path) -> tuple[int, float] | None:
    """Step and held-out loss that a record of `best/` names; None without one that can be read."""
    try:
        record = read_object(path)
        return int(record["step"]), float(record["eval_loss"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return None


def keep_metrics_until(folder: Path, step: int) -> bool:
    """Drops the lines after `step`, which a resumed run writes again; True if its own is there."""
    kept = [line for line in read_metrics(folder) if line["step"] <= step]
    write_text(folder / METRICS, "".join(json.dumps(line) + "\n" for line in kept))
    return any(line["step"] == step for line in kept)


def versions(others: Sequence[str] = ()) -> dict[str, str | None]:
    """Python, the platform, and each package that can change a result; null where not installed.

    `others` are packages of the caller's that can change its own.
    """
    found: dict[str, str | None] = {
        "python": platform.python_version(),
        "platform": platform.platform(),
    }
    for package in (*PACKAGES, *others):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def git_commit() -> str | None:
    """The commit of this source tree, "+changes" where files differ; None outside a checkout."""
    try:
        commit = _git("rev-parse", "HEAD")
        is_changed = bool(_git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return None
    # Said, because the commit alone would then not tell what ran.
    return commit + ("+changes" if is_changed else "")


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=True,
        timeout=10,
    )
    return done.stdout.strip()
