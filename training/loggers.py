"""Metrics sent to a program that draws them: TensorBoard, Weights & Biases, Trackio.

Each is a library of its own, an extra of this package, imported only where it is asked for.
`metrics.jsonl` has every line whatever becomes of them: what fails here never ends a run.
"""

import argparse
import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from training.ranks import Ranks

LOGGERS = ("tensorboard", "wandb", "trackio")
PROJECT = "gemma-function-calling"
EVENTS = "tensorboard"  # the folder in a run's own that TensorBoard's files go to
Say = Callable[[str], None]


def check_library(name: str | None) -> None:
    """Raises: ValueError for a logger whose library is not installed."""
    if name and importlib.util.find_spec(name) is None:
        raise ValueError(
            f"--logger {name}: expected its library, which is not installed; "
            f"pip install -e '.[{name}]', or leave the flag out: metrics.jsonl has every line"
        )


class Sink(Protocol):
    """Where numbers go."""

    def log(self, numbers: dict[str, float], step: int) -> None:
        """Sends the numbers of a step."""
        ...

    def finish(self, is_done: bool) -> None:
        """Ends the record; `is_done` is False for a run that broke off."""
        ...


class TensorBoard:
    """Event files under the run's folder, for `tensorboard --logdir runs`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.writer: Any = None

    def log(self, numbers: dict[str, float], step: int) -> None:
        if self.writer is None:
            # Not before the first line: by then an earlier run's files are gone, and the step that
            # a resumed run goes on from is known, behind which the old curve is cut off.
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(self.folder), purge_step=step or None)
        for name, number in numbers.items():
            self.writer.add_scalar(name, number, step)

    def finish(self, is_done: bool) -> None:
        if self.writer is not None:
            self.writer.close()


class Hosted:
    """Weights & Biases or Trackio, whose calls have the same names."""

    def __init__(self, name: str, args: argparse.Namespace, output: Path) -> None:
        self.name, self.library = name, importlib.import_module(name)
        project = os.environ.get("WANDB_PROJECT", PROJECT) if name == "wandb" else PROJECT
        # Both draw on the terminal by themselves, where the run's own lines are.
        own: dict[str, Any] = {"dir": str(output), "settings": {"console": "off", "silent": True}}
        if name == "trackio":
            own = {"resume": "allow" if args.resume else "never", "embed": False}
        self.library.init(project=project, name=output.resolve().name, config=vars(args), **own)

    def log(self, numbers: dict[str, float], step: int) -> None:
        self.library.log(numbers, step=step)

    def finish(self, is_done: bool) -> None:
        # Trackio's takes no exit code.
        self.library.finish(**({} if self.name == "trackio" else {"exit_code": int(not is_done)}))


class Logger:
    """Sends lines of metrics to a sink until that fails; as a context it ends with the run."""

    def __init__(self, name: str, sink: Sink | None, say: Say) -> None:
        self.name, self.sink, self.say = name, sink, say

    def log(self, line: dict[str, Any]) -> None:
        """Sends the numbers of a line, the nested ones under names like free/eval_loss."""
        self._try(lambda sink: sink.log(dict(numbers_of(line)), line["step"]))

    def __enter__(self) -> "Logger":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._try(lambda sink: sink.finish(kind is None))

    def _try(self, act: Callable[[Sink], None]) -> None:
        if self.sink is None:
            return
        try:
            act(self.sink)
        except Exception as error:  # a full disk, a server that is gone: hours of training go on
            self.sink = None
            self.say(
                f"--logger {self.name}: has failed ({_first_line(error)}) and gets nothing more; "
                "the run goes on, and metrics.jsonl has every line"
            )


def start(args: argparse.Namespace, ranks: Ranks, output: Path, say: Say) -> Logger:
    """The logger that the flags ask for; on the first rank alone it sends anything.

    Raises: ValueError, on every rank, for one that does not start.
    """
    sink: Sink | None = None
    problem = ""
    if args.logger and ranks.is_first and not args.check:
        try:
            if args.logger == "tensorboard":
                sink = TensorBoard(output / EVENTS)
            else:
                sink = Hosted(args.logger, args, output)
        except Exception as error:  # whatever a library says that has no account or no server
            problem = (
                f"--logger {args.logger}: does not start ({_first_line(error)}); log in to it, "
                "or leave the flag out: metrics.jsonl has every line"
            )
    if args.logger and (problem := ranks.share(problem)):
        raise ValueError(problem)
    return Logger(args.logger or "", sink, say)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def numbers_of(line: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Every number of a line of metrics, the step and the counts of rows left out."""
    for name, value in line.items():
        if isinstance(value, dict) and name != "n":
            yield from numbers_of(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and name != "step":
            yield f"{prefix}{name}", float(value)
