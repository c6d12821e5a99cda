"""The folder of a run: new, cleared, or gone on with; every rank works in the same one."""

import argparse
import time
from pathlib import Path
from typing import Any

from data.flags import USER_ERRORS
from lora import state
from model.ranks import Ranks

CHECKPOINT = "checkpoint"
# A resumed run must agree with its checkpoint on these: they decide which numbers come next.
FINGERPRINT = ("model", "dataset", "dtype", "max_length", "micro_batch", "accumulate", "lr", "row_lr_scale", "warmup",
               "weight_decay", "clip", "rank", "alpha", "dropout", "targets", "adapt", "format", "eval_fraction", "seed",
               "overlong", "train_on", "epochs", "max_steps", "ranks")  # fmt: skip


def fingerprint(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments that a resumed run must share with its checkpoint."""
    return {name: getattr(args, name) for name in FINGERPRINT}


def prepare_output(args: argparse.Namespace) -> Path:
    """The output folder: new, or cleared of an earlier run's files with --overwrite, or left as it is with --resume."""
    output = Path(args.output or Path("runs") / time.strftime("%Y-%m-%d_%H-%M-%S"))
    if args.resume:
        if not args.output or args.overwrite:
            raise ValueError("--resume needs --output, the folder of the run to go on with, and no --overwrite")
        check_fingerprint(args, output)
        return output
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output {output}: is a file; give a folder")
    if output.is_dir() and any(output.iterdir()):
        if not args.overwrite:
            raise ValueError(f"--output {output}: not empty; use --resume to go on, --overwrite, or another folder")
    output.mkdir(parents=True, exist_ok=True)
    return output


def agreed_output(args: argparse.Namespace, ranks: Ranks) -> Path:
    """The first rank's output folder, on every rank. Raises on every rank what `prepare_output` raises on the first."""
    found, problem = "", ""
    if ranks.is_first:
        try:
            found = str(prepare_output(args))
        except USER_ERRORS as error:
            problem = str(error)
    found, problem = ranks.share(found), ranks.share(problem)
    if problem:
        raise ValueError(problem)
    return Path(found)


def check_fingerprint(args: argparse.Namespace, output: Path) -> None:
    """Raises: FileNotFoundError without a checkpoint; ValueError naming every setting that differs from its own."""
    now, then = fingerprint(args), state.read_counters(output / CHECKPOINT).get("fingerprint") or {}
    other = [f"--{name.replace('_', '-')} was {then.get(name)!r} and is {now[name]!r}" for name in now
             if now[name] != then.get(name)]  # fmt: skip
    if other:
        raise ValueError(f"{output}: cannot go on with other settings: {'; '.join(other)}")


def kept(output: Path | None) -> str:
    """What a stopped run has left to go on from."""
    if output is None or not (output / CHECKPOINT).is_dir():
        return "no checkpoint had been written yet"
    return f"the last checkpoint is kept; go on with --resume --output {output}"
