"""The folder that a run leaves: who may use it, its metrics and its record. Nothing in the metrics
is filtered, nothing is smoothed."""

import argparse
import importlib.metadata
import json
import platform
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from common.atomic import write_text
from common.cli import USER_ERRORS
from training.checkpoint import read_counters
from training.ranks import Ranks

METRICS, RUN, PICTURE, CHECKPOINT = "metrics.jsonl", "run.json", "loss.png", "checkpoint"
CARD = "README.md"
PACKAGES = ("torch", "triton", "safetensors", "tokenizers", "huggingface_hub", "numpy", "pyarrow")
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "new_rows.safetensors")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def open_folder(args: argparse.Namespace, settings: dict[str, Any], ranks: Ranks) -> Path:
    """The output folder, chosen by the first rank and known on every rank.

    New, or an earlier run's: with --resume, whose settings must be these, or with --overwrite,
    cleared later by `clear_run`.
    Raises: ValueError for a folder in use or flags that do not go together, on every rank: the
    others would wait for ever for one that has left.
    """
    chosen, problem = "", ""
    if ranks.is_first:
        try:
            chosen = str(_choose(args, settings))
        except USER_ERRORS as error:
            problem = str(error)
    chosen, problem = ranks.share(chosen), ranks.share(problem)
    if problem:
        raise ValueError(problem)
    return Path(chosen)


def _choose(args: argparse.Namespace, settings: dict[str, Any]) -> Path:
    """`open_folder` on one rank."""
    folder = Path(args.output or Path("runs") / time.strftime("%Y-%m-%d_%H-%M-%S"))
    if args.resume:
        if not args.output or args.overwrite:
            raise ValueError(
                "--resume needs --output, the folder of the run to go on with, and no --overwrite"
            )
        _check_settings(folder, settings)
        return folder
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output {folder}: is a file; give a folder")
    # Never mixed with another run's files, and never emptied without being asked.
    if folder.is_dir() and any(folder.iterdir()) and not args.overwrite:
        raise ValueError(
            f"--output {folder}: not empty; use --resume to go on, --overwrite, or another folder"
        )
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _check_settings(folder: Path, now: dict[str, Any]) -> None:
    """Raises: ValueError naming every setting that differs from the checkpoint's own."""
    then = read_counters(folder / CHECKPOINT).get("fingerprint") or {}
    other = [
        f"--{name.replace('_', '-')} was {then.get(name)!r} and is {value!r}"
        for name, value in now.items()
        if value != then.get(name)
    ]
    if other:
        raise ValueError(f"{folder}: cannot go on with other settings: {'; '.join(other)}")


def clear_run(folder: Path) -> None:
    """Removes what an earlier run left in a folder, its checkpoint too, and nothing else."""
    # By name: the folder may hold files of other people's.
    for name in (CHECKPOINT, CHECKPOINT + ".old", CHECKPOINT + ".partial"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in (METRICS, RUN, PICTURE, CARD, *ADAPTER_FILES, *TOKENIZER_FILES):
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
    """The lines of `metrics.jsonl`, without a last one that a stop cut; empty without the file."""
    path = folder / METRICS
    # Up to the last line end: a line without one was being written when the run was stopped.
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def keep_metrics_until(folder: Path, step: int) -> None:
    """Drops the lines after `step`: a resumed run writes them again."""
    kept = [line for line in read_metrics(folder) if line["step"] <= step]
    write_text(folder / METRICS, "".join(json.dumps(line) + "\n" for line in kept))


def versions() -> dict[str, str | None]:
    """Python, the platform, and each package that the program uses; null where not installed."""
    found: dict[str, str | None] = {
        "python": platform.python_version(),
        "platform": platform.platform(),
    }
    for package in PACKAGES:
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
