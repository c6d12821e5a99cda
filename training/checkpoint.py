"""What a run needs to go on after a stop: trained tensors, AdamW's moments, generator states and
counters.

Safetensors and JSON, no pickle. A checkpoint is written into a new folder that then takes the old
one's place, so a stop at any moment leaves one whole checkpoint.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from common.sharding import sliced_like, unsharded
from lora.inject import trainable_parameters

TENSORS, COUNTERS = "state.safetensors", "state.json"
MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # AdamW's names for its state of one parameter
ANEW = "start again with --overwrite"


def save_checkpoint(
    directory: Path,
    model: nn.Module,
    *,
    optimizer: torch.optim.Optimizer,
    rng: dict[str, Tensor],
    counters: dict[str, Any],
    is_writer: bool = True,
) -> None:
    """Replaces the checkpoint in `directory`.

    `counters` is anything JSON can hold; `read_counters` returns it. On a sharded model every rank
    must call this, because the slices are gathered here; only the rank with `is_writer` writes.
    """
    # Float32 as they are in memory: rounding here would make a resumed run another run.
    tensors = {f"rng.{name}": state.cpu() for name, state in rng.items()}
    for name, parameter in trainable_parameters(model).items():
        tensors[f"parameter.{name}"] = unsharded(parameter.detach()).cpu()
        for moment, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{moment}.{name}"] = unsharded(value.detach()).cpu()
    if not is_writer:
        return
    partial = directory.with_name(directory.name + ".partial")
    old = directory.with_name(directory.name + ".old")
    if old.exists() and not directory.exists():
        old.rename(directory)  # an earlier stop came between the two renames below
    for leftover in (partial, old):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir(parents=True)
    # Cloned: on a CPU these are the live parameters' own memory, and safetensors refuses shared
    # storage.
    owned = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    save_file(owned, partial / TENSORS)
    (partial / COUNTERS).write_text(json.dumps(counters, indent=2) + "\n", encoding="utf-8")
    # A folder cannot replace a full one in one step: between these renames `.old` is the only
    # whole checkpoint, and `find_checkpoint` knows that name.
    if directory.exists():
        directory.rename(old)
    partial.rename(directory)
    shutil.rmtree(old, ignore_errors=True)


def find_checkpoint(directory: Path) -> Path:
    """`directory`, or its predecessor where a stop came between `save_checkpoint`'s two renames.

    Raises: FileNotFoundError if there is neither.
    """
    for path in (directory, directory.with_name(directory.name + ".old")):
        if (path / COUNTERS).is_file():
            return path
    raise FileNotFoundError(f"{directory}: no checkpoint to resume from; start without --resume")


def read_counters(directory: Path) -> dict[str, Any]:
    """The counters of the checkpoint in `directory`. Raises: FileNotFoundError, ValueError."""
    path = find_checkpoint(directory) / COUNTERS
    try:
        counters = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid JSON ({error}); {ANEW}") from error
    if not isinstance(counters, dict):
        kind = type(counters).__name__
        raise ValueError(f"{path}: expected a JSON object, got {kind}; {ANEW}")
    return counters


def load_checkpoint(
    directory: Path, model: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """Puts parameters and moments back in place; returns the generator states.

    Raises: FileNotFoundError, or ValueError naming every tensor that does not fit.
    """
    path = find_checkpoint(directory) / TENSORS
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not a readable checkpoint ({error}); {ANEW}") from error
    # Compared as a whole before anything is copied: a refused checkpoint changes nothing.
    named = trainable_parameters(model)
    _check_shapes(path, named, _with_prefix(tensors, "parameter."))
    with torch.no_grad():
        for name, parameter in named.items():
            parameter.copy_(sliced_like(tensors[f"parameter.{name}"], parameter))
            found = {m: tensors[f"{m}.{name}"] for m in MOMENTS if f"{m}.{name}" in tensors}
            optimizer.state[parameter] = {
                # AdamW keeps its step count on the CPU unless it is fused or capturable.
                m: t if m == "step" else sliced_like(t.to(parameter.device), parameter)
                for m, t in found.items()
            }
    return _with_prefix(tensors, "rng.")


def _with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}


def _check_shapes(path: Path, named: dict[str, nn.Parameter], found: dict[str, Tensor]) -> None:
    """Raises: ValueError naming every parameter that only one side has, or of another shape."""
    odd = sorted(set(found) ^ set(named))
    odd += [
        name for name in sorted(set(found) & set(named)) if found[name].shape != named[name].shape
    ]
    if odd:
        raise ValueError(
            f"{path}: made with another model or other LoRA flags; "
            f"these tensors differ: {', '.join(sorted(odd))}"
        )
