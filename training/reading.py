"""The rows of a run: read, split, rendered, packed, and counted."""

import argparse
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data.augment import augment, read_shares
from data.chat import common_prompt, render
from data.conversation import Conversation, SystemPrompt
from data.dataset import build_examples, common_rows, load_conversations, split, weighted
from data.packing import pack_examples
from data.reports import LoadReport, left_out
from data.schema import parse_row
from data.tokenizer import Tokenizer
from data.tool_schema import as_tools
from training.batches import StepBatches
from training.digests import rows_digest
from training.ranks import Ranks
from training.run import Data
from training.sample import pick_conversation

EMBEDDED_ROWS = Path(__file__).parents[1] / "embedded" / "rows"
SHOWN = Path(__file__).parents[1] / "embedded" / "shown"  # questions and tools for the screen


@dataclass(frozen=True)
class Rows:
    """What the data sets of a run hold."""

    train: list[Conversation]  # each as often as its data set weighs
    held_out: list[Conversation]
    questions: list[Conversation]  # by hand; the embedded rows have some
    reading: LoadReport
    shared: int = 0  # rows of --eval-dataset that training shows too


def parse_dataset(text: str) -> tuple[str, float]:
    """Read NAME or NAME=WEIGHT. Raises: ValueError for a weight that is no number above 0."""
    name, sign, word = text.rpartition("=")
    if not sign or Path(text).exists():  # a file may have the sign in its name
        return text, 1.0
    try:
        weight = float(word)
    except ValueError:
        weight = math.nan
    if not (name and 0 < weight < math.inf):
        problem = f"expected NAME=WEIGHT with a number above 0, got {text!r}"
        raise ValueError(f"--dataset: {problem}; write for example rows.jsonl=0.5")
    return name, weight


def read_rows(args: argparse.Namespace) -> Rows:
    """Read every data set and divide it into what trains and what is held out."""
    options: dict[str, Any] = {"bad_calls": args.bad_calls, "max_dropped": args.max_dropped}
    reading = LoadReport()
    weights: list[float] = []
    rows: list[Conversation] = []
    names = [parse_dataset(text) for text in args.dataset or ()]
    for name, weight in names or [(str(EMBEDDED_ROWS / "train.jsonl"), 1.0)]:
        found, report = load_conversations(name, **options)
        rows += found
        weights += [weight] * len(found)
        reading += report
    questions: list[Conversation] = []
    # Of one's own data up to half of the held-out rows are chosen by tool: they ask for tools that
    # training never shows. The embedded rows were made in two parts already.
    fraction = args.eval_fraction if names and not args.eval_dataset else 0.0
    train, held_out = split(rows, fraction, args.seed)
    if args.eval_dataset:
        found, report = load_conversations(args.eval_dataset, **options)
        held_out = found + held_out
        reading.add_held_out(report)
    elif not names:
        held_out = load_conversations(EMBEDDED_ROWS / "heldout.jsonl")[0]
        questions = load_conversations(EMBEDDED_ROWS / "questions.jsonl")[0]
    shared = common_rows(train, held_out) if args.eval_dataset else 0
    if any(weight != 1 for weight in weights):
        # By identity: the split keeps the objects, in their order
        weight_of = {id(row): weight for row, weight in zip(rows, weights, strict=True)}
        parts = [[r for r in train if weight_of[id(r)] == w] for w in dict.fromkeys(weights)]
        pairs = zip(parts, dict.fromkeys(weights), strict=True)
        train = [row for part, weight in pairs for row in weighted(part, weight, args.seed)]
    return Rows(train, held_out, questions, reading, shared)


def read_shown(prompt: SystemPrompt | None, seen_tools: set[str]) -> dict[str, Conversation]:
    """The first question of each kind in `questions.jsonl`, asked in the wording of the run's rows.

    None without tools in the rows; none about a tool that training has seen.
    """
    shown: dict[str, Conversation] = {}
    path = SHOWN / "questions.jsonl"
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        row = parse_row(line, f"{path.name}:{number}")
        if prompt and not row.tool_names & seen_tools:
            asked = replace(row, prompt=prompt, tools=as_tools(row.tools, prompt.shape))
            shown.setdefault(json.loads(line)["kind"], asked)
    return shown


def read_data(
    args: argparse.Namespace, tokenizer: Tokenizer, ranks: Ranks, at_once: int | None
) -> tuple[Data, dict[str, Any]]:
    """The rows as packs and all else that a run needs of them; what reading and rendering counted.

    `at_once`: packs of a forward pass on a GPU, whose kernels want one shape; None elsewhere.

    Sets the tokenizer's wording around the tools to the one that most rows use.
    """
    found = read_rows(args)
    held_out = found.held_out
    rows, augmented = augment(found.train, read_shares(args.augment), args.seed)
    # Saved with the tokenizer, so that infer.py and a served chat template ask as training did.
    prompt = common_prompt(rows)
    tokenizer.prompt = prompt or tokenizer.prompt
    length, train_on = args.max_length, args.train_on
    examples, rendering = build_examples(
        rows, tokenizer, length, overlong=args.overlong, train_on=train_on
    )
    # A held-out row is cut where a training row would be dropped. One with nothing supervised left
    # is dropped all the same, so that a small --max-length measures on fewer rows.
    measured, _ = build_examples(
        held_out, tokenizer, length, overlong="truncate", train_on=train_on, may_be_empty=True
    )
    batches = StepBatches(
        packs=pack_examples(examples, args.max_length).packs,
        micro_batch=args.micro_batch,
        accumulate=args.accumulate,
        ranks=ranks,
        seed=args.seed,
        pad_id=tokenizer.pad_id,
        shape=None if at_once is None else (at_once, args.max_length),
    )
    seen_tools = {name for row in found.train for name in row.tool_names}
    data = Data(
        tokenizer=tokenizer,
        batches=batches,
        held_out=held_out,
        held_out_packs=pack_examples(measured[: args.eval_rows], args.max_length).packs,
        questions=found.questions,
        shown=read_shown(prompt, seen_tools),
        sample=render(pick_conversation(rows), tokenizer, train_on),
        seen_tools=seen_tools,
        has_results=any(message.role == "tool" for row in rows for message in row.messages),
        digest=rows_digest([*examples, *measured]),
    )
    counts: dict[str, Any] = {"reading": found.reading.as_dict(), "rendering": rendering.as_dict()}
    counts |= {"held_out_rows": len(held_out), "rows_in_both": found.shared}
    counts |= {"augmented": dict(augmented)} if augmented else {}
    return data, counts | {"left_out": left_out(found.reading, rendering)}
