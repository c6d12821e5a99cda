"""Every message of the shipped rows, read for what no person writes: code, doubled spaces, quotes
that open only, doubled words, "a eggs"."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "embedded" / "rows"
BLOCK = re.compile(r"<(tools|tool_call|tool_response)>.*?</\1>", re.DOTALL)  # JSON, not prose
FAULTS = {
    "a slot or code": re.compile(r"[{}\\]|\\n|\bNone\b(?! fits)|def \w+\(|</?\w+>"),
    "spaces": re.compile(r"  | [,.;:?!](?= |$)|^\s|\s$|\t"),
    "a line break": re.compile(r"\n"),
    "a doubled word": re.compile(r"\b(and|the|a|to|of|with|for|in|is) \1\b"),
    "a before a vowel": re.compile(r"\b[Aa] (?!is\b)(?=[aeio]|u[^aeiou][^aeiou])"),
    "a before many": re.compile(r"\b[Aa] (guests|people|days|minutes|eggs|adults|children)\b"),
}


def faults(text: str) -> list[str]:
    """What is wrong with a text of prose."""
    found = [name for name, pattern in FAULTS.items() if pattern.search(text)]
    return found + ["quotes"] * (text.count('"') % 2)


def prose() -> Iterator[tuple[str, str]]:
    """(where, text) of every message, without thoughts' tags and blocks of JSON."""
    for path in sorted(FOLDER.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            for number, message in enumerate(row["conversations"], start=1):
                if message["role"] == "tool":
                    continue
                text = BLOCK.sub("", message["content"]).replace("</think>", " ")
                text = text.replace("<think>", "").strip()
                yield f"{path.name}: {row['id']}: message {number}", text


def test_no_message_holds_what_nobody_writes() -> None:
    wrong = {where: (found, text) for where, text in prose() if (found := faults(text))}
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
