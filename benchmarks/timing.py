"""How everything here is timed: each implementation in turn, round after round, on the same inputs.

Turns make a ratio reliable on a machine whose speed drifts: a slow minute falls on all of them
alike.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.device import describe
from training.run_folder import git_commit, versions

WARM_UP = 2


def synchronize(device: torch.device) -> None:
    """Waits for the device: a call on a GPU returns before its work is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def take_turns(
    steps: Mapping[str, Callable[[], Mapping[str, float]]], rounds: int, warm_up: int = WARM_UP
) -> dict[str, dict[str, list[float]]]:
    """Runs each step once a round: name -> phase -> seconds of each round.

    A step returns the seconds of its phases. The first `warm_up` rounds compile, allocate and are
    not counted.
    """
    found: dict[str, dict[str, list[float]]] = {name: {} for name in steps}
    for index in range(warm_up + rounds):
        for name, step in steps.items():
            phases = step()
            if index >= warm_up:
                for phase, seconds in phases.items():
                    found[name].setdefault(phase, []).append(seconds)
    return found


class Clock:
    """Seconds since the last lap, the device's work included."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        synchronize(device)
        self.last = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the clock was made or lapped."""
        synchronize(self.device)
        now = time.perf_counter()
        seconds, self.last = now - self.last, now
        return seconds


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
    common = {"device": describe(device), "versions": versions(), "commit": git_commit()}
    with path.open("a", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row | common) + "\n")
