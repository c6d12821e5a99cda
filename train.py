"""Teaches a Gemma-2 model to call functions: `python train.py [flags]`. Read it from `main` upwards or `train` downwards.

A run: rows -> masked token ids -> packs; checkpoint -> model + LoRA; then optimizer steps whose loss is the sum over
supervised tokens divided once by the step's number of supervised tokens, over all of its micro-batches.
"""

import argparse
import math
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors import SafetensorError
from torch import nn

from agent.evaluate import (
    describe_shares,
    first_question,
    first_replies,
    first_reply,
    kind_of,
    reply_length,
    score_calls,
)
from agent.loading import EMBEDDED, load_base, model_folder
from common import device as runtime
from common.cli import USER_ERRORS, Parser, float_in, int_at_least
from common.sharding import unsharded
from data.chat import Example, common_prompt
from data.conversation import Conversation
from data.dataset import build_examples, load_conversations, split
from data.masks import mask_text
from data.packing import IGNORED, Batch, Packing, collate, epoch_order, pack_examples
from data.tokenizer import Tokenizer
from lora.adapter import save_adapter
from lora.config import LINEARS, LoRAConfig, parse_targets
from lora.implementations import IMPLEMENTATIONS, resolve_impl
from lora.inject import add_lora, trainable_parameters
from model import recompute as recomputation
from model.config import Gemma2Config
from model.loss import supervised_loss
from model.transformer import Gemma2
from training import checkpoint as state
from training import ranks as processes
from training.progress import Progress, StopSignal
from training.ranks import Ranks
from training.run_folder import (
    RUN,
    append_metrics,
    clear_run,
    describe_run,
    draw_loss,
    git_commit,
    keep_metrics_until,
    show_sample,
    versions,
    write_json,
)

console = Console(highlight=False)

# Defaults of a flag that is not given: the course's, and those of the small embedded base, which learns at a higher rate
# and sees no row twice.
COURSE = {
    "max_length": 1500,
    "micro_batch": 1,
    "accumulate": 4,
    "lr": 1e-4,
    "row_lr_scale": 1.0,
    "alpha": 64.0,
    "dropout": 0.05,
    "eval_rows": 64,
    "eval_calls": 16,
}
SMALL = {
    "max_length": 2048,
    "micro_batch": 1,
    "accumulate": 1,
    "lr": 2e-3,
    "row_lr_scale": 3.75,
    "alpha": 32.0,
    "dropout": 0.0,
    "eval_rows": 64,
    "eval_calls": 160,
}
SMALL_STEPS = 165  # under two minutes on two CPU cores, the evaluations included
CPU_EVALUATION = {"eval_rows": 8, "eval_calls": 4}  # a row of a 2B model takes seconds there
# A resumed run must agree with its checkpoint on these: they decide which numbers come next.
FINGERPRINT = (
    "model",
    "dataset",
    "dtype",
    "max_length",
    "micro_batch",
    "accumulate",
    "lr",
    "row_lr_scale",
    "warmup",
    "weight_decay",
    "clip",
    "rank",
    "alpha",
    "dropout",
    "targets",
    "adapt",
    "format",
    "eval_fraction",
    "seed",
    "overlong",
    "train_on",
    "epochs",
    "max_steps",
    "ranks",
)
EMBEDDED_ROWS = Path(__file__).parent / "embedded" / "rows"
CHECKPOINT = "checkpoint"
# Tokens that a scored reply may have: some more than the longest expected one, but no fewer and no more than these. A
# model that does not know when to stop pays for them all.
REPLY_MARGIN, SHORTEST_LIMIT, LONGEST_LIMIT = 8, 160, 512


class StepLoss(nn.Module):
    """Hidden states and summed loss in one call, whose backward pass DistributedDataParallel can watch."""

    def __init__(self, model: Gemma2) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, scale: float = 1.0) -> torch.Tensor:
        device = self.model.model.norm.weight.device
        tokens, positions = (
            t.to(device, non_blocking=device.type == "cuda")
            for t in (batch.tokens, batch.positions)
        )
        # Document ids and targets stay on the host: what is looked up in them there needs no waiting for the device.
        hidden = self.model.hidden(tokens, positions, batch.documents)  # (B, T, D)
        return supervised_loss(self.model, hidden, batch.targets, scale)[
            0
        ]  # the logits never exist as a whole


@dataclass
class Run:
    """Everything that one training run holds. `step_loss` is a StepLoss, wrapped where several ranks train."""

    args: argparse.Namespace
    ranks: Ranks
    output: Path
    device: torch.device
    precision: runtime.Precision
    model: Gemma2
    step_loss: nn.Module
    tokenizer: Tokenizer
    config: LoRAConfig
    optimizer: torch.optim.AdamW
    scaler: torch.amp.GradScaler
    packing: Packing
    held_out: list[Conversation]
    held_out_packs: list[list[Example]]
    seen_tools: set[str]
    questions: list[
        Conversation
    ]  # written by hand, scored on their own; the embedded rows have some

    @property
    def packs_per_step(self) -> int:
        return self.args.micro_batch * self.args.accumulate * self.ranks.count

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(len(self.packing.packs) / self.packs_per_step)

    @property
    def total_steps(self) -> int:
        return self.args.max_steps or math.ceil(self.args.epochs * self.steps_per_epoch)

    def packs(self, step: int) -> list[list[Example]]:
        """The packs of optimizer step 1, 2, ... on all ranks; an epoch's last step may be short."""
        epoch, index = divmod(step - 1, self.steps_per_epoch)
        order = epoch_order(len(self.packing.packs), self.args.seed, epoch)
        return [
            self.packing.packs[i]
            for i in order[index * self.packs_per_step :][: self.packs_per_step]
        ]

    def batches(self, packs: list[list[Example]]) -> list[Batch]:
        """This rank's micro-batches: every rank has as many, the last ones with nothing supervised where packs run out."""
        size = self.args.micro_batch
        groups = [packs[i : i + size] for i in range(0, len(packs), size)]
        mine = groups[self.ranks.index :: self.ranks.count]
        batches = [self.collate(group) for group in mine]
        for _ in range(math.ceil(len(groups) / self.ranks.count) - len(mine)):
            idle = self.collate(groups[0])
            batches.append(replace(idle, targets=torch.full_like(idle.targets, IGNORED)))
        return batches

    def collate(self, packs: list[list[Example]]) -> Batch:
        """A batch of packs; on a GPU always of the same length, for which kernels have been compiled."""
        return collate(
            packs,
            self.tokenizer.pad_id,
            self.args.max_length if self.device.type == "cuda" else None,
        )


def train_step(run: Run, step: int) -> dict[str, Any]:
    """One optimizer step on the mean loss over all of the step's supervised tokens; returns its line of metrics."""
    start = time.perf_counter()
    packs = run.packs(step)
    supervised = sum(example.num_supervised for pack in packs for example in pack)
    rate = state.learning_rate(step, run.total_steps, run.args.lr, run.args.warmup)
    state.set_learning_rate(run.optimizer, rate)
    share = run.ranks.count / max(1, supervised)  # gradients are averaged over the ranks
    scale = run.scaler.get_scale() * share
    total = torch.zeros((), device=run.device)
    run.model.train()
    batches = run.batches(packs)
    for number, batch in enumerate(batches, start=1):
        with processes.synchronized(run.step_loss, number == len(batches)):
            loss = run.step_loss(batch, scale)
            run.scaler.scale(loss * share).backward()
        total += loss.detach()
    run.scaler.unscale_(run.optimizer)
    parameters = trainable_parameters(run.model).values()
    norm = unsharded(torch.nn.utils.clip_grad_norm_(parameters, run.args.clip or math.inf)).item()
    is_finite = math.isfinite(norm)
    if (
        is_finite or run.scaler.is_enabled()
    ):  # a scaler itself skips a step whose gradients overflowed
        run.scaler.step(run.optimizer)
        run.scaler.update()
    run.optimizer.zero_grad(set_to_none=True)
    tokens = sum(len(example.tokens) for pack in packs for example in pack)
    line = {
        "step": step,
        "loss": run.ranks.total(total).item() / max(1, supervised),
        "grad_norm": norm,
        "lr": rate,
        "tokens": tokens,
        "supervised_tokens": supervised,
        "tokens_per_second": tokens / (time.perf_counter() - start),
        "peak_memory_bytes": runtime.peak_memory_bytes(run.device),
    }
    return line | {"skipped": True} if run.scaler.is_enabled() and not is_finite else line


@torch.no_grad()
def evaluate(run: Run) -> dict[str, Any]:
    """Held-out loss per supervised token and exact-call accuracy; both empty where nothing was held out."""
    if not run.held_out:
        return {"eval_loss": None, "tool_call_accuracy": None}
    run.model.eval()
    total, supervised, step_loss = 0.0, 0, StepLoss(run.model)
    for packed in run.held_out_packs:
        total += step_loss(run.collate([packed])).item()
        supervised += sum(example.num_supervised for example in packed)
    line: dict[str, Any] = {
        "eval_loss": total / supervised if supervised else None,
        "tool_call_accuracy": None,
    }
    scored = run.held_out[: run.args.eval_calls]
    if scored:
        asked = [
            *scored,
            *run.questions,
        ]  # in the same batches: what a decoding step costs is mostly not its rows
        replies = first_replies(run.model, run.tokenizer, asked, reply_limit(run, asked))
        by_row, by_hand = replies[: len(scored)], replies[len(scored) :]
        line["tool_call_accuracy"] = score_calls(run.tokenizer, scored, by_row, run.seen_tools)
        if run.questions:
            line["questions_accuracy"] = score_calls(
                run.tokenizer, run.questions, by_hand, run.seen_tools
            )
            line["sample"] = pick_sample(run, scored, by_row)
    processes.slice_again(run.model)
    return line


def reply_limit(run: Run, asked: list[Conversation]) -> int:
    longest = max(reply_length(conversation, run.tokenizer) for conversation in asked)
    return min(max(longest + REPLY_MARGIN, SHORTEST_LIMIT), LONGEST_LIMIT)


def pick_sample(run: Run, scored: list[Conversation], replies: list[list[int]]) -> dict[str, str]:
    """A scored question, for a tool that training never shows if there is one, and the reply; control tokens as text."""
    unseen = (
        i
        for i, row in enumerate(scored)
        if kind_of(first_reply(row).calls, run.seen_tools) == "unseen"
    )
    index = next(unseen, 0)
    asked = next(
        m.content for m in reversed(first_question(scored[index]).messages) if m.role == "user"
    )
    return {"question": asked, "reply": run.tokenizer.decode(replies[index])}


def train(run: Run, start: int) -> None:
    """Steps start + 1 .. total_steps. A first Ctrl-C ends after the running step, with a checkpoint."""
    if start == 0:
        record(run, {"step": 0, **evaluate(run)})
    with Progress(run.total_steps, start, console) as progress, StopSignal(console) as stop:
        for step in range(start + 1, run.total_steps + 1):
            line = train_step(run, step)
            is_broken = not (
                math.isfinite(line["loss"])
                and (math.isfinite(line["grad_norm"]) or line.get("skipped"))
            )
            if step == run.total_steps and not is_broken:
                line |= evaluate(run)
            record(run, line)
            progress.show(line)
            if is_broken:
                advice = "a lower --lr" + (
                    ", or --dtype bf16 or fp32" if run.precision.name == "fp16" else ""
                )
                raise FloatingPointError(
                    f"step {step}: loss {line['loss']}, gradient norm {line['grad_norm']}; try {advice}"
                )
            must_stop = bool(
                run.ranks.total(torch.tensor(float(stop.requested)))
            )  # one rank's signal stops all
            if (
                must_stop
                or step == run.total_steps
                or (run.args.save_every and step % run.args.save_every == 0)
            ):
                save(run, step)
            if must_stop:
                raise KeyboardInterrupt


def record(run: Run, line: dict[str, Any]) -> None:
    """Appends one line of metrics and tells an evaluation."""
    if run.ranks.is_first:
        append_metrics(run.output, line)
    if line.get("eval_loss") is not None:
        accuracy = line["tool_call_accuracy"]
        shares = f"; exact calls: {describe_shares(accuracy)}" if accuracy else ""
        console.print(
            f"step {line['step']}: held-out loss {line['eval_loss']:.3f}{shares}", soft_wrap=True
        )
    if line.get("questions_accuracy"):
        console.print(
            f"questions written by hand: {describe_shares(line['questions_accuracy'])}",
            soft_wrap=True,
        )


def save(run: Run, step: int) -> None:
    """The checkpoint to resume from, first, since nothing else can be made again; adapter, tokenizer, picture."""
    counters = {
        "step": step,
        "scaler": run.scaler.state_dict(),
        "precision": run.precision.name,
        "fingerprint": fingerprint(run.args),
    }
    rng, writes = run.ranks.gather(runtime.rng_state(run.device)), run.ranks.is_first
    state.save_checkpoint(run.output / CHECKPOINT, run.model, run.optimizer, rng, counters, writes)
    save_adapter(run.model, run.output, run.config, writes)
    if writes:
        run.tokenizer.save(run.output)
        draw_loss(run.output)


def fingerprint(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments that a resumed run must share with its checkpoint."""
    return {name: getattr(args, name) for name in FINGERPRINT}


def load_data(
    args: argparse.Namespace,
) -> tuple[list[Conversation], list[Conversation], dict[str, Any]]:
    """Training rows, held-out rows, and what reading them dropped. The embedded rows have their own held-out file."""
    training, report = load_conversations(args.dataset or EMBEDDED_ROWS / "train.jsonl")
    if args.dataset is None:
        return training, load_conversations(EMBEDDED_ROWS / "heldout.jsonl")[0], report.as_dict()
    training, held_out = split(training, args.eval_fraction, args.seed)
    return training, held_out, report.as_dict()


def build(args: argparse.Namespace, ranks: Ranks, output: Path) -> Run:
    """Reads the data, then the model, and puts LoRA into it. Raises: ValueError, FileNotFoundError for wrong inputs."""
    runtime.seed_everything(args.seed)
    device, folder = runtime.pick_device(ranks.device(args.device)), model_folder(args.model)
    model_config = Gemma2Config.from_json(folder)
    if args.max_length > model_config.max_position_embeddings:
        raise ValueError(
            f"--max-length: the model has {model_config.max_position_embeddings} positions, got {args.max_length}"
        )
    precision = runtime.pick_precision(args.dtype, device, model_config.num_parameters)
    impl, impl_reason = resolve_impl(
        args.lora_impl, device, precision.dtype
    )  # refused before anything large is read
    micro_tokens = args.micro_batch * args.max_length
    recompute, why = recomputation.pick_checkpointing(
        args.checkpoint_activations,
        model_config,
        micro_tokens,
        precision,
        device,
        copies=impl == "reference",
        slices=ranks.count if args.shard else 1,
    )
    check_recomputed_dropout(args, recompute, impl, device)
    tokenizer = Tokenizer.from_pretrained(folder, args.format)
    training, held_out, reading = load_data(args)
    tokenizer.prompt = common_prompt(training) or tokenizer.prompt
    examples, building = build_examples(
        training, tokenizer, args.max_length, args.overlong, args.train_on
    )
    packing = pack_examples(examples, args.max_length)
    config = LoRAConfig(
        rank=args.rank,
        alpha=args.alpha,
        dropout=args.dropout,
        targets=parse_targets(args.targets),
        adapt=args.adapt,
        token_ids=tuple(sorted(tokenizer.tag_ids.values())),
        base_model=base_name(args.model),
    )
    if args.shard and (ranks.count == 1 or precision.needs_scaler):
        raise ValueError(
            "--shard: needs several ranks (torchrun --nproc-per-node=N train.py) and --dtype bf16 or fp32, "
            f"got {ranks.count} rank and {precision.name}"
        )
    model = load_base(
        folder, tokenizer, torch.device("cpu") if args.shard else device, precision.dtype, args.seed
    )
    add_lora(model, config, args.seed, impl, device=device)
    model.model.checkpoint_activations = recompute
    if args.shard:
        processes.shard(model, ranks, device)
    step_loss = StepLoss(model) if args.shard else processes.data_parallel(StepLoss(model), ranks)
    runtime.seed_everything(args.seed + ranks.index)  # each rank its own dropout masks
    optimizer = state.make_optimizer(model, args.weight_decay, args.row_lr_scale)
    scaler = torch.amp.GradScaler(device.type, enabled=precision.needs_scaler)
    held_out_packs = pack_held_out(held_out, tokenizer, args)
    questions = [] if args.dataset else load_conversations(EMBEDDED_ROWS / "questions.jsonl")[0]
    seen = {name for conversation in training for name in conversation.tool_names}
    run = Run(
        args,
        ranks,
        output,
        device,
        precision,
        model,
        step_loss,
        tokenizer,
        config,
        optimizer,
        scaler,
        packing,
        held_out,
        held_out_packs,
        seen,
        questions,
    )
    data = {"reading": reading, "rendering": building.as_dict(), "held_out_rows": len(held_out)}
    choices = {
        "precision": [precision.name, precision.reason],
        "lora": [impl, impl_reason],
        "checkpoint_activations": [recompute, why],
    }
    if ranks.is_first and args.overwrite:
        clear_run(output, CHECKPOINT)  # only now: a wrong input must not cost the earlier run
    introduce(run, examples, data, choices)
    return run


def check_recomputed_dropout(
    args: argparse.Namespace, recompute: str, impl: str, device: torch.device
) -> None:
    """Raises: ValueError where a recomputed block would draw other dropout masks than its first pass did.

    The fused paths draw theirs from a seed of their own; the reference form uses PyTorch's generator, whose state PyTorch's
    checkpointing puts back on CPUs and GPUs but not on MPS.
    """
    if device.type == "mps" and recompute == "full" and impl == "reference" and args.dropout:
        raise ValueError(
            "--lora-impl reference with --checkpoint-activations full and dropout is not exact on mps: give "
            "--lora-impl auto, --checkpoint-activations none, or --dropout 0"
        )


def base_name(model: str | None) -> str:
    """The base as `adapter_config.json` names it: a folder by its full path, so that it is found from anywhere."""
    return (
        EMBEDDED if model is None else str(Path(model).resolve()) if Path(model).is_dir() else model
    )


def pack_held_out(
    held_out: list[Conversation], tokenizer: Tokenizer, args: argparse.Namespace
) -> list[list[Example]]:
    """The first `--eval-rows` held-out rows that have something supervised, packed; over-long ones are cut."""
    examples, _ = build_examples(
        held_out, tokenizer, args.max_length, "truncate", args.train_on, may_be_empty=True
    )
    return pack_examples(examples[: args.eval_rows], args.max_length).packs


def introduce(
    run: Run, examples: list[Example], data: dict[str, Any], choices: dict[str, list[str]]
) -> None:
    """Says what is about to be trained, prints one example with its mask, and writes `run.json`."""
    content = {
        "arguments": vars(run.args),
        "device": runtime.describe(run.device),
        "choices": choices,
        "data": data,
        "packing": {"packs": len(run.packing.packs), "efficiency": run.packing.efficiency},
        "trainable_parameters": sum(p.numel() for p in trainable_parameters(run.model).values()),
        "total_steps": run.total_steps,
        "versions": versions(),
        "git_commit": git_commit(),
    }
    if run.ranks.is_first:
        write_json(run.output / RUN, content)
    console.print(mask_text(examples[0], run.tokenizer), soft_wrap=True)
    for sentence in describe_run(content):
        console.print(sentence, soft_wrap=True)


def prepare_output(args: argparse.Namespace) -> Path:
    """The output folder: new, or cleared of an earlier run's files with --overwrite, or left as it is with --resume."""
    output = Path(args.output or Path("runs") / time.strftime("%Y-%m-%d_%H-%M-%S"))
    if args.resume:
        if not args.output or args.overwrite:
            raise ValueError(
                "--resume needs --output, the folder of the run to go on with, and no --overwrite"
            )
        check_fingerprint(args, output)
        return output
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output {output}: is a file; give a folder")
    if output.is_dir() and any(output.iterdir()):
        if not args.overwrite:
            raise ValueError(
                f"--output {output}: not empty; use --resume to go on, --overwrite, or another folder"
            )
    output.mkdir(parents=True, exist_ok=True)
    return output


def agreed_output(args: argparse.Namespace, ranks: Ranks) -> Path:
    """The first rank's output folder, on every rank. Raises on every rank what `prepare_output` raises on the first."""
    found, problem = "", ""
    if ranks.is_first:
        try:
            found = str(prepare_output(args))
        except USER_ERRORS as error:
            problem = str(error)
    found, problem = ranks.share(found), ranks.share(problem)
    if problem:
        raise ValueError(problem)
    return Path(found)


def check_fingerprint(args: argparse.Namespace, output: Path) -> None:
    """Raises: FileNotFoundError without a checkpoint; ValueError naming every setting that differs from its own."""
    now, then = fingerprint(args), state.read_counters(output / CHECKPOINT).get("fingerprint") or {}
    other = [
        f"--{name.replace('_', '-')} was {then.get(name)!r} and is {now[name]!r}"
        for name in now
        if now[name] != then.get(name)
    ]
    if other:
        raise ValueError(f"{output}: cannot go on with other settings: {'; '.join(other)}")


def resume(run: Run) -> int:
    """Puts the run back to its checkpoint; returns the last step that was done. Raises: ValueError for another dtype."""
    counters = state.read_counters(run.output / CHECKPOINT)
    then = counters.get("precision", run.precision.name)
    if then != run.precision.name:
        raise ValueError(
            f"{run.output}: was trained in {then}, this device would go on in {run.precision.name}; "
            f"give --dtype {then}, or start again with --overwrite"
        )
    rng = state.load_checkpoint(run.output / CHECKPOINT, run.model, run.optimizer)
    mine = {name.removesuffix(f".{run.ranks.index}"): value for name, value in rng.items()}
    runtime.set_rng_state(mine, run.device)
    run.scaler.load_state_dict(counters["scaler"])
    if run.ranks.is_first:
        keep_metrics_until(run.output, counters["step"])
    return int(counters["step"])


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(description="Teaches a Gemma-2 model to call functions with LoRA.")
    add = parser.add_argument
    add(
        "--model",
        help="folder or hub id, like google/gemma-2-2b-it; default: the small embedded base",
    )
    add("--dataset", help="JSONL, JSON or Parquet file, or hub id; default: the embedded rows")
    add("--output", help="folder of the run; default: runs/<time>")
    add("--device", default="auto", help="auto, cuda, mps or cpu")
    add(
        "--dtype",
        default="auto",
        help="auto, bf16, fp16 or fp32, of the frozen weights and the activations",
    )
    add("--max-length", type=int_at_least(2), help="tokens per pack")
    add("--micro-batch", type=int_at_least(1), help="packs per forward pass")
    add("--accumulate", type=int_at_least(1), help="micro-batches per optimizer step")
    add(
        "--epochs",
        type=float_in(1e-9),
        help=f"default 1; the embedded base instead takes {SMALL_STEPS} steps",
    )
    add(
        "--max-steps",
        type=int_at_least(1),
        help="stop after so many optimizer steps, whatever --epochs says",
    )
    add("--lr", type=float_in(0), help="peak learning rate")
    add(
        "--row-lr-scale",
        type=float_in(0),
        help="with --adapt rows: rate of the new tokens' rows, as a multiple of --lr",
    )
    add("--warmup", type=float_in(0, 1), default=0.1, help="share of the steps")
    add("--weight-decay", type=float_in(0), default=0.1)
    add("--clip", type=float_in(0), default=1.0, help="largest gradient norm; 0 never clips")
    add("--rank", type=int_at_least(1), default=16)
    add("--alpha", type=float_in(0), help="the low-rank term is scaled by alpha / rank")
    add(
        "--dropout",
        type=float_in(0, 1),
        help="of the low-rank path's input; default 0.05, the embedded base 0",
    )
    add(
        "--targets",
        default=",".join(LINEARS),
        help="comma-separated module names, or one regular expression",
    )
    add(
        "--adapt",
        choices=("rows", "course"),
        default="rows",
        help="rows: train the new tokens' rows; course: LoRA on embed_tokens and lm_head",
    )
    add("--lora-impl", choices=IMPLEMENTATIONS, default="auto")
    add(
        "--format",
        choices=("hermes", "mistral"),
        help="wire format; default: the model's own, or hermes",
    )
    add(
        "--checkpoint-activations",
        choices=("auto", *recomputation.CHECKPOINTING),
        default="auto",
        help="what the backward pass computes again: selective, norms and gated products; full, each block; "
        "auto: what the memory asks for",
    )
    add(
        "--shard",
        action="store_true",
        help="with torchrun: slice every weight over the ranks (FSDP2) instead of DDP",
    )
    add(
        "--eval-fraction",
        type=float_in(0, 1),
        default=0.1,
        help="share of the rows of --dataset that is held out",
    )
    add(
        "--eval-rows",
        type=int_at_least(0),
        help="held-out rows whose loss is taken; default 64, on a CPU 8",
    )
    add(
        "--eval-calls",
        type=int_at_least(0),
        help="held-out rows whose calls are scored; default 16, on a CPU 4",
    )
    add("--seed", type=int, default=0)
    add(
        "--save-every",
        type=int_at_least(0),
        default=100,
        help="optimizer steps between checkpoints; 0: only at the end",
    )
    add("--resume", action="store_true", help="go on from the checkpoint in --output")
    add("--overwrite", action="store_true", help="start anew in a folder that holds a run")
    add(
        "--overlong",
        choices=("drop", "truncate", "error"),
        default="drop",
        help="rows over --max-length",
    )
    add("--train-on", choices=("assistant", "tool-calls"), default="assistant")
    args = parser.parse_args(argv)
    defaults = (
        SMALL
        if not args.model
        else COURSE | (CPU_EVALUATION if runtime.pick_device(args.device).type == "cpu" else {})
    )
    if not args.model and args.epochs is None and args.max_steps is None:
        args.max_steps = SMALL_STEPS
    for name, value in {**defaults, "epochs": 1.0}.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    return args


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0 done, 2 wrong input, 1 anything else, 130 interrupted."""
    try:
        args = parse_args(argv)
    except USER_ERRORS as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 2
    with processes.joined() as ranks:
        return run_once(args, ranks)


def run_once(args: argparse.Namespace, ranks: Ranks) -> int:
    """The whole run on this rank; returns the exit code. Only the first rank speaks."""
    console.quiet = not ranks.is_first
    stderr = Console(
        stderr=True, highlight=False, markup=False, soft_wrap=True, quiet=not ranks.is_first
    )
    output: Path | None = None
    try:
        args.ranks = ranks.count
        output = agreed_output(args, ranks)
        run = build(args, ranks, output)
        train(run, resume(run) if args.resume else 0)
        show_sample(output, console)
    except USER_ERRORS as error:
        stderr.print(f"train.py: {error}")
        return 2
    except torch.OutOfMemoryError as error:
        stderr.print(
            f"train.py: out of memory ({error}); try --checkpoint-activations selective or full, a smaller "
            "--micro-batch or --max-length"
        )
        return 1
    except (FloatingPointError, OSError, SafetensorError) as error:
        stderr.print(f"train.py: {error}; {kept(output)}")
        return 1
    except KeyboardInterrupt:
        stderr.print(f"interrupted; {kept(output)}")
        return 130
    question = '--tools agent/example_tools.py --prompt "What is 12 times 8.25?"'
    console.print(
        f"done: adapter in {output}; try: python infer.py --adapter {output} {question}",
        soft_wrap=True,
    )
    return 0


def kept(output: Path | None) -> str:
    """What a stopped run has left to go on from."""
    if output is None or not (output / CHECKPOINT).is_dir():
        return "no checkpoint had been written yet"
    return f"the last checkpoint is kept; go on with --resume --output {output}"


if __name__ == "__main__":
    sys.exit(main())
