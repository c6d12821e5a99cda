"""How everything here is timed: each implementation in turn, round after round, on the same inputs.

Turns make a ratio reliable on a machine whose speed drifts: a slow minute falls on all of them
alike.
"""

import gc
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from common.device import describe
from model.step import capture as record
from training.run_folder import git_commit, versions

R = TypeVar("R")

PEERS = ("transformers", "peft", "accelerate")  # whose versions a row has too
WARM_UP = 2
GPU_WARM_UP = 10  # compiling is over after two, but a card's clocks rise later


def synchronize(device: torch.device) -> None:
    """Waits for the device: a call on a GPU returns before its work is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def take_turns(
    steps: Mapping[str, Callable[[], Mapping[str, float]]],
    rounds: int,
    warm_up: int = WARM_UP,
    on_death: Callable[[str, str], None] | None = None,
) -> dict[str, dict[str, list[float]]]:
    """Runs each step once a round: name -> phase -> seconds of each round.

    A step returns the seconds of its phases. The first `warm_up` rounds compile, allocate and are
    not counted. With `on_death` a step that raises, as one that runs out of memory, leaves the
    turns and what is found, and its name and error go there.
    """
    alive = dict(steps)
    found: dict[str, dict[str, list[float]]] = {name: {} for name in steps}
    for index in range(warm_up + rounds):
        for name, step in list(alive.items()):
            phases, error = attempt(step) if on_death else (step(), "")
            if phases is None:
                assert on_death is not None
                del alive[name], found[name]
                on_death(name, error)
            elif index >= warm_up:
                for phase, seconds in phases.items():
                    found[name].setdefault(phase, []).append(seconds)
    return found


def attempt(call: Callable[[], R]) -> tuple[R | None, str]:
    """What `call` returns, and no error; or None, and its error in words.

    The memory that it held is free again then: on a card full of one implementation's activations
    no other one could run.
    """
    try:
        return call(), ""
    except Exception as failure:
        error = f"{type(failure).__name__}: {str(failure).strip().partition(chr(10))[0]}"
    # Only here, behind the handler: the exception's frames held the tensors until now.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None, error


class Clock:
    """Named laps of one step, the device's work included.

    On CUDA they are events in the stream, so that no lap waits for the card: a step that is cut
    into phases takes as long as a whole one.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        synchronize(device)
        self.names: list[str] = []
        self.marks = [self._now()]

    def _now(self) -> Any:
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            return event
        synchronize(self.device)
        return time.perf_counter()

    def lap(self, name: str) -> None:
        """The work since the clock was made, or since the last lap, was `name`."""
        self.names.append(name)
        self.marks.append(self._now())

    def seconds(self) -> dict[str, float]:
        """The seconds of each lap, by name."""
        synchronize(self.device)
        pairs = zip(self.marks, self.marks[1:], strict=False)
        if self.device.type == "cuda":
            laps = [start.elapsed_time(stop) / 1e3 for start, stop in pairs]
        else:
            laps = [stop - start for start, stop in pairs]
        return dict(zip(self.names, laps, strict=True))


def capture(call: Callable[[], list[Tensor]]) -> tuple[Callable[[], None], list[Tensor]]:
    """`call` as one CUDA graph: what replays it, and its results, which a replay overwrites."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # what is compiled or allocated once, outside the graph
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    results: list[Tensor] = []
    return record(lambda: results.extend(call())), results


def clear_cache(device: torch.device) -> None:
    """Writes more than a card's second-level cache holds: in a model the inputs are not in it."""
    if device.type == "cuda":
        torch.empty(256 << 20, dtype=torch.uint8, device=device).zero_()


def quantiles(seconds: list[float]) -> dict[str, float]:
    """p20, p50 and p80 in milliseconds."""
    ordered = sorted(seconds)
    last = len(ordered) - 1
    return {f"p{q}_ms": 1e3 * ordered[round(q / 100 * last)] for q in (20, 50, 80)}


def kept_bytes(run: Callable[[], Any], parameters: Sequence[Tensor]) -> int:
    """Bytes that autograd keeps for the backward pass of `run`, beyond `parameters`."""
    own = {p.untyped_storage().data_ptr() for p in parameters}
    kept: dict[int, int] = {}
    # The address of a freed storage could be given out again, and the two would count as one.
    alive: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()  # views of one storage count once
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        alive.append(run())
    return sum(kept.values())


def write_rows(path: Path, rows: list[dict[str, Any]], device: torch.device) -> None:
    """Appends one JSON line per row, with device, versions and commit."""
    path.parent.mkdir(parents=True, exist_ok=True)
    common = {"device": describe(device), "versions": versions(PEERS), "commit": git_commit()}
    with path.open("a", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row | common) + "\n")
