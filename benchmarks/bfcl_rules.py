"""When the Berkeley leaderboard takes calls for right: its rules for Python functions, by hand.

    truth      [{"book": {"city": ["Paris", "Paris, France"], "nights": [2, ""]}}]

One object for each due call; every argument has a list of accepted values, and "" among them says
that it may be left out. Separate because it needs no model. Where the rules are odd they are the
package's (`bfcl_eval/eval_checker/ast_eval/ast_checker.py`), and a comment says so: a score is only
worth comparing if it is the same score. `bfcl_check.py` compares the two on perturbed answers.
Source: Patil et al., "The Berkeley Function Calling Leaderboard", ICML 2025.
"""

import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from data.conversation import ToolCall

# "any" is a string: the leaderboard writes the other values of such arguments as text.
TYPES: dict[str, Any] = {
    **{"string": str, "integer": int, "float": float, "boolean": bool},
    **{"array": list, "tuple": list, "dict": dict, "any": str},
}
_IGNORED = re.compile(r"[ ,./\-_*^]")
LEFT_OUT = ""  # among the accepted values: the argument may be absent


def find_problem(
    category: str,
    functions: Sequence[Mapping[str, Any]],
    calls: Sequence[ToolCall],
    truth: Sequence[Mapping[str, Mapping[str, Sequence[Any]]]],
) -> str | None:
    """What is wrong with the calls, in a few words; None if they are right.

    functions: the leaderboard's own, with its own names of types. Several calls of a "parallel"
    category may come in any order.
    """
    if len(calls) != len(truth):
        return f"expected {len(truth)} calls, got {len(calls)}"
    by_name = {function["name"]: function for function in functions}
    if "parallel" not in category:
        ((name, accepted),) = truth[0].items()
        # The simple categories never look at the name under which the answer is filed.
        function = by_name[name] if "multiple" in category else functions[0]
        return _call_problem(calls[0], function, accepted)
    left = list(calls)
    for due in truth:
        ((name, accepted),) = due.items()
        # The first that fits, for good: the package tries no other assignment.
        fits = (not _call_problem(call, by_name[name], accepted) for call in left)
        place = next((place for place, is_fit in enumerate(fits) if is_fit), None)
        if place is None:
            return f"no call fits the expected {name}"
        del left[place]
    return None


def _call_problem(
    call: ToolCall, function: Mapping[str, Any], accepted: Mapping[str, Sequence[Any]]
) -> str | None:
    """What is wrong with one call of `function`."""
    parameters, given = function["parameters"], call.arguments
    if call.name != function["name"]:
        return f"expected {function['name']}, got {call.name}"
    for name in parameters["required"]:
        if name not in given:
            return f"{name} is missing"
    for name, value in given.items():
        if name not in parameters["properties"] or name not in accepted:
            return f"{name} is unexpected"
        if not _is_accepted(value, parameters["properties"][name], accepted[name]):
            return f"{name} is wrong"
    # An argument that is no required one has to be there too, unless "" is accepted.
    missing = [name for name, options in accepted.items() if name not in given]
    missing = [name for name in missing if LEFT_OUT not in accepted[name]]
    return f"{missing[0]} is missing" if missing else None


def _is_accepted(value: Any, schema: Mapping[str, Any], options: Sequence[Any]) -> bool:
    """True if a value has an accepted type and is one of the accepted values."""
    kind = schema["type"]
    expected = TYPES[kind]
    item = TYPES[schema["items"]["type"]] if kind in ("array", "tuple") else None
    # A float may be written as an integer, but not the items of an array of floats.
    if kind == "float" and type(value) is int and abs(value) <= sys.float_info.max:
        value = float(value)
    answer = _type_of(options)
    if type(value) is expected:
        if item and not any(_has_items(value, item, option) for option in options):
            return False
        is_plain = answer in (None, expected)
    elif answer is not None and type(value) is answer:
        # An answer of another type than the schema's is taken as it stands: the name of a variable
        # in place of a number, an integer that is written for a float.
        is_plain = False
    else:
        return False
    if not is_plain or expected in (int, float, bool):
        return value in options  # as Python compares: True is 1
    if expected is dict:
        return _is_object(value, options)
    if item is dict:
        return any(_are_objects(value, option) for option in options)
    if expected is str:
        return _normal(value) in [_normal(option) for option in options if type(option) is str]
    return _normal_items(value) in [_normal_items(option) for option in options]


def _type_of(options: Sequence[Any]) -> type | None:
    """The type of the first accepted value; None where the argument may only be left out."""
    return next((type(option) for option in options if option != LEFT_OUT), None)


def _has_items(value: Sequence[Any], item: type, option: Any) -> bool:
    """True if all items have the schema's type, or the one of the accepted list's first item."""
    # Against anything but a list, as against "", the package compares no item.
    return type(option) is not list or all(type(x) in (item, _type_of(option)) for x in value)


def _normal(text: str) -> str:
    """A text without the differences that do not count: "April 1, 2024" is "april 1 2024"."""
    return _IGNORED.sub("", text).lower().replace("'", '"')


def _normal_items(values: Sequence[Any]) -> list[Any]:
    """Items with their texts normalised, one level deep; "" gives an empty list."""
    return [_normal(value) if type(value) is str else value for value in values]


def _is_object(value: Any, options: Sequence[Any]) -> bool:
    """True if an object fits one of the accepted ones: {key: [accepted values]}."""
    # Arrays of objects may hold other items, on which the package itself fails.
    return type(value) is dict and any(
        all(key in option and _is_one_of(item, option[key]) for key, item in value.items())
        and all(key in value or LEFT_OUT in accepted for key, accepted in option.items())
        for option in options
        if option != LEFT_OUT
    )


def _is_one_of(item: Any, accepted: Sequence[Any]) -> bool:
    return (_normal(item) if type(item) is str else item) in _normal_items(accepted)


def _are_objects(values: Sequence[Any], option: Sequence[Any]) -> bool:
    """True if as many objects as in the accepted list fit its own, in their order."""
    pairs = zip(values, option, strict=False)
    return len(values) == len(option) and all(_is_object(one, [own]) for one, own in pairs)
