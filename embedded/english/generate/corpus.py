"""The hand-written tools and requests of `embedded/english/corpus`, by style.

Some styles are held out as a whole.
"""

import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

CORPUS = Path(__file__).parents[1] / "corpus"
POOLS = Path(__file__).parents[1] / "pools"
# Whole styles that no document of training is made of: the gate is measured on them.
HELD_OUT = ("leisure", "money", "apart")
Scalar = str | int | float | bool


@dataclass(frozen=True)
class Said:
    """A value as people say it in a message and as it is passed."""

    said: str
    value: Scalar


@dataclass(frozen=True, eq=False)
class Argument:
    name: str
    type: str
    description: str
    enum: tuple[Scalar, ...]
    default: Scalar | None
    required: bool
    values: tuple[Said, ...]


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a function returns, sentences that report it, and samples for the slots of both."""

    result: dict[str, Any]
    answers: tuple[str, ...]
    samples: dict[str, list[Any]]


@dataclass(frozen=True, eq=False)
class More:
    """Further lines about a tool: talk on its subject, one message that wants it twice, requests
    that leave a value out.
    """

    remarks: tuple[str, ...] = ()
    questions: tuple[str, ...] = ()
    twice: tuple[str, ...] = ()
    asks: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, eq=False)
class Tool:
    style: str
    name: str
    description: str
    arguments: tuple[Argument, ...]
    requests: tuple[str, ...]
    asks: tuple[tuple[str, str], ...]
    nofit: tuple[str, ...]
    outcomes: tuple[Outcome, ...] = field(default=())
    more: More = field(default=More())


@cache
def lines(name: str) -> tuple[Any, ...]:
    """The objects of a file of the corpus."""
    text = (CORPUS / f"{name}.jsonl").read_text(encoding="utf-8")
    return tuple(json.loads(line) for line in text.splitlines() if line.strip())


@cache
def share(names: tuple[str, ...], held: bool) -> tuple[Any, ...]:
    """The lines of some files; of the second files (talk2 ...) every fifth is held out."""
    return tuple(
        line
        for name in names
        for number, line in enumerate(lines(name))
        if not name.endswith("2") or (number % 5 == 0) == held
    )


@cache
def pool(name: str) -> tuple[str, ...]:
    """The lines of a word list."""
    return tuple((POOLS / f"{name}.txt").read_text(encoding="utf-8").split("\n")[:-1])


@cache
def wordings(of: str) -> tuple[str, ...]:
    """The ways to put one thing, from the list of wordings."""
    return next(tuple(line["texts"]) for line in lines("../pools/wordings") if line["of"] == of)


def _said(value: Any) -> Said:
    return (
        Said(value["said"], value["value"]) if isinstance(value, dict) else Said(str(value), value)
    )


def _asks(line: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple((ask["text"], ask["missing"]) for ask in line["asks"])


def _more(line: dict[str, Any]) -> More:
    remarks, questions, twice = (tuple(line[key]) for key in ("remarks", "questions", "twice"))
    return More(remarks, questions, twice, _asks(line))


def _tool(
    style: str, line: dict[str, Any], outcomes: tuple[Outcome, ...], more: dict[str, Any] | None
) -> Tool:
    schema = line["parameters"]
    required = schema.get("required", [])
    arguments = tuple(
        Argument(
            name,
            about.get("type", "string"),
            about.get("description", ""),
            tuple(about.get("enum", ())),
            about.get("default"),
            name in required,
            tuple(_said(value) for value in line["values"][name]),
        )
        for name, about in schema.get("properties", {}).items()
    )
    return Tool(
        style,
        line["name"],
        line["description"],
        arguments,
        tuple(line["requests"]),
        _asks(line),
        tuple(line["nofit"]),
        outcomes,
        _more(more) if more else More(),
    )


@cache
def tools(style: str) -> tuple[Tool, ...]:
    """The tools of one style, with what they return and more to say where that was written too."""
    outcomes: dict[str, tuple[Outcome, ...]] = {}
    if (CORPUS / f"{style}.results.jsonl").is_file():
        for line in lines(f"{style}.results"):
            found = [
                Outcome(r["result"], tuple(r["answers"]), r.get("samples", {}))
                for r in line["results"]
            ]
            outcomes[line["name"]] = tuple(found)
    more: dict[str, dict[str, Any]] = {}
    if (CORPUS / f"{style}.more.jsonl").is_file():
        more = {line["name"]: line for line in lines(f"{style}.more")}
    return tuple(
        _tool(style, line, outcomes.get(line["name"], ()), more.get(line["name"]))
        for line in lines(style)
    )
