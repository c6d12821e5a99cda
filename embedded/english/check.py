"""Checks the form of a file of hand-written tools, or of further lines about those of the file
beside it (STYLE.more.jsonl): `python -m embedded.english.check FILE`.

Prints each problem with its line, then the counts; exit code 1 if there was a problem, 2 for a file
that cannot be read. README.md has the format.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from embedded.english.generate.messages import AGAIN, SLOT

KEYS = {"name", "description", "parameters", "values", "requests", "asks", "nofit"}
MORE = {"name", "remarks", "questions", "twice", "asks"}
TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
}
COUNTED = ("requests", "asks", "nofit", "remarks", "questions", "twice")
REQUESTS, VALUES, CHOICES = 6, 5, 2  # fewest of a tool; of an argument; of an enum or a boolean
MOST_SHOWN = 60
FURTHER = ".more.jsonl"


def value_problems(argument: str, schema: dict[str, Any], values: list[Any]) -> Iterator[str]:
    """What is wrong with the values of one argument."""
    kind = schema.get("type")
    if kind not in TYPES:
        yield f"{argument}: expected one of the types {', '.join(TYPES)}, got {kind!r}"
        return
    for given in values:
        value = given.get("value") if isinstance(given, dict) else given
        if isinstance(given, dict) and set(given) != {"said", "value"}:
            yield f"{argument}: expected the keys said and value, got {sorted(given)}"
        # To Python True is an integer.
        elif not isinstance(value, TYPES[kind]) or (isinstance(value, bool) != (kind == "boolean")):
            yield f"{argument}: expected a value of type {kind}, got {value!r}"
        elif value not in schema.get("enum", [value]):
            yield f"{argument}: {value!r} is not in its enum"
    fewest = CHOICES if kind == "boolean" or "enum" in schema else VALUES
    fewest = min(fewest, len(schema.get("enum", range(fewest))))
    if len(values) < fewest:
        yield f"{argument}: expected at least {fewest} values, got {len(values)}"


def request_problems(tool: dict[str, Any], known: set[str], required: set[str]) -> Iterator[str]:
    """What is wrong with the requests and with those that lack a value."""
    distinct = len(set(tool["requests"]))
    if distinct < REQUESTS:
        yield f"expected at least {REQUESTS} different requests, got {distinct}"
    for text in tool["requests"]:
        slots = SLOT.findall(text)
        if unknown := set(slots) - known:
            yield f"{text!r}: no argument is called {', '.join(sorted(unknown))}"
        if lacking := required - set(slots):
            yield f"{text!r}: lacks the required {', '.join(sorted(lacking))}"
        if len(slots) != len(set(slots)):
            yield f"{text!r}: a slot stands twice"
    yield from ask_problems(tool["asks"], known, required)


def ask_problems(asks: list[Any], known: set[str], required: set[str]) -> Iterator[str]:
    """What is wrong with requests that lack a value."""
    for ask in asks:
        text, missing = ask.get("text", ""), ask.get("missing")
        named = set(SLOT.findall(text))
        if unknown := named - known:
            yield f"{text!r}: no argument is called {', '.join(sorted(unknown))}"
        if missing not in required or required - named != {missing}:
            yield f"{text!r}: expected all required arguments but {missing!r}, got {sorted(named)}"


def key_problems(line: Any, keys: set[str]) -> Iterator[str]:
    """Whether a line has other keys than those."""
    if not isinstance(line, dict) or set(line) != keys:
        got = sorted(line) if isinstance(line, dict) else type(line).__name__
        yield f"expected the keys {sorted(keys)}, got {got}"


def twice_problems(text: str, known: set[str], required: set[str]) -> Iterator[str]:
    """What is wrong with one message that wants a tool twice."""
    slots = set(SLOT.findall(text))
    again = {name for name in known if name + AGAIN in slots - known}
    if unknown := slots - known - {name + AGAIN for name in again}:
        yield f"{text!r}: no argument is called {', '.join(sorted(unknown))}"
    if lacking := required - slots:
        yield f"{text!r}: lacks the required {', '.join(sorted(lacking))}"
    head, *tails = text.split("|")
    late = {name for name in again if f"{{{name}}}" not in head or f"{{{name}{AGAIN}}}" in head}
    if not again or late or len(tails) != 1 or not tails[0].strip():
        yield f"{text!r}: expected {{argument}}, one | and after it {{argument{AGAIN}}}"


def more_problems(line: Any, tools: dict[str, Any]) -> Iterator[str]:
    """What is wrong with one further line about a tool of `tools`, which are by name."""
    yield from (found := list(key_problems(line, MORE)))
    if found:
        return
    if not isinstance(line["name"], str) or line["name"] not in tools:
        yield "no tool of the file has this name"
        return
    for key in ("remarks", "questions", "twice", "asks"):
        kind = dict if key == "asks" else str
        if not isinstance(line[key], list) or any(type(one) is not kind for one in line[key]):
            yield f"{key}: expected a list of {'objects' if kind is dict else 'texts'}"
            return
    schema = tools[line["name"]]["parameters"]
    known, required = set(schema.get("properties", {})), set(schema.get("required", []))
    for text in line["remarks"] + line["questions"]:
        if not text.strip() or SLOT.search(text):
            yield f"{text!r}: expected words without a slot"
    for text in line["twice"]:
        yield from twice_problems(text, known, required)
    yield from ask_problems(line["asks"], known, required)


def tool_problems(tool: Any) -> Iterator[str]:
    """What is wrong with one line."""
    yield from (found := list(key_problems(tool, KEYS)))
    if found:
        return
    properties = tool["parameters"].get("properties", {})
    required = set(tool["parameters"].get("required", []))
    for what, names in (("values", set(tool["values"])), ("required", required)):
        if unknown := names - set(properties):
            yield f"{what}: no argument is called {', '.join(sorted(unknown))}"
    for name, schema in properties.items():
        yield from value_problems(name, schema, tool["values"].get(name, []))
    yield from request_problems(tool, set(properties), required)


def file_problems(
    lines: list[str], counts: Counter[str], tools: dict[str, Any] | None = None
) -> Iterator[str]:
    """Each problem of a file with its line; `counts` gets the numbers of tools and texts.

    tools: where the lines are further ones about these, which are by name.
    """
    keys = KEYS if tools is None else MORE
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        try:
            tool = json.loads(line)
        except ValueError as error:
            yield f"line {number}: expected JSON: {error}"
            continue
        problems = list(tool_problems(tool) if tools is None else more_problems(tool, tools))
        name = str(tool.get("name")) if isinstance(tool, dict) else "?"
        yield from (f"line {number}: {name}: {problem}" for problem in problems)
        if isinstance(tool, dict) and set(tool) == keys:
            if name in seen:
                yield f"line {number}: {name}: line {seen[name]} has this name too"
            seen[name] = number
            counts["tools"] += 1
            counts.update({k: len(v) for k, v in tool.items() if k in COUNTED})


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m embedded.english.check", description=__doc__.split("\n")[0]
    )
    parser.add_argument("file", type=Path, help="a file of tools, as corpus/travel.jsonl")
    file = parser.parse_args(argv).file
    tools = None
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
        if file.name.endswith(FURTHER):
            about = file.with_name(file.name.removesuffix(FURTHER) + ".jsonl").read_text("utf-8")
            tools = {tool["name"]: tool for tool in map(json.loads, about.splitlines())}
    except (OSError, ValueError, TypeError, KeyError) as error:
        parser.error(f"{file}: expected a file of tools in UTF-8: {error}")
    counts: Counter[str] = Counter()
    problems = list(file_problems(lines, counts, tools))
    for problem in problems[:MOST_SHOWN]:
        print(problem)
    if len(problems) > MOST_SHOWN:
        print(f"and {len(problems) - MOST_SHOWN} more")
    print(", ".join(f"{count} {key}" for key, count in counts.items()), f"{len(problems)} problems")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
