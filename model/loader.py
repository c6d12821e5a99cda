"""safetensors <-> Gemma2, strictly: one error names every missing, unexpected or misshapen tensor.

The model is built without memory (meta device); each tensor is read from the memory-mapped file
straight into its final dtype and device, so the peak is the model itself plus one tensor. A GGUF
file is read alike, in the same order.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from common.atomic import write_tensors, write_text
from common.gguf_file import GGUFFile, is_gguf
from common.hub import fetch
from common.json_file import read_object, show
from common.tensor_file import FLOATS, Headers, open_tensors, read_headers
from model import gguf
from model.config import Gemma2Config
from model.gemma3 import text_name
from model.transformer import Gemma2

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_FILE_NAME = re.compile(r"[\w-][\w.-]{0,199}")
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def checkpoint_folder(path_or_repo: str | Path) -> Path:
    """The folder of a checkpoint, or of the downloaded hub repository of that name; or a GGUF file.

    Raises: ValueError for another file; what `fetch` raises for a name that cannot be had.
    """
    # All JSON files: a tokenizer is read from the same folder.
    folder = fetch(path_or_repo, ["*.json", "*.safetensors"])
    if not folder.is_dir() and not is_gguf(folder):
        raise ValueError(
            f"{folder}: expected a folder with config.json and *.safetensors, or a .gguf file, "
            "got another file"
        )
    return folder


def checkpoint_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder: the single one, or those that the index names."""
    index = folder / INDEX
    # A folder may have both, from two saves; Transformers too prefers the single file.
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if not index.is_file():
        raise FileNotFoundError(
            f"{folder}: neither {SINGLE} nor {INDEX} is here; is the download complete?"
        )
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(
            f"{index}: expected a weight_map of tensors, got {show(weight_map)}; download it again"
        )
    for name in weight_map.values():
        # A name with a folder in it, "../secret.safetensors", would be read from elsewhere.
        if not isinstance(name, str) or not _FILE_NAME.fullmatch(name):
            raise ValueError(
                f"{index}: expected names of files in the same folder, got {show(name)}; "
                "download it again"
            )
    names = sorted(set(weight_map.values()))
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{index}: names files that are not here: {', '.join(missing[:5])}; download them"
        )
    return [folder / name for name in names]


def _check(folder: Path, model: Gemma2, headers: Headers) -> None:
    """Raises one ValueError that names every difference between checkpoint and configuration.

    `headers` has the text model's tensors under its own names.
    """
    # named_parameters lists a tied head once, as the embedding.
    expected = {name: tuple(p.shape) for name, p in model.named_parameters()}
    found = {name: shape for name, (shape, _) in headers.items()}
    if model.config.tie_word_embeddings and HEAD in found:
        expected[HEAD] = expected[EMBEDDING]  # a duplicate that some tools write
    problems = [f"missing {name} {expected[name]}" for name in sorted(set(expected) - set(found))]
    problems += [f"unexpected {name} {found[name]}" for name in sorted(set(found) - set(expected))]
    for name in sorted(set(expected) & set(found)):
        shape, kind = headers[name]
        if shape != expected[name]:
            problems.append(f"{name} has shape {shape}, expected {expected[name]}")
        if kind not in FLOATS:
            problems.append(f"{name} is {kind}, expected one of {', '.join(FLOATS)}")
    if problems:
        where = "its own fields" if is_gguf(folder) else "config.json"
        raise ValueError(f"{folder}: the tensors do not fit {where}: " + "; ".join(problems))


def load_gemma2(
    path_or_repo: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> Gemma2:
    """Builds Gemma-2 or 3 from a folder, a hub id or a GGUF file, in evaluation mode.

    `dtype` is by default the checkpoint's own, float32 for GGUF. In that dtype, on a CPU, the
    weights are the memory-mapped safetensors file: nothing is copied until it is written to.
    Raises: FileNotFoundError or ValueError, naming every tensor that does not fit.
    """
    folder = checkpoint_folder(path_or_repo)
    config = Gemma2Config.from_json(folder)
    with torch.device("meta"):  # shapes without memory
        model = Gemma2(config)
    # The headers first: nothing is read of a checkpoint that does not fit.
    if is_gguf(folder):
        file = GGUFFile(folder)
        headers, tensors = gguf.headers(file), gguf.tensors(file, dtype or torch.float32)
    else:
        files = checkpoint_files(folder)
        stored = read_headers(*files)
        headers = {own: header for name, header in stored.items() if (own := text_name(name))}
        tensors = _read_tensors(files, device)
    _check(folder, model, headers)
    duplicate = None
    for name, tensor in tensors:
        if name == HEAD and config.tie_word_embeddings:
            # Compared when the embedding has been read too, whatever the files' order.
            duplicate = tensor
        else:
            _place(model, name, tensor.to(device, dtype or tensor.dtype))
    # The loop has replaced the Parameter that head and embedding shared.
    model.tie()
    if duplicate is not None:
        _check_duplicate(folder, duplicate, model.lm_head.weight)
    return model.eval()


def _read_tensors(files: list[Path], device: torch.device | str) -> Iterator[tuple[str, Tensor]]:
    """The text model's tensors one by one, in their own dtype, on a device."""
    for file in files:
        with open_tensors(file, str(device)) as reader:
            for stored in reader.keys():  # noqa: SIM118
                name = text_name(stored)
                if name is not None:
                    yield name, reader.get_tensor(stored)


def _check_duplicate(folder: Path, head: Tensor, embedding: Tensor) -> None:
    if not torch.equal(head.to(embedding.dtype), embedding):
        raise ValueError(
            f"{folder}: config.json ties the head, but {HEAD} differs from {EMBEDDING}; "
            "set tie_word_embeddings to false"
        )


def _place(model: nn.Module, name: str, tensor: Tensor) -> None:
    # A new Parameter, not a copy into the old one: that one is on the meta device, without memory.
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, nn.Parameter(tensor, requires_grad=False))


def save_gemma2(model: Gemma2, directory: str | Path, max_shard_bytes: int = 5_000_000_000) -> None:
    """Writes config.json, generation_config.json and safetensors as Transformers loads them.

    A tied head is written once, as the embedding. More than `max_shard_bytes` gives shards and an
    index. The folder may be the one that the model was loaded from.
    Raises: ValueError if the model still carries LoRA (merge it first).
    """
    directory, config = Path(directory), model.config
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {name: p.detach().contiguous() for name, p in model.named_parameters()}
    # Compared with a plain model of the same sizes, since LoRA's names need not be known here.
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
    write_text(directory / "generation_config.json", json.dumps(ids, indent=2) + "\n")
    _write(_shards(tensors, max_shard_bytes), directory)


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


def _write(shards: list[dict[str, Tensor]], directory: Path) -> None:
    """Writes one file, or shards and their index; removes an earlier save in the other form."""
    count = len(shards)
    names = [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    if count == 1:
        names = [SINGLE]
    weight_map: dict[str, str] = {}
    for name, shard in zip(names, shards, strict=True):
        # In one step: the tensors may be the mapped content of the very file that is replaced.
        write_tensors(directory / name, shard, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, name)
    if count == 1:
        (directory / INDEX).unlink(missing_ok=True)
        return
    # Readers prefer the single file: an old one would hide the shards.
    (directory / SINGLE).unlink(missing_ok=True)
    size = sum(tensor.nbytes for shard in shards for tensor in shard.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    write_text(directory / INDEX, json.dumps(index, indent=2) + "\n")
