"""`--config FILE.toml`: flags from a file, under the flags' own names.

Each key becomes the flag that it names, and the program's own parser reads it: what the command
line would refuse is refused here too. The command line wins where both have a flag.
"""

import argparse
import difflib
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.cli import USER_ERRORS, Parser
from common.json_file import read_text

MAX_BYTES = 1 << 20
OUTSIDE = ("help", "config")  # of a file they would say nothing
Actions = Mapping[str, argparse.Action]


def parse(parser: Parser, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags of the command line, over those of the file that --config names.

    A flag that may be given several times replaces all of the file's. Ends the program with exit
    code 2 for a wrong flag in either place.
    """
    given = parser.parse_args(argv)
    if given.config is None:
        return given
    path = Path(given.config)
    actions = _flags_of(parser)
    try:
        flags = read_recipe(path, actions)
    except USER_ERRORS as error:
        parser.error(str(error))
    parser.where = f"{path}: "
    found = parser.parse_args(flags)
    parser.where = ""
    # argparse adds to a list that is there already; the command line's is to stand alone.
    lists = {a.dest: getattr(found, a.dest) for a in actions.values() if _is_list(a)}
    for name in lists:
        setattr(found, name, None)
    args = parser.parse_args(argv, namespace=found)
    for name, values in lists.items():
        if getattr(args, name) is None:
            setattr(args, name, values)
    return args


def _flags_of(parser: Parser) -> dict[str, argparse.Action]:
    """Every flag that a file may hold, by its name without dashes in front."""
    return {
        option.removeprefix("--"): action
        for action in parser._actions  # argparse has no public list of them
        for option in action.option_strings
        if option.startswith("--") and action.dest not in OUTSIDE
    }


def _is_list(action: argparse.Action) -> bool:
    return isinstance(action, argparse._AppendAction)


def read_recipe(path: Path, actions: Actions) -> list[str]:
    """The file's keys and values as a command line.

    Raises: FileNotFoundError without the file; ValueError for one that is no TOML, naming every key
    that is no flag and every value that no flag can have.
    """
    if not path.exists():
        raise FileNotFoundError(f"--config {path}: no such file; give a TOML file of flags")
    text = read_text(path, MAX_BYTES)
    try:
        content = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits, too many brackets
        raise ValueError(
            f"{path}: expected TOML, got {error}; write lines like lr = 1e-4"
        ) from None
    flags: list[str] = []
    problems: list[str] = []
    seen: dict[str, str] = {}
    for key, value in content.items():
        name = key.replace("_", "-")  # run.json writes max_length, the command line max-length
        if name in seen:
            problems.append(f"{seen[name]} and {key} are the same flag; leave one out")
        elif name not in actions:
            problems.append(_unknown(key, name, actions))
        else:
            seen[name] = key
            try:
                flags += _as_flags(name, value, actions[name])
            except ValueError as error:
                problems.append(f"{key}: {error}")
    if problems:
        raise ValueError(f"{path}: {'; '.join(problems)}")
    return flags


def _unknown(key: str, name: str, actions: Actions) -> str:
    """What is said of a key that no flag is called by."""
    near = difflib.get_close_matches(name, actions, n=1, cutoff=0.0)
    return f"expected a flag's name, got {key}; did you mean {near[0]}?"


def _as_flags(name: str, value: Any, action: argparse.Action) -> list[str]:
    """A value as the words of a command line. Raises: ValueError for a value of a wrong kind."""
    is_switch = action.nargs == 0
    if is_switch or isinstance(value, bool):
        if not (is_switch and isinstance(value, bool)):
            expected = "true or false" if is_switch else "a value"
            raise ValueError(f"expected {expected}, got {_shown(value)}; change it")
        return [f"--{name}"] if value else []
    items = value if isinstance(value, list) else [value]
    if not all(type(item) in (int, float, str) for item in items):
        raise ValueError(
            f"expected a number, a text or a list of them, got {_shown(value)}; "
            "write every flag on the file's first level"
        )
    # "=", or a negative number would be taken for a flag.
    if _is_list(action):
        return [f"--{name}={item}" for item in items]
    return [f"--{name}={','.join(map(str, items))}"]  # as --targets and --augment take several


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "a table"
    return str(value).lower() if isinstance(value, bool) else repr(value)
