"""Shares of right answers with their intervals, as the tables of `bfcl`.

Separate because the rows of several runs, or of another machine, make the same tables.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from benchmarks.bfcl_cases import CATEGORIES, KINDS, PLAIN

Row = dict[str, Any]
# Questions counted together; the leaderboard gives each category of the first one weight instead.
GROUPS: dict[str, Callable[[str], bool]] = {
    "all with due calls": lambda name: "relevance" not in name,
    "non-live": lambda name: "relevance" not in name and not name.startswith("live_"),
    "live": lambda name: "relevance" not in name and name.startswith("live_"),
    "no call due": lambda name: "irrelevance" in name,
}
DUE = {"none": "no call", "missing": "no call: the answer asks"}


def wilson(right: int, number: int) -> tuple[float, float]:
    """The 95% interval of a share.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22
    (1927), equation 5.
    """
    z = 1.959964  # the normal distribution's 97.5% quantile
    share, wide = right / number, z * z / number
    middle = (share + wide / 2) / (1 + wide)
    half = z * math.sqrt(share * (1 - share) / number + wide / (4 * number)) / (1 + wide)
    return max(0.0, middle - half), min(1.0, middle + half)


def share(rows: Sequence[Row]) -> str:
    """ "62.5% (30.6 to 86.3)"; "-" without rows."""
    if not rows:
        return "-"
    right = sum(row["right"] for row in rows)
    low, high = wilson(right, len(rows))
    return f"{right / len(rows):.1%} ({100 * low:.1f} to {100 * high:.1f})"


def tables(rows: Sequence[Row]) -> str:
    """Markdown: by category, and by change if some questions were changed."""
    whos = list(dict.fromkeys(row["who"] for row in rows))
    plain = [row for row in rows if row["change"] == PLAIN]
    lines = _head(["category", "n", *whos])
    for name in CATEGORIES:
        own = [row for row in plain if row["category"] == name]
        lines += _line(name, own, whos) if own else []
    for name, belongs in GROUPS.items():
        own = [row for row in plain if belongs(row["category"])]
        lines += _line(f"**{name}**", own, whos) if own else []
    text = "\n".join(lines) + "\n"
    return text + "".join(_changes(rows, plain, who) for who in whos if len(rows) > len(plain))


def _changes(rows: Sequence[Row], plain: Sequence[Row], who: str) -> str:
    """The same questions before and after each change: all of them that it can be applied to."""
    before = {row["id"]: row for row in plain if row["who"] == who}
    lines = _head([f"change ({who})", "due", "n", "unchanged", "changed"])
    for kind in KINDS:
        own = [row for row in rows if (row["change"], row["who"]) == (kind, who)]
        own = [row for row in own if row["id"] in before]
        unchanged = [before[row["id"]] for row in own]
        if own:
            due = DUE.get(kind, "the same")
            cells = (kind, due, str(len(own)), share(unchanged), share(own))
            lines.append(f"| {' | '.join(cells)} |")
    return "\n" + "\n".join(lines) + "\n"


def _head(names: Sequence[str]) -> list[str]:
    return [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]


def _line(name: str, rows: Sequence[Row], whos: Iterable[str]) -> list[str]:
    parts = [[row for row in rows if row["who"] == who] for who in whos]
    return [f"| {name} | {max(map(len, parts))} | {' | '.join(map(share, parts))} |"]
