"""`add_lora`: freezes a model and puts LoRA into it by module path."""

import difflib
from typing import TypeVar

import torch
from torch import nn

from lora.config import EMBEDDING, HEAD, LoRAConfig
from lora.embedding import LoRAEmbedding, NewTokens, NewTokensEmbedding, NewTokensHead
from lora.implementations import resolve_impl
from lora.layer import LoRALinear
from lora.wrapped import WrappedLayer

Model = TypeVar("Model", bound=nn.Module)


def find_targets(model: nn.Module, config: LoRAConfig) -> dict[str, nn.Module]:
    """The linear and embedding modules that `config` names, by path.

    Raises: ValueError for each name that matches none, with the nearest names there are.
    """
    modules: dict[str, nn.Module] = {
        name: m for name, m in model.named_modules() if isinstance(m, nn.Linear | nn.Embedding)
    }
    # All linears and embeddings are candidates, so that a target may name any of them, heads too.
    found = {name: module for name, module in modules.items() if config.matches(name)}
    targets = config.all_targets
    if isinstance(targets, str):
        unmatched = [] if found else [targets]
    else:
        # Each name by itself: a misspelt one must not hide behind the others' matches.
        unmatched = [t for t in targets if not any(n == t or n.endswith("." + t) for n in modules)]
    if unmatched:
        raise ValueError(
            "LoRA targets: " + "; ".join(_near(name, list(modules)) for name in unmatched)
        )
    return found


def _near(name: str, paths: list[str]) -> str:
    leaves = sorted({path.rpartition(".")[2] for path in paths})
    # A misspelt last part first ("q_prj"), then a misspelt whole path.
    near = difflib.get_close_matches(name, leaves, cutoff=0.5)
    if not near:
        near = difflib.get_close_matches(name, paths, cutoff=0.5)
    hint = f"did you mean {', '.join(near)}?" if near else f"there are {', '.join(leaves)}"
    return f"no module matches {name!r}; {hint}"


def add_lora(
    model: Model,
    config: LoRAConfig,
    seed: int = 0,
    impl: str = "auto",
    *,
    device: torch.device | None = None,
) -> Model:
    """Freezes a plain Gemma2 and adds LoRA and trained rows in place; returns the model.

    The starting values are drawn on the CPU from `seed`, so they are the same on every device.
    `impl` is resolved here, for the model's dtype and `device`: where the model will run, by
    default where it is now.
    Raises: ValueError, before anything is changed, for targets that match nothing, for token ids
    that do not fit, for a model that has LoRA already, or for an `impl` that cannot run there.
    """
    if any(isinstance(m, WrappedLayer) for m in model.modules()):
        raise ValueError("this model already carries LoRA; merge it before adding more")
    targets = find_targets(model, config)
    rows = config.token_ids if config.adapt == "rows" else ()
    _check_rows(model, rows, targets)
    weight = model.get_parameter(f"model.{EMBEDDING}.weight")
    impl, _ = resolve_impl(impl, device or weight.device, weight.dtype)
    model.requires_grad_(False)
    # One generator for all layers, in the model's order: a layer's start depends on those before
    # it.
    generator = torch.Generator().manual_seed(seed)
    for name, base in targets.items():
        rank, scaling = config.rank_of(name), config.scaling_of(name)
        wrapped: WrappedLayer
        if isinstance(base, nn.Linear):
            wrapped = LoRALinear(base, rank, scaling, config.dropout, generator, impl)
        else:
            assert isinstance(base, nn.Embedding)
            wrapped = LoRAEmbedding(base, rank, scaling, generator)
        # A new module is in training mode; in a model under evaluation its dropout would be on.
        replace_module(model, name, wrapped.train(base.training))
    if rows:
        _add_rows(model, rows, config.trains_head_tokens)
    return model


def _check_rows(model: nn.Module, ids: tuple[int, ...], targets: dict[str, nn.Module]) -> None:
    """Checks the ids of new tokens.

    Raises: ValueError for ids outside the vocabulary, or where LoRA is to adapt the whole embedding
    or head.
    """
    size = model.get_parameter(f"model.{EMBEDDING}.weight").shape[0]
    # A negative id would index from the end, and a repeated one train two rows for one token.
    if ids and (min(ids) < 0 or max(ids) >= size or len(set(ids)) != len(ids)):
        raise ValueError(
            f"token rows: expected different ids below {size}, got {list(ids)}; "
            "resize the embedding first"
        )
    both = sorted({f"model.{EMBEDDING}", HEAD} & set(targets))
    if ids and both:
        raise ValueError(
            f"token rows: {', '.join(both)} is a LoRA target too; choose one of the two recipes"
        )


def _add_rows(model: nn.Module, ids: tuple[int, ...], trains_head_tokens: bool) -> None:
    """Replaces the rows `ids` by trained ones; a tied head shares them."""
    embedding, head = model.get_submodule(f"model.{EMBEDDING}"), model.get_submodule(HEAD)
    assert isinstance(embedding, nn.Embedding) and isinstance(head, nn.Linear)
    is_tied = head.weight is embedding.weight  # asked before anything is wrapped
    trained = NewTokens(embedding.weight, ids)
    replace_module(model, f"model.{EMBEDDING}", NewTokensEmbedding(embedding, trained))
    if is_tied:
        # The same module twice: one parameter, and its gradient is the sum of both ends.
        replace_module(model, HEAD, NewTokensHead(head, trained))
    elif trains_head_tokens:
        replace_module(model, HEAD, NewTokensHead(head, NewTokens(head.weight, ids)))


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """What trains, by name; a Parameter that two modules share appears once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def replace_module(model: nn.Module, path: str, module: nn.Module) -> None:
    """Puts `module` at `path` into the model."""
    parent, _, leaf = path.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)
