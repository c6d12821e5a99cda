"""What a step costs the host, counted on a stand-in for a CUDA card: no time and no value is real.

    python -m benchmarks.stand_in --label NAME [--out benchmarks/results/stand_in.jsonl]

The stand-in is a library of the CUDA runtime's names, preloaded, whose kernels are compiled and
counted and do nothing; it is not in this repository, and without it this prints that it skips. Real
on it are launches, the host's time, registers and spills, compilations, and peaks of memory. A row
is a run; the table of all rows of --out is written beside them.
"""

import argparse
import ctypes
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.our_model import CONFIGS, random_batch
from benchmarks.timing import write_rows
from common.device import DTYPES, pick_precision
from data.packing import Batch
from lora.config import LoRAConfig
from lora.inject import add_lora, trainable_parameters
from model.transformer import Gemma2
from train import make_optimizer
from training.run import StepLoss

# Places of the counters in the stand-in's array: kernels of PyTorch, of Triton, and products.
KERNELS = {"launches_pytorch": 0, "launches_triton": 1, "launches_products": 2}
SYNCS = 3
LIMITS = {
    "launches": "2,200 at most",
    "host_ms": "half of before",
    "block_mask_ms": "1 at most",
    "flex_spill_bytes": "256 at most",
    "compilations_after_second_step": "0",
    "peak_gb": "27 at most",
    "t4_peak_gb": "11 at most",
    "decode_launches": "0",
    "decode_graphs": "1",
    "decode_waits": "1",
}


def counters() -> "ctypes.Array[ctypes.c_long] | None":
    """The stand-in's counters; None on a real card, or on none."""
    try:
        return (ctypes.c_long * 16).in_dll(ctypes.CDLL(None), "fake_stat")
    except ValueError:
        return None


def bare_model(args: argparse.Namespace) -> Gemma2:
    """The 2B model in LoRA, with whatever its memory holds: on the stand-in no value counts."""
    device = torch.device("cuda")
    config = CONFIGS["2b"]
    dtype = DTYPES[pick_precision("auto", device, config.num_parameters).name]
    with torch.device("meta"):
        model = Gemma2(config)
    model = model.to(dtype).to_empty(device=device)
    model.tie()
    tags = tuple(range(config.vocab_size - 8, config.vocab_size))
    add_lora(model, LoRAConfig(rank=16, alpha=64.0, dropout=args.dropout, token_ids=tags))
    model.model.checkpoint_activations = args.checkpoint_activations
    return model.train()


class Steps:
    """Optimizer steps of the bare model, as `train.train_step` takes them."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.model = bare_model(args)
        self.loss, self.optimizer = StepLoss(self.model), make_optimizer(self.model, 0.1)
        is_half = self.model.lm_head.weight.dtype == torch.float16
        self.scaler = torch.amp.GradScaler("cuda", enabled=is_half)

    def take(self, batch: Batch, passes: int = 1) -> None:
        """Forward and backward, as often as the step has passes, then clip, update."""
        share = 1.0 / max(1, batch.num_supervised * passes)
        for _ in range(passes):
            loss = self.loss(batch, self.scaler.get_scale() * share)
            self.scaler.scale(loss * share).backward()
        self.scaler.unscale_(self.optimizer)
        parameters = trainable_parameters(self.model).values()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0).item()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)


def host_batch(packs: int, length: int, documents: int, share: float) -> Batch:
    """A random batch where training has it: on the host."""
    sizes = argparse.Namespace(packs=packs, length=length, documents=documents, share=share)
    return random_batch(argparse.Namespace(**vars(sizes), device="cpu"), CONFIGS["2b"])


def compilations() -> int:
    """Graphs that torch.compile has made in this process."""
    from torch._dynamo.utils import counters as dynamo

    return int(dynamo["stats"]["unique_graphs"])


def best_ms(calls: int, call: Any) -> float:
    """The least processor time of a call: what other programs take does not count."""
    best = float("inf")
    for _ in range(calls):
        start = time.process_time()
        call()
        best = min(best, time.process_time() - start)
    return 1e3 * best


def count_step(args: argparse.Namespace) -> dict[str, Any]:
    """Launches, host time and peak of a step, and what the steps after the second compile."""
    stat = counters()
    assert stat is not None
    steps, passes = Steps(args), args.passes
    batch = host_batch(args.packs // passes, args.length, args.documents, 0.3)
    for _ in range(2):
        steps.take(batch, passes)
    compiled = compilations()
    torch.cuda.reset_peak_memory_stats()
    before = list(stat)
    steps.take(batch, passes)
    after = list(stat)
    found: dict[str, Any] = {name: after[i] - before[i] for name, i in KERNELS.items()}
    found = {"launches": sum(found.values())} | found | {"syncs": after[SYNCS] - before[SYNCS]}
    found["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
    found["host_ms"] = best_ms(args.rounds, lambda: steps.take(batch, passes))
    # Other documents and another number of supervised tokens: what every step of a run brings.
    for documents, share in ((2, 0.25), (4, 0.4), (1, 0.5)):
        steps.take(host_batch(args.packs // passes, args.length, documents, share))
    found["compilations_after_second_step"] = compilations() - compiled
    decoder = steps.model.model
    positions = batch.positions.cuda()
    mask = lambda: decoder.choose_attention(positions, batch.documents, None)  # noqa: E731
    found["block_mask_ms"] = best_ms(10 * args.rounds, mask)
    return found


def flex_spill(args: argparse.Namespace) -> dict[str, Any]:
    """Bytes a thread that FlexAttention's kernels spill at the 2B model's shape, the largest."""
    from model.attention_flex import FlexAttention

    config, cache = CONFIGS["2b"], os.environ["TRITON_CACHE_DIR"]
    batch = host_batch(args.packs, args.length, args.documents, 0.3)
    device = torch.device("cuda")
    attend = FlexAttention.of(batch.documents, config.sliding_window, device)
    sizes = [(args.packs, args.length, n, config.head_dim) for n in (8, 4, 4)]
    query, keys, values = (
        torch.randn(size, device="cuda").bfloat16().requires_grad_() for size in sizes
    )
    cap = config.attn_logit_softcapping
    out = attend(query, keys, values, window=None, scale=config.head_dim**-0.5, cap=cap)
    out.backward(torch.ones_like(out))
    spills = {
        path.stem: spilled(path)
        for path in sorted(Path(cache).rglob("*.cubin"))
        if "flex_attention" in path.with_suffix(".json").read_text()
    }
    return {"flex_spill_bytes": max(spills.values()), "flex_spills": spills}


def spilled(cubin: Path) -> int:
    """Bytes of the stack frame a thread needs: what did not fit its registers."""
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    # Not under the stand-in, which it would load in place of what it needs.
    clean = {k: v for k, v in os.environ.items() if k not in ("LD_PRELOAD", "LD_LIBRARY_PATH")}
    command = [str(tool), "-res-usage", str(cubin)]
    text = subprocess.run(command, capture_output=True, text=True, check=True, env=clean).stdout
    return max(int(n) for n in re.findall(r"(?:STACK|LOCAL):(\d+)", text))


def count_decoding(args: argparse.Namespace) -> dict[str, Any]:
    """What a decoded token of the 2B model with its adapter costs, as a graph and without one."""
    import model.step
    from model.generate import Sampling, decode

    stat, net = counters(), bare_model(args).eval()
    assert stat is not None
    graphs = ctypes.c_long.in_dll(ctypes.CDLL(None), "fake_graph_launches")
    found: dict[str, Any] = {}
    for label, eager in (("", model.step.EAGER_STEPS), ("eager_", 10**9)):
        model.step.EAGER_STEPS = eager
        steps = decode(net, [[5] * 400], 24, (1, 107), Sampling(forbidden=(3, 4)))
        for _ in range(6):
            next(steps)
        before, launched, start = list(stat), graphs.value, time.process_time()
        tokens = sum(1 for _ in steps)
        seconds = time.process_time() - start
        kernels = sum(stat[i] - before[i] for i in KERNELS.values())
        counts = {"launches": kernels, "graphs": graphs.value - launched}
        counts |= {"waits": stat[SYNCS] - before[SYNCS], "host_ms": 1e3 * seconds}
        found |= {f"decode_{label}{name}": count / tokens for name, count in counts.items()}
    return found


def in_process(part: str, args: argparse.Namespace, **environment: str) -> dict[str, Any]:
    """A part in a process of its own: another card, or an empty cache."""
    flags = [f"--{name}={getattr(args, name)}" for name in ("packs", "length", "documents")]
    flags += [f"--dropout={args.dropout}", f"--rounds={args.rounds}", f"--passes={args.passes}"]
    flags += [f"--checkpoint-activations={args.checkpoint_activations}", f"--part={part}"]
    command = [sys.executable, "-m", "benchmarks.stand_in", *flags]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ | environment
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The row of this source tree."""
    row: dict[str, Any] = {"name": "stand_in", "label": args.label, "packs": args.packs}
    row |= {"length": args.length, "documents": args.documents, "dropout": args.dropout}
    row |= in_process("step", args)
    with tempfile.TemporaryDirectory() as empty:
        row |= in_process("flex", args, TORCHINDUCTOR_CACHE_DIR=empty, TRITON_CACHE_DIR=empty)
    sizes = {"length": 1500, "documents": 3}
    # The course's step of four packs, in as many passes as it takes on such a card; a T4's pass.
    for name, card, changes in (
        ("course", "h100", {"packs": 4, "passes": args.course_passes}),
        ("t4", "t4", {"packs": 1, "passes": 1}),
    ):
        small = argparse.Namespace(**vars(args) | sizes | changes)
        found = in_process("step", small, FAKE_GPU=card)
        row |= {f"{name}_{key}": found[key] for key in ("launches", "host_ms", "peak_gb")}
    return row | in_process("decode", args)


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as columns of a Markdown table."""
    names = [name for name, value in rows[-1].items() if isinstance(value, int | float)]
    lines = ["| | " + " | ".join(row["label"] for row in rows) + " | wanted |"]
    lines.append("|---" * (len(rows) + 2) + "|")
    for name in names:
        values = [row.get(name) for row in rows]
        cells = ["-" if v is None else f"{v:,.2f}" if v != int(v) else f"{v:,.0f}" for v in values]
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {LIMITS.get(name, '')} |")
    return "\n".join(lines) + "\n"


PARTS = {"step": count_step, "flex": flex_spill, "decode": count_decoding}


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--label", default="now", help="the column's name")
    parser.add_argument("--packs", type=int, default=8)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--documents", type=int, default=1, help="of a pack")
    parser.add_argument("--dropout", type=float, default=0.05)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--passes", type=int, default=1, help="that a step's packs are cut into")
    parser.add_argument("--course-passes", type=int, default=1, help="of 4 x 1500 tokens")
    parser.add_argument("--checkpoint-activations", default="none")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help="a JSON line is appended here")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    args = parse_args(argv)
    if counters() is None:
        print("stand_in: skipped: the stand-in for a CUDA card is not preloaded")
        return 0
    if args.part:
        print(json.dumps(PARTS[args.part](args)))
        return 0
    row = measure(args)
    print(table([row]))
    if args.out:
        write_rows(args.out, [row], torch.device("cuda"))
        rows = [json.loads(line) for line in args.out.read_text().splitlines()]
        args.out.with_suffix(".md").write_text(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
