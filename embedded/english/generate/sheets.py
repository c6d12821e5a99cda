"""How a list of entries and a filled record look: JSON under many key names, schemas, signatures,
lines.

No layout has the course's own tags or its pair of keys for a call: those are what the fine-tune
teaches.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from embedded.english.generate.corpus import Argument, Scalar, wordings
from embedded.english.generate.entries import Entry
from embedded.english.generate.recipe import Recipe
from embedded.generate.layouts import compact

Record = dict[str, Scalar]


@dataclass(frozen=True)
class Layout:
    noun: str
    listing: Callable[[Sequence[Entry]], str]
    record: Callable[[str, Record], str]


def _flat(entry: Entry, marks: bool) -> dict[str, Any]:
    """Fields with a type's name or the values allowed, optional ones marked if the layout does."""
    fields: dict[str, Any] = {}
    for a in entry.arguments:
        kind: Any = list(a.enum) if a.enum else a.type
        fields[entry.names[a.name]] = (
            f"{kind}, optional" if marks and not a.required and not a.enum else kind
        )
    return fields


def _schema(entry: Entry, about: bool) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for a in entry.arguments:
        one: dict[str, Any] = {"type": a.type}
        if about and a.description:
            one["description"] = a.description
        if a.enum:
            one["enum"] = list(a.enum)
        if a.default is not None:
            one["default"] = a.default
        fields[entry.names[a.name]] = one
    return fields


def _keys(rng: Random, keyed: bool) -> list[str]:
    """The keys of name, description, fields and what is filled in."""
    return rng.choice(wordings("telling keys" if keyed else "keys")).split()


def _json_layout(rng: Random, keyed: bool) -> Layout:
    name, about, fields, filled = _keys(rng, keyed)
    form, marks, separator = rng.random(), rng.random() < 0.5, rng.choice((", ", ", ", "\n"))

    def one(e: Entry) -> str:
        item: dict[str, Any] = {name: e.name}
        if e.description:
            item[about] = e.description
        item[fields] = _schema(e, marks) if form < 0.3 else _flat(e, marks)
        required = [e.names[a.name] for a in e.arguments if a.required]
        if form < 0.25 and len(required) < len(e.arguments):
            item["required"] = required
        return compact(item)

    def listing(entries: Sequence[Entry]) -> str:
        text = separator.join(one(e) for e in entries)
        return text if separator == "\n" else f"[{text}]"

    noun = (
        name
        if name in ("form", "action", "job", "task", "function", "service", "command")
        else "item"
    )
    return Layout(noun, listing, lambda e, v: compact({name: e, filled: v}))


def _type(a: Argument) -> str:
    return (
        "|".join(str(x) for x in a.enum)
        if a.enum
        else {"string": "str", "integer": "int"}.get(a.type, a.type)
    )


def _signature_layout(rng: Random) -> Layout:
    mark, dash, typed = (
        rng.choice(("?", " = None", "?")),
        rng.choice((" - ", ": ", "  # ", " ")),
        rng.random() < 0.7,
    )
    bullet = rng.choice(("", "", "- ", "* "))

    def field(e: Entry, a: Argument) -> str:
        shown = e.names[a.name] + ("?" if mark == "?" and not a.required else "")
        shown += f": {_type(a)}" if typed or a.enum else ""
        return shown + (" = None" if mark != "?" and not a.required else "")

    def listing(entries: Sequence[Entry]) -> str:
        heads = [
            f"{bullet}{e.name}({', '.join(field(e, a) for a in e.arguments)})" for e in entries
        ]
        return "\n".join(
            h + (dash + e.description if e.description else "")
            for h, e in zip(heads, entries, strict=True)
        )

    def record(name: str, values: Record) -> str:
        return f"{name}({', '.join(f'{n}={compact(x)}' for n, x in values.items())})"

    return Layout("function", listing, record)


def _line_layout(rng: Random) -> Layout:
    bullet, word = rng.choice(("- ", "* ", "")), rng.choice(("Needs", "Takes", "With", "Fields:"))

    def field(e: Entry, a: Argument) -> str:
        kind = "/".join(str(x) for x in a.enum) if a.enum else a.type
        return f"{e.names[a.name]} ({kind}{'' if a.required else ', optional'})"

    def listing(entries: Sequence[Entry]) -> str:
        rows = []
        for e in entries:
            about = f": {e.description.rstrip('.')}." if e.description else "."
            needs = ", ".join(field(e, a) for a in e.arguments) or "nothing"
            rows.append(f"{bullet}{e.name}{about} {word} {needs}.")
        return "\n".join(rows)

    def record(name: str, values: Record) -> str:
        return f"{name}: " + ("; ".join(f"{n} = {compact(x)}" for n, x in values.items()) or "-")

    return Layout("line", listing, record)


def _whole_schema_layout(rng: Random, keyed: bool) -> Layout:
    """Each entry with a complete JSON schema of its fields, as programs exchange them."""
    name, about, fields, filled = _keys(rng, keyed)

    def listing(entries: Sequence[Entry]) -> str:
        items = []
        for e in entries:
            required = [e.names[a.name] for a in e.arguments if a.required]
            schema = {"type": "object", "properties": _schema(e, True), "required": required}
            about_it = {about: e.description} if e.description else {}
            items.append({name: e.name, **about_it, fields: schema})
        return compact(items)

    return Layout("function", listing, lambda e, v: compact({name: e, filled: v}))


def new_layout(rng: Random, recipe: Recipe) -> Layout:
    """Mostly JSON, as the calls will be."""
    if recipe.schemas and rng.random() < recipe.schemas:
        return _whole_schema_layout(rng, recipe.keyed)
    kind = rng.choices(("json", "signature", "line"), (70, 20, 10))[0]
    if kind == "json":
        return _json_layout(rng, recipe.keyed)
    return _signature_layout(rng) if kind == "signature" else _line_layout(rng)


def list_text(rng: Random, layout: Layout, entries: Sequence[Entry]) -> str:
    """The list with a sentence before it and at times one after it, up to where a message is."""
    intro = rng.choice(wordings("intros")).format(e=layout.noun)
    note = " " + rng.choice(wordings("notes")) if rng.random() < 0.35 else ""
    return f"{intro}{rng.choice((' ', chr(10)))}{layout.listing(entries)}{note}\n\n"
