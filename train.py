"""Teaches a Gemma-2 model to call functions: `python train.py [flags]`. Read it downwards.

What a run is:
1. rows -> conversations -> token ids, each with the flag "the model learns to write this one";
2. conversations are packed to `--max-length`; attention never crosses from one into the next;
3. the checkpoint is loaded and frozen, LoRA goes around its linear layers, and the rows of the new
   tokens (eight tags) train with it: for Gemma-2-2B 21 million numbers of 2.6 billion;
4. a step sums the cross-entropy over every supervised token of all its micro-batches, divides once
   by their number, clips the gradient, and lets AdamW move what trains;
5. before the first step and after the last the model answers held-out rows and is scored;
6. left behind: a PEFT adapter, the tokenizer, metrics, a picture, and a checkpoint to go on from.
"""

import os
import signal

if __name__ == "__main__":
    # The imports take seconds; Ctrl-C in them ends here, and not in some library's traceback.
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))

import argparse
import math
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from agent.loading import EMBEDDED, EMBEDDED_MODEL, load_base, model_folder
from agent.trial import Asked, measure_calls, try_out
from common import device as devices
from common.cli import Parser, float_in, int_at_least
from common.screen import Screen, open_standard_streams
from common.sharding import unsharded
from data.tokenizer import Tokenizer
from data.wire import FORMATS
from lora.config import LINEARS
from lora.embedding import ROWS_NAME
from lora.implementations import IMPLEMENTATIONS
from lora.inject import add_lora, trainable_parameters
from model.recompute import CHECKPOINTING
from training import card, finale, loggers, opening, recipe, report, run_folder, saving, settings
from training import ranks as processes  # of torchrun; --rank is LoRA's
from training.best import keep_best
from training.check import check
from training.choices import choose
from training.digests import BaseDigest
from training.progress import Progress, StopSignal, interrupts, working
from training.ranks import Ranks
from training.reading import SHOWN, read_data
from training.run import Run, StepLoss

console = Screen()
Line = dict[str, Any]  # of metrics.jsonl

# ------------------------------------------------------------------------------------------ flags


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags, with the defaults that depend on the model filled in."""
    parser = Parser("Teaches Gemma-2 to call functions with LoRA.", settings.describe_defaults())
    add = parser.add_argument_group("model and data").add_argument
    add("--model", help="folder, GGUF or hub id, like google/gemma-2-2b-it; default: embedded")
    add("--format", choices=tuple(FORMATS), help="default: the model's own, or hermes")
    add("--max-length", type=int_at_least(2), help="tokens of a pack")
    settings.add_row_flags(parser)

    add = parser.add_argument_group("what trains").add_argument
    add("--rank", type=int_at_least(1), default=16, help="r of the low-rank term B A")
    add("--alpha", type=float_in(0, 1e6), help="the term is scaled by alpha / rank")
    add("--dropout", type=float_in(0, 1), help="of the low-rank term's input")
    add("--targets", default=",".join(LINEARS), help="module names, or one regular expression")
    recipes = "rows: the new tokens' rows train too; course: LoRA on embed_tokens and lm_head"
    add("--adapt", choices=("rows", "course"), default="rows", help=recipes)

    add = parser.add_argument_group("optimization").add_argument
    add("--micro-batch", type=int_at_least(1), help="packs of a forward pass, if not chosen")
    add("--accumulate", type=int_at_least(1), help="forward passes of an optimizer step")
    add("--epochs", type=float_in(1e-9, 1e6), help="times that every row is seen")
    add("--max-steps", type=int_at_least(1), help="stop there; default: --epochs decides")
    add("--lr", type=float_in(0, 1e3), help="peak learning rate")
    add("--row-lr-scale", type=float_in(0, 1e6), help="rate of the new tokens' rows, times --lr")
    add("--warmup", type=float_in(0, 1), default=0.1, help="share of the steps")
    add("--weight-decay", type=float_in(0, 1e3), default=0.1, help="AdamW's")
    add("--clip", type=float_in(0, 1e30), default=1.0, help="largest gradient norm; 0 never clips")
    add("--seed", type=int, default=0, help="of order, dropout and starting values")

    add = parser.add_argument_group("machine").add_argument
    add("--device", default="auto", help="auto, cuda, mps or cpu")
    add("--dtype", default="auto", help="of weights and activations: auto, bf16, fp16 or fp32")
    add("--lora-impl", choices=IMPLEMENTATIONS, default="auto", help="of the low-rank path")
    again = "recomputed in backward: selective, norms and gated products; full, whole blocks"
    add("--checkpoint-activations", choices=("auto", *CHECKPOINTING), default="auto", help=again)
    add("--shard", action="store_true", help="with torchrun: slice the weights (FSDP2), not DDP")
    settings.add_folder_flags(parser)
    return settings.with_defaults(recipe.parse(parser, argv), EMBEDDED)


# ------------------------------------------------------------------------- optimizer and schedule


def make_optimizer(
    model: nn.Module, weight_decay: float, row_lr_scale: float = 1.0
) -> torch.optim.AdamW:
    """AdamW (arXiv:1711.05101) over everything that trains, on CUDA in one launch.

    Rates are set before each step; that of the new tokens' rows is `row_lr_scale` times as large.
    """
    named = trainable_parameters(model)
    rows = [p for name, p in named.items() if name.endswith(ROWS_NAME)]
    factors = [p for name, p in named.items() if not name.endswith(ROWS_NAME)]
    groups = [{"params": factors, "lr_scale": 1.0}, {"params": rows, "lr_scale": row_lr_scale}]
    used, fused = [group for group in groups if group["params"]], any(p.is_cuda for p in factors)
    return torch.optim.AdamW(used, lr=0.0, weight_decay=weight_decay, fused=fused or None)


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


def build(args: argparse.Namespace, ranks: Ranks, output: Path) -> tuple[Run, int, Line | None]:
    """Reads the rows, then the model, puts LoRA into it, and says what was chosen.

    Returns the run, the last step that is done, and its line if that is still to be evaluated.
    Raises: ValueError or FileNotFoundError for wrong inputs, the cheap checks first.
    """
    # What "auto" means on this machine, before anything large is read.
    devices.seed_everything(args.seed)
    device, folder = devices.pick_device(ranks.device(args.device)), model_folder(args.model)
    precision, packs, choices = choose(args, folder, device, ranks=ranks, output=output)
    run_folder.refuse_base(output, folder)
    base = BaseDigest(folder) if ranks.is_first and not args.check else None

    # Rows -> conversations -> token ids with their mask -> packs.
    tokenizer = Tokenizer.from_pretrained(folder, args.format)
    opening.announce(args.model, console)
    with working(console, "reading the conversations"):
        data, counts = read_data(args, tokenizer, ranks, packs)

    # The frozen base with LoRA in it; one to be sliced over ranks stays a mapped file on the CPU.
    place = torch.device("cpu") if args.shard else device
    with working(console, "loading the base model"):
        model = load_base(folder, tokenizer, place, precision.dtype, seed=args.seed)
    config = settings.lora_config(args, tokenizer.tag_ids.values(), EMBEDDED_MODEL)
    add_lora(model, config, args.seed, choices["lora"][0], device=device)
    model.model.checkpoint_activations = choices["checkpoint_activations"][0]
    if args.shard:
        processes.shard(model, ranks, device)

    devices.seed_everything(args.seed + ranks.index)  # each rank its own dropout masks
    run = Run(
        args=args,
        ranks=ranks,
        output=output,
        data=data,
        step_loss=processes.data_parallel(StepLoss(model), ranks, is_sharded=args.shard),
        model=model,
        config=config,
        optimizer=make_optimizer(model, args.weight_decay, args.row_lr_scale),
        scaler=torch.amp.GradScaler(device.type, enabled=precision.needs_scaler),
        precision=precision,
        base=base,
        logger=loggers.start(args, ranks, output, console.say),
    )
    start, line = saving.begin(run, console.say)
    opening.introduce(run, counts, choices, console)
    return run, start, line


# ------------------------------------------------------------------------------- one training step


def train_step(run: Run, step: int) -> Line:
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
    total = torch.zeros((), device=run.device)
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
def evaluate(run: Run, most: int | None = None) -> Line:
    """Held-out loss per supervised token, exact calls of `most` rows; None with none held out."""
    start, data, model = time.perf_counter(), run.data, run.model
    line: Line = {"eval_loss": None, "tool_call_accuracy": None}
    if not data.held_out:
        return line
    model.eval()
    total, step_loss = 0.0, StepLoss(model)  # not the wrapped one: no gradients to average
    calls = run.args.eval_calls
    asked = Asked(data.held_out[:calls][:most], data.questions[:calls], data.shown, data.seen_tools)
    work = len(data.held_out_packs) + len(asked.rows)
    with working(console, "testing on conversations that are not trained on", work) as count:
        for pack in data.held_out_packs:
            total += step_loss(data.batches.collate([pack])).item()
            count(1)
        line |= measure_calls(model, data.tokenizer, asked, count)
    supervised = sum(example.num_supervised for pack in data.held_out_packs for example in pack)
    line["eval_loss"] = total / supervised if supervised else None
    processes.slice_again(model)
    return line | {"eval_seconds": time.perf_counter() - start}


# --------------------------------------------------------------------------------------- the loop


def train(run: Run, start: int, line: Line | None) -> None:
    """Steps start + 1 .. total_steps. A first Ctrl-C ends it after the running step, saved.

    `line` is that of step `start`, if it is the last one and not evaluated yet.
    Raises: FloatingPointError for a loss or gradient that is not finite; KeyboardInterrupt.
    """
    if start == 0:
        report.record(run, {"step": 0, **evaluate(run, settings.CALLS_BEFORE)}, console)
    every, save_every = run.args.eval_every, run.args.save_every
    with Progress(run.total_steps, start, console) as progress, StopSignal(console) as stop:
        for step in range(start + 1, run.total_steps + 1):
            line = train_step(run, step)
            is_last, is_broken = step == run.total_steps, report.has_broken(run, line)
            if every and step % every == 0 and not (is_last or is_broken):
                with progress.aside():
                    line |= evaluate(run)
                keep_best(run, line)
            if is_broken or not is_last:  # the last line waits for its evaluation
                report.record(run, line, console)
            progress.show(line)
            if is_broken:
                raise FloatingPointError(report.describe_break(line, run.precision.name))
            # One rank's signal stops all: the others would wait for it in the next step.
            must_stop = bool(run.ranks.total(torch.tensor(float(stop.requested))))
            if must_stop or is_last or (save_every and step % save_every == 0):
                saving.save(run, step, line)
            if must_stop:
                raise KeyboardInterrupt
    # Saved first, evaluated then: whatever goes wrong here, --resume does it again.
    if line is not None:
        line |= evaluate(run)
        keep_best(run, line)
        saving.record_last(run, line, console)
        report.stop_if_broken(run, line)


def run_once(args: argparse.Namespace, ranks: Ranks) -> int:
    """The whole run on this rank; returns the exit code. Only the first rank prints."""
    console.quiet, args.ranks = not ranks.is_first, ranks.count
    console.is_plain = args.quiet  # no bars
    output: Path | None = None
    began = time.perf_counter()
    try:
        card.check_push(args.push, ranks)
        if args.check:
            check(build(args, ranks, Path("--check"))[0], train_step, console)
            return 0
        with interrupts(), run_folder.opened(args, ranks, console.say) as output:
            run, start, line = build(args, ranks, output)
            with run.logger:
                train(run, start, line)
            card.push(output, args.push, ranks, console.say)
            finale.show(run, partial(try_out, run.model, run.data.tokenizer, SHOWN), console)
    except (Exception, KeyboardInterrupt) as error:
        return report.explain_stop(error, output, is_quiet=console.quiet)
    console.say(report.describe_end(output, args.dataset, time.perf_counter() - began))
    return 0


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0 done, 2 wrong input, 1 anything else, 130 interrupted."""
    open_standard_streams()
    try:
        args = parse_args(argv)
        with processes.joined() as ranks:
            return run_once(args, ranks)
    except ValueError as error:  # a --device that is not here, ranks that torchrun has not made
        return report.explain_stop(error, None, is_quiet=False)


if __name__ == "__main__":
    sys.exit(main())
