"""Settings that follow from others: defaults that depend on the model, and those that a resumed run
must share with its checkpoint."""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from common.cli import float_in, int_at_least
from common.device import pick_device
from data.augment import SHARES, read_shares
from data.chat import TRAINED
from data.dataset import BAD_CALLS, OVERLONG
from lora.config import LoRAConfig, parse_targets
from training.loggers import LOGGERS, check_library

# Defaults that depend on the model: (the course's, the embedded base's). The small base learns at a
# twenty times higher rate, without dropout: it sees no row twice, so it cannot learn one by heart.
# Its new rows learn faster still: in so few steps they have the longest way to go.
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
# Rows whose calls are scored before training, at most: with the questions one batch. A base that
# knows no calls writes each reply to the limit, so that a row costs more than it does later.
CALLS_BEFORE = 24
CPU_EVALUATION = {"eval_rows": 8, "eval_calls": 4}  # a row of a 2B model takes seconds there
# A resumed run must agree with its checkpoint on these: they decide which numbers come next. Not
# among them: what only measures or saves (--eval-rows, --save-every), and --device, so that a run
# may go on elsewhere.
FINGERPRINT = (
    "model dataset dtype max_length micro_batch accumulate lr row_lr_scale warmup weight_decay "
    "clip rank alpha dropout targets adapt format eval_fraction eval_dataset bad_calls augment "
    "seed overlong train_on epochs max_steps ranks"
).split()
# What a checkpoint that is older than these flags was made with.
LATER_DEFAULTS = {"eval_dataset": None, "bad_calls": "keep", "augment": None}
LENGTH = ("epochs", "max_steps")  # the only ones that a finished run may change: it goes on longer


def add_row_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of what rows train, of what is held out, and of what odd rows cost."""
    add = parser.add_argument_group("rows; see data/examples/README.md").add_argument
    rows = "JSONL, JSON or Parquet file or hub id, also several; default: the embedded rows"
    add("--dataset", action="append", metavar="NAME[=WEIGHT]", help=rows)
    held_out = "rows to hold out, in place of --eval-fraction; default: none"
    add("--eval-dataset", metavar="NAME", help=held_out)
    add("--eval-fraction", type=float_in(0, 1), default=0.1, help="share of --dataset held out")
    add("--max-dropped", type=float_in(0), default=0.05, help="share of unreadable rows")
    add("--bad-calls", choices=BAD_CALLS, default="keep", help="calls that do not fit their tools")
    changes = "KIND[=SHARE],...: rows changed at random, kinds all or some of " + ", ".join(SHARES)
    add("--augment", metavar="KINDS", help=f"{changes}; default: none")
    add("--overlong", choices=OVERLONG, default="drop", help="rows over --max-length")
    add("--train-on", choices=tuple(TRAINED), default="assistant", help="loss on what")

    add = parser.add_argument_group("evaluation").add_argument
    add("--eval-every", type=int_at_least(0), default=0, help="steps; 0: only at start and end")
    add("--eval-rows", type=int_at_least(0), help="held-out rows whose loss is taken")
    add(
        "--eval-calls",
        type=int_at_least(0),
        help="held-out rows whose calls are scored; as many questions by hand",
    )


def add_folder_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of what a run writes, where it goes on, and what it says."""
    add = parser.add_argument_group("the run's folder").add_argument
    add("--output", help="default: runs/<time>")
    add("--save-every", type=int_at_least(0), default=100, help="steps; 0: only at the end")
    add("--resume", action="store_true", help="go on from the checkpoint in --output")
    add("--check", action="store_true", help="read, count, time a few steps; train nothing")
    add("--overwrite", action="store_true", help="start anew in a folder that holds a run")
    pushed = "hub repository that gets the adapter at the end; default: none"
    add("--push", metavar="OWNER/NAME", help=pushed)

    add = parser.add_argument_group("flags from a file, and what is said").add_argument
    recipe = "TOML file of flags by their names; the command line wins; default: none"
    add("--config", metavar="FILE", help=recipe)
    logged = "sends metrics there too (an extra of this package); metrics.jsonl has them always"
    add("--logger", choices=LOGGERS, help=f"{logged}; default: none")
    quiet = "only the lines that a log wants: no bars, no conversation, no replies"
    add("--quiet", action="store_true", help=quiet)


def describe_defaults() -> dict[str, str]:
    """The defaults that depend on the model, in words for `--help`."""
    words = {}
    for name, (course, small) in DEFAULTS.items():
        words[name] = f"{course:g}" + (f"; embedded {small:g}" if small != course else "")
    for name, value in CPU_EVALUATION.items():
        words[name] += f"; --model on a CPU {value}"
    words["micro_batch"] += "; on CUDA as many of a step's packs as fit, the same step"
    return words | {"epochs": f"1; embedded {SMALL_STEPS} steps"}


def with_defaults(args: argparse.Namespace, embedded: str) -> argparse.Namespace:
    """Fills in what was not given; `embedded` is the name of the base taken without --model.

    Raises: ValueError for an unknown --device, or flags that do not go together.
    """
    # Refused before anything is read.
    read_shares(args.augment)
    check_library(args.logger)
    args.model = None if args.model == embedded else args.model
    if args.check and (args.resume or args.overwrite):
        raise ValueError("--check trains nothing; leave --resume and --overwrite out")
    is_small = not args.model
    # Where nobody said how many packs a forward pass takes, a GPU takes what fits of a step's.
    args.fold = args.micro_batch is None
    defaults = {name: values[is_small] for name, values in DEFAULTS.items()}
    if not is_small and pick_device(args.device).type == "cpu":
        defaults |= CPU_EVALUATION
    # Only where neither was given: `--epochs 2` with the embedded base means two epochs.
    if is_small and args.epochs is None and args.max_steps is None:
        args.max_steps = SMALL_STEPS
    for name, value in {**defaults, "epochs": 1.0}.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    return args


def fingerprint(args: argparse.Namespace) -> dict[str, Any]:
    """The settings that a resumed run must share with its checkpoint."""
    return {name: getattr(args, name) for name in FINGERPRINT}


def lora_config(args: argparse.Namespace, token_ids: Iterable[int], embedded: Path) -> LoRAConfig:
    """The adapter that the flags ask for; a base on this machine gets its full path, to be found.

    `embedded` is the folder of the base that is taken without --model, where PEFT finds it.
    Raises: ValueError for targets that are no usable regular expression.
    """
    base = args.model or str(embedded)
    return LoRAConfig(
        rank=args.rank,
        alpha=args.alpha,
        dropout=args.dropout,
        targets=parse_targets(args.targets),
        adapt=args.adapt,
        token_ids=tuple(sorted(token_ids)),
        base_model=str(Path(base).resolve()) if args.model and Path(base).exists() else base,
    )
