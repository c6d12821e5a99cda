"""The questions written by hand: calls fit their tools."""

import json
from collections import Counter
from pathlib import Path

from row_checks import calls_of, check_call, tools_of

FOLDER = Path(__file__).parents[1] / "embedded" / "rows"


def test_questions_written_by_hand_fit_their_tools() -> None:
    lines = (FOLDER / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    counts = Counter(row["kind"] for row in rows)
    assert counts == {"one": 30, "two": 10, "none": 12, "missing": 8}
    for row in rows:
        tools = tools_of(row)
        for call in calls_of(row):
            check_call(call, tools)
