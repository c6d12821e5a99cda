"""The Berkeley leaderboard's answers, perturbed, judged by our rules and by its package's.

Separate because it is the only file that runs code of the package: its checker, which needs none of
the package's many dependencies.
"""

import copy
import importlib
import random
import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

from benchmarks.bfcl_cases import Case
from benchmarks.bfcl_rules import LEFT_OUT, find_problem
from data.conversation import ToolCall

Judge = Callable[[Case, Sequence[ToolCall]], bool]
# Values of every type, to stand where another type is due
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2.0, 0.5, 10**400, "", "x", "1", "True", "None"),
    *([], [""], ["x"], [1], [1.0], [[1]], [None], [{}], {}, {"x": 1}, {"x": ["y"]}),
)
MARKS = " ,./-_*^'\"!;:\n"  # some do not count in a text, the others do
_CHECKER = "bfcl_eval.eval_checker.ast_eval.ast_checker"


def package_judge() -> Judge:
    """The package's own verdict. Raises: ImportError without the package."""
    python = importlib.import_module("bfcl_eval.constants.enums").Language.PYTHON
    # The checker asks this module for one thing: whether a model's API forbids dots in names. The
    # true one imports every provider's client.
    models = ModuleType("bfcl_eval.constants.model_config")
    vars(models)["MODEL_CONFIG_MAPPING"] = {"ours": SimpleNamespace(underscore_to_dot=False)}
    with patch.dict(sys.modules, {models.__name__: models}):
        checker = importlib.import_module(_CHECKER)

    def judge(case: Case, calls: Sequence[ToolCall]) -> bool:
        output = [{call.name: call.arguments} for call in calls]
        given = (list(case.functions), output, list(case.truth), python, case.category, "ours")
        try:
            return bool(checker.ast_checker(*copy.deepcopy(given))["valid"])
        except (AttributeError, OverflowError):
            # An item that is no object among objects, an integer that no float holds: the package
            # fails, and with it the whole evaluation. Here such a call is wrong.
            return False

    return judge


def our_judge(case: Case, calls: Sequence[ToolCall]) -> bool:
    """The verdict of `bfcl_rules`."""
    return find_problem(case.category, case.functions, calls, case.truth) is None


def right_calls(case: Case, rng: random.Random) -> list[ToolCall]:
    """Accepted calls, each value drawn from those that its argument accepts."""
    return [
        ToolCall(name, _choose(accepted, rng))
        for due in case.truth
        for name, accepted in due.items()
    ]


def _choose(accepted: Mapping[str, Sequence[Any]], rng: random.Random) -> dict[str, Any]:
    drawn = {name: rng.choice(options) for name, options in accepted.items() if options}
    return {name: _plain(value, rng) for name, value in drawn.items() if value != LEFT_OUT}


def _plain(value: Any, rng: random.Random) -> Any:
    """An accepted value as a call has it: an accepted object lists the values of its keys."""
    if isinstance(value, dict):
        return _choose(value, rng) if all(type(v) is list for v in value.values()) else value
    return [_plain(item, rng) for item in value] if isinstance(value, list) else value


def perturb(case: Case, rng: random.Random) -> tuple[list[ToolCall], list[str]]:
    """Calls that were right, changed none to three times, and the names of the changes."""
    calls, names = right_calls(case, rng), []
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
        name = rng.choice(list(CHANGES))
        names.append(name)
        calls = CHANGES[name](calls, case, rng)
    return calls, names


def _of_calls(calls: list[ToolCall], case: Case, rng: random.Random) -> list[ToolCall]:
    """Other calls, or the same in another order or number."""
    if not calls:
        return [ToolCall(case.functions[0]["name"], {})]
    one = rng.choice(calls)
    ways = (
        calls[1:],
        [*calls, one],
        rng.sample(calls, len(calls)),
        [one] * len(calls),
        calls[::-1],
    )
    return list(rng.choice(ways))


def _of_name(calls: list[ToolCall], case: Case, rng: random.Random) -> list[ToolCall]:
    def rename(call: ToolCall) -> ToolCall:
        other = rng.choice(case.functions)["name"]
        ways = (call.name.upper(), call.name.replace(".", "_"), call.name + "_", other, "")
        return ToolCall(rng.choice(ways), call.arguments)

    return _one_changed(calls, rng, rename)


def _of_arguments(calls: list[ToolCall], case: Case, rng: random.Random) -> list[ToolCall]:
    """Arguments dropped, added, exchanged or in another order."""

    def change(call: ToolCall) -> ToolCall:
        given = dict(call.arguments)
        known = [n for f in case.functions for n in f["parameters"]["properties"]]
        match rng.choice(("drop", "add", "odd", "swap", "order")):
            case "drop" if given:
                del given[rng.choice(list(given))]
            case "add":
                given[rng.choice([*known, "x"])] = rng.choice(ODD)
            case "swap" if given:
                given[rng.choice(list(given))] = given[rng.choice(list(given))]
            case "order":
                given = dict(rng.sample(list(given.items()), len(given)))
            case _:
                given |= {name: rng.choice(ODD) for name in list(given)[:1]}
        return ToolCall(call.name, given)

    return _one_changed(calls, rng, change)


def _of_value(calls: list[ToolCall], case: Case, rng: random.Random) -> list[ToolCall]:
    def change(call: ToolCall) -> ToolCall:
        if not call.arguments:
            return call
        name = rng.choice(list(call.arguments))
        return ToolCall(call.name, call.arguments | {name: _other(call.arguments[name], rng)})

    return _one_changed(calls, rng, change)


def _one_changed(
    calls: list[ToolCall], rng: random.Random, change: Callable[[ToolCall], ToolCall]
) -> list[ToolCall]:
    place = rng.randrange(len(calls)) if calls else -1
    return [change(call) if i == place else call for i, call in enumerate(calls)]


def _other(value: Any, rng: random.Random) -> Any:
    """A value near this one: another case, punctuation, type or item."""
    if rng.random() < 0.1:
        return rng.choice(ODD)
    if isinstance(value, str):
        return _other_text(value, rng)
    if isinstance(value, bool) or value is None:
        return rng.choice((not value, int(bool(value)), str(value), str(value).lower()))
    if isinstance(value, int | float):
        whole = int(value) if abs(value) < 1e300 else 0
        return rng.choice((whole, float(whole), value + 1, -value, str(value), value == 1))
    if isinstance(value, list):
        return _other_items(value, rng)
    return _other_object(value, rng)


def _other_text(text: str, rng: random.Random) -> Any:
    place = rng.randint(0, len(text))
    marked = text[:place] + rng.choice(MARKS) + text[place:]
    bare = re.sub(r"[^\w]", "", text)
    number = float(text) if re.fullmatch(r"-?\d{1,9}(\.\d{1,9})?", text) else 1
    same = (text.upper(), text.lower(), text.title(), marked, bare, text.replace("'", '"'))
    return rng.choice(
        (*same, *same, text[:-1], text + "x", f" {text} ", number, [text], list(text))
    )


def _other_items(items: list[Any], rng: random.Random) -> Any:
    if not items:
        return rng.choice((["x"], [1], "", {}))
    place = rng.randrange(len(items))
    item = [*items[:place], _other(items[place], rng), *items[place + 1 :]]
    floats = [float(x) if type(x) is int and x < 10**9 else x for x in items]
    whole = [int(x) if type(x) is float and abs(x) < 1e9 else x for x in items]
    ways: list[Any] = [items[1:], [*items, items[0]], items[::-1]]
    ways += [[*items, rng.choice(ODD)], items[0], floats, whole]
    return rng.choice((item, item, item, *ways, ",".join(map(str, items)), [items]))


def _other_object(value: dict[str, Any], rng: random.Random) -> Any:
    if not value:
        return rng.choice(({"x": 1}, [], ""))
    key = rng.choice(list(value))
    changed = value | {key: _other(value[key], rng)}
    rest = {name: item for name, item in value.items() if name != key}
    backwards = dict(reversed(value.items()))
    ways = (
        rest,
        value | {"x": 1},
        {key.upper(): value[key]} | rest,
        backwards,
        [value],
        list(value),
    )
    return rng.choice((changed, changed, changed, *ways))


CHANGES = {"calls": _of_calls, "name": _of_name, "arguments": _of_arguments, "value": _of_value}
# Most calls are changed in a value: there the rules are many.
CHANGES |= {f"value {number}": _of_value for number in (2, 3, 4)}


def compare(cases: Sequence[Case], number: int, seed: int) -> tuple[Counter[str], list[str]]:
    """Judges `number` perturbed answers by both; counts of verdicts, and the differences as lines.

    The rarest categories come as often as the others, and every fourth answer is to one of the
    questions with arrays or objects among the accepted values.
    """
    theirs, counts, lines = package_judge(), Counter[str](), list[str]()
    groups: dict[str, list[Case]] = {}
    for case in cases:
        if case.due == "calls":
            groups.setdefault(case.category, []).append(case)
            if _has_structure(case):
                groups.setdefault("structured", []).append(case)
    rng = random.Random(f"bfcl check {seed}")
    for _ in range(number):
        is_structured = "structured" in groups and rng.random() < 0.25
        group = groups["structured"] if is_structured else groups[rng.choice(list(groups))]
        case = rng.choice(group)
        calls, names = perturb(case, rng)
        ours, own = our_judge(case, calls), theirs(case, calls)
        counts["right" if own else "wrong"] += 1
        if ours != own:
            lines.append(f"{case.id}: ours {ours}, the package {own}: {names} {calls}")
    return counts, lines


def _has_structure(case: Case) -> bool:
    accepted = [options for due in case.truth for call in due.values() for options in call.values()]
    return any(isinstance(value, list | dict) for options in accepted for value in options)
