"""`add_lora`: freezes a model and puts LoRA into it by module path."""

import difflib

import torch
from torch import nn

from lora.config import EMBEDDING, HEAD, LoRAConfig
from lora.layer import LoRAEmbedding, LoRALinear, TokenRows, TokenRowsEmbedding, TokenRowsHead


def find_targets(model: nn.Module, config: LoRAConfig) -> dict[str, nn.Module]:
    """The linear and embedding modules that `config` names, by path.

    Raises: ValueError for each name that matches none, with the nearest names there are.
    """
    modules = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear | nn.Embedding)}
    found = {name: module for name, module in modules.items() if config.matches(name)}
    targets = config.all_targets
    if isinstance(targets, str):
        unmatched = [] if found else [targets]
    else:
        unmatched = [t for t in targets if not any(n == t or n.endswith("." + t) for n in modules)]
    if unmatched:
        raise ValueError("LoRA targets: " + "; ".join(_near(name, list(modules)) for name in unmatched))
    return found


def _near(name: str, paths: list[str]) -> str:
    leaves = sorted({path.rpartition(".")[2] for path in paths})
    near = difflib.get_close_matches(name, leaves, n=3, cutoff=0.5) or difflib.get_close_matches(name, paths, n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(near)}?" if near else f"there are {', '.join(leaves)}"
    return f"no module matches {name!r}; {hint}"


def add_lora(model: nn.Module, config: LoRAConfig, seed: int = 0, impl: str = "auto") -> nn.Module:
    """Freezes every parameter of a plain Gemma2 and adds LoRA and trained rows in place; returns the model.

    The starting values are drawn on the CPU from `seed`, so they are the same on every device.
    Raises: ValueError for targets that match nothing, or for a model that has LoRA already.
    """
    if any(isinstance(m, LoRALinear | LoRAEmbedding | TokenRows) for m in model.modules()):
        raise ValueError("this model already carries LoRA; merge it before adding more")
    targets = find_targets(model, config)
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, base in targets.items():
        rank, scaling = config.rank_of(name), config.scaling_of(name)
        wrapped: nn.Module
        if isinstance(base, nn.Linear):
            wrapped = LoRALinear(base, rank, scaling, config.dropout, generator, impl)
        else:
            assert isinstance(base, nn.Embedding)
            wrapped = LoRAEmbedding(base, rank, scaling, generator)
        _replace(model, name, wrapped.train(base.training))
    if config.adapt == "rows" and config.token_ids:
        add_token_rows(model, config.token_ids)
    return model


def add_token_rows(model: nn.Module, ids: tuple[int, ...]) -> None:
    """Replaces the rows `ids` by trained ones: shared with a tied head, separate for an untied one.

    Raises: ValueError for ids outside the vocabulary, or where LoRA already adapts the whole embedding.
    """
    embedding, head = model.get_submodule(f"model.{EMBEDDING}"), model.get_submodule(HEAD)
    if not isinstance(embedding, nn.Embedding) or not isinstance(head, nn.Linear):
        raise ValueError("token rows: embedding or head already carries LoRA; use one of the two recipes")
    size = embedding.num_embeddings
    if min(ids) < 0 or max(ids) >= size or len(set(ids)) != len(ids):
        raise ValueError(f"token rows: expected different ids below {size}, got {list(ids)}; resize the embedding first")
    trained = TokenRows(embedding.weight, ids)
    tied = head.weight is embedding.weight
    _replace(model, f"model.{EMBEDDING}", TokenRowsEmbedding(embedding, trained))
    _replace(model, HEAD, TokenRowsHead(head, trained if tied else TokenRows(head.weight, ids)))


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """What trains, by name; a Parameter that two modules share stands once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _replace(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, leaf = path.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)
