"""The Berkeley Function-Calling Leaderboard's questions of one turn, before and after, offline.

    python -m benchmarks.bfcl --adapter runs/NAME --out benchmarks/results/NAME.jsonl
    python -m benchmarks.bfcl --adapter runs/NAME --perturb --limit 50
    python -m benchmarks.bfcl --check-rules 10000

Base and adapter get the same questions in the adapter's wording and are judged by the leaderboard's
rules (`bfcl_rules.py`), which `--check-rules` holds against the checker of its package. Questions
that the adapter was trained on are left out. `--perturb` asks again with the tools shuffled, with
near-duplicates beside them (the trainer's, and others that no training has), with other names, with
the right tool gone, with a required value gone.
Rows go to --out batch by batch, and the same command goes on where it ended; tables lie beside it.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from agent.evaluate import like_length_batches, write_replies
from agent.guides import CallRule
from agent.loading import load_model, load_plain, model_folder, read_tokenizer
from benchmarks.bfcl_cases import (
    CATEGORIES,
    KINDS,
    Case,
    changed,
    data_folder,
    load_cases,
    package_version,
    sample,
)
from benchmarks.bfcl_check import compare
from benchmarks.bfcl_rules import find_problem
from benchmarks.bfcl_table import Row, tables
from benchmarks.timing import write_rows
from common.atomic import write_text
from common.cli import USER_ERRORS, Parser, int_at_least
from common.device import pick_device
from common.json_file import read_object
from data.chat import parse_reply, render_prompt
from data.conversation import DEFAULT_PROMPT
from data.reply import Reply
from data.tokenizer import Tokenizer
from lora.adapter import read_config
from model.transformer import Gemma2
from training.digests import file_digest
from training.reading import parse_dataset, read_rows
from training.run_folder import RUN

BASE, ADAPTER = "base", "adapter"
RIGHT = "right"


def verdict(case: Case, reply: Reply) -> str:
    """RIGHT, or what is wrong with a reply."""
    # As on the leaderboard a call that cannot be read is none, where none is due as elsewhere.
    has_calls = bool(reply.calls) and not reply.errors
    if case.due == "none":
        return "a call where none is due" if has_calls else RIGHT
    if reply.errors:
        return f"broken call: {reply.errors[0].code}"
    if case.due == "some":
        return RIGHT if has_calls else "no call"
    return find_problem(case.category, case.functions, reply.calls, case.truth) or RIGHT


def gather(args: argparse.Namespace) -> list[Case]:
    """The questions that are asked, each changed one behind its original."""
    folder = data_folder()
    everything = [case for name in args.categories for case in load_cases(folder, name)]
    # What a row without other tools gets where its own goes, from all that are measured.
    pool = list({tool.name: tool for case in everything for tool in case.row.tools}.values())
    trained = trained_questions(args.adapter) if not args.with_trained else set()
    fresh = [case for case in everything if case.text not in trained]
    if len(fresh) < len(everything):
        left_out = len(everything) - len(fresh)
        print(f"{left_out} of {len(everything)} questions left out: {args.adapter} has seen them")
    asked: list[Case] = []
    for name in args.categories:
        for case in sample(
            [case for case in fresh if case.category == name], args.limit, args.seed
        ):
            others = [changed(case, kind, pool, args.seed) for kind in args.perturb]
            asked += [case, *(other for other in others if other)]
    return asked


def trained_questions(adapter: Path | None) -> set[str]:
    """What users ask first in the rows that an adapter was trained on, as far as these are here."""
    if adapter is None or not (adapter / RUN).is_file():
        return set()
    arguments = read_object(adapter / RUN)["arguments"]
    names = [parse_dataset(text)[0] for text in arguments["dataset"] or ()]
    gone = [name for name in names if not Path(name).exists()]
    if gone:
        print(f"{gone[0]}: not here, so that questions which {adapter} was trained on may be asked")
        return set()
    rows = read_rows(argparse.Namespace(**arguments)).train
    return {turn.content for row in rows for turn in row.messages if turn.role == "user"}


def load(args: argparse.Namespace, who: str) -> tuple[Gemma2, Tokenizer]:
    """The adapter's model, or its base with the adapter's tokenizer and wording."""
    if who == ADAPTER or args.adapter is None:
        adapter = args.adapter if who == ADAPTER else None
        return load_model(args.model, adapter, device=args.device, dtype=args.dtype)
    folder = model_folder(args.model or read_config(args.adapter).base_model)
    tokenizer = read_tokenizer(folder, args.adapter)
    return load_plain(folder, tokenizer, args.device, args.dtype).eval(), tokenizer


def answer(args: argparse.Namespace, who: str, cases: Sequence[Case]) -> Iterator[list[Row]]:
    """The rows of a batch at a time: alike long questions together."""
    model, tokenizer = load(args, who)
    wording = tokenizer.prompt or DEFAULT_PROMPT
    questions = [case.question(wording) for case in cases]
    lengths = [len(render_prompt(question, tokenizer)) for question in questions]
    limit = model.config.max_position_embeddings
    batches = [*like_length_batches(lengths, limit, args.max_new_tokens)]
    # Longer than the model's positions: `write_replies` gives them an empty reply, which is wrong.
    batches += [[row for row, length in enumerate(lengths) if length >= limit]]
    for batch in filter(None, batches):
        asked = [questions[row] for row in batch]
        rule = CallRule(args.names)
        written = write_replies(model, tokenizer, asked, args.max_new_tokens, rule=rule)
        rows = []
        for row, ids in zip(batch, written, strict=True):
            case = cases[row]
            found = verdict(case, parse_reply(ids, tokenizer, questions[row].tools))
            rows.append(
                {"who": who, "change": case.change, "category": case.category, "id": case.id}
                | {"right": found == RIGHT, "verdict": found, "text": tokenizer.decode(ids)}
            )
        yield rows


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """What rows of one file must have in common."""
    weights = args.adapter and args.adapter / "adapter_model.safetensors"
    found = {name: getattr(args, name) for name in ("names", "max_new_tokens", "seed", "dtype")}
    base = args.model or (args.adapter and read_config(args.adapter).base_model)
    found["model"] = base and Path(base).name  # rows may be published: no folder of this machine
    return found | {"adapter_sha256": weights and file_digest(weights)}


class RowFile:
    """The rows in --out: those that are there already, and new ones as they come."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.path, self.device = args.out, pick_device(args.device)
        self.rows: list[Row] = []
        if self.path is None:
            return
        wanted = settings(args)
        if not self.path.is_file():
            head = {"name": "bfcl", "settings": wanted, "bfcl_eval": package_version()}
            write_rows(self.path, [head], self.device)
            return
        # A line that the end of a process has cut is written once more.
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("\n")]
        first, *self.rows = map(json.loads, whole)
        if (found := first.get("settings")) != wanted:
            problem = f"expected the rows of {wanted}, got those of {found}"
            raise ValueError(f"{self.path}: {problem}; choose another file for --out")
        if len(whole) < len(lines):
            write_text(self.path, "".join(whole))

    def add(self, rows: list[Row]) -> None:
        """Appends the rows of a batch."""
        self.rows += rows
        if self.path is not None:
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(text)


def measure(args: argparse.Namespace) -> str:
    """The tables of all rows; those that are missing are measured first."""
    cases, file = gather(args), RowFile(args)
    for who in args.only:
        done = {(row["change"], row["id"]) for row in file.rows if row["who"] == who}
        left = [case for case in cases if (case.change, case.id) not in done]
        number = 0
        for rows in answer(args, who, left) if left else ():
            file.add(rows)
            number += len(rows)
            right = sum(row["right"] for row in rows)
            print(f"{who}: {number}/{len(left)} answers, {right} of the last {len(rows)} right")
    wanted = {(case.change, case.id) for case in cases}
    asked = [row for row in file.rows if (row["change"], row["id"]) in wanted]
    found = tables([row for row in asked if row["who"] in args.only])
    if file.path is not None:
        write_text(file.path.with_suffix(".md"), found)
    return found


def check_rules(args: argparse.Namespace) -> int:
    """Prints how our rules and the package's differ; the exit code."""
    folder = data_folder()
    cases = [case for name in args.categories for case in load_cases(folder, name)]
    counts, lines = compare(cases, args.check_rules, args.seed)
    print(*lines[:20], sep="\n", end="\n" if lines else "")
    shown = ", ".join(f"{number} {name}" for name, number in sorted(counts.items()))
    print(f"{args.check_rules} perturbed answers ({shown}), {len(lines)} differences")
    return int(bool(lines))


def some_of(names: Sequence[str], flag: str) -> Any:
    """A type for argparse: some of the names, with commas between."""

    def read(text: str) -> tuple[str, ...]:
        found = tuple(text.split(","))
        if set(found) - set(names):
            raise argparse.ArgumentTypeError(f"expected some of {', '.join(names)}, got {text}")
        return found

    read.__name__ = flag
    return read


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser((__doc__ or "").splitlines()[0])
    add = parser.add_argument_group("model").add_argument
    add("--adapter", type=Path, metavar="RUN", help="folder that train.py wrote; default: none")
    add("--model", help="folder, GGUF file or hub id; default: what the adapter names")
    add("--device", default="auto", help="auto, cuda, mps or cpu")
    add("--dtype", default="auto", help="auto, bf16, fp16 or fp32")
    add("--only", type=some_of((BASE, ADAPTER), "name"), help="default: both where there are both")

    add = parser.add_argument_group("questions").add_argument
    of = some_of(CATEGORIES, "category")
    add("--categories", type=of, default=CATEGORIES, help="with commas between; default: all")
    add("--limit", type=int_at_least(1), metavar="N", help="of each category, drawn; default: all")
    add("--seed", type=int, default=0, help="of the draws")
    kinds = f"ask again, changed: {', '.join(KINDS)}; without a list all of them"
    some = some_of(KINDS, "kind")
    add("--perturb", type=some, nargs="?", const=KINDS, default=(), metavar="KINDS", help=kinds)
    add("--with-trained", action="store_true", help="also ask what the adapter was trained on")

    add = parser.add_argument_group("replies and results").add_argument
    rule = "names are held to the tools on offer, whole calls to their schemas, or nothing"
    add("--names", choices=("offered", "constrained", "free"), default="offered", help=rule)
    tokens = "of one reply; the longest answer takes 379 of Gemma 3's"
    add("--max-new-tokens", type=int_at_least(1), default=400, help=tokens)
    add("--out", type=Path, metavar="FILE", help="rows of JSON, and tables beside; default: none")
    rules = "only hold our rules against the package's checker, on N perturbed answers"
    add("--check-rules", type=int_at_least(1), metavar="N", help=rules)
    args = parser.parse_args(argv)
    args.only = args.only or ((BASE, ADAPTER) if args.adapter else (BASE,))
    if ADAPTER in args.only and args.adapter is None:
        parser.error("--only adapter: expected --adapter RUN too, got none")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 done, 1 the rules differ, 2 wrong input."""
    args = parse_args(argv)
    try:
        if args.check_rules:
            return check_rules(args)
        print(measure(args))
    except USER_ERRORS as error:
        print(f"bfcl: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
