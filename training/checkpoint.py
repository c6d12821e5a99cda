"""What a run needs to go on after a stop: trained tensors, AdamW's moments, generator states and
counters, in two generations.

Safetensors and JSON, no pickle. A checkpoint is written into a new folder that then takes the old
one's place, and the old one becomes its `previous/`: a stop at any moment leaves a whole one, and
a disk that has spoiled the newest leaves the one before.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from common.atomic import PARTIAL, flush
from common.sharding import sliced_like, unsharded
from lora.inject import trainable_parameters
from training.digests import file_digest, json_digest

TENSORS, COUNTERS, PREVIOUS = "state.safetensors", "state.json", "previous"
SHA256 = "sha256"  # entry of state.json: of the tensors' file, and of all other entries
OLD = ".old"  # ends the name of the checkpoint that is being replaced
MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # AdamW's names for its state of one parameter
KINDS = {"step": int, "scaler": dict, "fingerprint": dict, "precision": str, "total_steps": int}
KINDS |= {"products": str}
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
    """Replaces the checkpoint in `directory`, whose content becomes `directory/previous`.

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
    mend(directory)
    partial, old = (directory.with_name(directory.name + end) for end in (PARTIAL, OLD))
    partial.mkdir(parents=True)
    # Cloned: on a CPU these are the live parameters' own memory, and safetensors refuses shared
    # storage.
    owned = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    save_file(owned, partial / TENSORS)
    digests = {TENSORS: file_digest(partial / TENSORS), COUNTERS: json_digest(counters)}
    text = json.dumps({**counters, SHA256: digests}, indent=2) + "\n"
    (partial / COUNTERS).write_text(text, encoding="utf-8")
    for name in (TENSORS, COUNTERS):
        flush(partial / name)
    # A folder cannot replace a full one in one step: between these renames `.old` is the only
    # whole checkpoint, and `mend` knows that name.
    if directory.exists():
        directory.rename(old)
    partial.rename(directory)
    _keep_previous(directory, old)


def _keep_previous(directory: Path, old: Path) -> None:
    """Makes `old` the second generation of `directory`, in place of its own second one."""
    shutil.rmtree(old / PREVIOUS, ignore_errors=True)
    if (old / COUNTERS).is_file() and not (directory / PREVIOUS).exists():
        old.rename(directory / PREVIOUS)
    shutil.rmtree(old, ignore_errors=True)


def mend(directory: Path) -> None:
    """Completes or undoes a save that was stopped; nothing of it stays beside `directory`."""
    partial, old = (directory.with_name(directory.name + end) for end in (PARTIAL, OLD))
    shutil.rmtree(partial, ignore_errors=True)
    if old.exists() and not directory.exists():
        old.rename(directory)  # the stop came between the two renames
    elif old.exists():
        _keep_previous(directory, old)


def settle(directory: Path) -> str:
    """Puts the newest whole generation into `directory`; returns what was wrong with a newer one.

    Raises: FileNotFoundError without a checkpoint; ValueError if no generation is whole.
    """
    mend(directory)
    previous, old = directory / PREVIOUS, directory.with_name(directory.name + OLD)
    if not any((folder / COUNTERS).is_file() for folder in (directory, previous)):
        raise FileNotFoundError(
            f"{directory}: no checkpoint to resume from; start without --resume, or with "
            "--overwrite in place of it"
        )
    problem = find_damage(directory)
    if not problem:
        return ""
    if not (previous / COUNTERS).is_file():
        raise ValueError(f"{problem}, and there is no older checkpoint; {ANEW}")
    if second := find_damage(previous):
        raise ValueError(f"{problem}; {second}; {ANEW}")
    directory.rename(old)
    (old / PREVIOUS).rename(directory)
    shutil.rmtree(old, ignore_errors=True)
    step = read_counters(directory)["step"]
    return f"{problem}; going on from the checkpoint before it, of step {step}"


def find_damage(folder: Path) -> str:
    """What is wrong with the two files of one generation; empty for a whole one."""
    path = folder / TENSORS
    try:
        content = _read_json(folder / COUNTERS)
        digests = content.pop(SHA256, None)
        if digests is None:  # written before there were checksums: at least its header is read
            with safe_open(path, framework="pt") as file:
                file.keys()  # noqa: SIM118
            return ""
        if not isinstance(digests, dict) or digests.get(COUNTERS) != json_digest(content):
            return f"{folder / COUNTERS}: is not what was written (its sha256 differs)"
        if digests.get(TENSORS) != file_digest(path):
            return f"{path}: is not what was written (its sha256 differs)"
    except (ValueError, OSError, SafetensorError) as error:
        return str(error) if str(folder) in str(error) else f"{path}: {error}"
    return ""


def read_counters(directory: Path) -> dict[str, Any]:
    """The counters of the checkpoint in `directory`. Raises: FileNotFoundError, ValueError."""
    path = directory / COUNTERS
    if not path.is_file():
        raise FileNotFoundError(
            f"{directory}: no checkpoint to resume from; start without --resume"
        )
    content = _read_json(path)
    content.pop(SHA256, None)
    return content


def products_of(directory: Path) -> str:
    """What the run whose checkpoint this is multiplied bf16 in on a CPU: bf16 or fp32.

    Raises: FileNotFoundError, ValueError.
    """
    name = read_counters(directory).get("products", "bf16")  # before there was a choice
    if name not in ("bf16", "fp32"):
        raise ValueError(f"{directory / COUNTERS}: expected products bf16 or fp32, got {name!r}")
    return str(name)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise ValueError(f"{path}: expected a JSON object, got {kind}")
    wrong = [
        f"{name} is {content[name]!r}, expected {kind.__name__}"
        for name, kind in KINDS.items()
        if name in content and type(content[name]) is not kind
    ]
    step = content.get("step")
    if type(step) is int and step < 0:
        wrong.append(f"step is {step}, expected at least 0")
    if "step" not in content:
        wrong.append("step is missing")
    if wrong:
        raise ValueError(f"{path}: {'; '.join(wrong)}")
    return content


def load_checkpoint(
    directory: Path, model: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """Puts parameters and moments back in place; returns the generator states.

    Raises: ValueError naming every tensor that does not fit.
    """
    path = directory / TENSORS
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not a readable checkpoint ({error}); {ANEW}") from error
    # Compared as a whole before anything is copied: a refused checkpoint changes nothing.
    named = trainable_parameters(model)
    _check_shapes(path, named, _with_prefix(tensors, "parameter."))
    _check_moments(path, named, tensors)
    with torch.no_grad():
        for name, parameter in named.items():
            parameter.copy_(sliced_like(tensors[f"parameter.{name}"], parameter))
            found = {m: tensors[f"{m}.{name}"] for m in MOMENTS if f"{m}.{name}" in tensors}
            device = parameter.device
            step_device = device if optimizer.defaults["fused"] else torch.device("cpu")
            optimizer.state[parameter] = {
                # AdamW keeps its step count on the CPU unless it is fused, as on CUDA.
                m: t.to(step_device) if m == "step" else sliced_like(t.to(device), parameter)
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


def _check_moments(path: Path, named: dict[str, nn.Parameter], found: dict[str, Tensor]) -> None:
    """Raises: ValueError naming every moment that is missing or of another shape.

    Before the first step there are none at all.
    """
    if not any(f"{moment}.{name}" in found for moment in MOMENTS for name in named):
        return
    shapes = {
        f"{moment}.{name}": torch.Size() if moment == "step" else parameter.shape
        for name, parameter in named.items()
        for moment in MOMENTS
    }
    odd = [key for key, shape in shapes.items() if key not in found or found[key].shape != shape]
    if odd:
        raise ValueError(
            f"{path}: these moments of AdamW are missing or misshapen: {', '.join(sorted(odd))}; "
            f"{ANEW}"
        )
