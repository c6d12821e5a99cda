"""How a list of entries and a filled record look on the page: JSON under many key names, lines, and brackets.

No layout uses the course's own words for tools and calls: those are what the fine-tune has to teach.
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
    """`listing` shows the entries, `record` a filled one, `noun` is the word for an entry in this layout."""

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
    def listing(entries: Sequence[Entry]) -> str:
        return "\n".join(
            f"{e.name}: {e.action}. Needs {', '.join(f'{n} ({t})' for n, t in _types(e))}."
            for e in entries
        )

    return Layout(
        "line",
        listing,
        lambda e, v: f"{e.name}: " + "; ".join(f"{n} = {compact(x)}" for n, x in v.items()),
    )


def _bracket_layout() -> Layout:
    def listing(entries: Sequence[Entry]) -> str:
        return "\n".join(
            f"{e.name}({', '.join(f'{n}: {t}' for n, t in _types(e))}) {e.action}" for e in entries
        )

    return Layout(
        "line",
        listing,
        lambda e, v: f"{e.name}(" + ", ".join(f"{n}: {compact(x)}" for n, x in v.items()) + ")",
    )


JSON_LAYOUTS = tuple(
    _json_layout(keys, separator) for keys in KEYS for separator in (", ", ", ", "\n")
)
OTHER_LAYOUTS = (_line_layout(), _bracket_layout())


def new_layout(source: Source) -> Layout:
    """Mostly JSON, as the calls will be."""
    return source.pick(JSON_LAYOUTS if source.chance(0.8) else OTHER_LAYOUTS)
