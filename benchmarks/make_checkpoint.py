"""Writes a random-weight Gemma-2 checkpoint in Hugging Face's sharded layout, to try everything at full size offline.

    python -m benchmarks.make_checkpoint --config CONFIG.json --tokenizer FOLDER --out FOLDER

One shard is in memory at a time, so the peak is a shard and not the model. The weights are noise of the size that a
trained model starts from (initializer_range), so losses start near log(vocab_size).
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
BLOCK_ROWS = 512


def plan_shards(
    config: Gemma2Config, bytes_per_value: int, max_bytes: int
) -> list[dict[str, tuple[int, ...]]]:
    """Names and shapes of each shard, in the model's own order; a tensor larger than `max_bytes` stands alone."""
    with torch.device("meta"):
        shapes = {name: tuple(p.shape) for name, p in Gemma2(config).named_parameters()}
    shards: list[dict[str, tuple[int, ...]]] = [{}]
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

    A matrix repeats one block of rows under fresh signs per column: drawing 2.6 billion normal numbers would take
    minutes on a CPU, and plainly repeated rows would make the matrix singular.
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
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--config",
        type=Path,
        required=True,
        help="a Gemma-2 config.json, or the folder that holds it",
    )
    parser.add_argument(
        "--tokenizer", type=Path, required=True, help="the folder of tokenizer.json, copied along"
    )
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shard-gb", type=float, default=1.0, help="largest shard, in 10^9 bytes")
    return parser.parse_args(argv)


def check_inputs(args: argparse.Namespace) -> Gemma2Config:
    """The configuration. Raises: ValueError, FileNotFoundError for inputs that cannot be used."""
    missing = [name for name in TOKENIZER_FILES if not (args.tokenizer / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{args.tokenizer}: {', '.join(missing)} not found; give a tokenizer's folder"
        )
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
        size = write_checkpoint(
            check_inputs(args), args.out, DTYPES[args.dtype], args.seed, int(args.shard_gb * 1e9)
        )
    except (ValueError, OSError) as error:
        print(f"make_checkpoint: {error}", file=sys.stderr)
        return 2
    for name in TOKENIZER_FILES:
        shutil.copyfile(args.tokenizer / name, args.out / name)
    print(
        f"{args.out}: {size / 1e9:.2f} GB of random weights in {time.perf_counter() - start:.0f} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
