"""Exact means exact: type, value and number of calls; but no order, of keys or parallel calls."""

from pathlib import Path
from typing import Any

import pytest

from agent import evaluate
from agent.evaluate import KINDS, Accuracy, is_exact, kind_of
from data.conversation import ToolCall

ROWS = Path(__file__).parents[1] / "embedded" / "rows"


def calls(*arguments: dict[str, Any], name: str = "f") -> list[ToolCall]:
    return [ToolCall(name, dict(item)) for item in arguments]


@pytest.mark.parametrize(
    ("expected", "got"),
    [
        (calls({"a": 1, "b": {"c": 2, "d": [1, 2]}}), calls({"b": {"d": [1, 2], "c": 2}, "a": 1})),
        (calls({"a": 1}, {"a": 2}), calls({"a": 2}, {"a": 1})),
        (calls({"a": 1}, {"a": 1}), calls({"a": 1}, {"a": 1})),
        (calls({"s": "é\u2028"}), calls({"s": "é\u2028"})),
        ([], []),
        ([ToolCall("f", {}, "id-1")], [ToolCall("f", {})]),
    ],
)
def test_equal_calls(expected: list[ToolCall], got: list[ToolCall]) -> None:
    assert is_exact(expected, got) and is_exact(got, expected)


@pytest.mark.parametrize(
    ("expected", "got"),
    [
        (calls({"a": 1}), calls({"a": 1.0})),
        (calls({"a": 1}), calls({"a": "1"})),
        (calls({"a": 1}), calls({"a": True})),
        (calls({"a": 0}), calls({"a": False})),
        (calls({"a": None}), calls({})),
        (calls({"a": None}), calls({"a": "null"})),
        (calls({"a": "x"}), calls({"a": "X"})),
        (calls({"a": "x"}), calls({"a": "x "})),
        (calls({"a": [1, 2]}), calls({"a": [2, 1]})),
        (calls({"a": 1}), calls({"a": 1, "b": 2})),
        (calls({"a": 1}), calls({"a": 1}, name="g")),
        (calls({"a": 1}), calls({"a": 1}, {"a": 1})),
        (calls({"a": 1}, {"a": 1}, {"a": 2}), calls({"a": 1}, {"a": 2}, {"a": 2})),
        (calls({}), []),
        (calls({"e": "e\u0301"}), calls({"e": "é"})),
    ],
)
def test_unequal_calls(expected: list[ToolCall], got: list[ToolCall]) -> None:
    assert not is_exact(expected, got) and not is_exact(got, expected)


def test_a_name_cannot_imitate_an_argument() -> None:
    assert ToolCall('f", {"a": 1}', {}).key != ToolCall("f", {"a": 1}).key


def test_kinds() -> None:
    one, two = calls({"a": 1}), calls({"a": 1}, {"a": 2})
    assert (
        kind_of(one, {"f"}) == "seen"
        and kind_of(one, {"g"}) == "unseen"
        and kind_of(one, set()) == "unseen"
    )
    assert (
        kind_of([], {"f"}) == "no_call" and kind_of(two, {"f"}) == kind_of(two, set()) == "parallel"
    )


def test_shares_and_counts() -> None:
    accuracy = Accuracy()
    for kind, is_right in (
        ("seen", True),
        ("seen", False),
        ("unseen", True),
        ("no_call", False),
        ("seen", False),
    ):
        accuracy.add(kind, is_right)
    shares = accuracy.as_dict()
    assert shares["overall"] == 2 / 5 and shares["seen"] == 1 / 3 and shares["unseen"] == 1.0
    assert shares["no_call"] == 0.0 and shares["parallel"] is None
    assert shares["n"] == {"overall": 5, "seen": 3, "unseen": 1, "no_call": 1, "parallel": 0}


def test_nothing_scored_and_separate_counters() -> None:
    first, second = Accuracy(), Accuracy()
    first.add("seen", True)
    assert second.as_dict() == {
        **dict.fromkeys(("overall", *KINDS)),
        "n": dict.fromkeys(("overall", *KINDS), 0),
    }


@pytest.mark.parametrize(("expected", "limit"), [(10, 160), (300, 308), (9999, 512)])
def test_a_scored_reply_may_be_somewhat_longer_than_the_longest_expected(
    monkeypatch: pytest.MonkeyPatch, expected: int, limit: int
) -> None:
    lengths = iter([3, expected, 5])
    monkeypatch.setattr(evaluate, "reply_length", lambda *_: next(lengths))
    assert evaluate.reply_limit([None, None, None], None) == limit  # type: ignore[list-item, arg-type]
