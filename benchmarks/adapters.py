"""Decoding with several adapters in one batch, against one adapter that was merged into the base.

    python -m benchmarks.adapters [--config tiny] [--rows 16] [--adapters 4] [--out FILE.jsonl]

In one run, on the same ids and cache: the merged model (the floor), one adapter beside the base as
training has it, and n adapters, row i with adapter i mod n, in three ways: rows put together by
adapter ("grouped", what `lora/many.py` does), each row's own factors copied together ("gathered"),
all rows with all adapters under a mask ("masked"). "sorted" is grouped with rows that come in
groups of one size, "fresh" grouped with the batch's rows set anew before each step.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.our_model import CONFIGS, random_model, twin
from benchmarks.timing import Clock, quantiles, take_turns, write_rows
from common.device import DTYPES, describe, pick_device
from lora import many
from lora.adapter import load_adapter, merge_adapter, save_adapter
from lora.config import LoRAConfig
from lora.inject import add_lora
from lora.many import ManyLinear, add_adapters
from lora.rows import Adapters, Row
from model.attention import KVCache
from model.transformer import Gemma2

console = Console(width=110)


class Gathered(ManyLinear):
    """Copies each row's own factors together: two batched products with (B, r, K) and (B, r, N)."""

    def add_all_(self, x: Tensor, adapted: Sequence[tuple[ManyLinear, Tensor]]) -> None:
        index, scale = self.adapters.index, self.adapters.scale
        for linear, y in adapted:
            factor = (scale * linear.scaling[index])[:, None, None]
            low = torch.bmm(x, linear.a[index].transpose(1, 2)) * factor  # (B, T, r)
            y.baddbmm_(low, linear.b[index])


class Masked(ManyLinear):
    """Two products of all rows with all adapters; a mask keeps each row's own."""

    def add_all_(self, x: Tensor, adapted: Sequence[tuple[ManyLinear, Tensor]]) -> None:
        index, scale = self.adapters.index, self.adapters.scale
        own = index[:, None] == torch.arange(len(self.adapters.names), device=index.device)
        for linear, y in adapted:
            share = (own * scale[:, None] * linear.scaling).repeat_interleave(linear.rank, 1)
            low = F.linear(x[:, 0], linear.a.flatten(0, 1)) * share  # (B, n r)
            y[:, 0].addmm_(low, linear.b.flatten(0, 1))


def write_adapters(model: Gemma2, folder: Path, *, count: int, rank: int) -> dict[str, Path]:
    """Random adapters for a plain model, each with eight token rows, by name."""
    size = model.config.vocab_size
    config = LoRAConfig(rank=rank, alpha=2 * rank, token_ids=tuple(range(size - 8, size)))
    for number in range(count):
        carrier = twin(model)
        add_lora(carrier, config, seed=number)
        generator = torch.Generator().manual_seed(number)
        for name, p in carrier.named_parameters():
            if name.endswith("lora_B"):  # zeros would make every adapter the base
                p.data.copy_(torch.randn(p.shape, generator=generator) * 0.01)
        save_adapter(carrier, folder / str(number), config)
    return {str(number): folder / str(number) for number in range(count)}


def build(args: argparse.Namespace, model: Gemma2, folders: dict[str, Path]) -> dict[str, Gemma2]:
    """A model for each way, all with the weights of `model`.

    Those with several adapters have their `Adapters` as an attribute.
    """
    models = {name: twin(model) for name in args.only}
    for name, model in models.items():
        if name in ("merged", "one"):
            load_adapter(model, folders["0"])
            if name == "merged":  # writes into the weights of all, whose values are noise
                merge_adapter(model)
            continue
        kind = {"gathered": Gathered, "masked": Masked}.get(name, ManyLinear)
        before, many.ManyLinear = many.ManyLinear, kind  # type: ignore[misc]
        try:
            adapters = add_adapters(model, folders)
        finally:
            many.ManyLinear = before  # type: ignore[misc]
        object.__setattr__(model, "adapters", adapters)
        adapters.use(sorted(rows_of(args), key=str) if name == "sorted" else rows_of(args))
    return models


def rows_of(args: argparse.Namespace) -> list[Row]:
    """Row i has adapter i mod n."""
    return [Row(str(number % args.adapters)) for number in range(args.rows)]


@torch.no_grad()
def step(model: Gemma2, args: argparse.Namespace, fresh: bool = False) -> dict[str, float]:
    """Seconds of one decoding step of all rows behind `--length` stored tokens."""
    device = model.model.embed_tokens.weight.device
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (args.rows, 1), generator=generator).to(device)
    positions = torch.full_like(ids, args.length)
    clock = Clock(device)
    if fresh:
        adapters: Adapters = model.adapters  # type: ignore[assignment]
        adapters.use(rows_of(args))
    hidden = model.hidden(ids, positions=positions, cache=cache_of(model, args))[:, 0]
    model.logits(hidden).argmax(-1).tolist()
    clock.lap("step")
    return clock.seconds()


CACHES: dict[int, KVCache] = {}


def cache_of(model: Gemma2, args: argparse.Namespace) -> KVCache:
    """One cache for all models, since only its size counts."""
    if not CACHES:
        weight = model.model.embed_tokens.weight
        size = args.length + 1
        CACHES[0] = KVCache(model.config, args.rows, size, weight.device, weight.dtype)
    return CACHES[0]


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each way."""
    base = random_model(CONFIGS[args.config], DTYPES[args.dtype], pick_device(args.device))
    with tempfile.TemporaryDirectory() as folder:
        written = write_adapters(base, Path(folder), count=args.adapters, rank=args.rank)
        models = build(args, base, written)
    steps: dict[str, Callable[[], dict[str, float]]] = {
        name: partial(step, model, args, name == "fresh") for name, model in models.items()
    }
    times = take_turns(steps, args.rounds)
    names = ("config", "rows", "adapters", "rank", "length", "dtype")
    what = {name: getattr(args, name) for name in names}
    rows = [
        {"name": "adapters", "impl": name} | what | quantiles(times[name]["step"])
        for name in models
    ]
    return [row | {"x_first": row["p50_ms"] / rows[0]["p50_ms"]} for row in rows]


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    ways = ["merged", "one", "grouped", "sorted", "fresh", "gathered", "masked"]
    parser.add_argument("--config", choices=CONFIGS, default="tiny")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--adapters", type=int, default=4)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--length", type=int, default=256, help="tokens that are in the cache")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--only", nargs="+", choices=ways, default=ways, help="the first is 1.00")
    parser.add_argument("--out", type=Path, help="append a JSON line for each row to this file")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    rows = measure(args)
    device = pick_device(args.device)
    size = f"{args.rows} rows, {args.adapters} adapters of rank {args.rank}, {args.dtype}"
    table = Table(title=f"{args.config}: a decoding step of {size}, {describe(device)}")
    for column in ("", "p20 ms", "p50 ms", "p80 ms", "x the first"):
        table.add_column(column, justify="right")
    for row in rows:
        times = [f"{row[f'p{q}_ms']:.2f}" for q in (20, 50, 80)]
        table.add_row(row["impl"], *times, f"{row['x_first']:.2f}")
    console.print(table)
    if args.out:
        write_rows(args.out, rows, device)
    return 0


if __name__ == "__main__":
    sys.exit(main())
