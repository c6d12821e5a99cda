"""The Berkeley leaderboard's rules: a table by hand, and the package's own checker where it is."""

import random
from collections.abc import Sequence
from typing import Any

import pytest

from benchmarks.bfcl_cases import Case, data_folder, load_cases
from benchmarks.bfcl_check import compare, our_judge, package_judge, perturb, right_calls
from data.conversation import Conversation, ToolCall

# Type of the argument, of its items; accepted values; the value of a call; is it right?
TEXTS: list[tuple[str, Sequence[Any], Any, bool]] = [
    ("string", ["April 1, 2024"], "april 1 2024", True),
    ("string", ["a_b-c.d/e*f^g,h i"], "ABCDEFGHI", True),
    ("string", ["it's"], 'It"s', True),
    ("string", ["a;b"], "ab", False),
    ("string", ["a", "b"], "B", True),
    ("string", ["7"], 7, False),
    ("string", ["", "a"], "", True),  # "" is a text too
    ("string", [""], ",", True),  # its comma does not count
    ("string", ["a", None], "b", False),
    ("string", [7], 7, True),  # an answer of another type is taken as it stands
    ("string", [7], "7", False),
    ("string", [7, "a"], "A", False),
    ("any", ["x"], "X", True),
    ("any", ["5"], 5, False),
    ("any", [5], 5, True),
]
NUMBERS: list[tuple[str, Sequence[Any], Any, bool]] = [
    ("integer", [3, 4], 4, True),
    ("integer", [3], 3.0, False),
    ("integer", [3], "3", False),
    ("integer", [1], True, False),
    ("integer", [""], 5, False),  # nothing says what it may be
    ("integer", ["n"], "n", True),  # a variable
    ("integer", ["n"], "N", False),
    ("float", [2.0], 2, True),
    ("float", [2], 2, True),
    ("float", [2.5], 2, False),
    ("float", [2.0], 10**400, False),
    ("boolean", [True], True, True),
    ("boolean", [True], 1, False),
    ("boolean", [True], "True", False),
    ("boolean", [1], True, True),  # as Python compares
]
ARRAYS: list[tuple[str, Sequence[Any], Any, bool]] = [
    ("array string", [["A b", "c"]], ["ab", "C"], True),
    ("array string", [["a", "b"]], ["b", "a"], False),
    ("array string", [["a"]], "a", False),
    ("array string", [["a"], ""], [], True),  # "" counts as an empty list here
    ("array string", [[1]], [1], True),
    ("array integer", ["xs"], "xs", True),
    ("array integer", ["xs"], [1], False),
    ("array integer", [[1, 2]], [1.0, 2], False),
    ("array float", [[1.0]], [1], False),  # no integer for a float among items
    ("array float", [[2, 1.5]], [2, 1.5], True),  # unless the answer begins with one
    ("array float", [[1.0], ""], [1], True),  # against "" no item's type is compared
    ("tuple float", [[1.0, 2.0]], [1.0, 2.0], True),
    ("tuple float", [[1.0]], [1], False),
]
OBJECTS: list[tuple[str, Sequence[Any], Any, bool]] = [
    ("dict", [{"a": ["X y", ""], "b": [1]}], {"b": 1}, True),
    ("dict", [{"a": ["X y", ""], "b": [1]}], {"b": 1, "a": "xy"}, True),
    ("dict", [{"a": ["X y", ""], "b": [1]}], {"a": "xy"}, False),
    ("dict", [{"a": ["X y", ""], "b": [1]}], {"b": 1, "c": 1}, False),
    ("dict", [{"b": [1]}], {"b": "1"}, False),
    ("dict", [{"b": [1]}], {"b": True}, True),  # as Python compares
    ("dict", ["", {"b": [1]}], {"b": 1}, True),
    ("dict", ["", {"b": [1]}], {}, False),
    ("dict", [{"a": ["X y"]}], {"a": "X Y"}, True),
    ("dict", ["d"], "d", True),
    ("dict", ["d"], {"b": 1}, False),
    ("array dict", [[{"a": ["X"]}, {"a": ["Y"]}]], [{"a": "x"}, {"a": "y"}], True),
    ("array dict", [[{"a": ["X"]}, {"a": ["Y"]}]], [{"a": "y"}, {"a": "x"}], False),
    ("array dict", [[{"a": ["X"]}, {"a": ["Y"]}]], [{"a": "x"}], False),
    ("array dict", [[{"a": ["X"]}]], [{"a": "x"}, {"a": "x"}], False),
    ("array dict", [[{"a": ["X"]}], ""], [], True),
    ("array dict", [[{"a": ["X"]}], ""], ["x"], False),  # here the package fails
]
VALUES = [*TEXTS, *NUMBERS, *ARRAYS, *OBJECTS]


def function(name: str, kinds: dict[str, str], *required: str) -> dict[str, Any]:
    """A function as the leaderboard describes it; "array string" has strings as items."""
    properties: dict[str, Any] = {}
    for argument, kind in kinds.items():
        outer, _, item = kind.partition(" ")
        properties[argument] = {"type": outer} | ({"items": {"type": item}} if item else {})
    parameters = {"type": "dict", "properties": properties, "required": list(required)}
    return {"name": name, "description": "", "parameters": parameters}


def case(category: str, functions: Sequence[Any], truth: Sequence[Any]) -> Case:
    return Case("an id", category, Conversation(()), functions, truth, "calls")


F = function("f", {"x": "string", "y": "integer", "z": "boolean"}, "x")
G = function("m.g", {"x": "string"}, "x")
DUE = {"f": {"x": ["a", "b"], "y": [1, ""], "z": [True]}}
CALL = ToolCall("f", {"x": "a", "z": True})
# Category, functions, truth, calls, are they right?
CALLS: list[tuple[str, list[Any], list[Any], list[ToolCall], bool]] = [
    ("simple_python", [F], [DUE], [CALL], True),
    ("simple_python", [F], [DUE], [CALL, CALL], False),
    ("simple_python", [F], [DUE], [], False),
    ("simple_python", [F], [DUE], [ToolCall("F", CALL.arguments)], False),
    ("simple_python", [F], [DUE], [ToolCall("f", {"z": True})], False),  # a required one
    ("simple_python", [F], [DUE], [ToolCall("f", {"x": "a"})], False),  # not among the optional
    ("simple_python", [F], [DUE], [ToolCall("f", {"x": "a", "z": True, "w": 1})], False),
    ("simple_python", [F], [{"f": {"x": ["a"]}}], [ToolCall("f", {"x": "a", "y": 1})], False),
    (
        "simple_python",
        [F],
        [{"f": {"x": [""]}}],
        [ToolCall("f", {})],
        False,
    ),  # required all the same
    ("simple_python", [F], [{"other": DUE["f"]}], [CALL], True),  # the truth's name is not read
    ("simple_python", [G], [{"m.g": {"x": ["a"]}}], [ToolCall("m_g", {"x": "a"})], False),
    ("multiple", [G, F], [DUE], [CALL], True),
    ("multiple", [G, F], [DUE], [ToolCall("m.g", {"x": "a"})], False),
    ("parallel", [F], [DUE, {"f": {"x": ["c"]}}], [ToolCall("f", {"x": "c"}), CALL], True),
    ("parallel", [F], [DUE, DUE], [CALL, CALL], True),
    ("parallel", [F], [DUE, {"f": {"x": ["c"]}}], [CALL, CALL], False),
    # The first call that fits is taken for good: "a" for the first answer, none for the second.
    (
        *("parallel", [G], [{"m.g": {"x": ["a", "b"]}}, {"m.g": {"x": ["a"]}}]),
        *([ToolCall("m.g", {"x": "a"}), ToolCall("m.g", {"x": "b"})], False),
    ),
    (
        *("live_parallel_multiple", [G, F], [DUE, {"m.g": {"x": ["a"]}}]),
        *([ToolCall("m.g", {"x": "A"}), CALL], True),
    ),
]


def of_value(kind: str, accepted: Sequence[Any], value: Any) -> tuple[Case, list[ToolCall]]:
    functions, truth = [function("f", {"x": kind}, "x")], [{"f": {"x": accepted}}]
    return case("simple_python", functions, truth), [ToolCall("f", {"x": value})]


@pytest.mark.parametrize(("kind", "accepted", "value", "is_right"), VALUES)
def test_a_value(kind: str, accepted: Sequence[Any], value: Any, is_right: bool) -> None:
    assert our_judge(*of_value(kind, accepted, value)) is is_right


@pytest.mark.parametrize(("category", "functions", "truth", "calls", "is_right"), CALLS)
def test_calls(category: str, functions: Any, truth: Any, calls: Any, is_right: bool) -> None:
    assert our_judge(case(category, functions, truth), calls) is is_right


def test_the_package_says_the_same_of_both_tables() -> None:
    pytest.importorskip("bfcl_eval")
    theirs = package_judge()
    for kind, accepted, value, is_right in VALUES:
        assert theirs(*of_value(kind, accepted, value)) is is_right, (kind, accepted, value)
    for category, functions, truth, calls, is_right in CALLS:
        assert theirs(case(category, functions, truth), calls) is is_right, calls


def test_the_package_says_the_same_of_perturbed_answers() -> None:
    pytest.importorskip("bfcl_eval")
    names = ("simple_python", "multiple", "parallel", "live_simple", "live_parallel_multiple")
    cases = [one for name in names for one in load_cases(data_folder(), name)]
    counts, lines = compare(cases, 800, 3)
    assert not lines and min(counts["right"], counts["wrong"]) > 200
    assert compare(cases, 30, 3)[0] == compare(cases, 30, 3)[0] != compare(cases, 30, 4)[0]


def test_a_difference_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.bfcl_check.package_judge", lambda: lambda case, calls: True)
    counts, lines = compare([case("simple_python", [F], [DUE])], 50, 0)
    assert counts == {"right": 50} and 10 < len(lines) < 50
    assert lines[0].startswith("an id: ours False, the package True: [")


def test_answers_are_right_until_they_are_perturbed() -> None:
    functions = [function("f", {"x": "dict", "y": "array string", "z": "float"}, "x")]
    accepted = {"x": [{"a": ["b", ""], "c": [1]}], "y": [["d", "e"], ""], "z": [1.5, 2.5]}
    one = case("parallel", functions, [{"f": accepted}, {"f": accepted}])
    rng = random.Random(0)
    drawn = [right_calls(one, rng) for _ in range(50)]
    assert all(our_judge(one, calls) for calls in drawn)
    assert len({repr(calls) for calls in drawn}) > 20
    found = [perturb(one, rng) for _ in range(400)]
    assert all(our_judge(one, calls) for calls, names in found if not names)
    assert 40 < sum(our_judge(one, calls) for calls, _ in found) < 360
    assert {name.split()[0] for _, names in found for name in names} == {
        *("calls", "name", "arguments", "value")
    }
