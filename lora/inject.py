"""`add_lora`: freezes a model and puts LoRA into it by module path."""

import difflib

import torch
from torch import nn

from lora.config import EMBEDDING, HEAD, LoRAConfig
from lora.layer import LoRAEmbedding, LoRALinear, NewTokens, NewTokensEmbedding, NewTokensHead


def find_targets(model: nn.Module, config: LoRAConfig) -> dict[str, nn.Module]:
    """The linear and embedding modules that `config` names, by path.

    Raises: ValueError for each name that matches none, with the nearest names there are.
    """
    modules: dict[str, nn.Module] = {
        name: m for name, m in model.named_modules() if isinstance(m, nn.Linear | nn.Embedding)
    }
    found = {name: module for name, module in modules.items() if config.matches(name)}
    targets = config.all_targets
    if isinstance(targets, str):
        unmatched = [] if found else [targets]
    else:
        unmatched = [t for t in targets if not any(n == t or n.endswith("." + t) for n in modules)]
    if unmatched:
        raise ValueError(
            "LoRA targets: " + "; ".join(_near(name, list(modules)) for name in unmatched)
        )
    return found


def _near(name: str, paths: list[str]) -> str:
    leaves = sorted({path.rpartition(".")[2] for path in paths})
    near = next(
        filter(
            None, (difflib.get_close_matches(name, names, cutoff=0.5) for names in (leaves, paths))
        ),
        [],
    )
    hint = f"did you mean {', '.join(near)}?" if near else f"there are {', '.join(leaves)}"
    return f"no module matches {name!r}; {hint}"


def add_lora(model: nn.Module, config: LoRAConfig, seed: int = 0, impl: str = "auto") -> nn.Module:
    """Freezes every parameter of a plain Gemma2 and adds LoRA and trained rows in place; returns the model.

    The starting values are drawn on the CPU from `seed`, so they are the same on every device.
    Raises: ValueError, before anything is changed, for targets that match nothing, for token ids that do not fit, or
    for a model that has LoRA already.
    """
    if any(isinstance(m, LoRALinear | LoRAEmbedding | NewTokens) for m in model.modules()):
        raise ValueError("this model already carries LoRA; merge it before adding more")
    targets = find_targets(model, config)
    rows = config.token_ids if config.adapt == "rows" else ()
    _check_rows(model, rows, targets)
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
    if rows:
        _add_rows(model, rows, config.trains_head_tokens)
    return model


def _check_rows(model: nn.Module, ids: tuple[int, ...], targets: dict[str, nn.Module]) -> None:
    """Raises ValueError for ids outside the vocabulary, or where LoRA is to adapt the whole embedding or head."""
    size = model.get_parameter(f"model.{EMBEDDING}.weight").shape[0]
    if ids and (min(ids) < 0 or max(ids) >= size or len(set(ids)) != len(ids)):
        raise ValueError(
            f"token rows: expected different ids below {size}, got {list(ids)}; resize the embedding first"
        )
    both = sorted({f"model.{EMBEDDING}", HEAD} & set(targets))
    if ids and both:
        raise ValueError(
            f"token rows: {', '.join(both)} is a LoRA target too; choose one of the two recipes"
        )


def _add_rows(model: nn.Module, ids: tuple[int, ...], trains_head_tokens: bool) -> None:
    """Replaces the rows `ids` by trained ones: shared with a tied head, separate for an untied one."""
    embedding, head = model.get_submodule(f"model.{EMBEDDING}"), model.get_submodule(HEAD)
    assert isinstance(embedding, nn.Embedding) and isinstance(head, nn.Linear)
    trained = NewTokens(embedding.weight, ids)
    is_tied = head.weight is embedding.weight
    _replace(model, f"model.{EMBEDDING}", NewTokensEmbedding(embedding, trained))
    if is_tied or trains_head_tokens:
        _replace(
            model, HEAD, NewTokensHead(head, trained if is_tied else NewTokens(head.weight, ids))
        )


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """What trains, by name; a Parameter that two modules share stands once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _replace(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, leaf = path.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)
