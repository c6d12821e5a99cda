"""Reads the lists of words and sentence templates in words/*.txt.

    # greetings                   opens a list
    ## for the morning            a remark
    [good |]morning[, {n}|!]      four entries: "[a|b]" is a choice, each combination is an entry
    hello and good day            one entry
    ! ^morning!                   leaves out entries that match this regular expression

An indented line continues the one above it. Brackets without "|" are plain text, "\\n" is a line
break. A space at an end of an entry is written inside a choice, because editors remove spaces at
the end of a line.
"""

import re
from functools import cache
from itertools import product
from pathlib import Path
from zlib import crc32

FOLDER = Path(__file__).parent / "words"
CHOICE = re.compile(r"\[([^][]*\|[^][]*)\]")
EXCLUDE = "! "
# None is a template that was left out.
Templates = tuple[str | None, ...]


@cache
def read(file: str) -> dict[str, tuple[str, ...]]:
    """The lines of each list of words/FILE.txt. Raises: ValueError for a name used twice."""
    lists: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in (FOLDER / f"{file}.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("# "):
            name, lines = line[2:], []
            if name in lists:
                raise ValueError(f"words/{file}.txt: two lists are called {name!r}")
            lists[name] = lines
        elif line.startswith(" "):
            lines[-1] += line.lstrip()
        elif line and not line.startswith("## "):
            lines.append(line)
    return {name: tuple(lines) for name, lines in lists.items()}


def expand(line: str) -> tuple[str, ...]:
    """Every entry that a line stands for, the last choice varying fastest."""
    # Splitting at a pattern with one group gives text, choice, text, choice, ..., text.
    pieces = CHOICE.split(line.replace("\\n", "\n"))
    columns = [piece.split("|") if i % 2 else [piece] for i, piece in enumerate(pieces)]
    return tuple("".join(parts) for parts in product(*columns))


def entries(file: str, name: str) -> tuple[str, ...]:
    """The entries of a list, in the order of the file."""
    lines = [line for line in read(file)[name] if not line.startswith(EXCLUDE)]
    return tuple(entry for line in lines for entry in expand(line))


def table(file: str, name: str) -> dict[str, str]:
    """A list whose lines are "key: value"."""
    pairs = (line.partition(": ") for line in read(file)[name])
    return {key: value for key, _, value in pairs}


def shuffled(file: str, name: str) -> Templates:
    """A list's entries, each once, in the order of their checksums; None for the excluded ones.

    The place in this order decides which templates are held out (`words.templates`): checksums
    spread the combinations of a line over both sides, and a None keeps its place so that one more
    exclusion moves no other template to the other side.
    """
    excluded = [line.removeprefix(EXCLUDE) for line in read(file)[name] if line.startswith(EXCLUDE)]
    texts = sorted(set(entries(file, name)), key=lambda text: (crc32(text.encode()), text))
    return tuple(None if any(re.search(e, text) for e in excluded) else text for text in texts)
