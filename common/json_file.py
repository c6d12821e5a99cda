"""Files that somebody else wrote: text and JSON read with a bound on size, nesting and digits.

Separate because configurations, indices, tokenizers and data sets come from strangers alike: a
pipe, a device file, a gigabyte of brackets or a number of a million digits ends in one sentence,
not in a hang or a full memory.
"""

import json
import stat
from pathlib import Path
from typing import Any

MAX_BYTES = 64 << 20  # Gemma 3's tokenizer.json, the largest file read this way, has 33 MB
MAX_DEPTH = 64
MAX_DIGITS = 64


def check_regular(path: Path, max_bytes: int) -> int:
    """The size of a file in bytes, from its entry alone; nothing is opened.

    Raises: ValueError for a pipe or a device, which may never end, and for a file of more than
    `max_bytes`; FileNotFoundError.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe, a socket or a device"
        raise ValueError(f"{path}: expected a file, got {kind}; save its content as a file first")
    if status.st_size > max_bytes:
        raise ValueError(
            f"{path}: expected at most {max_bytes} bytes, got {status.st_size}; "
            "is this the right file?"
        )
    return status.st_size


def read_text(path: Path, max_bytes: int = MAX_BYTES) -> str:
    """The text of a UTF-8 file.

    Raises: ValueError for another encoding and as `check_regular`; FileNotFoundError.
    """
    check_regular(path, max_bytes)
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected UTF-8, got {error}; download the file again") from None


def read_object(path: Path, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """The JSON object in a file.

    Raises: ValueError as `read_text` and `parse_object`; FileNotFoundError.
    """
    return parse_object(read_text(path, max_bytes), str(path))


def parse_object(text: str, where: str) -> dict[str, Any]:
    """The JSON object that `text` is; `where` begins the sentence of an error.

    Raises: ValueError for anything else, for more than MAX_DEPTH levels, and for a number of more
    than MAX_DIGITS digits.
    """
    try:
        data = json.loads(text, parse_int=_bounded_int)
    except RecursionError:
        raise ValueError(_too_deep(where)) from None
    except ValueError as error:
        raise ValueError(f"{where}: expected JSON, got {error}; download the file again") from None
    if not isinstance(data, dict):
        got = type(data).__name__
        raise ValueError(f"{where}: expected a JSON object, got {got}; download the file again")
    # Level by level, not by recursion: whatever walks the data later recurses, and would run out
    # of stack somewhere between this bound and the parser's own.
    level: list[Any] = [data]
    for _ in range(MAX_DEPTH + 1):
        level = [
            child
            for parent in level
            if isinstance(parent, dict | list)
            for child in (parent.values() if isinstance(parent, dict) else parent)
        ]
    if level:
        raise ValueError(_too_deep(where))
    return data


def _too_deep(where: str) -> str:
    return f"{where}: expected at most {MAX_DEPTH} nested levels, got more; download the file again"


def _bounded_int(digits: str) -> int:
    # int() is quadratic in the digits, and Python itself refuses more than 4,300 of them.
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits, more than {MAX_DIGITS}")
    return int(digits)


def show(value: Any, limit: int = 80) -> str:
    """A value of such a file for a message, its beginning alone."""
    # repr escapes control characters, with which a file could write over the terminal
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
