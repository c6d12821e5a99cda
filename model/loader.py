"""safetensors <-> Gemma2, strictly: every tensor that is missing, unexpected or misshapen is named in one error.

The model is built without memory (meta device); each tensor is read from the memory-mapped file straight into its
final dtype and device, so the peak is the model itself plus one tensor.
"""

import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from model.config import Gemma2Config
from model.transformer import Gemma2

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
FLOATS = ("F32", "F16", "BF16")


def resolve_folder(
    path_or_repo: str | Path, patterns: tuple[str, ...] = ("*.json", "*.safetensors")
) -> Path:
    """The local folder of a checkpoint: `path_or_repo` itself, or the downloaded hub repository of that name.

    Raises: FileNotFoundError for a missing folder; ValueError for a repository that cannot be had.
    """
    path = Path(path_or_repo)
    if path.is_dir():
        return path
    name = str(path_or_repo)
    absent = FileNotFoundError(
        f"{name}: no such folder; give a folder with config.json, or a hub id like google/gemma-2-2b-it"
    )
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1:
        raise absent
    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns)))
    except HFValidationError as error:
        raise absent from error
    except GatedRepoError as error:
        raise ValueError(
            f"{name}: this repository is gated; accept its licence at https://huggingface.co/{name}, "
            "then log in with `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise ValueError(
            f"{name}: no such folder here and no such repository at https://huggingface.co/{name} "
            "(a private or gated one needs `hf auth login`)"
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ValueError(
            f"{name}: no such folder here, and the hub could not be reached; see https://huggingface.co/{name} "
            f"for the files and the licence ({type(error).__name__})"
        ) from error


def _checkpoint_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder: the single one, which Transformers too prefers, or those of the index."""
    index = folder / INDEX
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if not index.is_file():
        raise FileNotFoundError(
            f"{folder}: neither {SINGLE} nor {INDEX} is here; is the download complete?"
        )
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{index}: expected a JSON object with a weight_map ({error}); download it again"
        ) from error
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{index}: names files that are not here: {', '.join(missing)}; download them"
        )
    return [folder / name for name in names]


def _open(file: Path, device: str = "cpu") -> Any:
    try:
        return safe_open(file, framework="pt", device=device)
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{file}: not a readable safetensors file ({error}); download it again"
        ) from error


def _headers(files: list[Path]) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and type ("F32", "BF16", ...) of every tensor, by name; reads no data."""
    headers: dict[str, tuple[tuple[int, ...], str]] = {}
    for file in files:
        with _open(file) as reader:
            for name in reader.keys():  # noqa: SIM118 (the reader is no dict)
                entry = reader.get_slice(name)
                headers[name] = (tuple(entry.get_shape()), entry.get_dtype())
    return headers


def _check(folder: Path, model: Gemma2, headers: dict[str, tuple[tuple[int, ...], str]]) -> None:
    """Raises one ValueError that names every difference between the checkpoint and the configuration."""
    # A tied head appears once, as the embedding.
    expected = {name: tuple(p.shape) for name, p in model.named_parameters()}
    found = {name: shape for name, (shape, _) in headers.items()}
    if model.config.tie_word_embeddings and HEAD in found:
        expected[HEAD] = expected[EMBEDDING]  # a duplicate that some tools write
    both = sorted(set(expected) & set(found))
    problems = [f"missing {name} {expected[name]}" for name in sorted(set(expected) - set(found))]
    problems += [f"unexpected {name} {found[name]}" for name in sorted(set(found) - set(expected))]
    problems += [
        f"{n} has shape {found[n]}, expected {expected[n]}" for n in both if found[n] != expected[n]
    ]
    problems += [
        f"{n} is {headers[n][1]}, expected one of {', '.join(FLOATS)}"
        for n in both
        if headers[n][1] not in FLOATS
    ]
    if problems:
        raise ValueError(f"{folder}: the tensors do not fit config.json: " + "; ".join(problems))


def load_gemma2(
    path_or_repo: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> Gemma2:
    """Builds Gemma-2 from a folder or a hub id, in `dtype` (default: the checkpoint's own), in evaluation mode.

    On a CPU, in the checkpoint's own dtype, the weights are the memory-mapped file: nothing is copied until it is
    written to. Raises: FileNotFoundError or ValueError, naming every tensor that does not fit.
    """
    folder = resolve_folder(path_or_repo)
    config = Gemma2Config.from_json(folder)
    files = _checkpoint_files(folder)
    with torch.device("meta"):
        model = Gemma2(config)
    _check(folder, model, _headers(files))
    duplicate = None
    for file in files:
        with _open(file, str(device)) as reader:
            for name in reader.keys():  # noqa: SIM118
                tensor = reader.get_tensor(name)
                if name == HEAD and config.tie_word_embeddings:
                    duplicate = (
                        tensor  # compared when the embedding has been read, whatever the order
                    )
                else:
                    _place(model, name, tensor.to(dtype or tensor.dtype))
    model.tie()
    if duplicate is not None and not torch.equal(
        duplicate.to(model.lm_head.weight.dtype), model.lm_head.weight
    ):
        raise ValueError(
            f"{folder}: config.json ties the head, but {HEAD} differs from {EMBEDDING}; "
            "set tie_word_embeddings to false"
        )
    return model.eval()


def _place(model: nn.Module, name: str, tensor: Tensor) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, nn.Parameter(tensor, requires_grad=False))


def _shards(tensors: dict[str, Tensor], max_bytes: int) -> list[dict[str, Tensor]]:
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > max_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    return shards


def save_gemma2(model: Gemma2, directory: str | Path, max_shard_bytes: int = 5_000_000_000) -> None:
    """Writes config.json, generation_config.json and safetensors as Transformers' Gemma2ForCausalLM loads them.

    A tied head is written once, as the embedding. More than `max_shard_bytes` gives shards and an index. The folder may
    be the one that the model was loaded from. Raises: ValueError if the model still carries LoRA (merge it first).
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    config, tensors = (
        model.config,
        {name: p.detach().contiguous() for name, p in model.named_parameters()},
    )
    with torch.device("meta"):
        expected = {name for name, _ in Gemma2(config).named_parameters()}
    if set(tensors) != expected:
        odd = sorted(set(tensors) ^ expected)[:3]
        raise ValueError(
            f"cannot save: this is no plain Gemma-2 ({', '.join(odd)} ...); merge the adapter first"
        )
    dtype = str(model.model.embed_tokens.weight.dtype).removeprefix("torch.")
    config.to_json(directory / "config.json", dtype)
    ids = {
        "bos_token_id": config.bos_token_id,
        "eos_token_id": list(config.stop_ids),
        "pad_token_id": config.pad_token_id,
    }
    (directory / "generation_config.json").write_text(
        json.dumps(ids, indent=2) + "\n", encoding="utf-8"
    )
    _write(_shards(tensors, max_shard_bytes), directory)


def _write(shards: list[dict[str, Tensor]], directory: Path) -> None:
    """Writes one file, or shards and their index, and removes what an earlier save in the other form left."""
    names = (
        [SINGLE]
        if len(shards) == 1
        else [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    )
    for name, shard in zip(names, shards, strict=True):
        # Renamed into place: the tensors may be the mapped content of the very file that is replaced.
        partial = directory / (name + ".partial")
        save_file(shard, partial, metadata={"format": "pt"})
        partial.chmod(0o644)  # safetensors makes a file that only its owner can read
        partial.replace(directory / name)
    if len(shards) == 1:
        (directory / INDEX).unlink(missing_ok=True)
        return
    (directory / SINGLE).unlink(missing_ok=True)
    weight_map = {
        tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard
    }
    index = {
        "metadata": {"total_size": sum(t.nbytes for s in shards for t in s.values())},
        "weight_map": weight_map,
    }
    (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
