"""Function-calling conversations in the course's row format, to fine-tune on and to measure with.

A row is {"id", "kind", "conversations": [{"role", "content"}, ...]}. Kinds: "one" call, "two"
calls, "none" (nothing fits) and "missing" (an argument has to be asked for). The held-out rows
share no template of the user's and no argument value with the training rows (true and false
apart); their ids say whether the tools' names were "seen" in training or "unseen".
"""

import random
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedded.generate.documents import missing_text, result_turn, thought, unfit_request
from embedded.generate.entries import Entry, Request, new_double, new_entries, new_request, schema
from embedded.generate.layouts import compact
from embedded.generate.lists import entries
from embedded.generate.values import Source

Row = dict[str, Any]
Message = dict[str, str]

SYSTEMS = entries("documents", "systems")
# Plurals, by their last letter: not "quantity".
_MANY = "|".join(name for name in entries("kinds", "count names") if name[-1] in "sen")
# Slips of the grammar, and what stands in the rows instead. The weights have read texts with these
# slips, so the lists of words stay as they are; a row is mended once its length has been judged.
MENDED = (
    (re.compile(r'"\n +"that says '), "saying "),
    (re.compile(r"\b(and|with) \1\b"), r"\1"),
    (re.compile(rf"\b[Aa] ({_MANY})\b"), r"\1"),
    (re.compile(r"\b([Aa]) (?=[aeio]|u[^aeiou][^aeiou])"), r"\1n "),
)


@dataclass(frozen=True)
class Size:
    """How long a row gets: `exchanges` after the first, drawn from these, and limits in characters.

    No exchange is added to `enough` characters; a row of more than `most` is made anew.
    """

    exchanges: tuple[int, ...]
    enough: int
    most: int


# Training rows are longer: the list of tools is most of a row, and only what the model writes
# teaches.
TRAIN_SIZE = Size(exchanges=(1, 2, 3, 4), enough=1200, most=1700)
HELDOUT_SIZE = Size(exchanges=(0, 1, 2, 3), enough=850, most=1300)
TRAIN_SHARES = {"one": 0.41, "two": 0.28, "none": 0.22, "missing": 0.09}
NUM_TRAIN = 2000
# (names seen in training, kind) -> rows
HELDOUT_ROWS = {
    (True, "one"): 60,
    (False, "one"): 120,
    (False, "two"): 60,
    (False, "none"): 45,
    (False, "missing"): 15,
}
# Share of invented words. Training rows have more, as in pretraining: with few the fine-tune would
# learn the usual words by heart instead of copying.
HELDOUT_MADE_UP = 0.08


def call_text(request: Request) -> str:
    """One call as the model writes it."""
    call = {"name": request.entry.name, "arguments": request.values}
    return f"<tool_call>\n{compact(call)}\n</tool_call>"


def system_text(source: Source, tools: list[Entry]) -> str:
    """A sentence and the tools, as a JSON list of name, description and parameters."""
    items = [
        {"name": tool.name, "description": tool.action, "parameters": schema(tool)}
        for tool in tools
    ]
    return f"{source.template(SYSTEMS)} <tools> {compact(items)} </tools>"


def _calls(requests: Iterable[Request]) -> str:
    requests = list(requests)
    plan = " ".join(thought(request) for request in requests)
    return f"<think>{plan}</think>" + "\n".join(call_text(request) for request in requests)


def _observed(source: Source, num_calls: int) -> list[Message]:
    """What the tools return, and the final answer."""
    results = [result_turn(source) for _ in range(num_calls)]
    content = "\n".join(
        f"<tool_response>\n{compact(record)}\n</tool_response>" for record, _ in results
    )
    return [
        {"role": "tool", "content": content},
        {"role": "model", "content": " ".join(answer for _, answer in results)},
    ]


def exchange(
    source: Source, kind: str, tools: list[Entry], chosen: list[Entry] | None = None
) -> list[Message]:
    """One message of the user and what follows it."""
    if kind == "none":
        text, plan, answer = unfit_request(source, tools)
        return [
            {"role": "human", "content": text},
            {"role": "model", "content": f"<think>{plan}</think>{answer}"},
        ]
    chosen = chosen or source.rng.sample(tools, 2 if kind == "two" else 1)
    if kind == "missing":
        request = new_request(source, chosen[0], tools, lacking=True)
        lack, ask = missing_text(source, request)
        answer = f"<think>{thought(request)} {lack}</think>{ask}"
        return [{"role": "human", "content": request.text}, {"role": "model", "content": answer}]
    requests: tuple[Request, ...]
    if kind == "two":
        requests = new_double(source, chosen[0], chosen[1], tools)
    else:
        requests = (new_request(source, chosen[0], tools),)
    # Both requests of a double carry the whole message.
    messages = [
        {"role": "human", "content": requests[0].text},
        {"role": "model", "content": _calls(requests)},
    ]
    return messages + (_observed(source, len(requests)) if source.chance(0.35) else [])


def length_of(messages: list[Message]) -> int:
    return sum(len(message["content"]) for message in messages)


def mend(messages: list[Message]) -> list[Message]:
    """The messages, the user's without the grammar's slips."""
    mended = []
    for message in messages:
        text = message["content"]
        if message["role"] == "human":
            for pattern, replacement in MENDED:
                text = pattern.sub(replacement, text)
        mended.append(message | {"content": text})
    return mended


def _conversation(
    source: Source, kind: str, size: Size, tools: list[Entry], chosen: list[Entry] | None
) -> list[Message]:
    """The tools and some exchanges about them."""
    messages = [
        {"role": "system", "content": system_text(source, tools)},
        *exchange(source, kind, tools, chosen),
    ]
    for _ in range(0 if chosen else source.pick(size.exchanges)):
        if length_of(messages) < size.enough:
            messages += exchange(source, _draw_kind(source, tools), tools)
    return messages


def _draw_kind(source: Source, tools: list[Entry]) -> str:
    kind = source.rng.choices(list(TRAIN_SHARES), list(TRAIN_SHARES.values()))[0]
    return "one" if kind == "two" and len(tools) < 2 else kind


def new_row(
    source: Source, kind: str, row_id: str, size: Size, chosen: list[Entry] | None = None
) -> tuple[Row, list[Entry]]:
    """A row and the tools that it offers: fresh ones, and among them a `chosen` one to ask for."""
    while True:
        count = max(source.pick((1, 2, 2, 3, 3, 4, 5, 6)), 2 if kind == "two" else 1)
        tools = new_entries(source, count)
        if chosen:
            # One that shares its verb or noun could fit the request as well.
            verb, noun = chosen[0].verb, chosen[0].bare_noun
            tools = [tool for tool in tools if tool.verb != verb and tool.bare_noun != noun]
            tools.insert(source.rng.randint(0, len(tools)), chosen[0])
        messages = _conversation(source, kind, size, tools, chosen)
        if length_of(messages) <= size.most:
            return {"id": row_id, "kind": kind, "conversations": mend(messages)}, tools


def training_rows(seed: int, count: int = NUM_TRAIN) -> tuple[list[Row], list[Entry]]:
    """Training rows and every tool that they offer."""
    source = Source(random.Random(f"train-{seed}"), held=False, plain=True)
    kinds = source.rng.choices(list(TRAIN_SHARES), list(TRAIN_SHARES.values()), k=count)
    made = [new_row(source, kind, f"train-{i:04d}", TRAIN_SIZE) for i, kind in enumerate(kinds)]
    return [row for row, _ in made], [tool for _, tools in made for tool in tools]


def heldout_rows(seed: int, train_tools: list[Entry]) -> list[Row]:
    """Held-out rows, the kinds interleaved; the "seen" ones ask for tools of the training rows."""
    # Fixed options are values that training has seen: a tool with any is not asked for again.
    free_types = ("string", "integer", "number")
    free = [tool for tool in train_tools if all(f.type in free_types for f in tool.fields)]
    names = {tool.name for tool in train_tools}
    placed = []
    for (seen, kind), count in HELDOUT_ROWS.items():
        for i in range(count):
            row_id = f"heldout-{'seen' if seen else 'unseen'}-{kind}-{i:03d}"
            # A stream per row: a change of the training rows leaves most unseen rows as they are.
            rng = random.Random(f"{seed}-{row_id}")
            source = Source(rng, held=True, made_up=HELDOUT_MADE_UP, everyday=0.0, plain=True)
            chosen = [source.pick(free)] if seen else None
            while True:
                row, tools = new_row(source, kind, row_id, HELDOUT_SIZE, chosen)
                if seen or names.isdisjoint(tool.name for tool in tools):
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
