"""PEFT's two adapter files: save, checked load, merge.

`adapter_config.json` and `adapter_model.safetensors` are PEFT's. `new_rows.safetensors` is ours and
PEFT ignores it: the frozen rows that new tokens started from. Only the course's recipe needs it,
because there the adapter is a difference to those rows; PEFT would store two copies of the whole
embedding instead (2.36 GB for 2B). To read such an adapter with PEFT, give the resized base these
rows first:

    base.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    rows = load_file(folder + "/new_rows.safetensors")            # from safetensors.torch
    base.get_input_embeddings().weight.data[rows["ids"]] = rows["embed_tokens"]
    base.get_output_embeddings().weight.data[rows["ids"]] = rows["lm_head"]
    model = PeftModel.from_pretrained(base, folder)

With `adapt="rows"` the rows are in PEFT's own file, and the first line alone is enough.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.atomic import write_tensors, write_text
from common.json_file import read_object
from common.sharding import unsharded
from common.tensor_file import Headers, open_tensors
from lora.config import EMBEDDING, HEAD, LoRAConfig
from lora.embedding import ROWS_KEY
from lora.inject import add_lora
from lora.wrapped import WrappedLayer

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
NEW_ROWS = "new_rows.safetensors"
PREFIX = "base_model.model."
# Copies of whole base matrices that PEFT may add for embedding and head, after the module's name.
BASE_COPIES = (".base_layer.weight", ".weight", ".token_adapter.base_layer.weight")


def _wrapped_layers(model: nn.Module) -> Iterator[tuple[str, WrappedLayer]]:
    # A list first: merging replaces modules while the caller is still in its loop.
    for name, module in list(model.named_modules()):
        if isinstance(module, WrappedLayer):
            yield name, module


def adapter_tensors(model: nn.Module) -> dict[str, nn.Parameter]:
    """Every trained tensor under PEFT's key.

    Rows that a tied head shares appear once, under the embedding.
    """
    tensors: dict[str, nn.Parameter] = {}
    seen: set[int] = set()
    for name, layer in _wrapped_layers(model):
        for key, parameter in layer.peft_tensors(PREFIX + name).items():
            # By identity, not by value: two rows that start equal are still two.
            if id(parameter) not in seen:
                tensors[key] = parameter
            seen.add(id(parameter))
    return tensors


def save_adapter(
    model: Any, directory: str | Path, config: LoRAConfig, writes: bool = True
) -> None:
    """Writes the adapter of `model` as PEFT reads it, float32, each file replaced in one step.

    Every rank of a sharded model must call it, since its tensors are put together here; only one
    `writes`.

    The course's recipe needs `new_rows.safetensors` and three more lines in PEFT: see the top of
    this file.
    Raises: ValueError if the model has no adapter.
    """
    directory = Path(directory)
    tensors = {
        key: unsharded(p.detach()).float().cpu().contiguous()
        for key, p in adapter_tensors(model).items()
    }
    if not tensors:
        raise ValueError("this model carries no LoRA; nothing to save")
    rows = {}
    if config.adapt == "course" and config.token_ids:
        ids = torch.tensor(config.token_ids)
        rows = {name: unsharded(_base_weight(model, name)).cpu()[ids] for name in (EMBEDDING, HEAD)}
    # After the last `unsharded`: had a rank left earlier, the others would wait for its slices.
    if not writes:
        return
    directory.mkdir(parents=True, exist_ok=True)
    write_tensors(directory / WEIGHTS, tensors, metadata={"format": "pt"})
    (directory / NEW_ROWS).unlink(missing_ok=True)  # of an earlier adapter in this folder
    if rows:
        write_tensors(directory / NEW_ROWS, {"ids": ids, **rows}, metadata={"format": "pt"})
    content = config.to_peft(tied=model.config.tie_word_embeddings)
    write_text(directory / CONFIG, json.dumps(content, indent=2) + "\n")


def _base_weight(model: nn.Module, name: str) -> Tensor:
    weight = model.get_submodule(name if name == HEAD else f"model.{name}").weight
    assert isinstance(weight, Tensor)
    return weight.detach()  # the same memory: what is written into it changes the model


def read_config(directory: str | Path) -> LoRAConfig:
    """The configuration of the adapter in `directory`.

    Raises: FileNotFoundError without the file; ValueError if it is not a supported LoRA
    configuration.
    """
    path = Path(directory) / CONFIG
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file; an adapter folder holds {CONFIG} and {WEIGHTS}"
        )
    config = LoRAConfig.from_peft(read_object(path), str(path))
    # LoRA on both ends is the course's recipe; PEFT's file says nothing of it by name.
    if config.token_ids or not (config.matches(f"model.{EMBEDDING}") and config.matches(HEAD)):
        return config
    rows = _read_rows(Path(directory))
    return replace(config, adapt="course", token_ids=tuple(rows["ids"].tolist()) if rows else ())


def _expected_shapes(model: Any, config: LoRAConfig) -> Headers:
    """What `adapter_tensors` of the model with LoRA would be, found without memory for it.

    Raises: ValueError as `add_lora`.
    """
    # A rank of three million in a small file would fill the memory before any shape is compared.
    with torch.device("meta"):
        shadow = add_lora(type(model)(model.config), config, impl="reference")
    return {key: (tuple(p.shape), "F32") for key, p in adapter_tensors(shadow).items()}


def load_adapter(model: Any, directory: str | Path, impl: str = "auto") -> LoRAConfig:
    """Adds the adapter in `directory` to a plain Gemma2 in place and returns its configuration.

    The model's vocabulary must already have the adapter's size (see
    `model.embedding.resize_embedding`); rows of new tokens are filled from the adapter.
    Raises: FileNotFoundError; ValueError naming every tensor that is missing, unexpected or
    misshapen.
    """
    directory = Path(directory)
    config = read_config(directory)
    expected = _expected_shapes(model, config)
    tensors = _read(directory / WEIGHTS)
    rows = _read_rows(directory) if config.adapt == "course" else {}
    copies = _base_copies(tensors)
    problems = _pop_shared_rows(tensors, model.config.tie_word_embeddings)
    problems += _differences(expected, tensors) + _base_problems(model, copies, rows)
    if problems:
        raise ValueError(
            f"{directory / WEIGHTS}: does not fit this model and {CONFIG}: " + "; ".join(problems)
        )
    add_lora(model, config, impl=impl)
    with torch.no_grad():
        # The base first: rows of new tokens in it are what the adapter's differences refer to.
        _fill_base(model, copies, rows)
        for key, parameter in adapter_tensors(model).items():
            parameter.copy_(tensors[key])
    return config


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file; an adapter folder holds {CONFIG} and {WEIGHTS}"
        )
    with open_tensors(path) as reader:
        return {name: reader.get_tensor(name) for name in reader.keys()}  # noqa: SIM118


def _read_rows(directory: Path) -> dict[str, Tensor]:
    """The frozen rows of new tokens; empty where the adapter has none.

    ids (n,), embed_tokens and lm_head (n, D).
    """
    path = directory / NEW_ROWS
    if not path.is_file():
        return {}
    rows = _read(path)
    shapes = {name: tuple(tensor.shape) for name, tensor in rows.items()}
    is_right = set(rows) == {"ids", EMBEDDING, HEAD}
    if is_right:
        ids, embedding, head = (shapes[name] for name in ("ids", EMBEDDING, HEAD))
        # One id for each row, and rows of one width in both matrices.
        is_right = len(ids) == 1 and len(embedding) == 2
        is_right = is_right and embedding[0] == ids[0] and head == embedding
        # Numbers with a fraction are no ids, and index nothing.
        is_right = is_right and rows["ids"].dtype == torch.int64
    if not is_right:
        raise ValueError(
            f"{path}: expected ids (n,), {EMBEDDING} (n, D) and {HEAD} (n, D), got {shapes}"
        )
    return rows


def _base_copies(tensors: dict[str, Tensor]) -> list[tuple[str, Tensor]]:
    """Takes PEFT's copies of base matrices out of `tensors`: (embed_tokens or lm_head, matrix)."""
    keys = {
        f"{PREFIX}{path}{suffix}": path.removeprefix("model.")
        for path in (f"model.{EMBEDDING}", HEAD)
        for suffix in BASE_COPIES
    }
    return [(name, tensors.pop(key)) for key, name in keys.items() if key in tensors]


def _pop_shared_rows(tensors: dict[str, Tensor], is_tied: bool) -> list[str]:
    """Drops PEFT's duplicate of the rows that a tied head shares; a problem if it is none."""
    first, second = f"{PREFIX}model.{EMBEDDING}{ROWS_KEY}", PREFIX + HEAD + ROWS_KEY
    if not is_tied or first not in tensors or second not in tensors:
        return []
    # PEFT writes both names for one parameter; two that differ come from an untied model.
    is_same = torch.equal(tensors.pop(second), tensors[first])
    return [] if is_same else [f"{second} differs from {first} on a tied model"]


def _differences(expected: Headers, found: dict[str, Tensor]) -> list[str]:
    problems = [f"missing {key}" for key in sorted(set(expected) - set(found))]
    problems += [f"unexpected {key}" for key in sorted(set(found) - set(expected))]
    for key in sorted(set(expected) & set(found)):
        (shape, _), tensor = expected[key], found[key]
        if tuple(tensor.shape) != shape:
            problems.append(f"{key} has shape {tuple(tensor.shape)}, expected {shape}")
        elif not tensor.is_floating_point():
            problems.append(f"{key} is {tensor.dtype}, expected a floating-point type")
    return problems


def _base_problems(
    model: Any, copies: list[tuple[str, Tensor]], rows: dict[str, Tensor]
) -> list[str]:
    """What does not fit in the copies of base matrices and in the new rows."""
    size, width = _base_weight(model, EMBEDDING).shape
    problems = [
        f"the copy of {name} has shape {tuple(copy.shape)}, expected {(size, width)}"
        for name, copy in copies
        if copy.shape != (size, width)
    ]
    # On a tied model both copies would go into one matrix, and the second would win unseen.
    checked = copies if model.config.tie_word_embeddings else []
    if any(not torch.equal(copy, checked[0][1]) for _, copy in checked):
        problems.append(f"the copies of {EMBEDDING} and {HEAD} differ on a tied model")
    last = max(rows["ids"].tolist(), default=0) if rows else 0
    if rows and min(rows["ids"].tolist(), default=0) < 0:
        problems.append(f"{NEW_ROWS} has negative ids")  # they would count from the end
    if last >= size:
        problems.append(
            f"{NEW_ROWS} has rows up to {last} of a vocabulary of {size}: "
            "resize the embedding first"
        )
    if rows and rows[EMBEDDING].shape[1] != width:
        problems.append(
            f"{NEW_ROWS} has rows of width {rows[EMBEDDING].shape[1]}, expected {width}"
        )
    return problems


def _fill_base(model: Any, copies: list[tuple[str, Tensor]], rows: dict[str, Tensor]) -> None:
    for name, copy in copies:
        _base_weight(model, name).copy_(copy)
    if not rows:
        return
    for name in (EMBEDDING, HEAD):
        weight = _base_weight(model, name)
        weight[rows["ids"].to(weight.device)] = rows[name].to(weight)


def merge_adapter(model: Any, survived: dict[str, float] | None = None) -> Any:
    """Folds LoRA and token rows into the weights in place; returns the plain model in its dtype.

    A tied model with LoRA on embedding or head comes out untied: the two deltas differ
    (W_in = W + d_in, W_out = W + d_out), and `config.tie_word_embeddings` turns false.
    `survived` is filled with the share of each layer's delta that outlived the rounding to the
    weight's dtype (`lora.wrapped.survival`), by the layer's name.
    Raises: ValueError if there is nothing to merge, or if a merged weight is not finite.
    """
    shares: dict[str, float] = {} if survived is None else survived
    if not adapter_tensors(model):
        raise ValueError("this model carries no LoRA; nothing to merge")
    embedding, head = model.model.embed_tokens, model.lm_head
    if model.config.tie_word_embeddings and _trained(embedding) != _trained(head):
        # A copy for the head, before either delta is added to the matrix that they still share.
        base: Any = head.base if isinstance(head, WrappedLayer) else head
        base.weight = nn.Parameter(base.weight.detach().clone(), requires_grad=False)
        model.replace_config(replace(model.config, tie_word_embeddings=False))
    for name, wrapped in _wrapped_layers(model):
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, wrapped.merged())
        shares[name] = wrapped.survived
    broken = [name for name, share in shares.items() if math.isnan(share)]
    if broken:
        raise ValueError(
            f"merging gives weights that are not finite in {', '.join(broken[:3])} ({len(broken)} "
            "in all): the adapter holds such values, or its dtype is too narrow (try --dtype fp32)"
        )
    return model


def _trained(module: nn.Module) -> set[int]:
    """The identities of what trains in a layer: layers with the same ones merge to the same."""
    if not isinstance(module, WrappedLayer):
        return set()
    return {id(parameter) for parameter in module.peft_tensors("").values()}
