"""Checks the form of a file of hand-written tools: `python -m embedded.english.check FILE`.

Prints each problem with its line, then the counts; exit code 1 if there was a problem, 2 for a file
that cannot be read. README.md has the format.
"""

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SLOT = re.compile(r"\{(\w+)\}")
KEYS = {"name", "description", "parameters", "values", "requests", "asks", "nofit"}
TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
}
REQUESTS, VALUES, CHOICES = 6, 5, 2  # fewest of a tool; of an argument; of an enum or a boolean
MOST_SHOWN = 60


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
    for ask in tool["asks"]:
        text, missing = ask.get("text", ""), ask.get("missing")
        named = set(SLOT.findall(text))
        if unknown := named - known:
            yield f"{text!r}: no argument is called {', '.join(sorted(unknown))}"
        if missing not in required or required - named != {missing}:
            yield f"{text!r}: expected all required arguments but {missing!r}, got {sorted(named)}"


def tool_problems(tool: Any) -> Iterator[str]:
    """What is wrong with one line."""
    if not isinstance(tool, dict) or set(tool) != KEYS:
        got = sorted(tool) if isinstance(tool, dict) else type(tool).__name__
        yield f"expected the keys {sorted(KEYS)}, got {got}"
        return
    properties = tool["parameters"].get("properties", {})
    required = set(tool["parameters"].get("required", []))
    for what, names in (("values", set(tool["values"])), ("required", required)):
        if unknown := names - set(properties):
            yield f"{what}: no argument is called {', '.join(sorted(unknown))}"
    for name, schema in properties.items():
        yield from value_problems(name, schema, tool["values"].get(name, []))
    yield from request_problems(tool, set(properties), required)


def file_problems(lines: list[str], counts: Counter[str]) -> Iterator[str]:
    """Each problem of a file with its line; `counts` gets the numbers of tools and texts."""
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        try:
            tool = json.loads(line)
        except ValueError as error:
            yield f"line {number}: expected JSON: {error}"
            continue
        problems = list(tool_problems(tool))
        name = str(tool.get("name")) if isinstance(tool, dict) else "?"
        yield from (f"line {number}: {name}: {problem}" for problem in problems)
        if isinstance(tool, dict) and set(tool) == KEYS:
            if name in seen:
                yield f"line {number}: {name}: line {seen[name]} has this name too"
            seen[name] = number
            counts["tools"] += 1
            counts.update({key: len(tool[key]) for key in ("requests", "asks", "nofit")})


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m embedded.english.check", description=__doc__.split("\n")[0]
    )
    parser.add_argument("file", type=Path, help="a file of tools, as corpus/travel.jsonl")
    file = parser.parse_args(argv).file
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        parser.error(f"{file}: expected a file of tools in UTF-8: {error}")
    counts: Counter[str] = Counter()
    problems = list(file_problems(lines, counts))
    for problem in problems[:MOST_SHOWN]:
        print(problem)
    if len(problems) > MOST_SHOWN:
        print(f"and {len(problems) - MOST_SHOWN} more")
    print(", ".join(f"{count} {key}" for key, count in counts.items()), f"{len(problems)} problems")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
