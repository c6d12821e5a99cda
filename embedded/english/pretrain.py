"""Goes on with the pretraining of the embedded base in plain English; writes to runs/english.

The grammar comes first, from `python -m embedded.pretrain`. Recorded stages (stages.py), each from
the weights of the one before: warm-up and a constant rate, and where a stage is marked `decay` a
fall to zero (arXiv:2405.18392). Model, optimizers and checkpoints are those of `embedded.pretrain`.
`torchrun --nproc-per-node 2 -m embedded.english.pretrain` shares the batches of a step.
Shapes: B packs, T positions, D model width, N targets.
"""

import argparse
import itertools
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from common.cli import USER_ERRORS
from embedded.english.gate import gate
from embedded.english.generate.general import fingerprint, missing_packages
from embedded.english.network import hidden_states, see_branches, start_model
from embedded.english.packs import WEIGHTS, Batch, packs, to_batch
from embedded.english.stages import STAGES, Stage, documents
from embedded.english.words import widen
from embedded.english.workers import add_up, join, this_process, wait
from embedded.pretrain import ALLOCATOR, LOG_EVERY, WARMUP_TOKENS, Threads, log, log_progress
from embedded.pretrain_model import compile_blocks, head_loss
from embedded.pretrain_state import Optimizers, State, load_checkpoint, save_checkpoint
from model.loader import save_gemma2
from model.transformer import Gemma2

ROWS, LENGTH = 4, 1024  # packs of a step and tokens of a pack
GATE_EVERY, SAVE_EVERY = 2_000_000, 1_000_000  # tokens
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
# A waiting thread must not hold the core of the other.
ENVIRONMENT = ALLOCATOR | {"OMP_WAIT_POLICY": "PASSIVE"}


def stage_batches(stage: Stage, tokenizer: Tokenizer, steps: int) -> Iterator[list[Batch]]:
    """What each step after the first `steps` computes here: the stage's batches of packs, in its
    documents' own order, dealt out to the processes.

    Earlier batches are made and thrown away.
    """
    rank, processes = this_process()
    stream = packs(tokenizer, documents(stage), LENGTH)
    weights = WEIGHTS | {"pick": stage.picks, "args": stage.fields, "lack": stage.fields}
    for step in itertools.count():
        dealt = [list(itertools.islice(stream, ROWS)) for _ in range(stage.batches)]
        if step >= steps:
            yield [to_batch(rows, LENGTH, weights) for rows in dealt[rank::processes]]


def train_step(
    base: Gemma2,
    head: Callable[..., tuple[Tensor, Tensor]],
    optimizers: Optimizers,
    batches: list[Batch],
    *,
    scale: float,
) -> float:
    """One update; returns the mean loss on targets of weight 1 or more."""
    # Summed loss of those targets, their number, summed weights of all.
    totals = sum((backward(base, head, optimizers, batch) for batch in batches), torch.zeros(3))
    add_up(optimizers.masters.values(), totals)
    loss, count, weight = totals.tolist()
    optimizers.step(scale, weight)
    return float(loss / max(1.0, count))


def backward(
    base: Gemma2, head: Callable[..., tuple[Tensor, Tensor]], optimizers: Optimizers, batch: Batch
) -> Tensor:
    """Adds a batch's gradients to the masters'; returns its totals (3)."""
    states = hidden_states(base, batch).flatten(0, 1)  # (B, T, D) -> (B * T, D)
    ids, weights = torch.from_numpy(batch.tokens), torch.from_numpy(batch.weights)

    # The target at a position is the next token: weights and ids move one place to the left.
    w = F.pad(weights[:, 1:], (0, 1)).flatten()
    targets = torch.roll(ids, -1, 1).flatten()
    # Only positions with a weight meet the head, the largest product of this small model.
    learned = w.nonzero().squeeze(1)  # (N,)
    loss, loss_of_full = head(base, states[learned], targets[learned], w[learned])
    loss.backward()
    optimizers.take_gradients()
    return torch.stack([loss_of_full.detach(), (w >= 1.0).sum(), w.sum()]).float()


def late(args: argparse.Namespace, state: State, start: State) -> float:
    """The share of --minutes that is used up; 0 without a limit."""
    return (state.seconds - start.seconds) / (60 * args.minutes) if args.minutes else 0.0


def rate_scale(stage: Stage, state: State, lateness: float = 0.0) -> float:
    """The share of the full rate: warm-up, constant, and in a decaying stage linear to zero."""
    warm = min(1.0, (state.tokens + 1) / WARMUP_TOKENS)
    done = max(state.tokens / stage.tokens, lateness)
    return warm * max(0.0, 1.0 - done) if stage.decay else warm


def train(stage: Stage, before: Path, args: argparse.Namespace) -> None:
    """One stage, from the export `before` or its own checkpoint, until its end or --minutes."""
    rank, processes = this_process()
    if stage.batches % processes:
        raise ValueError(
            f"stage {stage.name!r}: expected a number of processes that divides its "
            f"{stage.batches} batches a step, got {processes}; see torchrun --nproc-per-node"
        )
    folder = args.out / stage.name
    log_file, last = folder / "log.jsonl", folder / "last"
    before = begin(stage, before, folder)
    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER[0]))
    base = start_model(before)
    optimizers = Optimizers(base, stage.muon_rate, stage.adam_rate)
    state = load_checkpoint(last, optimizers) if (last / "state.json").is_file() else State()
    start = replace(state)
    compile_blocks(base)
    see_branches(base)
    head = torch.compile(head_loss, dynamic=True)  # the number of targets changes with each batch
    stream = stage_batches(stage, tokenizer, state.steps)
    threads = Threads(max(1, args.threads // processes))

    losses: list[float] = []
    saved = gated = state.tokens
    while state.tokens < stage.tokens * args.share and late(args, state, start) < 1.0:
        clock = time.perf_counter()
        threads.choose(state.steps)
        scale = rate_scale(stage, state, late(args, state, start))
        losses.append(train_step(base, head, optimizers, next(stream), scale=scale))
        taken = time.perf_counter() - clock
        threads.measured(taken)
        state.tokens, state.steps = state.tokens + stage.batches * ROWS * LENGTH, state.steps + 1
        state.seconds += taken
        if rank:  # the others wait for the first one's gradients while it measures and saves
            continue

        if state.steps % LOG_EVERY == 0:
            log_progress(log_file, state, start, loss=losses, rate=scale, threads=threads.now)
            losses = []
        if state.tokens - gated >= GATE_EVERY:
            gated = state.tokens
            log(log_file, tokens=state.tokens, **measure(base, tokenizer, stage, lists=20))
        if state.tokens - saved >= SAVE_EVERY:
            saved = state.tokens
            save_checkpoint(last, optimizers, state)

    if not rank:
        save_checkpoint(last, optimizers, state)
        scores = measure(base, tokenizer, stage, lists=args.lists)
        log(log_file, tokens=state.tokens, final=True, **scores)
        export(base, folder, record(stage, before, state, scores))
    wait()


def begin(stage: Stage, before: Path, folder: Path) -> Path:
    """The export that a stage begins with, widened if need be, and its tokenizer in `folder`: made
    by the first process, read by all.
    """
    if not this_process()[0]:
        before = widen(before, folder / "start") if stage.widens else before
        find_tokenizer(before, folder)
    wait()
    made = folder / "start"
    return made if stage.widens and (made / "config.json").is_file() else before


def measure(base: Gemma2, tokenizer: Tokenizer, stage: Stage, *, lists: int) -> dict[str, float]:
    """The gate in the shape of a training batch, for which the blocks are compiled already."""
    return gate(base, tokenizer, stage.recipe, rows=ROWS, length=LENGTH, lists=lists)


def record(stage: Stage, before: Path, state: State, scores: dict[str, float]) -> dict[str, object]:
    """What pretrain.json says: all stages so far, and their tokens."""
    file = before / "pretrain.json"
    earlier = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    # The grammar's own record has no list: it becomes the first of the stages.
    stages = earlier.get("stages", [{"stage": "grammar"} | earlier] if earlier else [])
    counts = {"tokens": state.tokens, "steps": state.steps, "seconds": round(state.seconds)}
    versions = {"text": fingerprint(), "torch": torch.__version__}
    stages.append({"stage": stage.name} | counts | versions | {"held_out": scores})
    return {"tokens": sum(one["tokens"] for one in stages), "stages": stages}


def export(base: Gemma2, folder: Path, record: dict[str, object]) -> None:
    """Adds weights and the record of its stages to the tokenizer: a base that train.py can use."""
    save_gemma2(base.to(torch.bfloat16), folder)
    text = json.dumps(record, indent=2) + "\n"
    (folder / "pretrain.json").write_text(text, encoding="utf-8")


def find_before(number: int, args: argparse.Namespace) -> Path:
    """The exported model that a stage begins with: --after for the first of this run, or the stage
    before.

    Raises: ValueError for a folder without an exported model.
    """
    stage = STAGES[number]
    is_first = number == args.first
    before: Path = args.after if is_first and args.after else args.out / stage.after
    # A stage that this run trains before will have exported it by then.
    if is_first and not (before / "config.json").is_file():
        raise ValueError(
            f"{before}: expected the exported model that stage {stage.name!r} begins with, found "
            "no config.json; train the earlier stages (--first 0), or name an export with --after"
        )
    return before


def find_tokenizer(before: Path, folder: Path) -> None:
    """Puts the tokenizer of the exported model into a stage's folder.

    Raises: ValueError for a model without its tokenizer, and for two tokenizers.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER:
        source, target = before / name, folder / name
        if not source.is_file():
            raise ValueError(
                f"{before}: expected {name}, which the model was trained with, found no such "
                "file; copy it there"
            )
        if target.is_file() and target.read_bytes() != source.read_bytes():
            raise ValueError(
                f"--out: {target} is another tokenizer than {source}; give a new folder as --out"
            )
        shutil.copyfile(source, target)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m embedded.english.pretrain",
        usage="python -m embedded.english.pretrain [options]",
        description=" ".join(__doc__.split("\n")[:3]),
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    last = len(STAGES) - 1
    out = "folder of a folder for each stage: log, checkpoint, export"
    add("--out", type=Path, default=Path("runs/english"), help=out)
    numbers = range(len(STAGES))
    names = ", ".join(f"{number} {stage.name}" for number, stage in enumerate(STAGES))
    add("--first", type=int, default=0, choices=numbers, help=f"stage to begin with: {names}")
    add("--last", type=int, default=last, choices=numbers, help="stage to end with")
    after = "exported model that the first of these stages begins with, for stage 0 an export of "
    after += "embedded.pretrain; default: the stage before, in --out"
    add("--after", type=Path, help=after)
    share = "share of each stage's tokens to train, to try it out"
    add("--share", type=float, default=1.0, help=share)
    minutes = "end each stage, and its decay, after so many minutes of training; 0: no limit"
    add("--minutes", type=float, default=0.0, help=minutes)
    add("--lists", type=int, default=48, help="lists of tools in each stage's last measurement")
    add("--threads", type=int, default=2, help="most threads of a step")
    args = parser.parse_args(argv)
    if args.first == 0 and not args.after:
        parser.error("--after: expected an export of embedded.pretrain, which stage 0 goes on from")
    if args.last < args.first:
        parser.error(f"--last: expected at least --first ({args.first}), got {args.last}")
    for name, value, least in (("lists", args.lists, 1), ("threads", args.threads, 1)):
        if value < least:
            parser.error(f"--{name}: expected at least {least}, got {value}")
    if not 0.0 < args.share <= 1.0:
        parser.error(f"--share: expected more than 0 and at most 1, got {args.share}")
    if args.minutes < 0.0:
        parser.error(f"--minutes: expected 0 or more, got {args.minutes}")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    torch.set_num_threads(args.threads)
    try:
        if missing := missing_packages():
            packages = " ".join(missing)
            raise ValueError(
                f"general English: expected the Debian packages {packages}, found no such files; "
                f"install them: apt-get install {packages}"
            )
        join()
        if args.minutes and this_process()[1] > 1:
            raise ValueError("--minutes: expected one process, whose clock counts, got several")
        befores = {n: find_before(n, args) for n in range(args.first, args.last + 1)}
        for number, before in befores.items():
            train(STAGES[number], before, args)
    except USER_ERRORS as error:
        print(f"embedded.english.pretrain: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    # glibc and OpenMP read these before the first line of Python: the process replaces itself once.
    if not set(ENVIRONMENT) <= set(os.environ):
        command = [sys.executable, "-m", "embedded.english.pretrain", *sys.argv[1:]]
        os.execve(sys.executable, command, os.environ | ENVIRONMENT)
    sys.exit(main())
