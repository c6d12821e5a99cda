"""Does a call fit its tool's schema?

Separate because three places ask: rows when they are read, an agent before it runs a tool, and
whoever scores replies.
"""

import json
from itertools import islice
from typing import Any

from data.conversation import Conversation
from data.lenient_json import begin, shorten

_SHOWN = 8  # names of the tools on offer
# What `json.loads` makes of each type of JSON schema.
PYTHON_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
    "null": (type(None),),
}


def bad_calls(conversation: Conversation) -> list[str]:
    """Every call that the conversation's own tools do not allow, as sentences with their place.

    A call that the model is not trained to write is not among them.
    """
    tools = {tool.name: tool for tool in conversation.tools}
    problems = []
    for message in conversation.messages:
        for call in message.calls if message.trained else ():
            tool = tools.get(call.name)
            if tool is None:
                offered = ", ".join(map(shorten, islice(tools, _SHOWN))) or "none"
                more = f" and {len(tools) - _SHOWN} more" if len(tools) > _SHOWN else ""
                problems.append(
                    f"calls {call.name!r}, which is not offered; the tools are {offered}{more}"
                )
            else:
                found = check_arguments(tool.parameters, call.arguments)
                problems += [f"{call.name}: {problem}" for problem in found]
    remedy = "correct the row, or leave such rows out with --bad-calls drop"
    return [f"{conversation.where}: {problem}; {remedy}" for problem in problems]


def check_arguments(
    schema: dict[str, Any], arguments: dict[str, Any], where: str = ""
) -> list[str]:
    """Every way in which an object does not fit its JSON schema, as sentences.

    where: the path to the object, such as "place."; "" for the arguments of a call.
    """
    # A row's schema is foreign: a keyword with a value of the wrong kind says nothing
    properties: dict[str, Any] = _keyword(schema, "properties", dict, {})
    # JSON schema allows unknown keys where nothing is said about them. A function does not take
    # unknown arguments, and inside an argument they are right only where no key is listed.
    others = schema.get("additionalProperties", bool(where) and not properties)
    required = _keyword(schema, "required", list, [])
    missing = [name for name in required if isinstance(name, str) and name not in arguments]
    problems = [f"missing argument {where}{name!r}" for name in missing]
    for name, value in arguments.items():
        rule = properties.get(name, others)
        if isinstance(rule, dict):
            problems += check_argument(rule, value, f"{where}{name}")
        elif not rule:
            problems.append(f"unknown argument {where}{name!r}")
    return problems


def check_argument(schema: dict[str, Any], value: Any, where: str) -> list[str]:
    """Every way in which one value does not fit its schema; `where` is the path to it."""
    options = [item for item in _keyword(schema, "anyOf", list, []) if isinstance(item, dict)]
    if options:
        tries = [check_argument(option, value, where) for option in options]
        return ["; or ".join(problems[0] for problems in tries)] if all(tries) else []
    text = json.dumps(value, ensure_ascii=False)
    # Compared as JSON, because to Python True == 1 == 1.0.
    choices = [
        json.dumps(choice, ensure_ascii=False) for choice in _keyword(schema, "enum", list, [])
    ]
    if value is None and schema.get("nullable") is True:  # OpenAPI's way to allow null
        return []
    if choices and text not in choices:
        return [f"{where} must be one of {', '.join(choices)}, got {begin(text)}"]
    kinds = schema.get("type", ())
    kinds = [kinds] if isinstance(kinds, str) else _keyword(schema, "type", list, [])
    kinds = [kind for kind in kinds if isinstance(kind, str)]
    allowed = [python for kind in kinds for python in PYTHON_TYPES.get(kind, ())]
    # type() and not isinstance(), because to Python a bool is an int.
    if allowed and type(value) not in allowed:
        return [f"{where} must be {' or '.join(kinds)}, got {begin(text)}"]
    if isinstance(value, dict):
        return check_arguments(schema, value, f"{where}.")
    problems = []
    items = _keyword(schema, "items", dict, {})
    for index, item in enumerate(value if isinstance(value, list) and items else ()):
        problems += check_argument(items, item, f"{where}[{index}]")
    return problems


def _keyword(schema: dict[str, Any], name: str, kind: type, default: Any) -> Any:
    """Return a keyword's value, or the default where it is absent or of another kind."""
    value = schema.get(name)
    return value if isinstance(value, kind) else default
