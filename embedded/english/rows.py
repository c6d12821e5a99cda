"""The function-calling rows of the default run (`python -m embedded.english.rows`): same seed, same
bytes.

A row is {"id", "kind", "conversations": [{"role", "content"}, ...]} in the course's format. Kinds:
"one" call, "two" calls, "none" (nothing fits) and "missing" (a value has to be asked for). Training
rows are made of the tools that the pretraining knows, in tags and a form of calls that it does not.
The held-out ones are made of tools, talk, frames and joins that neither has seen.
"""

import argparse
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

from embedded.english.gate import HELD
from embedded.english.generate.corpus import HELD_OUT, tools
from embedded.english.generate.entries import Entry, choose_tools, new_entries
from embedded.english.generate.messages import Wish
from embedded.english.generate.pairs import ask_two
from embedded.english.generate.recipe import Recipe
from embedded.english.generate.results import say, telling_result
from embedded.english.generate.sheets import Layout, Record
from embedded.english.generate.thoughts import END, MODEL, Asked, Page, Segment, calls
from embedded.english.generate.turns import ask_one, missing_turn, observe, talk_turn, unfit_turn
from embedded.english.stages import DONE
from embedded.generate.layouts import compact

SYSTEMS = (
    "You can call functions.",
    "You are a helpful assistant with tools.",
    "Call a function where one fits.",
    "These functions are at hand.",
    "You may use these tools.",
    "Answer, or call a tool.",
)
NUM_TRAIN = 2000
# (names seen in training, kind) -> held-out rows
HELDOUT_ROWS = {
    (True, "one"): 60,
    (False, "one"): 120,
    (False, "two"): 60,
    (False, "none"): 45,
    (False, "missing"): 15,
}
TRAIN_SHARES = {"one": 0.44, "two": 0.24, "none": 0.2, "missing": 0.12}
TALK = 0.5  # of the messages for which nothing fits
BLOCK = re.compile(r"<(tools|tool_call|tool_response)>.*?</\1>", re.DOTALL)  # JSON, not prose
LIST = re.compile(r"<tools> (\[.*\]) </tools>", re.DOTALL)
CALL = re.compile(r"<tool_call>\n(.*?)\n</tool_call>", re.DOTALL)
# "a orchid", "a people", "the the", two spaces, a space before a comma, a backslash
ODD = re.compile(
    r"\b[Aa] (?!is\b)(?=[aeio]|u[^aeiou][^aeiou]|(?:guests|people|days|minutes|children)\b)"
    r"|\b(and|the|a|to|of|with|for|in|is) \1\b|  | [,.;:?!](?= |$)|\\"
)
RESULTS = 0.7  # of the calls for which there is one that makes sense
MOST_TOLD = 3  # fields that a sentence names one by one
SCHEMAS = 0.25  # of the rows show their tools as complete JSON schemas


Row = dict[str, Any]
Message = dict[str, str]


@dataclass(frozen=True)
class Size:
    """How long a row gets: `exchanges` after the first, drawn from these, and limits in characters.

    No exchange is added to `enough` characters; a row of more than `most` is made anew.
    """

    exchanges: tuple[int, ...]
    enough: int
    most: int


# The list of tools is most of a row, and only what the model writes teaches: training rows go on.
TRAIN_SIZE = Size(exchanges=(1, 2, 3, 4), enough=1500, most=2100)
HELDOUT_SIZE = Size(exchanges=(0,), enough=0, most=1800)


def call_record(name: str, values: Record) -> str:
    """A call as the fine-tune teaches it."""
    return f"<tool_call>\n{compact({'name': name, 'arguments': values})}\n</tool_call>"


def signature(entry: Entry, whole: bool) -> dict[str, Any]:
    """A tool's parameters: {"city": "string", "days": "integer?"}, or a complete JSON schema."""
    # In short nothing says that a list of options may be left out.
    whole = whole or any(a.enum and not a.required for a in entry.arguments)
    fields: dict[str, Any] = {}
    for argument in entry.arguments:
        one: Any = list(argument.enum) if argument.enum else argument.type
        if whole:
            one = {"type": argument.type}
            one |= {"description": argument.description} if argument.description else {}
            one |= {"enum": list(argument.enum)} if argument.enum else {}
        elif not argument.required:
            one += "?"
        fields[entry.names[argument.name]] = one
    if not whole:
        return fields
    required = [entry.names[a.name] for a in entry.arguments if a.required]
    return {"type": "object", "properties": fields, "required": required}


def system_text(page: Page) -> str:
    """A sentence and the tools, as a JSON list of name, description and parameters."""
    whole = page.rng.random() < SCHEMAS
    items = []
    for entry in page.entries:
        item: dict[str, Any] = {"name": entry.name}
        if entry.description:
            item["description"] = entry.description
        items.append(item | {"parameters": signature(entry, whole)})
    return f"{page.rng.choice(SYSTEMS)} <tools> {compact(items)} </tools>"


def _thinking(segments: list[Segment]) -> str:
    """What the model writes: its thoughts between tags, and then the calls or the answer."""
    spoken = [i for i, (_, tag) in enumerate(segments) if tag in ("fill", "say")]
    thought = "".join(text for text, _ in segments[: spoken[0]]).strip()
    said = "".join(text for text, _ in segments[spoken[0] :]).removesuffix(END).strip()
    return f"<think>{thought}</think>{said}"


def _refusal(segments: list[Segment]) -> list[Message]:
    """A message without a call and its answer, from the turn of a pretraining document."""
    (text, _), *answer, _ = segments
    user = text.removesuffix(f"{END}\n{MODEL}")
    return [
        {"role": "human", "content": user},
        {"role": "model", "content": _thinking(answer)},
    ]


def _results(page: Page, asked: Asked) -> list[dict[str, Any]]:
    """What each of the tools gave back; [] where one's is not known."""
    found = [_result(page.rng, entry, wish, asked.lowered) for entry, wish, _ in asked.wishes]
    return [result for result in found if result] if all(found) else []


def _result(rng: Random, entry: Entry, wish: Wish, lowered: bool) -> dict[str, Any] | None:
    """A hand-written one, or one that the words of the tool's name tell."""
    observed = observe(rng, entry, wish, lowered) if entry.tool.outcomes else None
    if observed and _can_be_told(observed[0]):
        result: dict[str, Any] = observed[0]
        return result
    told = telling_result(rng, entry.tool)
    # Most tools do something, and their one answer would drown the others.
    return None if told and "status" in told and rng.random() < 0.6 else told


def _can_be_told(result: dict[str, Any]) -> bool:
    """Whether the rule makes a sentence of it: a few plain fields, and no error."""
    is_plain = all(type(value) in (str, int, float) for value in result.values())
    return is_plain and len(result) <= MOST_TOLD and "error" not in result


def _served(page: Page, asked: Asked) -> list[Message]:
    """A message, its calls and, at times, what the tools gave back and the answer."""
    messages = [
        {"role": "human", "content": asked.text},
        {"role": "model", "content": _thinking(calls(page, asked))},
    ]
    results = _results(page, asked) if page.rng.random() < RESULTS else []
    if results:
        shown = "\n".join(f"<tool_response>\n{compact(r)}\n</tool_response>" for r in results)
        messages.append({"role": "tool", "content": shown})
        # By rule: hand-written sentences are each put in another way, a small model blends them.
        messages.append({"role": "model", "content": " ".join(map(say, results))})
    return messages


def _two_unlike(page: Page) -> Asked:
    """Two wishes whose calls differ: nobody asks for the very same thing twice."""
    while True:
        asked = ask_two(page)
        called = [(e.name, {n: v.value for n, v in w.values.items()}) for e, w, _ in asked.wishes]
        if len(called) == 2 and called[0] != called[1]:
            return asked


def _without_call(page: Page) -> list[Message]:
    return _refusal((talk_turn if page.rng.random() < TALK else unfit_turn)(page))


EXCHANGES: dict[str, Callable[[Page], list[Message]]] = {
    "one": lambda page: _served(page, ask_one(page)),
    "two": lambda page: _served(page, _two_unlike(page)),
    "none": _without_call,
    "missing": lambda page: _refusal(missing_turn(page)),
}


def _can_be(kind: str, page: Page) -> bool:
    """Two wishes need two tools; a value can be missing where requests without one were written."""
    if kind == "missing":
        return any(entry.tool.asks for entry in page.entries)
    return kind != "two" or len(page.entries) > 1


def length_of(messages: list[Message]) -> int:
    return sum(len(message["content"]) for message in messages)


def new_row(rng: Random, recipe: Recipe, kind: str, row_id: str, size: Size) -> Row:
    """Some tools and messages about them, the first one of the kind that is asked for."""
    layout = Layout("function", lambda entries: "", call_record)
    while True:
        count = max(rng.choice(recipe.sizes), 2 if kind == "two" else 1)
        page = Page(
            rng, new_entries(rng, choose_tools(rng, recipe, count), recipe.own), layout, recipe
        )
        if not _can_be(kind, page):
            continue
        messages = [{"role": "system", "content": system_text(page)}, *EXCHANGES[kind](page)]
        for _ in range(rng.choice(size.exchanges)):
            if length_of(messages) < size.enough:
                drawn = rng.choices(list(TRAIN_SHARES), list(TRAIN_SHARES.values()))[0]
                messages += EXCHANGES[drawn if _can_be(drawn, page) else "one"](page)
        if length_of(messages) <= size.most and not any(map(is_odd, messages)):
            return {"id": row_id, "kind": kind, "conversations": messages}


def is_odd(message: Message) -> bool:
    """Whether a person would not write so: what a value does to the words around it."""
    text = BLOCK.sub("", message["content"]).strip()
    return bool(ODD.search(text)) or text.count('"') % 2 == 1 or "{" in text


TRAIN = replace(DONE, sizes=(1, 2, 2, 3, 3, 4, 4, 5, 6), listed=0.6, own=0.6)
# As plain as what people ask; the two other held-out styles are for the gate alone.
APART = replace(HELD, marked=True, styles=("apart",), sizes=TRAIN.sizes, listed=0.6, own=0.6)


def training_rows(seed: int, count: int = NUM_TRAIN) -> list[Row]:
    """Rows of the styles that are trained on, without a tool that a held-out style describes in the
    very same words.
    """
    rng = Random(f"train-{seed}")
    held = {tool.description for style in HELD_OUT for tool in tools(style)}
    rows: list[Row] = []
    while len(rows) < count:
        kind = rng.choices(list(TRAIN_SHARES), list(TRAIN_SHARES.values()))[0]
        row = new_row(rng, TRAIN, kind, f"train-{len(rows):04d}", TRAIN_SIZE)
        if held.isdisjoint(tool.get("description") for tool in offered(row)):
            rows.append(row)
    return rows


def offered(row: Row) -> list[dict[str, Any]]:
    """The tools that a row offers."""
    tools: list[dict[str, Any]] = json.loads(LIST.findall(row["conversations"][0]["content"])[0])
    return tools


def tools_of(row: Row) -> set[str]:
    """Their names."""
    return {tool["name"] for tool in offered(row)}


def called_in(row: Row) -> set[str]:
    """The names of the tools that a row's first reply calls."""
    calls = CALL.findall(row["conversations"][2]["content"])
    return {json.loads(call)["name"] for call in calls}


def heldout_rows(seed: int, train: list[Row]) -> list[Row]:
    """One message a row, the kinds interleaved.

    "seen" rows call tools that the training rows offer, in frames and joins that are not trained
    on; "unseen" ones offer none of them.
    """
    names = {name for row in train for name in tools_of(row)}
    placed = []
    for (seen, kind), count in HELDOUT_ROWS.items():
        recipe = replace(APART, styles=TRAIN.styles) if seen else APART
        for i in range(count):
            row_id = f"heldout-{'seen' if seen else 'unseen'}-{kind}-{i:03d}"
            # A stream of its own for each row: a change of one leaves the others as they are.
            rng = Random(f"{seed}-{row_id}")
            while True:
                row = new_row(rng, recipe, kind, row_id, HELDOUT_SIZE)
                if called_in(row) <= names if seen else names.isdisjoint(tools_of(row)):
                    break
            placed.append(((i + 0.5) / count, row))
    # Interleaved: any number of first rows has every kind in its share.
    return [row for _, row in sorted(placed, key=lambda item: item[0])]


def write_rows(path: Path, rows: list[Row]) -> None:
    """One JSON object per line."""
    # newline="\n": Windows would write "\r\n" otherwise, and the bytes would differ.
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(compact(row) + "\n" for row in rows)
    print(f"{path}: {len(rows)} rows, {path.stat().st_size / 1e6:.1f} MB")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m embedded.english.rows",
        description=" ".join(__doc__.split("\n\n")[0].split()),
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--out", type=Path, default=Path("embedded/rows"), help="folder of the two files")
    add("--seed", type=int, default=0, help="of both files")
    add("--rows", type=int, default=NUM_TRAIN, help="number of training rows")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    rows = training_rows(args.seed, args.rows)
    write_rows(args.out / "train.jsonl", rows)
    write_rows(args.out / "heldout.jsonl", heldout_rows(args.seed, rows))


if __name__ == "__main__":
    main()
