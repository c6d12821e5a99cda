"""The questions written by hand: as many calls as their kind says, and calls fit their tools."""

import json
from collections import Counter
from pathlib import Path

import pytest
from row_checks import calls_of, check_call, tools_of

EMBEDDED = Path(__file__).parents[1] / "embedded"
CALLS = {"one": 1, "two": 2, "none": 0, "missing": 0}
TUNING = {"one": 60, "two": 20, "none": 25, "missing": 15}


@pytest.mark.parametrize(
    ("file", "kinds"),
    [
        ("rows/questions.jsonl", {"one": 30, "two": 10, "none": 12, "missing": 8}),
        ("english/questions/dev120.jsonl", TUNING),
        ("english/questions/more120.jsonl", TUNING),
    ],
)
def test_questions_written_by_hand_fit_their_tools(file: str, kinds: dict[str, int]) -> None:
    rows = [json.loads(x) for x in (EMBEDDED / file).read_text(encoding="utf-8").splitlines()]
    assert Counter(row["kind"] for row in rows) == kinds
    for row in rows:
        tools, calls = tools_of(row), list(calls_of(row))
        assert len(calls) == CALLS[row["kind"]], row["id"]
        for call in calls:
            check_call(call, tools)
