"""What holding a model's calls to rules changes: free, names, constrained, on the same rows.

    python -m benchmarks.call_rules runs/NAME [--dataset embedded/rows/heldout.jsonl]

Each row's first reply is written three times, greedy, and scored all or nothing. McNemar's exact
test asks whether two ways differ on the rows that one of them has right and the other wrong: under
no difference each of these is a coin's throw. Prints a table, then one line of JSON for each way.
Source: McNemar, "Note on the sampling error of the difference between correlated proportions",
Psychometrika 12 (1947).
"""

import argparse
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from agent.evaluate import (
    KINDS,
    RIGHT,
    first_question,
    first_reply,
    judge,
    kind_of,
    reply_limit,
    write_replies,
)
from agent.guides import CallRule
from agent.loading import load_model
from data.chat import parse_reply
from data.conversation import Conversation
from data.dataset import load_conversations
from data.tokenizer import Tokenizer
from model.transformer import Gemma2

Names = Literal["free", "offered", "constrained"]
HELD_OUT = Path(__file__).parents[1] / "embedded" / "rows" / "heldout.jsonl"


def mcnemar(one: Sequence[bool], other: Sequence[bool]) -> tuple[int, int, float]:
    """Pairs that only `one` has right, those that only `other` has, and the two-sided p."""
    pairs = list(zip(one, other, strict=True))
    first, second = pairs.count((True, False)), pairs.count((False, True))
    number = first + second
    tail = sum(math.comb(number, count) for count in range(min(first, second) + 1))
    return first, second, min(1.0, 2 * tail / 2**number)


def verdicts(
    model: Gemma2, tokenizer: Tokenizer, rows: Sequence[Conversation], names: Names
) -> list[str]:
    """What `judge` says of each row's first reply, written under a rule."""
    questions = [first_question(row) for row in rows]
    limit = reply_limit(rows, tokenizer)
    replies = write_replies(model, tokenizer, questions, limit, rule=CallRule(names))
    return [
        judge(first_reply(row).calls, parse_reply(ids, tokenizer, row.tools))
        for row, ids in zip(rows, replies, strict=True)
    ]


def shares(found: Sequence[str], rows: Sequence[Conversation]) -> dict[str, Any]:
    """Right rows of all, as "right/all", for each kind of row."""
    kinds = [kind_of(first_reply(row).calls, set()) for row in rows]
    counted = {"overall": f"{found.count(RIGHT)}/{len(found)}"}
    for kind in KINDS:
        own = [verdict for verdict, one in zip(found, kinds, strict=True) if one == kind]
        if own:
            counted[kind] = f"{own.count(RIGHT)}/{len(own)}"
    wrong = [verdict for verdict in found if verdict != RIGHT]
    return counted | {"wrong": {verdict: wrong.count(verdict) for verdict in sorted({*wrong})}}


def main() -> None:
    """Prints what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("adapter", type=Path)
    parser.add_argument("--dataset", type=Path, default=HELD_OUT)
    parser.add_argument("--rows", type=int, default=None)
    args = parser.parse_args()
    model, tokenizer = load_model(None, args.adapter)
    rows = load_conversations(args.dataset)[0][: args.rows]
    right: dict[str, list[bool]] = {}
    for names in get_args(Names):
        start = time.monotonic()
        found = verdicts(model, tokenizer, rows, names)
        right[names] = [verdict == RIGHT for verdict in found]
        line = {"names": names, **shares(found, rows)}
        print(json.dumps(line | {"seconds": round(time.monotonic() - start, 1)}), flush=True)
    for one, other in (("free", "offered"), ("offered", "constrained"), ("free", "constrained")):
        first, second, p = mcnemar(right[one], right[other])
        print(f"{one} against {other}: {first} rows only {one}, {second} only {other}, p {p:.3f}")


if __name__ == "__main__":
    main()
