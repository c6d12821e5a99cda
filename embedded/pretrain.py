"""Pretrains the embedded base model on generated documents: `python -m embedded.pretrain --help`.

Warm-up, a constant trunk, and a decay to zero that branches from any checkpoint of the trunk (arXiv:2405.18392).
Muon moves the hidden matrices and AdamW the rest (Keller Jordan, "Muon", 2024). The model computes in bfloat16, as it
will when it is fine-tuned; the optimizer keeps float32 masters.
Shapes: B documents, T positions, V vocabulary.
"""

import argparse
import itertools
import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

import model.attention
import model.layers
from embedded.generate.batches import Batch, Example, batches, encode, pack, to_batch
from embedded.generate.documents import gate_document
from embedded.generate.tokenizer import save_tokenizer, train_tokenizer, training_text
from embedded.generate.values import MADE_UP, Source
from embedded.pretrain_state import COUNTS, Optimizers, State, load_checkpoint, save_checkpoint
from model.attention import MaskedAttention, attend, attention_mask
from model.config import Gemma2Config
from model.loader import load_gemma2, save_gemma2
from model.transformer import Gemma2

CONFIG = Gemma2Config(
    vocab_size=2048,
    hidden_size=256,
    intermediate_size=640,
    num_hidden_layers=6,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
    max_position_embeddings=2048,
    sliding_window=256,
    query_pre_attn_scalar=64,
    eos_token_id=(1, 5),
)
TOKENIZER_SEED, TOKENIZER_DOCUMENTS = 0, 20_000
WARMUP_TOKENS = 300_000
TILE = 64  # queries
# The arguments that decide what comes out.
RECIPE = (
    "init",
    "seed",
    "tokens",
    "decay_tokens",
    "minutes",
    "rows",
    "length",
    "micro",
    "muon_lr",
    "adam_lr",
    "user_weight",
    "say_weight",
    "workers",
    "device",
)
# glibc gives large blocks back to the system at once and pays for every page again in the next step.
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": "4000000000",
    "MALLOC_TRIM_THRESHOLD_": "8000000000",
    "MALLOC_TOP_PAD_": "268435456",
}


def new_model(seed: int, dtype: torch.dtype) -> Gemma2:
    """A freshly initialised base: unit-variance embeddings after Gemma's sqrt(D), residual branches at half strength."""
    torch.manual_seed(seed)
    base = Gemma2(CONFIG)
    with torch.no_grad():
        for name, p in base.named_parameters():
            if p.dim() == 2:
                p.normal_(std=p.shape[1] ** -0.5)
            elif "post_" in name:
                p.fill_(-0.5)
    return base.to(dtype)


def start_model(args: argparse.Namespace) -> Gemma2:
    """A fresh model, or with --init the weights of an exported one."""
    dtype = compute_dtype(args.device)
    base = new_model(args.seed, dtype)
    if args.init:
        base.load_state_dict(load_gemma2(args.init, dtype=dtype).state_dict())
    return base.to(args.device)


def compute_dtype(device: str = "cpu") -> torch.dtype:
    """bfloat16 where the device multiplies it in hardware, else float32."""
    probe = torch.zeros(1, dtype=torch.bfloat16, device=device)
    return torch.bfloat16 if model.layers.has_fast_matmul(probe) else torch.float32


class TiledMasks(MaskedAttention):
    """Attention with masks (B, 1, T, T) in tiles of queries, each with the keys before its end: one graph for all packs."""

    def __call__(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        *,
        window: int | None,
        scale: float,
        cap: float | None,
    ) -> Tensor:
        mask = self.full if window is None else self.sliding
        parts = [slice(start, start + TILE) for start in range(0, query.shape[1], TILE)]
        return torch.cat(
            [
                attend(
                    query[:, t],
                    keys[:, : t.stop],
                    values[:, : t.stop],
                    mask[:, :, t, : t.stop],
                    scale=scale,
                    cap=cap,
                )
                for t in parts
            ],
            dim=1,
        )


def compile_blocks(base: Gemma2) -> None:
    """Compiles each block for one shape. The hardware question breaks the graph, so it is answered beforehand."""
    window = base.config.sliding_window

    def look(positions: Tensor, documents: Tensor | None, *_: object) -> TiledMasks:
        masks = (
            attention_mask(positions, positions, documents, documents, w) for w in (None, window)
        )
        return TiledMasks(*masks)

    base.model.choose_attention = look  # type: ignore[method-assign, assignment]

    def always(x: Tensor) -> bool:
        return True

    model.layers.has_fast_matmul = model.attention.has_fast_matmul = always
    torch._inductor.config.cpp.dynamic_threads = True
    torch._inductor.config.cpp.use_decompose_tanh = (
        True  # softcap and GELU; exact to 1e-7, several times faster
    )
    for layer in base.model.layers:
        layer.compile(dynamic=False)


def head_loss(
    base: Gemma2, hidden: Tensor, targets: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Cross-entropies of hidden (N, D) against targets (N): the weighted sum, and the sum over those of weight 1."""
    losses = F.cross_entropy(base.logits(hidden), targets, reduction="none")
    return (losses * weights).sum(), (losses * (weights == 1.0)).sum()


@torch.no_grad()
def gate(
    base: Gemma2, tokenizer: Tokenizer, rows: int, length: int, documents: int = 64, seed: int = 1
) -> dict[str, float]:
    """Exact accuracy on unseen templates and numbers: choice, field list, filled record, and the whole answer.

    "coined" is "fill" with invented words alone, none of which the model has met; "everyday" asks mostly in idioms,
    "natural" in the plain forms of `embedded/generate/natural.py`, which have no held-out side but their words.
    Teacher-forced: an answer whose every token is the most likely one is the answer that greedy decoding gives.
    """
    scores: dict[str, float] = {}
    for kind in ("fill", "double", "none", "coined", "everyday", "natural"):
        made_up, everyday = 1.0 if kind == "coined" else MADE_UP, float(kind == "everyday")
        natural = float(kind == "natural")
        source = Source(
            random.Random(seed), held=True, made_up=made_up, everyday=everyday, natural=natural
        )
        packs = pack(
            encode(tokenizer, [gate_document(source, kind) for _ in range(documents)]), length
        )
        packs += [packs[-1]] * (
            -len(packs) % rows
        )  # whole batches: another shape would cost a compilation
        hits: dict[str, list[bool]] = {}
        for i in range(0, len(packs), rows):
            batch = to_batch(packs[i : i + rows], length, {})
            guesses = base.logits(hidden_states(base, batch)).argmax(-1).cpu().numpy()  # (B, T)
            for row, examples in enumerate(packs[i : i + rows]):
                _score(examples, guesses[row], hits)
        scores |= {
            f"{kind}_{tag}": round(float(np.mean(values)), 3) for tag, values in hits.items()
        }
    return scores


def _score(
    examples: list[Example], guesses: NDArray[np.int64], hits: dict[str, list[bool]]
) -> None:
    """Adds to `hits`, by tag, whether each example of a pack was guessed without a mistake."""
    start = 0
    for ids, tags in examples:
        right = [True, *(guesses[start : start + len(ids) - 1] == ids[1:]).tolist()]
        spoken = {*tags} - {"", "user", "say"}
        for tag in spoken:
            hits.setdefault(tag, []).append(
                all(r for r, t in zip(right, tags, strict=True) if t == tag)
            )
        hits.setdefault("whole", []).append(
            all(r for r, t in zip(right, tags, strict=True) if t in spoken)
        )
        start += len(ids)


def hidden_states(base: Gemma2, batch: Batch) -> Tensor:
    device = base.model.norm.weight.device
    arrays = (batch.tokens, batch.positions, batch.documents)
    tokens, positions, documents = (torch.from_numpy(array).to(device) for array in arrays)
    return base.model(tokens, positions, documents)  # (B, T, D)


class Documents(IterableDataset[Batch]):
    """Endless batches, of another seed in each worker process."""

    def __init__(self, tokenizer: Tokenizer, seed: int, args: argparse.Namespace) -> None:
        self.tokenizer, self.seed, self.args = tokenizer, seed, args

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        seed = self.seed + (worker.id << 40 if worker else 0)
        weights = {"user": self.args.user_weight, "say": self.args.say_weight}
        return batches(self.tokenizer, seed, self.args.rows, self.args.length, weights)


class Threads:
    """The number of threads that is fastest now: on a shared machine a second thread that must wait slows the first."""

    def __init__(self, most: int) -> None:
        self.taken = dict.fromkeys(
            range(1, most + 1), 0.0
        )  # seconds of the last step with so many threads
        self.now = most

    def choose(self, step: int, every: int = 20) -> None:
        """Mostly the best so far; now and then one of the others, to notice a change."""
        best = min(self.taken, key=lambda n: self.taken[n])
        self.now = 1 + step // every % len(self.taken) if step % every == 0 else best
        torch.set_num_threads(self.now)

    def measured(self, seconds: float) -> None:
        self.taken[self.now] = seconds


def train_step(
    base: Gemma2,
    head: Callable[..., tuple[Tensor, Tensor]],
    optimizers: Optimizers,
    made: list[Batch],
    scale: float,
) -> tuple[int, float]:
    """One update on some batches; returns its tokens and its mean loss on targets of weight 1."""
    num_tokens, weight, spoken, num_spoken = 0, 0.0, 0.0, 0
    for batch in made:
        states = hidden_states(base, batch).flatten(0, 1)
        ids, w = (
            torch.from_numpy(array).to(states.device) for array in (batch.tokens, batch.weights)
        )
        w = F.pad(w[:, 1:], (0, 1)).flatten()  # the weight of each target
        learned = w.nonzero().squeeze(1)  # only these rows meet the head
        loss, model_loss = head(
            base, states[learned], torch.roll(ids, -1, 1).flatten()[learned], w[learned]
        )
        loss.backward()
        optimizers.take_gradients()
        num_tokens += ids.numel()
        weight += float(w.sum())
        spoken += float(model_loss.detach())
        num_spoken += int((w == 1.0).sum())
    optimizers.step(scale, weight)
    return num_tokens, spoken / max(1, num_spoken)


def rate_scale(args: argparse.Namespace, state: State, start: State) -> float:
    """The share of the full rate: linear warm-up, constant, and where asked a linear decay from the start to zero."""
    warm = min(1.0, (state.tokens + 1) / WARMUP_TOKENS)
    if not args.decay_tokens:
        return warm
    done = (state.tokens - start.tokens) / args.decay_tokens
    # By the clock too: on a shared machine a decay must end when it was promised to end.
    late = (state.seconds - start.seconds) / (60 * args.minutes) if args.minutes else 0.0
    return warm * max(0.0, 1.0 - max(done, late))


def is_over(args: argparse.Namespace, state: State, start: State) -> bool:
    tokens = args.decay_tokens or args.tokens
    return state.tokens - start.tokens >= tokens or bool(
        args.minutes and state.seconds - start.seconds >= 60 * args.minutes
    )


def log(path: Path, **values: object) -> None:
    """One JSON line to the file and to standard output."""
    line = json.dumps(values)
    print(line, flush=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def train(args: argparse.Namespace) -> None:
    """The loop: from a fresh model or a checkpoint, until the tokens or the minutes are used up."""
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer.from_file(str(args.export / "tokenizer.json"))
    base = start_model(args)
    optimizers = Optimizers(base, args.muon_lr, args.adam_lr)
    state = load_checkpoint(args.resume, optimizers) if args.resume else State()
    start = replace(state)
    if args.init and not args.resume:
        before = json.loads((args.init / "pretrain.json").read_text(encoding="utf-8"))
        state.earlier, state.history = (
            {name: before.get(name, 0) for name in COUNTS},
            before.get("history", []),
        )
    recipe = {name: getattr(args, name) for name in RECIPE} | {"init": args.init and str(args.init)}
    state.history.append({"from_tokens": state.totals()["tokens"]} | recipe)
    compile_blocks(base)
    head = torch.compile(head_loss, dynamic=True)
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
        num_tokens, loss = train_step(base, head, optimizers, made, rate_scale(args, state, start))
        state.tokens, state.steps = state.tokens + num_tokens, state.steps + 1
        taken = time.perf_counter() - clock
        threads.measured(taken)
        state.seconds += taken
        losses.append(loss)
        if state.steps % 25 == 0:
            log(
                args.out / "log.jsonl",
                tokens=state.tokens,
                steps=state.steps,
                loss=round(float(np.mean(losses)), 4),
                rate=round(rate_scale(args, state, start), 3),
                seconds=round(state.seconds),
                threads=threads.now,
                tokens_per_second=round(
                    (state.tokens - start.tokens) / (state.seconds - start.seconds)
                ),
            )
            losses = []
        if state.tokens - gated >= args.gate_every:
            gated = state.tokens
            log(
                args.out / "log.jsonl",
                tokens=state.tokens,
                **gate(base, tokenizer, args.rows, args.length),
            )
        if state.tokens - saved >= args.save_every:
            saved = state.tokens
            save_checkpoint(args.out / "last", optimizers, state)
    save_checkpoint(args.out / "last", optimizers, state)
    scores = gate(base, tokenizer, args.rows, args.length, documents=128)
    log(args.out / "log.jsonl", tokens=state.tokens, **scores)
    if not args.no_export:
        export(base, args, state, scores)


def export(base: Gemma2, args: argparse.Namespace, state: State, scores: dict[str, float]) -> None:
    """Writes the model beside its tokenizer, with the recipe and the measured accuracies."""
    save_gemma2(base.to("cpu", torch.bfloat16), args.export)
    found = {"history": state.history, "torch": torch.__version__, "held_out_accuracy": scores}
    (args.export / "pretrain.json").write_text(
        json.dumps(state.totals() | found, indent=2) + "\n", encoding="utf-8"
    )


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m embedded.pretrain", description=__doc__.split("\n")[0]
    )
    add = parser.add_argument
    add(
        "--out",
        type=Path,
        default=Path("runs/pretrain"),
        help="folder of the log and the checkpoint `last`",
    )
    add(
        "--export",
        type=Path,
        default=Path("embedded/weights"),
        help="folder of the tokenizer and of the finished model",
    )
    add("--no-export", action="store_true", help="leave the model in --export alone")
    add(
        "--train-tokenizer",
        action="store_true",
        help="train the tokenizer first and write it to --export",
    )
    add("--resume", type=Path, help="a checkpoint folder to go on from")
    add(
        "--init",
        type=Path,
        help="exported model to start from, with new optimizer state; give another --seed too",
    )
    add(
        "--tokens",
        type=int,
        default=30_000_000,
        help="tokens of the trunk, counted from the start of this run",
    )
    add(
        "--decay-tokens",
        type=int,
        default=0,
        help="decay the rate to zero over so many tokens instead, then stop",
    )
    add(
        "--minutes",
        type=float,
        default=0.0,
        help="stop, or end the decay, after so many minutes of training at the latest",
    )
    add("--rows", type=int, default=4, help="packs of a forward pass")
    add("--length", type=int, default=512, help="tokens of a pack")
    add("--micro", type=int, default=2, help="forward passes of a step")
    add("--muon-lr", type=float, default=0.02, help="0: AdamW alone")
    add("--adam-lr", type=float, default=3e-3)
    add(
        "--user-weight",
        type=float,
        default=0.12,
        help="loss weight of the user's words; 0 in the end is faster",
    )
    add(
        "--say-weight",
        type=float,
        default=1.0,
        help="loss weight of answers in words; plans and records have 1",
    )
    add(
        "--gate-every",
        type=int,
        default=1_000_000,
        help="tokens between measurements of held-out accuracy",
    )
    add("--save-every", type=int, default=1_000_000, help="tokens between checkpoints")
    add("--device", default="cpu", help="cpu or cuda")
    add(
        "--workers",
        type=int,
        default=0,
        help="processes that write documents; a GPU reads more than one can write",
    )
    add("--threads", type=int, default=2)
    add("--seed", type=int, default=0)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    torch.set_num_threads(args.threads)
    if args.train_tokenizer or not (args.export / "tokenizer.json").is_file():
        save_tokenizer(
            train_tokenizer(training_text(TOKENIZER_SEED, TOKENIZER_DOCUMENTS)), args.export
        )
    train(args)


if __name__ == "__main__":
    if not set(ALLOCATOR) <= set(os.environ):  # read by glibc before the first line of Python
        os.execve(
            sys.executable,
            [sys.executable, "-m", "embedded.pretrain", *sys.argv[1:]],
            os.environ | ALLOCATOR,
        )
    main()
