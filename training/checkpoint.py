"""What a run needs to go on after a stop: trained tensors, AdamW's moments, generator states and counters.

Written as safetensors and JSON (no pickle) into a new folder that then takes the old one's place in one step, so a stop
at any moment leaves one whole checkpoint.
"""

import json
import math
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
MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def make_optimizer(
    model: nn.Module, weight_decay: float, row_lr_scale: float = 1.0
) -> torch.optim.AdamW:
    """AdamW (arXiv:1711.05101) over everything that trains; `set_learning_rate` gives it its rate before each step.

    Token rows are a group of their own, whose rate is `row_lr_scale` times the rate of the low-rank factors.
    """
    named = trainable_parameters(model)
    rows = [p for name, p in named.items() if name.endswith(".trained.rows")]
    factors = [p for name, p in named.items() if not name.endswith(".trained.rows")]
    groups = [{"params": factors, "lr_scale": 1.0}, {"params": rows, "lr_scale": row_lr_scale}]
    return torch.optim.AdamW(
        [g for g in groups if g["params"]], lr=0.0, weight_decay=weight_decay, betas=(0.9, 0.999)
    )


def learning_rate(step: int, total: int, peak: float, warmup: float) -> float:
    """Rate of step 1..total: linear up over the first `warmup` share of the steps, then half a cosine down towards zero.

    Source of the cosine: "SGDR" (arXiv:1608.03983), equation 5, without restarts.
    """
    rise = math.ceil(warmup * total)
    if step <= rise:
        return peak * step / rise
    return (
        peak * 0.5 * (1.0 + math.cos(math.pi * (step - 1 - rise) / (total - rise)))
    )  # zero would be a lost step


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets `rate` times each group's own scale."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]


def save_checkpoint(
    directory: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    rng: dict[str, Tensor],
    counters: dict[str, Any],
    writes: bool = True,
) -> None:
    """Replaces the checkpoint in `directory`. `counters` is anything JSON can hold; it comes back from `load_checkpoint`.

    Every rank of a sharded model must call it, since its tensors are put together here; only one `writes`.
    """
    tensors = {f"rng.{name}": state.cpu() for name, state in rng.items()}
    for name, parameter in trainable_parameters(model).items():
        tensors[f"parameter.{name}"] = unsharded(parameter.detach()).cpu()
        for moment, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{moment}.{name}"] = unsharded(value.detach()).cpu()
    if not writes:
        return
    partial, old = (
        directory.with_name(directory.name + ".partial"),
        directory.with_name(directory.name + ".old"),
    )
    if old.exists() and not directory.exists():
        old.rename(directory)  # an earlier stop left only this one
    for leftover in (partial, old):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file(
        {name: tensor.contiguous().clone() for name, tensor in tensors.items()}, partial / TENSORS
    )
    (partial / COUNTERS).write_text(json.dumps(counters, indent=2) + "\n", encoding="utf-8")
    if directory.exists():
        directory.rename(old)
    partial.rename(directory)
    shutil.rmtree(old, ignore_errors=True)


def find_checkpoint(directory: Path) -> Path:
    """`directory`, or its predecessor where a stop came between the two renames of `save_checkpoint`.

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
        raise ValueError(
            f"{path}: not valid JSON ({error}); start again with --overwrite"
        ) from error
    if not isinstance(counters, dict):
        raise ValueError(
            f"{path}: expected a JSON object, got {type(counters).__name__}; start again with --overwrite"
        )
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
        raise ValueError(
            f"{path}: not a readable checkpoint ({error}); start again with --overwrite"
        ) from error
    named = trainable_parameters(model)
    found = {
        key.removeprefix("parameter."): t.shape
        for key, t in tensors.items()
        if key.startswith("parameter.")
    }
    odd = [
        n
        for n in sorted(set(found) | set(named))
        if n not in found or n not in named or found[n] != named[n].shape
    ]
    if odd:
        raise ValueError(
            f"{path}: made with another model or other LoRA flags; these tensors differ: {', '.join(odd)}"
        )
    with torch.no_grad():
        for name, parameter in named.items():
            parameter.copy_(sliced_like(tensors[f"parameter.{name}"], parameter))
            moments = {m: tensors[f"{m}.{name}"] for m in MOMENTS if f"{m}.{name}" in tensors}
            # AdamW keeps its step count on the CPU unless it is fused or capturable.
            optimizer.state[parameter] = {
                m: t if m == "step" else sliced_like(t.to(parameter.device), parameter)
                for m, t in moments.items()
            }
    return {
        key.removeprefix("rng."): tensor
        for key, tensor in tensors.items()
        if key.startswith("rng.")
    }
