"""The optimizers and counters of a pretraining run, and its checkpoints, saved without pickle.

Muon moves the hidden matrices, AdamW the embedding and the norms.
Source: Keller Jordan, "Muon: an optimizer for hidden layers in neural networks", 2024.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.transformer import Gemma2

COUNTS = ("tokens", "steps", "seconds")


@dataclass
class State:
    """The progress of a run: tokens seen (padding included), steps, seconds of training.

    `earlier` has the same three counts of the model that `--init` began with; `history` has the
    arguments of each run that led here, with all tokens before its start.
    """

    tokens: int = 0
    steps: int = 0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    earlier: dict[str, int] = field(default_factory=dict)

    def totals(self) -> dict[str, int]:
        """Tokens, steps and seconds with the earlier ones."""
        return {name: round(getattr(self, name)) + self.earlier.get(name, 0) for name in COUNTS}


class Optimizers:
    """float32 masters of a model's parameters, moved by Muon and AdamW.

    An update is often smaller than the distance of two bfloat16 numbers: added to the model's own
    parameters it would round to nothing.
    """

    def __init__(self, base: Gemma2, muon_lr: float, adam_lr: float) -> None:
        self.parameters = dict(base.named_parameters())
        self.masters = {
            name: p.detach().float().clone().requires_grad_() for name, p in self.parameters.items()
        }
        # The embedding is a matrix too, but a row of it is one token's vector: Muon's orthogonal
        # update of all rows at once is made for layers.
        hidden = [p for name, p in self.masters.items() if p.dim() == 2 and "embed" not in name]
        rest = [p for name, p in self.masters.items() if p.dim() != 2 or "embed" in name]
        by_adam = rest if muon_lr else rest + hidden
        adam = torch.optim.AdamW(by_adam, lr=adam_lr, betas=(0.9, 0.97), weight_decay=0.0)
        self.optimizers: list[torch.optim.Optimizer] = [adam]
        if muon_lr:
            muon = torch.optim.Muon(hidden, lr=muon_lr, weight_decay=0.01, momentum=0.95)
            self.optimizers.append(muon)
        self.rates = [group["lr"] for o in self.optimizers for group in o.param_groups]

    def take_gradients(self) -> None:
        """Adds the model's gradients to the masters' and clears them."""
        for name, p in self.parameters.items():
            grad, master = p.grad, self.masters[name]
            if grad is not None:
                master.grad = grad.float() if master.grad is None else master.grad.add_(grad)
                p.grad = None

    def step(self, scale: float, divisor: float) -> None:
        """One update at `scale` of the base rates; `divisor` is the step's summed loss weight."""
        grads = [p.grad for p in self.masters.values() if p.grad is not None]
        torch._foreach_div_(grads, divisor)
        torch.nn.utils.clip_grad_norm_(list(self.masters.values()), 1.0)
        groups = [group for o in self.optimizers for group in o.param_groups]
        for group, rate in zip(groups, self.rates, strict=True):
            group["lr"] = rate * scale
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.publish()

    @torch.no_grad()
    def publish(self) -> None:
        """Rounds the masters into the model."""
        for name, p in self.parameters.items():
            p.copy_(self.masters[name])

    def tensors(self) -> dict[str, Tensor]:
        """The optimizers' state by master name and entry."""
        names = {id(p): name for name, p in self.masters.items()}
        states = [(names[id(p)], state) for o in self.optimizers for p, state in o.state.items()]
        return {
            f"{name}|{key}": torch.as_tensor(value)
            for name, state in states
            for key, value in state.items()
        }

    def load(self, masters: dict[str, Tensor], tensors: dict[str, Tensor]) -> None:
        """Takes over masters and optimizer state, as `masters` and `tensors()` gave them."""
        with torch.no_grad():
            for name, p in self.masters.items():
                p.copy_(masters[name])
        owner = {
            id(p): o for o in self.optimizers for group in o.param_groups for p in group["params"]
        }
        for full, value in tensors.items():
            name, key = full.split("|")
            master = self.masters[name]
            # AdamW's step counter has no dimension and belongs on the CPU.
            on_device = value.to(master.device) if value.dim() else value
            owner[id(master)].state[master][key] = on_device
        self.publish()


def save_checkpoint(folder: Path, optimizers: Optimizers, state: State) -> None:
    """Writes masters, optimizer state and counters, first into a folder of another name.

    A crash while the tensors are written leaves the old checkpoint.
    """
    partial = folder.with_name(folder.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    masters = {name: p.detach() for name, p in optimizers.masters.items()}
    save_file(masters, partial / "masters.safetensors")
    save_file(optimizers.tensors(), partial / "optimizer.safetensors")
    (partial / "state.json").write_text(json.dumps(vars(state)) + "\n", encoding="utf-8")
    for old in folder.glob("*"):
        old.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    for file in partial.iterdir():
        file.rename(folder / file.name)
    partial.rmdir()


def load_checkpoint(folder: Path, optimizers: Optimizers) -> State:
    """Loads a checkpoint into `optimizers` and their model; returns its counters."""
    masters = load_file(folder / "masters.safetensors")
    optimizers.load(masters, load_file(folder / "optimizer.safetensors"))
    return State(**json.loads((folder / "state.json").read_text(encoding="utf-8")))
