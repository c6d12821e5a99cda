"""The arithmetic of the two benchmarks of calls; their long runs are written down in LOG.md."""

import pytest

from benchmarks.call_rules import mcnemar, shares
from data.conversation import Conversation, Message, ToolCall

# One-sided tails of the coin, doubled: 2 (1 + 5) / 32, 2 / 16, 2 (1 + 10 + 45) / 1024
CASES = [(4, 1, 0.375), (0, 4, 0.125), (2, 8, 112 / 1024), (3, 3, 1.0), (0, 0, 1.0)]


@pytest.mark.parametrize(("first", "second", "p"), CASES)
def test_mcnemar_counts_the_pairs_that_differ(first: int, second: int, p: float) -> None:
    one = [True] * first + [False] * second + [True] * 7 + [False] * 2
    other = [False] * first + [True] * second + [True] * 7 + [False] * 2
    assert mcnemar(one, other) == (first, second, pytest.approx(p))


def test_shares_by_kind() -> None:
    call = ToolCall("f", {})
    rows = [
        Conversation((Message("user", "a"), Message("model", "b", calls=calls)))
        for calls in ((call,), (call,), (), (call, call))
    ]
    found = ["right", "no call", "right", "no call"]
    assert shares(found, rows) == {
        **{"overall": "2/4", "unseen": "1/2", "no_call": "1/1", "parallel": "0/1"},
        "wrong": {"no call": 2},
    }
