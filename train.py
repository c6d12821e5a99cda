"""Teaches a Gemma-2 model to call functions: `python train.py [flags]`. Read it downwards.

What a run is:
1. rows -> conversations -> token ids, each with the flag "the model learns to write this one";
2. conversations are packed to `--max-length`; attention never crosses from one into the next;
3. the checkpoint is loaded and frozen, LoRA goes around its linear layers, and the rows of eight
   new tokens train: for Gemma-2-2B 21 million numbers of 2.6 billion;
4. a step sums the cross-entropy over every supervised token of all its micro-batches, divides once
   by their number, clips the gradient, and lets AdamW move what trains;
5. before the first step and after the last the model answers held-out rows and is scored;
6. left behind: a PEFT adapter, the tokenizer, metrics, a picture, and a checkpoint to go on from.
"""

import argparse
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors import SafetensorError
from torch import nn

from agent.evaluate import first_replies, pick_sample, reply_limit, score_calls
from agent.loading import EMBEDDED, load_base, model_folder
from common import device as devices
from common.cli import USER_ERRORS, Parser, float_in, int_at_least
from common.device import Precision
from common.sharding import unsharded
from data.chat import Example, common_prompt
from data.conversation import Conversation
from data.dataset import build_examples, load_conversations, split
from data.masks import mask_text
from data.packing import Batch, pack_examples
from data.tokenizer import Tokenizer
from lora.adapter import save_adapter
from lora.config import LINEARS, LoRAConfig, parse_targets
from lora.inject import add_lora, trainable_parameters
from lora.ops import IMPLEMENTATIONS, resolve_impl
from model import recompute
from model.config import Gemma2Config
from model.loss import supervised_loss
from model.transformer import Gemma2
from training import checkpoint, report, run_folder
from training import ranks as processes
from training.batches import StepBatches
from training.progress import Progress, StopSignal
from training.ranks import Ranks

console = Console(highlight=False)
EMBEDDED_ROWS = Path(__file__).parent / "embedded" / "rows"

# ---------------------------------------------------------------------------- settings and flags

# Defaults that depend on the model: (the course's, the embedded base's). The small base learns at a
# higher rate and sees no row twice.
DEFAULTS: dict[str, tuple[float, float]] = {
    "max_length": (1500, 2048),
    "micro_batch": (1, 1),
    "accumulate": (4, 1),
    "lr": (1e-4, 2e-3),
    "row_lr_scale": (1.0, 3.75),
    "alpha": (64.0, 32.0),
    "dropout": (0.05, 0.0),
    "eval_rows": (64, 64),
    "eval_calls": (16, 160),
}
SMALL_STEPS = 165  # under two minutes on two CPU cores, the evaluations included
CPU_EVALUATION = {"eval_rows": 8, "eval_calls": 4}  # a row of a 2B model takes seconds there
# A resumed run must agree with its checkpoint on these: they decide which numbers come next.
FINGERPRINT = (
    "model dataset dtype max_length micro_batch accumulate lr row_lr_scale warmup weight_decay "
    "clip rank alpha dropout targets adapt format eval_fraction seed overlong train_on epochs "
    "max_steps ranks"
).split()


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags, with the defaults that depend on the model filled in."""
    parser = Parser(description="Teaches a Gemma-2 model to call functions with LoRA.")

    def depends(name: str) -> str:
        course, small = DEFAULTS[name]
        return f"default: {course:g}" + (f", embedded {small:g}" if small != course else "")

    add = parser.add_argument_group("model and data").add_argument
    add("--model", help="folder or hub id, like google/gemma-2-2b-it; default: the embedded base")
    add("--dataset", help="JSONL, JSON or Parquet file, or hub id; default: the embedded rows")
    wire = "wire format; default: the model's own, or hermes"
    add("--format", choices=("hermes", "mistral"), help=wire)
    add("--max-length", type=int_at_least(2), help=f"tokens per pack; {depends('max_length')}")
    add("--overlong", choices=("drop", "truncate", "error"), default="drop", help="longer rows")
    add("--train-on", choices=("assistant", "tool-calls"), default="assistant", help="which turns")
    add("--eval-fraction", type=float_in(0, 1), default=0.1, help="share of --dataset held out")

    add = parser.add_argument_group("what trains").add_argument
    add("--rank", type=int_at_least(1), default=16, help="of the low-rank term")
    add("--alpha", type=float_in(0), help=f"it is scaled by alpha / rank; {depends('alpha')}")
    add("--dropout", type=float_in(0, 1), help=f"of its input; {depends('dropout')}")
    names = "comma-separated module names, or one regular expression"
    add("--targets", default=",".join(LINEARS), help=names)
    adapt = "rows: the new tokens' rows train too; course: LoRA on embed_tokens and lm_head"
    add("--adapt", choices=("rows", "course"), default="rows", help=adapt)

    add = parser.add_argument_group("optimization").add_argument
    add("--micro-batch", type=int_at_least(1), help=f"packs a pass; {depends('micro_batch')}")
    add("--accumulate", type=int_at_least(1), help=f"passes a step; {depends('accumulate')}")
    add("--epochs", type=float_in(1e-9), help=f"default: 1; embedded: {SMALL_STEPS} steps instead")
    add("--max-steps", type=int_at_least(1), help="stop there, whatever --epochs says")
    add("--lr", type=float_in(0), help=f"peak learning rate; {depends('lr')}")
    scale = f"rate of the new tokens' rows, times --lr; {depends('row_lr_scale')}"
    add("--row-lr-scale", type=float_in(0), help=scale)
    add("--warmup", type=float_in(0, 1), default=0.1, help="share of the steps")
    add("--weight-decay", type=float_in(0), default=0.1, help="AdamW's")
    add("--clip", type=float_in(0), default=1.0, help="largest gradient norm; 0 never clips")
    add("--seed", type=int, default=0, help="of order, dropout and starting values")

    add = parser.add_argument_group("evaluation").add_argument
    rows = f"held-out rows whose loss is taken; {depends('eval_rows')}, on a CPU 8"
    add("--eval-rows", type=int_at_least(0), help=rows)
    calls = f"held-out rows whose calls are scored; {depends('eval_calls')}, on a CPU 4"
    add("--eval-calls", type=int_at_least(0), help=calls)

    add = parser.add_argument_group("machine").add_argument
    add("--device", default="auto", help="auto, cuda, mps or cpu")
    add("--dtype", default="auto", help="of weights and activations: auto, bf16, fp16 or fp32")
    add("--lora-impl", choices=IMPLEMENTATIONS, default="auto", help="of the low-rank path")
    again = "recomputed in backward: selective, norms and gated products; full, whole blocks"
    modes = ("auto", *recompute.CHECKPOINTING)
    add("--checkpoint-activations", choices=modes, default="auto", help=again)
    add("--shard", action="store_true", help="with torchrun: slice the weights (FSDP2), not DDP")

    add = parser.add_argument_group("the run's folder").add_argument
    add("--output", help="default: runs/<time>")
    add("--save-every", type=int_at_least(0), default=100, help="steps; 0: only at the end")
    add("--resume", action="store_true", help="go on from the checkpoint in --output")
    add("--overwrite", action="store_true", help="start anew in a folder that holds a run")
    return with_defaults(parser.parse_args(argv))


def with_defaults(args: argparse.Namespace) -> argparse.Namespace:
    """Fills in what was not given. Raises: ValueError for an unknown --device."""
    is_small = not args.model
    defaults = {name: values[is_small] for name, values in DEFAULTS.items()}
    if not is_small and devices.pick_device(args.device).type == "cpu":
        defaults |= CPU_EVALUATION
    if is_small and args.epochs is None and args.max_steps is None:
        args.max_steps = SMALL_STEPS
    for name, value in {**defaults, "epochs": 1.0}.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    return args


def fingerprint(args: argparse.Namespace) -> dict[str, Any]:
    """The settings that a resumed run must share with its checkpoint."""
    return {name: getattr(args, name) for name in FINGERPRINT}


# ------------------------------------------------------------------------- optimizer and schedule


def make_optimizer(
    model: nn.Module, weight_decay: float, row_lr_scale: float = 1.0
) -> torch.optim.AdamW:
    """AdamW (arXiv:1711.05101) over everything that trains; its rate is set before each step.

    The new tokens' rows are a group of their own, at `row_lr_scale` times the factors' rate.
    """
    groups: dict[bool, list[nn.Parameter]] = {False: [], True: []}
    for name, parameter in trainable_parameters(model).items():
        groups[name.endswith(".trained.rows")].append(parameter)
    scales = {False: 1.0, True: row_lr_scale}
    options = [{"params": p, "lr_scale": scales[is_row]} for is_row, p in groups.items() if p]
    return torch.optim.AdamW(options, lr=0.0, weight_decay=weight_decay, betas=(0.9, 0.999))


def learning_rate(step: int, total: int, peak: float, warmup: float) -> float:
    """The rate of step 1 .. total: linear up over `warmup` of the steps, then half a cosine down.

    Source of the cosine: "SGDR" (arXiv:1608.03983), equation 5, without restarts.
    """
    rise = math.ceil(warmup * total)
    if step <= rise:
        return peak * step / rise
    # One step behind the textbook: the last step's rate would be zero, and the step lost.
    return peak * 0.5 * (1.0 + math.cos(math.pi * (step - 1 - rise) / (total - rise)))


# --------------------------------------------------------------------------------------- building


@dataclass(frozen=True)
class Data:
    """What a run trains on and is measured with, read once."""

    tokenizer: Tokenizer
    batches: StepBatches
    held_out: list[Conversation]
    held_out_packs: list[list[Example]]
    questions: list[Conversation]  # by hand, scored on their own; the embedded rows have some
    seen_tools: set[str]


class StepLoss(nn.Module):
    """Hidden states and summed loss in one call, whose backward DistributedDataParallel can watch."""

    def __init__(self, model: Gemma2) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, scale: float = 1.0) -> torch.Tensor:
        device = self.model.model.norm.weight.device
        inputs = (batch.tokens, batch.positions)
        tokens, positions = (t.to(device, non_blocking=device.type == "cuda") for t in inputs)
        # Document ids and targets stay on the host: looking places up there waits for no device.
        hidden = self.model.hidden(tokens, positions, batch.documents)  # (B, T, D)
        # The head meets only the supervised positions: (B, T, V) logits never exist.
        return supervised_loss(self.model, hidden, batch.targets, scale)[0]


@dataclass(frozen=True)
class Run:
    """Everything the loop needs. `step_loss` is a StepLoss, wrapped where several ranks train."""

    args: argparse.Namespace
    ranks: Ranks
    output: Path
    data: Data
    model: Gemma2
    step_loss: nn.Module
    optimizer: torch.optim.AdamW
    scaler: torch.amp.GradScaler
    precision: Precision

    @property
    def total_steps(self) -> int:
        """Optimizer steps from the first to the last, whether or not the run is resumed."""
        epochs = self.args.epochs * self.data.batches.steps_per_epoch
        return self.args.max_steps or math.ceil(epochs)


def build(args: argparse.Namespace, ranks: Ranks, output: Path) -> Run:
    """Reads the rows, then the model, puts LoRA into it, and says what was chosen.

    Raises: ValueError or FileNotFoundError for wrong inputs, the cheap checks first.
    """
    devices.seed_everything(args.seed)
    device, folder = devices.pick_device(ranks.device(args.device)), model_folder(args.model)
    precision, choices = choose(args, Gemma2Config.from_json(folder), device, ranks.count)
    tokenizer = Tokenizer.from_pretrained(folder, args.format)
    data, examples, counts = read_data(args, tokenizer, device, ranks)
    # A model to be sliced is built on the CPU, where its weights are only a mapped file.
    place = torch.device("cpu") if args.shard else device
    model = load_base(folder, tokenizer, place, precision.dtype, seed=args.seed)
    add_lora(model, lora_config(args, tokenizer), args.seed, args.lora_impl)
    model.model.checkpoint_activations = choices["checkpoint_activations"][0]
    if args.shard:
        processes.shard(model, ranks, device)
    step_loss = StepLoss(model) if args.shard else processes.data_parallel(StepLoss(model), ranks)
    devices.seed_everything(args.seed + ranks.index)  # each rank its own dropout masks
    run = Run(
        args=args,
        ranks=ranks,
        output=output,
        data=data,
        model=model,
        step_loss=step_loss,
        optimizer=make_optimizer(model, args.weight_decay, args.row_lr_scale),
        scaler=torch.amp.GradScaler(device.type, enabled=precision.needs_scaler),
        precision=precision,
    )
    if ranks.is_first and args.overwrite:
        run_folder.clear_run(output)  # only now: a wrong input must not cost the earlier run
    introduce(run, examples, counts, choices)
    return run


def choose(
    args: argparse.Namespace, config: Gemma2Config, device: torch.device, num_ranks: int
) -> tuple[Precision, dict[str, tuple[str, str]]]:
    """What "auto" means here: the precision, and (choice, reason) of everything for `run.json`.

    Raises: ValueError for flags that cannot go together, before anything large is read.
    """
    if args.max_length > config.max_position_embeddings:
        limit = config.max_position_embeddings
        raise ValueError(f"--max-length: the model has {limit} positions, got {args.max_length}")
    precision = devices.pick_precision(args.dtype, device, config.num_parameters)
    impl = resolve_impl(args.lora_impl, device, precision.dtype)
    mode = recompute.pick_checkpointing(
        args.checkpoint_activations,
        config,
        args.micro_batch * args.max_length,
        precision,
        device,
        copies=impl[0] == "reference",
        slices=num_ranks if args.shard else 1,
    )
    check_recomputed_dropout(args, mode[0], impl[0], device)
    if args.shard and (num_ranks == 1 or precision.needs_scaler):
        raise ValueError(
            "--shard: needs several ranks (torchrun --nproc-per-node=N train.py) and --dtype bf16 "
            f"or fp32, got {num_ranks} rank and {precision.name}"
        )
    chosen = (precision.name, precision.reason)
    return precision, {"precision": chosen, "lora": impl, "checkpoint_activations": mode}


def check_recomputed_dropout(
    args: argparse.Namespace, mode: str, impl: str, device: torch.device
) -> None:
    """Raises: ValueError where a recomputed block would draw other masks than its first pass.

    The fused paths draw theirs from a seed of their own; the reference uses PyTorch's generator,
    whose state checkpointing puts back on CPUs and GPUs but not on MPS.
    """
    if device.type == "mps" and mode == "full" and impl == "reference" and args.dropout:
        raise ValueError(
            "--lora-impl reference with --checkpoint-activations full and dropout is not exact on "
            "mps: give --lora-impl auto, --checkpoint-activations none, or --dropout 0"
        )


def read_data(
    args: argparse.Namespace, tokenizer: Tokenizer, device: torch.device, ranks: Ranks
) -> tuple[Data, list[Example], dict[str, Any]]:
    """The rows as packs; the rendered examples; what reading and rendering counted.

    Sets the tokenizer's wording around the tools to the one that most rows use.
    """
    rows, reading = load_conversations(args.dataset or EMBEDDED_ROWS / "train.jsonl")
    questions: list[Conversation] = []
    if args.dataset:
        rows, held_out = split(rows, args.eval_fraction, args.seed)
    else:
        held_out = load_conversations(EMBEDDED_ROWS / "heldout.jsonl")[0]
        questions = load_conversations(EMBEDDED_ROWS / "questions.jsonl")[0]
    tokenizer.prompt = common_prompt(rows) or tokenizer.prompt
    options = (args.overlong, args.train_on)
    examples, rendering = build_examples(rows, tokenizer, args.max_length, *options)
    # A held-out row is never dropped for its length, and may have nothing supervised.
    cut = ("truncate", args.train_on)
    measured, _ = build_examples(held_out, tokenizer, args.max_length, *cut, may_be_empty=True)
    batches = StepBatches(
        packs=pack_examples(examples, args.max_length).packs,
        micro_batch=args.micro_batch,
        accumulate=args.accumulate,
        ranks=ranks,
        seed=args.seed,
        pad_id=tokenizer.pad_id,
        length=args.max_length if device.type == "cuda" else None,  # one shape for its kernels
    )
    data = Data(
        tokenizer=tokenizer,
        batches=batches,
        held_out=held_out,
        held_out_packs=pack_examples(measured[: args.eval_rows], args.max_length).packs,
        questions=questions,
        seen_tools={name for row in rows for name in row.tool_names},
    )
    counts = {"reading": reading.as_dict(), "rendering": rendering.as_dict()}
    return data, examples, counts | {"held_out_rows": len(held_out)}


def lora_config(args: argparse.Namespace, tokenizer: Tokenizer) -> LoRAConfig:
    """The adapter that the flags ask for."""
    base = args.model or EMBEDDED
    if args.model and Path(args.model).is_dir():
        base = str(Path(args.model).resolve())  # found from anywhere
    return LoRAConfig(
        rank=args.rank,
        alpha=args.alpha,
        dropout=args.dropout,
        targets=parse_targets(args.targets),
        adapt=args.adapt,
        token_ids=tuple(sorted(tokenizer.tag_ids.values())),
        base_model=base,
    )


def introduce(
    run: Run,
    examples: list[Example],
    counts: dict[str, Any],
    choices: dict[str, tuple[str, str]],
) -> None:
    """Writes `run.json`, prints one example with its mask and what is about to be trained."""
    packs, length = run.data.batches.packs, run.args.max_length
    filled = sum(len(example.tokens) for example in examples)
    content = {
        "arguments": vars(run.args),
        "device": devices.describe(run.model.model.norm.weight.device),
        "choices": choices,
        "data": counts,
        "packing": {"packs": len(packs), "efficiency": filled / (len(packs) * length)},
        "trainable_parameters": sum(p.numel() for p in trainable_parameters(run.model).values()),
        "total_steps": run.total_steps,
        "versions": run_folder.versions(),
        "git_commit": run_folder.git_commit(),
    }
    if run.ranks.is_first:
        run_folder.write_json(run.output / run_folder.RUN, content)
    console.print(mask_text(examples[0], run.data.tokenizer), soft_wrap=True)
    for sentence in report.describe_run(content):
        console.print(sentence, soft_wrap=True)


# ------------------------------------------------------------------------------- one training step


def train_step(run: Run, step: int) -> dict[str, Any]:
    """One optimizer step on the mean loss over all its supervised tokens; its line of metrics."""
    start = time.perf_counter()
    # The step's packs on all ranks decide the divisor: micro-batches with many and with few
    # supervised tokens weigh by their tokens, however the packs are cut into batches.
    packs = run.data.batches.of_step(step)
    supervised = sum(example.num_supervised for pack in packs for example in pack)
    share = run.ranks.count / max(1, supervised)  # DDP and FSDP average gradients over the ranks

    rate = learning_rate(step, run.total_steps, run.args.lr, run.args.warmup)
    for group in run.optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]

    # Gradients add up over the micro-batches; several ranks average them once, in the last one. The
    # loss carries fp16's scale from the start: its 16-bit gradients are made in the forward pass.
    run.model.train()
    scale = run.scaler.get_scale() * share
    total = torch.zeros((), device=run.model.model.norm.weight.device)
    batches = run.data.batches.micro_batches(packs)
    for number, batch in enumerate(batches, start=1):
        with processes.synchronized(run.step_loss, number == len(batches)):
            loss = run.step_loss(batch, scale)
            run.scaler.scale(loss * share).backward()
        total += loss.detach()

    # Clipping looks at the true gradients, so the scale comes off first. A step whose gradient is
    # not finite must not reach the weights; a scaler skips it by itself and lowers its scale.
    run.scaler.unscale_(run.optimizer)
    parameters = trainable_parameters(run.model).values()
    norm = torch.nn.utils.clip_grad_norm_(parameters, run.args.clip or math.inf)
    grad_norm = unsharded(norm).item()
    is_finite = math.isfinite(grad_norm)
    if is_finite or run.scaler.is_enabled():
        run.scaler.step(run.optimizer)
        run.scaler.update()
    run.optimizer.zero_grad(set_to_none=True)

    # Nothing here is smoothed: the loss is this step's own, summed over the ranks.
    tokens = sum(len(example.tokens) for pack in packs for example in pack)
    line = {
        "step": step,
        "loss": run.ranks.total(total).item() / max(1, supervised),
        "grad_norm": grad_norm,
        "lr": rate,
        "tokens": tokens,
        "supervised_tokens": supervised,
        "tokens_per_second": tokens / (time.perf_counter() - start),
        "peak_memory_bytes": devices.peak_memory_bytes(total.device),
    }
    return line if is_finite or not run.scaler.is_enabled() else line | {"skipped": True}


@torch.no_grad()
def evaluate(run: Run) -> dict[str, Any]:
    """Held-out loss per supervised token and exact-call accuracy; None where nothing is held out."""
    data, model = run.data, run.model
    line: dict[str, Any] = {"eval_loss": None, "tool_call_accuracy": None}
    if not data.held_out:
        return line
    model.eval()
    total, step_loss = 0.0, StepLoss(model)  # not the wrapped one: no gradients to average
    for pack in data.held_out_packs:
        total += step_loss(data.batches.collate([pack])).item()
    supervised = sum(example.num_supervised for pack in data.held_out_packs for example in pack)
    line["eval_loss"] = total / supervised if supervised else None

    scored = data.held_out[: run.args.eval_calls]
    if scored:
        # Questions go in the same batches: what a decoding step costs is mostly not its rows.
        asked = [*scored, *data.questions]
        limit = reply_limit(asked, data.tokenizer)
        replies = first_replies(model, data.tokenizer, asked, limit)
        by_row, by_hand = replies[: len(scored)], replies[len(scored) :]
        line["tool_call_accuracy"] = score_calls(data.tokenizer, scored, by_row, data.seen_tools)
        if data.questions:
            accuracy = score_calls(data.tokenizer, data.questions, by_hand, data.seen_tools)
            line["questions_accuracy"] = accuracy
            line["sample"] = pick_sample(scored, by_row, data.tokenizer, data.seen_tools)
    processes.slice_again(model)
    return line


# ---------------------------------------------------------------------------------------- the loop


def train(run: Run, start: int) -> None:
    """Steps start + 1 .. total_steps. A first Ctrl-C ends after the running step, with a checkpoint.

    Raises: FloatingPointError for a loss or gradient that is not finite; KeyboardInterrupt.
    """
    if start == 0:
        record(run, {"step": 0, **evaluate(run)})
    with Progress(run.total_steps, start, console) as progress, StopSignal(console) as stop:
        for step in range(start + 1, run.total_steps + 1):
            line = train_step(run, step)
            is_last, is_broken = step == run.total_steps, not is_sound(line)
            if is_last and not is_broken:
                line |= evaluate(run)
            record(run, line)
            progress.show(line)
            if is_broken:
                raise FloatingPointError(describe_break(line, run.precision.name))
            # One rank's signal stops all: the others would wait for it in the next step.
            must_stop = bool(run.ranks.total(torch.tensor(float(stop.requested))))
            is_due = run.args.save_every and step % run.args.save_every == 0
            if must_stop or is_last or is_due:
                save(run, step)
            if must_stop:
                raise KeyboardInterrupt


def is_sound(line: dict[str, Any]) -> bool:
    """False where loss or gradient is not finite and no scaler has skipped the step."""
    return math.isfinite(line["loss"]) and (
        math.isfinite(line["grad_norm"]) or bool(line.get("skipped"))
    )


def describe_break(line: dict[str, Any], precision: str) -> str:
    """What went wrong in a step and what to try."""
    advice = "a lower --lr" + (", or --dtype bf16 or fp32" if precision == "fp16" else "")
    numbers = f"loss {line['loss']}, gradient norm {line['grad_norm']}"
    return f"step {line['step']}: {numbers}; try {advice}"


def record(run: Run, line: dict[str, Any]) -> None:
    """Appends one line of metrics; prints what an evaluation found."""
    if run.ranks.is_first:
        run_folder.append_metrics(run.output, line)
    for sentence in report.describe_evaluation(line):
        console.print(sentence, soft_wrap=True)


def save(run: Run, step: int) -> None:
    """The checkpoint first, since nothing else can be made again; then adapter, tokenizer, picture."""
    counters = {
        "step": step,
        "scaler": run.scaler.state_dict(),
        "precision": run.precision.name,
        "fingerprint": fingerprint(run.args),
    }
    device, is_writer = run.model.model.norm.weight.device, run.ranks.is_first
    checkpoint.save_checkpoint(
        run.output / run_folder.CHECKPOINT,
        run.model,
        optimizer=run.optimizer,
        rng=run.ranks.gather(devices.rng_state(device)),
        counters=counters,
        is_writer=is_writer,
    )
    config = lora_config(run.args, run.data.tokenizer)
    save_adapter(run.model, run.output, config, is_writer)
    if is_writer:
        run.data.tokenizer.save(run.output)
        report.draw_loss(run.output)


def resume(run: Run) -> int:
    """Puts the run back to its checkpoint; returns the last step done. Raises: ValueError."""
    folder, device = run.output / run_folder.CHECKPOINT, run.model.model.norm.weight.device
    counters = checkpoint.read_counters(folder)
    then, now = counters.get("precision", run.precision.name), run.precision.name
    if then != now:
        raise ValueError(
            f"{run.output}: was trained in {then}, this device would go on in {now}; "
            f"give --dtype {then}, or start again with --overwrite"
        )
    rng = checkpoint.load_checkpoint(folder, run.model, run.optimizer)
    mine = {name.removesuffix(f".{run.ranks.index}"): value for name, value in rng.items()}
    devices.set_rng_state(mine, device)
    run.scaler.load_state_dict(counters["scaler"])
    if run.ranks.is_first:
        run_folder.keep_metrics_until(run.output, counters["step"])
    return int(counters["step"])


def run_once(args: argparse.Namespace, ranks: Ranks) -> int:
    """The whole run on this rank; returns the exit code. Only the first rank prints."""
    console.quiet = not ranks.is_first
    options: dict[str, Any] = {"highlight": False, "markup": False, "soft_wrap": True}
    errors = Console(stderr=True, quiet=console.quiet, **options)
    args.ranks, output = ranks.count, None
    try:
        again = {"resume": args.resume, "overwrite": args.overwrite}
        output = run_folder.open_folder(args.output, fingerprint(args), **again, ranks=ranks)
        run = build(args, ranks, output)
        train(run, resume(run) if args.resume else 0)
        report.show_sample(output, console)
    except USER_ERRORS as error:
        errors.print(f"train.py: {error}")
        return 2
    except torch.OutOfMemoryError as error:
        advice = (
            "--checkpoint-activations selective or full, a smaller --micro-batch or --max-length"
        )
        errors.print(f"train.py: out of memory ({error}); try {advice}")
        return 1
    except (FloatingPointError, OSError, SafetensorError) as error:
        errors.print(f"train.py: {error}; {run_folder.checkpoint_left(output)}")
        return 1
    except KeyboardInterrupt:
        errors.print(f"interrupted; {run_folder.checkpoint_left(output)}")
        return 130
    question = '--tools agent/example_tools.py --prompt "What is 12 times 8.25?"'
    command = f"python infer.py --adapter {output} {question}"
    console.print(f"done: adapter in {output}; try: {command}", soft_wrap=True)
    return 0


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0 done, 2 wrong input, 1 anything else, 130 interrupted."""
    try:
        args = parse_args(argv)
    except USER_ERRORS as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 2
    with processes.joined() as ranks:
        return run_once(args, ranks)


if __name__ == "__main__":
    sys.exit(main())
