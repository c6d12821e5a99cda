"""Every message of the shipped rows, read for what no person writes: code, doubled spaces, quotes
that open only, doubled words, "a eggs"."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from row_checks import faults, prose

FOLDER = Path(__file__).parents[1] / "embedded" / "rows"


def messages() -> Iterator[tuple[str, str]]:
    """(where, text) of every message of the shipped rows."""
    for path in sorted(FOLDER.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            yield from ((f"{path.name}: {where}", text) for where, text in prose(json.loads(line)))


def test_no_message_holds_what_nobody_writes() -> None:
    wrong = {where: (found, text) for where, text in messages() if (found := faults(text))}
    assert not wrong, list(wrong.items())[:5]


@pytest.mark.parametrize(
    "text",
    [
        'set a note only "\n                "that says jazz',
        "book {n} seats",
        "turn on  the lamp",
        "I would like a eggs",
        "find a early train",
        "with a adults of 35",
        "in total and and the price is 3",
        'call it "noodles',
        "what , then",
        "say hello </think>",
    ],
)
def test_each_fault_is_found(text: str) -> None:
    assert faults(text)


def test_a_good_sentence_has_no_fault() -> None:
    assert not faults('Book a table for 4 people, an early one, under "Ann\'s", at a unit price.')
