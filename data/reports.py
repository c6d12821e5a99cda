"""What reading and rendering counted: the numbers for `run.json`, the reasons for people.

Separate from `dataset.py`, which fills them.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

_SHOWN = 5  # a data set with the wrong column has as many problems as rows


@dataclass
class LoadReport:
    """What reading did. Sentences begin with the row's place."""

    rows: int = 0
    dropped: list[str] = field(default_factory=list)  # each unreadable row's problems
    bad_calls: list[str] = field(default_factory=list)  # each call that its own tools do not allow
    dropped_for_calls: int = 0  # rows left out for such calls
    offering: int = 0  # rows that offer tools, of those that were kept
    calls: int = 0  # calls that they make
    repairs: Counter[str] = field(default_factory=Counter)
    repaired_rows: int = 0

    def as_dict(self) -> dict[str, Any]:
        """For `run.json`; the reasons of the first dropped rows only."""
        return {
            "rows": self.rows,
            "dropped": len(self.dropped),
            "reasons": self.dropped[:_SHOWN],
            "bad_calls": len(self.bad_calls),
            "bad_call_reasons": self.bad_calls[:_SHOWN],
            "dropped_for_calls": self.dropped_for_calls,
            "rows_with_tools": self.offering,
            "calls": self.calls,
            "repaired_rows": self.repaired_rows,
            "repairs": dict(self.repairs),
        }

    def __iadd__(self, other: "LoadReport") -> "LoadReport":
        """Add the report of a further data set."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)
        return self

    def add_held_out(self, other: "LoadReport") -> None:
        """Add what reading the held-out rows lost. Their tools and calls are none that train."""
        for name in ("rows", "dropped", "bad_calls", "dropped_for_calls"):
            setattr(self, name, getattr(self, name) + getattr(other, name))


@dataclass
class BuildReport:
    """What rendering did. Lists hold the rows' places."""

    examples: int = 0
    tokens: int = 0
    supervised_tokens: int = 0
    dropped_overlong: list[str] = field(default_factory=list)
    dropped_unsupervised: list[str] = field(default_factory=list)
    truncated: list[str] = field(default_factory=list)
    # (row, first equal row); such rows are not dropped: a data set may weight a row by repeating it
    duplicates: list[tuple[str, str]] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For `run.json`: counts only."""
        return {
            name: len(value) if isinstance(value, list) else value
            for name, value in vars(self).items()
        }


def first_lines(problems: Sequence[str]) -> str:
    """Return the first problems, one a line, and how many more there are."""
    more = [f"and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
    return "\n".join([*problems[:_SHOWN], *more])


def left_out(reading: LoadReport, rendering: BuildReport) -> list[dict[str, str]]:
    """Return every row that is not trained on, and every bad call: {"kind", "place", "reason"}."""
    lists = {
        "unreadable": reading.dropped,
        "bad call": reading.bad_calls,
        "too long": rendering.dropped_overlong,
        "nothing to learn": rendering.dropped_unsupervised,
    }
    lines = []
    for kind, texts in lists.items():
        for text in texts:
            place, _, reason = text.partition(": ")
            lines.append({"kind": kind, "place": place, "reason": reason})
    return lines
