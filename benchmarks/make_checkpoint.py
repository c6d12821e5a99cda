"""Writes a Gemma-2 checkpoint of random weights, to try everything at full size offline.

The layout is Hugging Face's: shards and their index.

    python -m benchmarks.make_checkpoint --config CONFIG.json --tokenizer FOLDER --out FOLDER

One shard is in memory at a time, so the peak is a shard and not the model. The weights are noise
of the size that a trained model starts from (initializer_range), so losses start near
log(vocab_size).
"""

import argparse
import json
import shutil
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from common.device import DTYPES
from model.config import Gemma2Config
from model.loader import INDEX
from model.transformer import Gemma2

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
STD = 0.02  # initializer_range of every published Gemma-2 config.json
BLOCK_ROWS = 512  # rows of noise that are drawn; the others of a matrix repeat them


# The shapes of a shard's tensors by name.
Shard = dict[str, tuple[int, ...]]


def plan_shards(config: Gemma2Config, bytes_per_value: int, max_bytes: int) -> list[Shard]:
    """The shards, in the model's own order; a tensor larger than `max_bytes` has one to itself."""
    with torch.device("meta"):
        shapes = {name: tuple(p.shape) for name, p in Gemma2(config).named_parameters()}
    shards: list[Shard] = [{}]
    size = 0
    for name, shape in shapes.items():
        nbytes = bytes_per_value * torch.Size(shape).numel()
        if shards[-1] and size + nbytes > max_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = shape
        size += nbytes
    return shards


def random_tensor(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Normal noise; norm weights around zero, as (1 + w) expects.

    A matrix repeats one block of rows under fresh signs per column: drawing 2.6 billion normal
    numbers would take minutes on a CPU, and plainly repeated rows would make the matrix singular.
    """
    if len(shape) == 1:
        return (torch.randn(shape, generator=generator) * 0.1).to(dtype)
    rows, width = shape
    block = (torch.randn(min(rows, BLOCK_ROWS), width, generator=generator) * STD).to(dtype)
    tensor = torch.empty(shape, dtype=dtype)
    for part in tensor.split(BLOCK_ROWS):
        signs = torch.randint(0, 2, (width,), generator=generator).mul_(2).sub_(1).to(dtype)
        torch.mul(block[: part.shape[0]], signs, out=part)
    return tensor


def write_checkpoint(
    config: Gemma2Config, out: Path, dtype: torch.dtype, seed: int, max_bytes: int
) -> int:
    """Writes config.json, the shards and their index; returns the number of bytes of weights."""
    out.mkdir(parents=True, exist_ok=True)
    config.to_json(out / "config.json")
    shards = plan_shards(config, torch.empty(0, dtype=dtype).element_size(), max_bytes)
    generator = torch.Generator().manual_seed(seed)
    weight_map: dict[str, str] = {}
    total = 0
    for number, shapes in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {name: random_tensor(shape, dtype, generator) for name, shape in shapes.items()}
        save_file(tensors, out / file, metadata={"format": "pt"})
        (out / file).chmod(0o644)  # safetensors makes a file that only its owner can read
        weight_map |= dict.fromkeys(tensors, file)
        total += sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (out / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return total


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.make_checkpoint", description=(__doc__ or "").splitlines()[0]
    )
    add = parser.add_argument_group("files").add_argument
    add("--config", type=Path, required=True, help="a Gemma-2 config.json, or its folder")
    add("--tokenizer", type=Path, required=True, help="folder of tokenizer.json, copied along")
    add("--out", type=Path, required=True, help="the folder to write")
    add = parser.add_argument_group("weights").add_argument
    add("--dtype", choices=DTYPES, default="bf16", help="default: %(default)s")
    add("--seed", type=int, default=0, help="default: %(default)s")
    shard = "largest shard, in 10^9 bytes (default: %(default)s)"
    add("--shard-gb", type=float, default=1.0, help=shard)
    return parser.parse_args(argv)


def check_inputs(args: argparse.Namespace) -> Gemma2Config:
    """The configuration. Raises: ValueError, FileNotFoundError for inputs that cannot be used."""
    missing = [name for name in TOKENIZER_FILES if not (args.tokenizer / name).is_file()]
    if missing:
        found = f"{args.tokenizer}: {', '.join(missing)} not found"
        raise FileNotFoundError(f"{found}; give a tokenizer's folder")
    if args.out.exists() and any(args.out.iterdir()):
        raise ValueError(f"{args.out}: not empty; give a new folder")
    if args.shard_gb <= 0:
        raise ValueError(f"--shard-gb: expected a positive number, got {args.shard_gb}")
    return Gemma2Config.from_json(args.config)


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 when an input is wrong."""
    args = parse_args(argv)
    start = time.perf_counter()
    try:
        config, max_bytes = check_inputs(args), int(args.shard_gb * 1e9)
        size = write_checkpoint(config, args.out, DTYPES[args.dtype], args.seed, max_bytes)
    except (ValueError, OSError) as error:
        print(f"make_checkpoint: {error}", file=sys.stderr)
        return 2
    for name in TOKENIZER_FILES:
        shutil.copyfile(args.tokenizer / name, args.out / name)
    seconds = time.perf_counter() - start
    print(f"{args.out}: {size / 1e9:.2f} GB of random weights in {seconds:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
