"""safetensors <-> Gemma2, strictly: every tensor that is missing, unexpected or misshapen is named in one error.

The model is built without memory (meta device); each tensor is read from the memory-mapped file straight into its
final dtype and device, so the peak is the model itself plus one tensor.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from model.config import Gemma2Config
from model.transformer import Gemma2

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def resolve_folder(path_or_repo: str | Path, patterns: tuple[str, ...] = ("*.json", "*.safetensors")) -> Path:
    """The local folder of a checkpoint: `path_or_repo` itself, or the downloaded hub repository of that name.

    Raises: FileNotFoundError for a missing folder; ValueError for a repository that cannot be had.
    """
    path = Path(path_or_repo)
    if path.is_dir():
        return path
    name = str(path_or_repo)
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1:
        raise FileNotFoundError(f"{name}: no such folder; give a folder with config.json, or a hub id like google/gemma-2-2b-it")
    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns)))
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
    """The safetensors files of a folder, from the index where there is one."""
    index = folder / INDEX
    if (folder / SINGLE).is_file() and not index.is_file():
        return [folder / SINGLE]
    if not index.is_file():
        raise FileNotFoundError(f"{folder}: neither {SINGLE} nor {INDEX} is here; is the download complete?")
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index}: expected a JSON object with a weight_map ({error}); download it again") from error
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(f"{index}: names files that are not here: {', '.join(missing)}; download them")
    return [folder / name for name in names]


def _read_tensors(files: list[Path], device: str) -> Iterator[tuple[str, Tensor, str]]:
    """Yields name, tensor on `device` and file name, one at a time."""
    for file in files:
        try:
            with safe_open(file, framework="pt", device=device) as reader:
                for name in reader.keys():  # noqa: SIM118 (the reader is no dict)
                    yield name, reader.get_tensor(name), file.name
        except SafetensorError as error:
            raise ValueError(f"{file}: not a readable safetensors file ({error}); download it again") from error


def _shapes(files: list[Path]) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as reader:
                for name in reader.keys():  # noqa: SIM118
                    shapes[name] = tuple(reader.get_slice(name).get_shape())
        except SafetensorError as error:
            raise ValueError(f"{file}: not a readable safetensors file ({error}); download it again") from error
    return shapes


def _check(folder: Path, expected: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]], tied: bool) -> None:
    """Raises one ValueError that names every difference between the checkpoint and the configuration."""
    extra = set(found) - set(expected) - ({HEAD} if tied else set())
    problems = [f"missing {name} {expected[name]}" for name in sorted(set(expected) - set(found))]
    problems += [f"unexpected {name} {found[name]}" for name in sorted(extra)]
    problems += [
        f"{name} has shape {found[name]}, expected {expected[name]}"
        for name in sorted(set(expected) & set(found))
        if found[name] != expected[name]
    ]
    if problems:
        raise ValueError(f"{folder}: the tensors do not fit config.json: " + "; ".join(problems))


def load_gemma2(
    path_or_repo: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> Gemma2:
    """Builds Gemma-2 from a folder or a hub id, in `dtype` (default: the checkpoint's own), in evaluation mode.

    Raises: FileNotFoundError or ValueError, naming every tensor that does not fit.
    """
    folder = resolve_folder(path_or_repo)
    config = Gemma2Config.from_json(folder)
    files = _checkpoint_files(folder)
    with torch.device("meta"):
        model = Gemma2(config)
    params = dict(model.named_parameters())  # a tied head appears once, as the embedding
    _check(folder, {name: tuple(p.shape) for name, p in params.items()}, _shapes(files), config.tie_word_embeddings)
    for name, tensor, file in _read_tensors(files, str(device)):
        if tensor.dtype not in FLOATS:
            raise ValueError(f"{folder / file}: {name} is {tensor.dtype}; only float32, float16 and bfloat16 are read")
        if name == HEAD and config.tie_word_embeddings:
            _check_tied(folder, tensor, model)
            continue
        _place(model, name, tensor.to(dtype or tensor.dtype))
    model.tie()
    return model.eval()


def _place(model: nn.Module, name: str, tensor: Tensor) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, nn.Parameter(tensor, requires_grad=False))


def _check_tied(folder: Path, head: Tensor, model: Gemma2) -> None:
    """A tied checkpoint may repeat the embedding as lm_head.weight; a different one would be dropped without a word."""
    embedding = model.model.embed_tokens.weight
    if not embedding.is_meta and not torch.equal(head.to(embedding.dtype), embedding):
        raise ValueError(f"{folder}: config.json ties the head, but {HEAD} differs from {EMBEDDING}; "
                         "set tie_word_embeddings to false")  # fmt: skip


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

    A tied head is written once, as the embedding. More than `max_shard_bytes` gives shards and an index.
    Raises: ValueError if the model still carries LoRA (merge it first).
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {name: p.detach().contiguous() for name, p in model.named_parameters()}
    with torch.device("meta"):
        expected = {name for name, _ in Gemma2(model.config).named_parameters()}
    if set(tensors) != expected:
        odd = sorted(set(tensors) ^ expected)[:3]
        raise ValueError(f"cannot save: the model is not a plain Gemma-2 ({', '.join(odd)} ...); merge the adapter first")
    model.config.to_json(directory / "config.json")
    ids = {"bos_token_id": model.config.bos_token_id, "eos_token_id": list(model.config.stop_ids),
           "pad_token_id": model.config.pad_token_id}  # fmt: skip
    (directory / "generation_config.json").write_text(json.dumps(ids, indent=2) + "\n", encoding="utf-8")
    shards = _shards(tensors, max_shard_bytes)
    if len(shards) == 1:
        save_file(shards[0], directory / SINGLE, metadata={"format": "pt"})
        return
    weight_map: dict[str, str] = {}
    for i, shard in enumerate(shards, start=1):
        file = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, directory / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": weight_map}
    (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
