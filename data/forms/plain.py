"""What every form is brought to: one plain list of messages and its tools."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from data.lenient_json import read_values, shorten


@dataclass(frozen=True)
class PlainRow:
    """Messages with the keys of OpenAI's API, and a column of tools.

    Such a message has a role (any key of ROLES) and content, and may have tool_calls or
    function_call (OpenAI's older key), reasoning_content, name, tool_call_id, and weight: 0 for a
    message that is not to be learned.
    """

    messages: list[Any]
    tools: Any = None
    has_tags: bool = False  # are Hermes tags in the texts structure?


# A form's function: the row, and its list of messages, which is empty where it has no such column.
# Raises: ValueError for a row that it cannot read, without the row's place.
Form = Callable[[Mapping[str, Any], list[Any]], PlainRow]

# Rows that people try and that no reader can help: what to do instead, by a column of theirs
ADVICE = {
    "correct_answer": "these are choices to be judged, not a conversation; use the training files",
    "chosen": "a pair of replies; give the chosen one as messages",
    "instruction": "rename instruction to prompt and output to completion",
    "text": "a written-out chat has no roles; give its messages",
}


def tools_of(row: Mapping[str, Any]) -> Any:
    """Return the column of tools, whichever its name; an empty column is none."""
    names = ("tools", "functions", "function_description")
    return next((row[name] for name in names if row.get(name)), None)


def list_of(value: Any, column: str) -> list[Any]:
    """Return a column that is a list, or one as a string of JSON; a single object is a list of one.

    Raises: ValueError for anything else.
    """
    if isinstance(value, str) and value.strip():
        try:
            values, _ = read_values(value)
        except ValueError as error:
            raise ValueError(f"{column}: {error}; repair the column") from None
        value = values[0] if len(values) == 1 else values
    if value is None or value == "":
        return []
    if not isinstance(value, list | tuple | Mapping):
        raise ValueError(
            f"{column}: expected a list, got {shorten(repr(value))}; repair the column"
        )
    return [value] if isinstance(value, Mapping) else list(value)


def flat(values: list[Any]) -> list[Any]:
    """Return the values, each list among them replaced by its items."""
    return [item for v in values for item in (v if isinstance(v, list) else [v])]


def explain_columns(row: Mapping[str, Any]) -> str:
    """Return why no form reads a row with these columns."""
    got = shorten(", ".join(map(str, row))) or "no key"
    others = "query + answers, question + function, system + chat or prompt + completion"
    advice = next((ADVICE[name] for name in ADVICE if name in row), "see data/examples/")
    expected = 'expected the key "conversations" or "messages"'
    return f"{expected}, got {got}; {others} are read too; {advice}"
