"""Exact-call accuracy: did the model's first reply call the same tools with the same arguments, or none where none was due?

All or nothing per conversation: every name and every argument must be equal, as JSON, type and value. The order of
parallel calls does not count.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from data.messages import ToolCall

KINDS = ("seen", "unseen", "no_call", "parallel")


def call_key(call: ToolCall) -> str:
    """Equal for two calls that are equal as JSON, whatever the order of their keys."""
    return json.dumps([call.name, call.arguments], sort_keys=True, ensure_ascii=False)


def is_exact(expected: Sequence[ToolCall], got: Sequence[ToolCall]) -> bool:
    """True if both hold the same calls, in any order."""
    return sorted(map(call_key, expected)) == sorted(map(call_key, got))


def kind_of(expected: Sequence[ToolCall], seen_tools: set[str]) -> str:
    """One of KINDS: "parallel" is two calls and more, "seen" one call of a tool that training has shown."""
    if len(expected) != 1:
        return "parallel" if expected else "no_call"
    return "seen" if expected[0].name in seen_tools else "unseen"


@dataclass
class Accuracy:
    """Counts per kind; `as_dict` gives shares between 0 and 1, null where a kind did not occur, and the counts as n."""

    right: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    total: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))

    def add(self, kind: str, is_right: bool) -> None:
        """Counts one conversation."""
        self.total[kind] += 1
        self.right[kind] += is_right

    def as_dict(self) -> dict[str, Any]:
        """{"overall", "seen", "unseen", "no_call", "parallel", "n": {the same keys}}."""
        counts = {"overall": sum(self.total.values()), **self.total}
        rights = {"overall": sum(self.right.values()), **self.right}
        shares = {kind: rights[kind] / counts[kind] if counts[kind] else None for kind in counts}
        return {**shares, "n": counts}


def describe_shares(accuracy: dict[str, Any]) -> str:
    """`Accuracy.as_dict` as one line of text, each share with its number of conversations."""
    kinds = [kind for kind, count in accuracy["n"].items() if count]
    return ", ".join(f"{kind} {100 * accuracy[kind]:.0f}% of {accuracy['n'][kind]}" for kind in kinds)
