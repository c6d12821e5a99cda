"""The rows of a run: read, split, rendered, packed, and counted."""

import argparse
from pathlib import Path
from typing import Any

import torch

from data.chat import Example, common_prompt
from data.conversation import Conversation
from data.dataset import build_examples, load_conversations, split
from data.packing import pack_examples
from data.tokenizer import Tokenizer
from training.batches import StepBatches
from training.digests import rows_digest
from training.ranks import Ranks
from training.run import Data

EMBEDDED_ROWS = Path(__file__).parents[1] / "embedded" / "rows"


def read_data(
    args: argparse.Namespace, tokenizer: Tokenizer, device: torch.device, ranks: Ranks
) -> tuple[Data, list[Example], dict[str, Any]]:
    """The rows as packs; the rendered examples; what reading and rendering counted.

    Sets the tokenizer's wording around the tools to the one that most rows use.
    """
    rows, reading = load_conversations(args.dataset or EMBEDDED_ROWS / "train.jsonl")
    questions: list[Conversation] = []
    # Of one's own data up to half of the held-out rows are chosen by tool: they ask for tools that
    # training never shows. The embedded rows were made in two parts already.
    if args.dataset:
        rows, held_out = split(rows, args.eval_fraction, args.seed)
    else:
        held_out = load_conversations(EMBEDDED_ROWS / "heldout.jsonl")[0]
        questions = load_conversations(EMBEDDED_ROWS / "questions.jsonl")[0]
    # Saved with the tokenizer, so that infer.py and a served chat template ask as training did.
    tokenizer.prompt = common_prompt(rows) or tokenizer.prompt
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
        length=args.max_length if device.type == "cuda" else None,  # one shape for its kernels
    )
    data = Data(
        tokenizer=tokenizer,
        batches=batches,
        held_out=held_out,
        held_out_packs=pack_examples(measured[: args.eval_rows], args.max_length).packs,
        questions=questions,
        seen_tools={name for row in rows for name in row.tool_names},
        digest=rows_digest([*examples, *measured]),
    )
    counts = {"reading": reading.as_dict(), "rendering": rendering.as_dict()}
    return data, examples, counts | {"held_out_rows": len(held_out)}
