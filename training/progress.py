"""What a person sees of a running job and can do to it: the progress, and Ctrl-C."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar

PLAIN_LINES = 20  # about as many lines as a run prints where there is no terminal
PLAIN_SECONDS = 20.0  # between two lines on other work there


class Progress:
    """Shows steps `start` + 1 .. `total` as they end.

    A bar on a terminal, a plain line now and then elsewhere.
    """

    def __init__(self, total: int, start: int, console: Console) -> None:
        self.total, self.start, self.console = total, start, console
        columns = (
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
        )
        # Without a terminal (a log file, a pipe) a bar would be thousands of lines of escape codes.
        self.bar = Bar(*columns, console=console) if console.is_terminal else None
        self.every = max(1, total // PLAIN_LINES)

    def __enter__(self) -> "Progress":
        self.began = time.perf_counter()
        if self.bar:
            self.bar.start()
            self.task = self.bar.add_task("", total=self.total, completed=self.start)
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar:
            self.bar.stop()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Takes the bar away for the block, which may have one of its own: rich shows one."""
        if self.bar:
            self.bar.stop()
        yield
        if self.bar:
            self.bar.start()

    def show(self, line: dict[str, Any]) -> None:
        """Shows a step's line of metrics."""
        step = line["step"]
        text = f"loss {line['loss']:.4f}  {line['tokens_per_second']:.0f} tokens/s"
        if self.bar:
            self.bar.update(self.task, completed=step, description=text)
        elif step % self.every == 0 or step in (self.start + 1, self.total):
            # From this process's own steps: a resumed run did not take the earlier ones.
            left = (time.perf_counter() - self.began) / (step - self.start) * (self.total - step)
            self.console.print(f"step {step}/{self.total}  {text}  {left:.0f} s left")


@contextmanager
def working(
    console: Console, text: str, total: int | None = None
) -> Iterator[Callable[[int], None]]:
    """Shows that something runs that may take seconds; gives a function that counts what is done.

    total: what there is to count; None where nobody can say. On a terminal a bar that leaves
    nothing behind, elsewhere a line at the start, and one now and then while it is counted.
    """
    if console.is_terminal:
        # The spinner and the clock move by themselves, also where the next count is seconds away.
        counted = () if total is None else (BarColumn(20), MofNCompleteColumn())
        columns = (SpinnerColumn("line"), TextColumn("{task.description}"), *counted)
        with Bar(*columns, TimeElapsedColumn(), console=console, transient=True) as bar:
            task = bar.add_task(text, total=total)
            yield lambda count: bar.advance(task, count)
        return
    console.print(f"{text} ...", soft_wrap=True)
    done, last = 0, time.monotonic()

    def count_plainly(count: int) -> None:
        nonlocal done, last
        done += count
        if total and done < total and time.monotonic() - last >= PLAIN_SECONDS:
            last = time.monotonic()
            console.print(f"{text}: {done} of {total}", soft_wrap=True)

    yield count_plainly


# Ctrl-C, a scheduler's end of the job, a terminal that was closed.
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def interrupts() -> Iterator[None]:
    """Inside, every way of asking a program to stop raises KeyboardInterrupt."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    previous = _handle(interrupt)
    try:
        yield
    finally:
        _restore(previous)


def _handle(handler: Any) -> dict[int, Any]:
    """Sets the handler of every stop signal; returns the handlers before.

    `nohup` asks for SIGHUP to be ignored, and gets it.
    """
    numbers = [
        number
        for number in STOPS
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN
    ]
    return {number: signal.signal(number, handler) for number in numbers}


def _restore(handlers: dict[int, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)


class StopSignal:
    """Turns the first Ctrl-C (or SIGTERM, or SIGHUP) inside the block into a request.

    A second one raises KeyboardInterrupt at once.
    """

    def __init__(self, console: Console) -> None:
        self.console, self.requested = console, False

    def __enter__(self) -> "StopSignal":
        self.previous = _handle(self._request)
        return self

    def __exit__(self, *_: object) -> None:
        _restore(self.previous)

    # A signal may come anywhere, in the middle of a write too: the handler only leaves a note that
    # the loop reads between two steps.
    def _request(self, *_: object) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        self.console.print("stopping after this step; press Ctrl-C again to stop at once")
