"""The Berkeley leaderboard's questions of one turn, and the same questions changed.

Separate because it needs the leaderboard's files and no model. They come with the package
`bfcl-eval`, of which nothing but `data/` is read.
"""

import importlib.util
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from data.augment import CHANGES, SHARES, add_near
from data.conversation import Conversation, SystemPrompt, Tool
from data.files import read_rows
from data.schema import parse_row
from data.tool_schema import as_tools

# What is due: the calls of the truth, none, or any call at all, whatever its arguments.
Due = Literal["calls", "none", "some"]
# Its Java and JavaScript questions are left out: their values are code in these languages.
CATEGORIES = (
    *("simple_python", "multiple", "parallel", "parallel_multiple", "irrelevance"),
    *("live_simple", "live_multiple", "live_parallel", "live_parallel_multiple"),
    *("live_irrelevance", "live_relevance"),
)
PLAIN, UNSEEN = "plain", "near-unseen"
KINDS = (*SHARES, UNSEEN)
# Near-duplicates in other words than the trainer's: what an adapter trained with `--augment near`
# has learned beyond these words.
OTHER_NEAR = (
    ("template", "{about} Nothing is done: the request is saved as a template."),
    ("history", "Lists the earlier uses of this function. {about}"),
    ("estimate", "{about} Only estimates what a real call would cost."),
    ("partners", "For partner companies with a contract alone. {about}"),
    ("retired", "{about} Switched off last year, kept for reference."),
)
INSTALL = "pip install --no-deps bfcl-eval"


@dataclass(frozen=True)
class Case:
    """One question. `row` ends with the reply that is due, of which only its calls are read."""

    id: str
    category: str
    row: Conversation
    functions: Sequence[Mapping[str, Any]]  # as the leaderboard writes them
    truth: Sequence[Mapping[str, Any]]  # see `bfcl_rules`; empty where no call is due
    due: Due
    change: str = PLAIN

    @property
    def text(self) -> str:
        """What the user asks at the end."""
        return next(turn.content for turn in reversed(self.row.messages) if turn.role == "user")

    def question(self, wording: SystemPrompt) -> Conversation:
        """What the model is asked, with the tools in the wording and shape that it was trained on.

        The question itself is the leaderboard's, without its hint that a function is Python's.
        """
        asked = replace(self.row, messages=self.row.messages[:-1])
        if not asked.tools:
            return replace(asked, prompt=None)
        return replace(asked, prompt=wording, tools=as_tools(asked.tools, wording.shape))


def data_folder() -> Path:
    """The leaderboard's files in the installed package. Raises: FileNotFoundError without one."""
    spec = importlib.util.find_spec("bfcl_eval")  # its folder; nothing of it is run
    folders = list(spec.submodule_search_locations or ()) if spec else []
    if not folders:
        raise FileNotFoundError(
            "bfcl_eval: expected the Berkeley leaderboard's package, got none; " + INSTALL
        )
    return Path(folders[0]) / "data"


def package_version() -> str | None:
    """The version of the leaderboard's package, as far as it was installed."""
    try:
        return metadata.version("bfcl-eval")
    except metadata.PackageNotFoundError:
        return None


def load_cases(folder: Path, category: str) -> list[Case]:
    """All questions of a category. Raises: FileNotFoundError, ValueError for files that changed."""
    found = [f for f in sorted(folder.glob("*.json")) if _category(f) == category]
    if not found:
        raise FileNotFoundError(
            f"{folder}: expected a file BFCL_v4_{category}.json, got none; {INSTALL}==2026.3.23"
        )
    return [_case(place, row, category) for place, row in read_rows(found[-1])]


def _category(file: Path) -> str:
    return re.sub(r"^BFCL_v\d+_", "", file.stem)


def _case(place: str, row: Any, category: str) -> Case:
    truth = row.get("ground_truth") or []
    due: Due = "calls"
    if "relevance" in category:
        due = "none" if "irrelevance" in category else "some"
        # Where no calls are listed, words take the reply's place: they are never compared.
        turns = [*row["question"][0], {"role": "assistant", "content": "-"}]
        row = row | {"messages": turns, "tools": row["function"]}
    return Case(row["id"], category, parse_row(row, place), row["function"], truth, due)


def sample(cases: Sequence[Case], limit: int | None, seed: int) -> list[Case]:
    """At most `limit` of the cases, drawn by the seed, in their order."""
    if limit is None or limit >= len(cases):
        return list(cases)
    drawn = random.Random(f"bfcl {seed} {cases[0].category}").sample(range(len(cases)), limit)
    return [cases[index] for index in sorted(drawn)]


def changed(case: Case, kind: str, others: Sequence[Tool], seed: int) -> Case | None:
    """The case under a kind of `--augment` or UNSEEN; None where that cannot be applied.

    What is due follows: no call where the tool or a required value is gone, else the same calls,
    under new names where the tools got new ones. others: tools of other questions.
    """
    if case.due != "calls":
        return None
    rng = random.Random(f"bfcl {seed} {kind} {case.id}")
    if kind == UNSEEN:
        row = add_near(case.row, others, rng, OTHER_NEAR)
    else:
        row = CHANGES[kind](case.row, others, rng)
    if row is None:
        return None
    if kind in ("none", "missing"):
        return replace(case, change=kind, row=row, truth=(), due="none")
    if kind == "names":
        functions, truth = _renamed(case, row.tools)
        return replace(case, change=kind, row=row, functions=functions, truth=truth)
    return replace(case, change=kind, row=row)


def _renamed(
    case: Case, tools: Sequence[Tool]
) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """The leaderboard's functions and answers under the names that the tools have now."""
    names, arguments = {}, {}
    for old, new in zip(case.row.tools, tools, strict=True):
        pairs = zip(old.parameters["properties"], new.parameters["properties"], strict=True)
        names[old.name], arguments[old.name] = new.name, dict(pairs)
    functions: list[Mapping[str, Any]] = []
    for function in case.functions:
        own, old = arguments[function["name"]], function["parameters"]
        parameters = {
            "properties": {own[name]: schema for name, schema in old["properties"].items()},
            "required": [own.get(name, name) for name in old["required"]],
        }
        functions.append({"name": names[function["name"]], "parameters": old | parameters})
    truth: list[Mapping[str, Any]] = []
    for due in case.truth:
        ((name, accepted),) = due.items()
        own = arguments[name]
        truth.append({names[name]: {own.get(key, key): values for key, values in accepted.items()}})
    return functions, truth
