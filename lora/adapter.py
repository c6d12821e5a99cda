"""PEFT's two adapter files: save, checked load, merge.

`adapter_config.json` and `adapter_model.safetensors` are PEFT's; `new_rows.safetensors` is ours and PEFT ignores it: the
frozen rows of new tokens, which the course's recipe needs and PEFT stores as two copies of the whole embedding (2.36 GB).
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lora.config import EMBEDDING, HEAD, LoRAConfig
from lora.inject import add_lora
from lora.layer import LoRAEmbedding, LoRALinear, TokenRowsEmbedding, TokenRowsHead

CONFIG, WEIGHTS, NEW_ROWS = "adapter_config.json", "adapter_model.safetensors", "new_rows.safetensors"
PREFIX = "base_model.model."
ROWS = ".token_adapter.trainable_tokens_delta"
# Copies of whole base matrices that PEFT may add for embedding and head, after the module's name.
BASE_COPIES = (".base_layer.weight", ".weight", ".token_adapter.base_layer.weight")
MERGE_ROWS = 8192  # rows of a weight merged at a time: bounds the float32 temporary of a 256,000-row matrix


def adapter_tensors(model: nn.Module) -> dict[str, nn.Parameter]:
    """Every trained tensor under PEFT's key. Rows that a tied head shares stand once, under the embedding."""
    tensors: dict[str, nn.Parameter] = {}
    for name, module in model.named_modules():
        key = PREFIX + name
        if isinstance(module, LoRALinear):
            tensors |= {f"{key}.lora_A.weight": module.lora_A, f"{key}.lora_B.weight": module.lora_B}
        elif isinstance(module, LoRAEmbedding):
            tensors |= {f"{key}.lora_embedding_A": module.lora_A, f"{key}.lora_embedding_B": module.lora_B}
        elif isinstance(module, TokenRowsEmbedding | TokenRowsHead):
            if not any(module.trained.rows is seen for seen in tensors.values()):
                tensors[key + ROWS] = module.trained.rows
    return tensors


def save_adapter(model: Any, directory: str | Path, config: LoRAConfig) -> None:
    """Writes the adapter of `model` as PEFT reads it, float32, each file replaced in one step.

    Raises: ValueError if the model has no adapter.
    """
    directory = Path(directory)
    tensors = {key: p.detach().float().cpu().contiguous() for key, p in adapter_tensors(model).items()}
    if not tensors:
        raise ValueError("this model carries no LoRA; nothing to save")
    directory.mkdir(parents=True, exist_ok=True)
    _write(tensors, directory / WEIGHTS)
    if config.adapt == "course" and config.token_ids:
        ids = torch.tensor(config.token_ids)
        rows = {name: _base_weight(model, name)[ids.to(_base_weight(model, name).device)].cpu() for name in (EMBEDDING, HEAD)}
        _write({"ids": ids, **rows}, directory / NEW_ROWS)
    content = config.to_peft(tied=model.config.tie_word_embeddings)
    partial = directory / (CONFIG + ".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    partial.replace(directory / CONFIG)


def _write(tensors: dict[str, Tensor], path: Path) -> None:
    partial = path.with_name(path.name + ".partial")
    save_file(tensors, partial, metadata={"format": "pt"})
    partial.replace(path)


def _base_weight(model: nn.Module, name: str) -> Tensor:
    weight = model.get_submodule(name if name == HEAD else f"model.{name}").weight
    assert isinstance(weight, Tensor)
    return weight.detach()


def read_config(directory: str | Path) -> LoRAConfig:
    """The configuration of the adapter in `directory`.

    Raises: FileNotFoundError without the file; ValueError if it is not a supported LoRA configuration.
    """
    path = Path(directory) / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; an adapter folder holds {CONFIG} and {WEIGHTS}")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(raw, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(raw).__name__}")
    config = LoRAConfig.from_peft(raw, str(path))
    if config.token_ids or not isinstance(config.targets, tuple) or not {EMBEDDING, HEAD} <= set(config.targets):
        return config
    return replace(config, adapt="course", token_ids=tuple(_read_rows(Path(directory)).get("ids", torch.tensor([])).tolist()))


def load_adapter(model: Any, directory: str | Path, impl: str = "auto") -> LoRAConfig:
    """Adds the adapter in `directory` to a plain Gemma2 in place and returns its configuration.

    The model's vocabulary must already have the adapter's size (see `model.embedding.resize_embedding`); rows of new
    tokens are filled from the adapter.
    Raises: FileNotFoundError; ValueError naming every tensor that is missing, unexpected or misshapen.
    """
    directory = Path(directory)
    config = read_config(directory)
    tensors = _read(directory / WEIGHTS)
    rows = _read_rows(directory) if config.adapt == "course" else {}
    if rows and int(rows["ids"].max()) >= model.config.vocab_size:
        raise ValueError(f"{directory}: rows for ids up to {int(rows['ids'].max())}, but the model has only "
                         f"{model.config.vocab_size}; resize the embedding first")  # fmt: skip
    _check_base_copies(model, tensors, directory)
    add_lora(model, config, impl=impl)
    if HEAD + ROWS in {key.removeprefix(PREFIX) for key in tensors} and model.config.tie_word_embeddings:
        tensors.pop(f"{PREFIX}{HEAD}{ROWS}")  # PEFT's duplicate of the shared rows
    expected = adapter_tensors(model)
    _check(directory / WEIGHTS, expected, tensors)
    with torch.no_grad():
        for name in (EMBEDDING, HEAD) if rows else ():
            _base_weight(model, name)[rows["ids"].to(_base_weight(model, name).device)] = rows[name].to(_base_weight(model, name))
        for key, parameter in expected.items():
            parameter.copy_(tensors[key])
    return config


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; an adapter folder holds {CONFIG} and {WEIGHTS}")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: not a readable safetensors file ({error})") from error


def _read_rows(directory: Path) -> dict[str, Tensor]:
    path = directory / NEW_ROWS
    return _read(path) if path.is_file() else {}


def _check_base_copies(model: nn.Module, tensors: dict[str, Tensor], where: Path) -> None:
    """Takes PEFT's copies of base matrices out of `tensors` and puts them into the model, whose new rows they carry."""
    for name in (f"model.{EMBEDDING}", HEAD):
        weight = _base_weight(model, name.removeprefix("model."))
        for suffix in BASE_COPIES:
            copy = tensors.pop(PREFIX + name + suffix, None)
            if copy is None:
                continue
            if copy.shape != weight.shape:
                raise ValueError(
                    f"{where}: {name}{suffix} has shape {tuple(copy.shape)}, but the model's is {tuple(weight.shape)}; "
                    "resize the embedding to the adapter's tokenizer first"
                )
            weight.copy_(copy)


def _check(path: Path, expected: dict[str, nn.Parameter], found: dict[str, Tensor]) -> None:
    problems = [f"missing {key}" for key in sorted(set(expected) - set(found))]
    problems += [f"unexpected {key}" for key in sorted(set(found) - set(expected))]
    problems += [
        f"{key} has shape {tuple(found[key].shape)}, expected {tuple(expected[key].shape)}"
        for key in sorted(set(expected) & set(found))
        if found[key].shape != expected[key].shape
    ]
    if problems:
        raise ValueError(f"{path}: does not fit this model and {CONFIG}: " + "; ".join(problems))


def _add_delta_(weight: Tensor, left: Tensor, right: Tensor, scaling: float) -> None:
    """weight (N, K) += scaling * left (N, r) @ right (r, K), in float32, rounded once."""
    for start in range(0, weight.shape[0], MERGE_ROWS):
        part = slice(start, start + MERGE_ROWS)
        weight[part] = (weight[part].float() + scaling * (left[part].float() @ right.float())).to(weight.dtype)


def merge_adapter(model: Any) -> Any:
    """Folds LoRA and token rows into the weights in place and returns the plain model, in the base's dtype.

    A tied model with LoRA on embedding or head comes out untied: the two deltas differ (W_in = W + d_in,
    W_out = W + d_out), and `config.tie_word_embeddings` turns false.
    Raises: ValueError if there is nothing to merge.
    """
    if not adapter_tensors(model):
        raise ValueError("this model carries no LoRA; nothing to merge")
    whole = [m for n, m in model.named_modules() if isinstance(m, LoRAEmbedding) or (n == HEAD and isinstance(m, LoRALinear))]
    if whole and model.config.tie_word_embeddings:
        head = model.lm_head.base if isinstance(model.lm_head, LoRALinear) else model.lm_head
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
        model.replace_config(replace(model.config, tie_word_embeddings=False))
    mergers: dict[type, Callable[[Any], None]] = {
        LoRALinear: lambda m: _add_delta_(m.base.weight, m.lora_B, m.lora_A, m.scaling),
        LoRAEmbedding: lambda m: _add_delta_(m.base.weight, m.lora_A.T, m.lora_B.T, m.scaling),
        TokenRowsEmbedding: lambda m: m.base.weight.index_copy_(0, m.trained.ids, m.trained.rows.to(m.base.weight.dtype)),
        TokenRowsHead: lambda m: m.base.weight.index_copy_(0, m.trained.ids, m.trained.rows.to(m.base.weight.dtype)),
    }
    with torch.no_grad():
        for name, module in list(model.named_modules()):
            if type(module) in mergers:
                mergers[type(module)](module)
                parent, _, leaf = name.rpartition(".")
                setattr(model.get_submodule(parent), leaf, module.base)
    return model
