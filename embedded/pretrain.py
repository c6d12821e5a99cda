"""Pretrains the embedded base model on generated documents: `python -m embedded.pretrain --help`.

Warm-up, a constant trunk, and a decay to zero that branches from any checkpoint of the trunk
(arXiv:2405.18392). The model computes in bfloat16, as it will when it is fine-tuned; the optimizer
has float32 masters. This file is the loop; model, measurement and optimizers are in
pretrain_model.py, pretrain_gate.py and pretrain_state.py.
Shapes: B packs, T positions, D model width, N targets.
"""

import argparse
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from embedded.generate.batches import Batch, batches
from embedded.generate.tokenizer import write_tokenizer
from embedded.pretrain_gate import gate
from embedded.pretrain_model import compile_blocks, head_loss, hidden_states, start_model
from embedded.pretrain_state import COUNTS, Optimizers, State, load_checkpoint, save_checkpoint
from model.loader import save_gemma2
from model.transformer import Gemma2

WARMUP_TOKENS = 300_000
LOG_EVERY = 25  # steps
# The arguments that decide what comes out; they are written beside the weights.
RECIPE = "init seed tokens decay_tokens minutes rows length micro muon_lr adam_lr".split()
RECIPE += "user_weight say_weight workers device".split()
# glibc returns large blocks to the system at once, and the next step pays for every page again.
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": "4000000000",
    "MALLOC_TRIM_THRESHOLD_": "8000000000",
    "MALLOC_TOP_PAD_": "268435456",
}


def start_state(args: argparse.Namespace, optimizers: Optimizers) -> State:
    """The counters of a new or resumed run, its own arguments added to the history."""
    state = load_checkpoint(args.resume, optimizers) if args.resume else State()
    if args.init and not args.resume:
        before = json.loads((args.init / "pretrain.json").read_text(encoding="utf-8"))
        state.earlier = {name: before.get(name, 0) for name in COUNTS}
        state.history = before.get("history", [])
    recipe = {name: getattr(args, name) for name in RECIPE} | {"init": args.init and str(args.init)}
    state.history.append({"from_tokens": state.totals()["tokens"]} | recipe)
    return state


class Documents(IterableDataset[Batch]):
    """Endless batches, of another seed in each worker process."""

    def __init__(self, tokenizer: Tokenizer, seed: int, args: argparse.Namespace) -> None:
        self.tokenizer, self.seed, self.args = tokenizer, seed, args

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        # Far above any seed that --seed and the steps give: no two streams meet.
        seed = self.seed + (worker.id << 40 if worker else 0)
        weights = {"user": self.args.user_weight, "say": self.args.say_weight}
        return batches(self.tokenizer, seed, self.args.rows, self.args.length, weights)


class Threads:
    """Finds the fastest number of threads.

    On a shared machine a second thread that has to wait slows down the first.
    """

    def __init__(self, most: int) -> None:
        # Seconds of the last step with each number; zero until tried, so each is tried soon.
        self.taken = dict.fromkeys(range(1, most + 1), 0.0)
        self.now = most

    def choose(self, step: int, every: int = 20) -> None:
        """Mostly the best so far; now and then one of the others, to notice a change."""
        best = min(self.taken, key=lambda n: self.taken[n])
        self.now = 1 + step // every % len(self.taken) if step % every == 0 else best
        torch.set_num_threads(self.now)

    def measured(self, seconds: float) -> None:
        """Notes the duration of the step that has just ended."""
        self.taken[self.now] = seconds


def rate_scale(args: argparse.Namespace, state: State, start: State) -> float:
    """The share of the full rate: warm-up, constant, and where asked a linear decay to zero."""
    warm = min(1.0, (state.tokens + 1) / WARMUP_TOKENS)
    if not args.decay_tokens:
        return warm
    done = (state.tokens - start.tokens) / args.decay_tokens
    # By the clock too: on a shared machine a decay must end when it was promised to end.
    late = (state.seconds - start.seconds) / (60 * args.minutes) if args.minutes else 0.0
    return warm * max(0.0, 1.0 - max(done, late))


def is_over(args: argparse.Namespace, state: State, start: State) -> bool:
    """True once the tokens or the minutes are used up."""
    tokens = args.decay_tokens or args.tokens
    out_of_time = args.minutes and state.seconds - start.seconds >= 60 * args.minutes
    return state.tokens - start.tokens >= tokens or bool(out_of_time)


def train_step(
    base: Gemma2,
    head: Callable[..., tuple[Tensor, Tensor]],
    optimizers: Optimizers,
    made: list[Batch],
    *,
    scale: float,
) -> tuple[int, float]:
    """One update on some batches; returns its tokens and its mean loss on targets of weight 1."""
    num_tokens, weight, full_loss, num_full = 0, 0.0, 0.0, 0
    for batch in made:
        states = hidden_states(base, batch).flatten(0, 1)  # (B, T, D) -> (B * T, D)
        arrays = (batch.tokens, batch.weights)
        ids, w = (torch.from_numpy(array).to(states.device) for array in arrays)

        # The target at a position is the next token: weights and ids move one place to the left.
        w = F.pad(w[:, 1:], (0, 1)).flatten()
        targets = torch.roll(ids, -1, 1).flatten()
        # Only positions with a weight meet the head, the largest product of this small model.
        learned = w.nonzero().squeeze(1)  # (N,)
        loss, loss_of_full = head(base, states[learned], targets[learned], w[learned])
        loss.backward()
        # bfloat16 gradients go into the float32 masters now: summed in bfloat16 they would round.
        optimizers.take_gradients()

        num_tokens += ids.numel()
        weight += float(w.sum())
        full_loss += float(loss_of_full.detach())
        num_full += int((w == 1.0).sum())
    # One division by the weights of the whole step: a mean of means would favour short batches.
    optimizers.step(scale, weight)
    return num_tokens, full_loss / max(1, num_full)


def log(path: Path, **values: object) -> None:
    """One JSON line to the file and to standard output."""
    line = json.dumps(values)
    print(line, flush=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def train(args: argparse.Namespace) -> None:
    """The loop: from a fresh model or a checkpoint, until the tokens or the minutes are used up."""
    args.out.mkdir(parents=True, exist_ok=True)
    log_file, last = args.out / "log.jsonl", args.out / "last"
    tokenizer = Tokenizer.from_file(str(args.export / "tokenizer.json"))
    base = start_model(args.seed, args.device, args.init)
    optimizers = Optimizers(base, args.muon_lr, args.adam_lr)
    state = start_state(args, optimizers)
    start = replace(state)
    compile_blocks(base)
    head = torch.compile(head_loss, dynamic=True)  # the number of targets changes with each batch
    # A new seed for each start: a resumed run must not meet the same documents again.
    documents = Documents(tokenizer, args.seed * 1_000_003 + state.steps, args)
    stream = iter(DataLoader(documents, batch_size=None, num_workers=args.workers))
    threads = Threads(args.threads)

    losses: list[float] = []
    saved = gated = state.tokens
    while not is_over(args, state, start):
        clock = time.perf_counter()
        threads.choose(state.steps)
        made = list(itertools.islice(stream, args.micro))
        scale = rate_scale(args, state, start)
        num_tokens, loss = train_step(base, head, optimizers, made, scale=scale)
        taken = time.perf_counter() - clock
        threads.measured(taken)
        state.tokens, state.steps = state.tokens + num_tokens, state.steps + 1
        state.seconds += taken
        losses.append(loss)

        if state.steps % LOG_EVERY == 0:
            scale = rate_scale(args, state, start)
            log_progress(log_file, state, start, loss=losses, rate=scale, threads=threads.now)
            losses = []
        if state.tokens - gated >= args.gate_every:
            gated = state.tokens
            scores = gate(base, tokenizer, rows=args.rows, length=args.length)
            log(log_file, tokens=state.tokens, **scores)
        if state.tokens - saved >= args.save_every:
            saved = state.tokens
            save_checkpoint(last, optimizers, state)

    save_checkpoint(last, optimizers, state)
    scores = gate(base, tokenizer, rows=args.rows, length=args.length, documents=128)
    log(log_file, tokens=state.tokens, **scores)
    if not args.no_export:
        export(base, args, state, scores)


def log_progress(
    path: Path, state: State, start: State, *, loss: list[float], rate: float, threads: int
) -> None:
    """Logs the mean of the losses since the last line, and the speed since the start."""
    speed = (state.tokens - start.tokens) / (state.seconds - start.seconds)
    log(
        path,
        tokens=state.tokens,
        steps=state.steps,
        loss=round(float(np.mean(loss)), 4),
        rate=round(rate, 3),
        seconds=round(state.seconds),
        threads=threads,
        tokens_per_second=round(speed),
    )


def export(base: Gemma2, args: argparse.Namespace, state: State, scores: dict[str, float]) -> None:
    """Writes the model beside its tokenizer, with the recipe and the measured accuracies."""
    save_gemma2(base.to("cpu", torch.bfloat16), args.export)
    found = {"history": state.history, "torch": torch.__version__, "held_out_accuracy": scores}
    text = json.dumps(state.totals() | found, indent=2) + "\n"
    (args.export / "pretrain.json").write_text(text, encoding="utf-8")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m embedded.pretrain",
        description=__doc__.split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    out, weights = Path("runs/pretrain"), Path("embedded/weights")

    add = parser.add_argument_group("files").add_argument
    add("--out", type=Path, default=out, help="folder of the log and of the checkpoint `last`")
    add("--export", type=Path, default=weights, help="folder of the tokenizer and the final model")
    add("--no-export", action="store_true", help="leave the model in --export alone")
    add("--train-tokenizer", action="store_true", help="write a new tokenizer to --export first")
    add("--resume", type=Path, help="a checkpoint folder to continue from")
    add("--init", type=Path, help="exported model to start from; give another --seed too")

    add = parser.add_argument_group("length of the run").add_argument
    add("--tokens", type=int, default=30_000_000, help="tokens of the trunk in this run")
    decay = "decay the rate to zero over this many tokens instead, then stop; 0: no decay"
    add("--decay-tokens", type=int, default=0, help=decay)
    minutes = "stop, or end the decay, after this many minutes of training; 0: no limit"
    add("--minutes", type=float, default=0.0, help=minutes)

    add = parser.add_argument_group("one step").add_argument
    add("--rows", type=int, default=4, help="packs of a forward pass")
    add("--length", type=int, default=512, help="tokens of a pack")
    add("--micro", type=int, default=2, help="forward passes of a step")
    add("--muon-lr", type=float, default=0.02, help="rate of the hidden matrices; 0: AdamW alone")
    add("--adam-lr", type=float, default=3e-3, help="rate of AdamW's parameters")
    user = "loss weight of the user's words; in the end 0 is faster"
    add("--user-weight", type=float, default=0.12, help=user)
    say = "loss weight of answers in words; plans and records have 1"
    add("--say-weight", type=float, default=1.0, help=say)
    add("--seed", type=int, default=0, help="of the weights and the documents")

    add = parser.add_argument_group("measuring and saving").add_argument
    add("--gate-every", type=int, default=1_000_000, help="tokens between held-out accuracies")
    add("--save-every", type=int, default=1_000_000, help="tokens between checkpoints")

    add = parser.add_argument_group("machine").add_argument
    add("--device", default="cpu", help="cpu or cuda")
    workers = "processes that write documents; a GPU reads more than one can write"
    add("--workers", type=int, default=0, help=workers)
    add("--threads", type=int, default=2, help="most threads of a step")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    torch.set_num_threads(args.threads)
    if args.train_tokenizer or not (args.export / "tokenizer.json").is_file():
        write_tokenizer(args.export)
    train(args)


if __name__ == "__main__":
    # glibc reads these before the first line of Python: the process replaces itself once.
    if not set(ALLOCATOR) <= set(os.environ):
        command = [sys.executable, "-m", "embedded.pretrain", *sys.argv[1:]]
        os.execve(sys.executable, command, os.environ | ALLOCATOR)
    main()
