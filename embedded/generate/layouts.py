"""How a list of entries and a filled record are written: JSON with many key names, lines, brackets.

No layout uses the course's own words for tools and calls: those are what the fine-tune has to
teach.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from embedded.generate.entries import Entry, schema
from embedded.generate.values import Scalar, Source


def compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


@dataclass(frozen=True)
class Layout:
    """`listing` writes the entries, `record` a filled one; `noun` is the word for an entry."""

    noun: str
    listing: Callable[[Sequence[Entry]], str]
    record: Callable[[Entry, dict[str, Scalar]], str]


# name key, description key, fields key, and the key of the filled fields
KEYS = (
    ("name", "description", "fields", "values"),
    ("form", "about", "blanks", "filled"),
    ("title", "use", "needs", "given"),
    ("entry", "purpose", "slots", "set"),
    ("card", "note", "parts", "parts"),
    ("job", "does", "inputs", "input"),
    ("name", "description", "inputs", "inputs"),
    ("id", "summary", "properties", "properties"),
    ("task", "goal", "details", "details"),
    ("name", "help", "columns", "row"),
)


def _json_layout(keys: tuple[str, str, str, str], separator: str) -> Layout:
    name, about, fields, filled = keys

    def listing(entries: Sequence[Entry]) -> str:
        items = [compact({name: e.name, about: e.action, fields: schema(e)}) for e in entries]
        return "[" + separator.join(items) + "]" if separator == ", " else separator.join(items)

    noun = "item" if name in ("name", "id", "entry") else name
    return Layout(noun, listing, lambda e, v: compact({name: e.name, filled: v}))


def _types(entry: Entry) -> list[tuple[str, str]]:
    return [
        (f.name, "/".join(f.type) if isinstance(f.type, tuple) else f.type) for f in entry.fields
    ]


def _line_layout() -> Layout:
    def line(entry: Entry) -> str:
        needs = ", ".join(f"{name} ({kind})" for name, kind in _types(entry))
        return f"{entry.name}: {entry.action}. Needs {needs}."

    def listing(entries: Sequence[Entry]) -> str:
        return "\n".join(line(entry) for entry in entries)

    def record(entry: Entry, values: dict[str, Scalar]) -> str:
        return f"{entry.name}: " + "; ".join(f"{n} = {compact(v)}" for n, v in values.items())

    return Layout("line", listing, record)


def _bracket_layout() -> Layout:
    def line(entry: Entry) -> str:
        fields = ", ".join(f"{name}: {kind}" for name, kind in _types(entry))
        return f"{entry.name}({fields}) {entry.action}"

    def listing(entries: Sequence[Entry]) -> str:
        return "\n".join(line(entry) for entry in entries)

    def record(entry: Entry, values: dict[str, Scalar]) -> str:
        return f"{entry.name}(" + ", ".join(f"{n}: {compact(v)}" for n, v in values.items()) + ")"

    return Layout("line", listing, record)


# ", " twice: a JSON array is twice as frequent as one object a line.
JSON_LAYOUTS = tuple(
    _json_layout(keys, separator) for keys in KEYS for separator in (", ", ", ", "\n")
)
OTHER_LAYOUTS = (_line_layout(), _bracket_layout())


def new_layout(source: Source) -> Layout:
    """Mostly JSON, as the calls will be."""
    return source.pick(JSON_LAYOUTS if source.chance(0.8) else OTHER_LAYOUTS)
