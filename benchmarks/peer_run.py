"""Transformers + PEFT on the rows, masks, rates, ranks and starting factors of a run of train.py.

    python -m benchmarks.peer_run runs/270m --output runs/270m-peer

Its packs, their order and the divisor of each step are the run's own, and its calls are scored by
the run's evaluator, so that what differs is the arithmetic and the time. Left in --output: PEFT's
adapter, our tokenizer, and metrics.jsonl with a line per step. A peer without dropout: the masks of
two libraries are never the same.
"""

import argparse
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch

import train
from agent.loading import load_model, model_folder
from agent.trial import Asked, measure_calls
from benchmarks.peer_model import Peer
from common.device import DTYPES, seed_everything
from common.json_file import read_object
from lora.config import LINEARS
from training.ranks import Ranks
from training.run import Run
from training.run_folder import RUN, append_metrics


def read_arguments(folder: Path) -> argparse.Namespace:
    """The flags of a run. Raises: ValueError for one that the peer cannot follow."""
    # A run that is older than a flag has done what is now that flag's default.
    recorded = read_object(folder / RUN)["arguments"]
    args = argparse.Namespace(**(vars(train.parse_args([])) | recorded))
    wanted = {"dropout": 0.0, "targets": ",".join(LINEARS), "adapt": "rows", "ranks": 1}
    for name, value in wanted.items():
        if getattr(args, name) != value:
            raise ValueError(
                f"{folder / RUN}: expected {name} {value!r}, got {getattr(args, name)!r}; "
                "name a run of train.py with that"
            )
    args.resume, args.overwrite, args.check = False, False, True  # nothing is written there
    return args


def build_peer(run: Run) -> Peer:
    """The peer with the run's base and first factors; the rows of the new tokens train too."""
    settings = argparse.Namespace(
        rank=run.config.rank,
        dropout=0.0,
        dtype=next(name for name, dtype in DTYPES.items() if dtype == run.precision.dtype),
        checkpoint_activations=run.model.model.checkpoint_activations,
    )
    peer = Peer(run.model, settings, keeps_float32=True, token_ids=run.config.token_ids)
    named = [(n, p) for n, p in peer.model.named_parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for n, p in named if "lora_" in n], "lr_scale": 1.0},
        {"params": [p for n, p in named if "lora_" not in n], "lr_scale": run.args.row_lr_scale},
    ]
    peer.optimizer = torch.optim.AdamW(groups, lr=0.0, weight_decay=run.args.weight_decay)
    return peer


def train_step(run: Run, peer: Peer, step: int) -> dict[str, Any]:
    """As `train.train_step`: one update on the mean loss over all the step's supervised tokens."""
    start = time.perf_counter()
    packs = run.data.batches.of_step(step)
    supervised = sum(example.num_supervised for pack in packs for example in pack)
    rate = train.learning_rate(step, run.total_steps, run.args.lr, run.args.warmup)
    for group in peer.optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]
    total = 0.0
    for batch in run.data.batches.micro_batches(packs):
        loss = peer.loss(batch) * (batch.num_supervised / supervised)
        loss.backward()
        total += loss.item()
    norm = torch.nn.utils.clip_grad_norm_(peer.parameters(), run.args.clip or math.inf)
    peer.optimizer.step()
    peer.optimizer.zero_grad()
    tokens = sum(len(example.tokens) for pack in packs for example in pack)
    taken = time.perf_counter() - start
    line = {"step": step, "loss": total, "grad_norm": norm.item(), "lr": rate, "tokens": tokens}
    return line | {"supervised_tokens": supervised, "tokens_per_second": tokens / taken}


def score(run: Run, folder: Path) -> dict[str, Any]:
    """The adapter that PEFT wrote, in our model, on the run's held-out rows."""
    dtype = run.precision.name
    base = str(model_folder(run.args.model))  # PEFT's own note of it is a folder that is gone
    model, tokenizer = load_model(base, folder, device="cpu", dtype=dtype)
    rows = run.data.held_out[: run.args.eval_calls]
    return measure_calls(model, tokenizer, Asked(rows, [], {}, run.data.seen_tools))


def main(argv: list[str] | None = None) -> int:
    """Trains, saves, scores; prints the last line of metrics."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a run of train.py")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--max-steps", type=int, help="stop there; the rates are still the run's")
    flags = parser.parse_args(argv)
    args = read_arguments(flags.run)
    flags.output.mkdir(parents=True)
    run = train.build(args, Ranks(), Path("--check"))[0]
    seed_everything(args.seed)
    peer = build_peer(run)
    last = min(flags.max_steps or run.total_steps, run.total_steps)
    for step in range(1, last + 1):
        line = train_step(run, peer, step)
        append_metrics(flags.output, line)
        print(f"step {step}/{last}  loss {line['loss']:.4f}", file=sys.stderr)
    peer.model.save_pretrained(flags.output)
    run.data.tokenizer.save(flags.output)
    line = {"step": last, **score(run, flags.output)}
    append_metrics(flags.output, line)
    print(json.dumps(line))
    return 0


if __name__ == "__main__":
    sys.exit(main())
