"""Parts of `benchmarks.gpu` that no other benchmark has: tiles, kernels, decoding, a small card.

    python -m benchmarks.gpu_parts flex|kernels|decode|capped --out ROWS

Shapes: M rows, K in, N out, r rank, R stacked ranks.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.our_model import CONFIGS, Ours
from benchmarks.timing import Clock, attempt, clear_cache, quantiles, take_turns, write_rows
from model import attention_flex
from model.attention_flex import FlexAttention, tile_options

CUDA = torch.device("cuda")
# (queries, keys, warps, stages) of the forward pass, and (step, held, warps, stages) of the
# backward pass: what the compiler reports few spills for at 256-wide heads.
TILES: tuple[tuple[tuple[int, ...], tuple[int, ...]] | None, ...] = (
    None,
    ((128, 64, 8, 2), (32, 32, 4, 2)),
    ((128, 64, 8, 2), (16, 64, 8, 2)),
    ((128, 32, 8, 3), (32, 32, 8, 2)),
    ((64, 32, 4, 3), (32, 64, 8, 2)),
    ((64, 64, 8, 2), (64, 64, 8, 2)),
)
LINEARS = ((2304, 9216, 32), (2304, 2048, 48), (9216, 2304, 16))  # K, N, R
CAP_BYTES = 15 * 10**9  # a T4's memory

Keep = Callable[[dict[str, Any]], None]


def timed(calls: dict[str, Callable[[], Any]], rounds: int = 20) -> dict[str, dict[str, float]]:
    """Name -> quantiles in milliseconds; what dies is printed and left out."""

    def step(call: Callable[[], Any]) -> dict[str, float]:
        clear_cache(CUDA)
        clock = Clock(CUDA)
        call()
        clock.lap("all")
        return clock.seconds()

    steps = {name: partial(step, call) for name, call in calls.items()}
    times = take_turns(steps, rounds, on_death=lambda name, error: print(f"{name}: {error}"))
    return {name: quantiles(found["all"]) for name, found in times.items()}


def flex(args: argparse.Namespace, keep: Keep) -> None:
    """FlexAttention's tiles at the 2B model's shape, and which pair is the fastest here."""
    config, major = CONFIGS["2b"], torch.cuda.get_device_capability()[0]
    documents = torch.zeros(8, 1024, dtype=torch.int64)
    attend = FlexAttention.of(documents, config.sliding_window, CUDA)
    heads = (config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads)
    qkv = [
        torch.randn(8, 1024, n, config.head_dim, device=CUDA).bfloat16().requires_grad_()
        for n in heads
    ]
    rule: dict[str, Any] = {"window": None, "cap": config.attn_logit_softcapping}
    forward = partial(attend, *qkv, **rule, scale=config.head_dim**-0.5)
    upstream, best = torch.randn_like(qkv[0]), {"forward": (1e9, ""), "backward": (1e9, "")}
    for tiles in TILES:
        options = {} if tiles is None else {(major, config.head_dim): tile_options(*tiles)}
        attention_flex.OPTIONS = options
        attention_flex._options.cache_clear()
        torch.compiler.reset()
        out, error = attempt(forward)
        row: dict[str, Any] = {"name": "flex", "capability": major, "tiles": tiles}
        if out is None:
            keep(row | {"error": error})
            continue
        backward = partial(torch.autograd.grad, out, qkv, upstream, retain_graph=True)
        found = timed({"forward": forward, "backward": backward})
        for index, (phase, times) in enumerate(found.items()):
            label = "PyTorch's own" if tiles is None else str(tiles[index])
            best[phase] = min(best[phase], (times["p50_ms"], label))
            keep(row | {"mode": phase} | times)
    chosen = {phase: label for phase, (_, label) in best.items()}
    keep({"name": "flex_best", "capability": major, "head_width": config.head_dim} | chosen)


def kernels(args: argparse.Namespace, keep: Keep) -> None:
    """Each low-rank kernel and the products beside it: times, and bytes or flops a second."""
    from lora.kernels import steps

    M, p, seed = 8192, 0.05, torch.tensor([2**61])
    noise = partial(torch.randn, device=CUDA)
    for K, N, R in LINEARS:
        x, y, weight = (noise(*s).bfloat16() for s in ((M, K), (M, N), (N, K)))
        a, b, scale = noise(R, K), noise(N, 16), torch.ones(R, device=CUDA)
        s, s16 = noise(M, R).bfloat16(), noise(M, 16).bfloat16()
        # The same product with 64 columns more, as a border that holds the factors would make it.
        bordered_x, bordered = noise(M, K + 64).bfloat16(), noise(N, K + 64).bfloat16()
        calls: dict[str, Callable[[], Any]] = {
            "product": partial(torch.matmul, x, weight.T),
            "bordered product": partial(torch.matmul, bordered_x, bordered.T),
            "shrink": partial(steps.shrink, x, a, scale, p, seed),
            "expand": partial(steps.expand_, y, s16, b),
            "expand_backward": partial(steps.expand_backward, y, b, s16, 2.0),
            "shrink_backward": partial(steps.shrink_backward_, x, s, x, a, p, seed),
        }
        flops = {"product": 2 * M * K * N, "bordered product": 2 * M * (K + 64) * N}
        large = {"shrink": M * K, "expand": 2 * M * N, "expand_backward": M * N}
        numbers = large | {"shrink_backward": 3 * M * K}
        for name, times in timed(calls).items():
            row = {"name": "kernel", "impl": name, "rows": M, "in": K, "out": N, "rank": R} | times
            seconds = times["p50_ms"] / 1e3
            tflops = flops[name] / seconds / 1e12 if name in flops else None
            rate = 2 * numbers[name] / seconds / 1e12 if name in numbers else None
            keep(row | {"tflops": tflops, "terabytes_per_second": rate})


def decode(args: argparse.Namespace, keep: Keep) -> None:
    """Milliseconds a decoded token of the 2B model with its adapter, for 1 row and for 16."""
    from model.generate import decode as tokens

    model = Ours(args).model.eval()
    for rows in (1, 16):
        clock = Clock(CUDA)
        for step, _ in enumerate(tokens(model, [[5] * 400] * rows, 48, (1,))):
            clock.lap(f"{step}")
        # The first tokens bring the prompt and what is allocated once.
        times = quantiles(list(clock.seconds().values())[8:])
        tokens_per_second = 1e3 * rows / times["p50_ms"]
        row = {"name": "decode", "rows": rows, "config": args.config, "dtype": args.dtype}
        keep(row | times | {"tokens_per_second": tokens_per_second})


def capped(args: argparse.Namespace, keep: Keep) -> None:
    """Training in fp16 with no more memory than a T4 has: 1 x 1500 tokens, for --max-steps."""
    import train
    from benchmarks import make_checkpoint

    folder, run = args.out.parent / "checkpoint_2b", args.out.parent / "capped"
    tokenizer = Path(__file__).parents[1] / "embedded" / "weights"
    if not (folder / "config.json").is_file():
        config = args.out.parent / "config_2b.json"
        CONFIGS["2b"].to_json(config, "bfloat16")
        made = ["--config", str(config), "--tokenizer", str(tokenizer), "--out", str(folder)]
        if make_checkpoint.main(made):
            raise RuntimeError("benchmarks.make_checkpoint failed")
    total = torch.cuda.get_device_properties(CUDA).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, CAP_BYTES / total))
    flags = f"--device cuda --dtype fp16 --model {folder} --dataset {args.dataset} --output {run}"
    flags += (
        f" --overwrite --max-steps {args.max_steps} --eval-calls 0 --eval-rows 0 --save-every 0"
    )
    flags += " --micro-batch 1 --accumulate 4"
    code = train.main(flags.split())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["step"]]
    row = {"name": "capped", "code": code, "cap_bytes": CAP_BYTES, "steps": len(steps)}
    row |= {"skipped": sum(bool(line.get("skipped")) for line in steps)}
    keep(row | {key: steps[-1][key] for key in ("loss", "tokens_per_second", "peak_memory_bytes")})


PARTS = {"flex": flex, "kernels": kernels, "decode": decode, "capped": capped}


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--out", type=Path, required=True, help="JSON lines are appended here")
    parser.add_argument("--dataset", type=Path, help="of the capped run")
    parser.add_argument("--max-steps", type=int, default=60, help="of the capped run")
    model: dict[str, Any] = {"device": "cuda", "config": "2b", "dtype": "bf16", "rank": 16}
    model |= {"dropout": 0.05, "lora_impl": "auto", "checkpoint_activations": "none"}
    parser.set_defaults(**model)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    args = parse_args(argv)

    def keep(row: dict[str, Any]) -> None:
        print(row, flush=True)
        write_rows(args.out, [row], CUDA)

    PARTS[args.part](args, keep)
    return 0


if __name__ == "__main__":
    sys.exit(main())
