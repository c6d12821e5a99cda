"""Files of rows -> (place, row) pairs: JSONL, JSON and Parquet, from this machine or the hub.

Separate because it knows formats of files and nothing of conversations.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from common.hub import fetch
from common.json_file import check_regular
from data.lenient_json import LiteralError, shorten, unique_keys
from data.parquet_file import read_parquet

Row = tuple[str, dict[str, Any] | str]  # "file:line", object or a line that is no row
# The folder of the Berkeley leaderboard's answers, beside its questions
ANSWERS = "possible_answer"
# A JSON file that holds one object with one of these keys is that row, not a list of rows
_ROW_KEYS = {"conversations", "messages", "question", "query", "chat", "prompt", "id"}
# Parquet first: a repository that has the same rows in two formats is read from the faster one
PATTERNS = ["*.parquet", "*.jsonl", "*.ndjson", "*.json"]
MAX_BYTES = 1 << 30  # of a file of text, which is read at once
MAX_LINE = 64 << 20  # characters, far above a row's own bound


def read_rows(path_or_repo: str | Path) -> Iterator[Row]:
    """Yield ("file:number", row) for every row of a file, a folder or a hub data set.

    Numbers count lines of a JSONL file and rows of the others, from 1. Of a folder or a hub data
    set, the files with "train" in their name are read, or all if no name says so.

    Raises: FileNotFoundError for nothing there or no file of a known kind; ValueError for an empty
    file, one that is no regular file or unpacks to too much, bytes that are not UTF-8, a line that
    is far too long, or a JSON file that cannot be read as a whole.
    """
    path = fetch(path_or_repo, PATTERNS, "dataset")
    for file in _training_files(path) if path.is_dir() else [path]:
        answers = file.parent / ANSWERS / file.name
        yield from _join_answers(file, answers) if answers.is_file() else _read_file(file)


def _join_answers(file: Path, answers: Path) -> Iterator[Row]:
    """Give every question the ground_truth of the answer with its id."""
    truths = {row.get("id"): row for _, row in _read_file(answers) if isinstance(row, dict)}
    for place, row in _read_file(file):
        if isinstance(row, dict) and row.get("id") in truths:
            row = {**row, "ground_truth": truths[row["id"]].get("ground_truth")}
        yield place, row


def _training_files(folder: Path) -> list[Path]:
    files = sorted(
        {
            file
            for pattern in PATTERNS
            for file in folder.rglob(pattern)
            if file.name != "dataset_infos.json" and file.parent.name != ANSWERS
        }
    )
    files = [file for file in files if file.suffix == ".parquet"] or files
    # Hub data sets put the split into the path: data/train-00000-of-00001.parquet
    named = [file for file in files if "train" in str(file.relative_to(folder)).lower()]
    if not files:
        raise FileNotFoundError(
            f"{folder}: expected Parquet, JSONL or JSON files in the folder, got none"
        )
    return named or files


def _read_file(file: Path) -> Iterator[Row]:
    rows: Iterable[Row]
    try:
        if file.suffix == ".parquet":
            numbered = enumerate(read_parquet(file), start=1)
            rows = ((f"{file.name}:{number}", row) for number, row in numbered)
        else:
            check_regular(file, MAX_BYTES)
            rows = _read_json(file) if file.suffix == ".json" else _read_lines(file)
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: expected UTF-8, got {error}; convert the file") from None
    # A generator, so emptiness shows only at its end
    is_empty = True
    for row in rows:
        is_empty = False
        yield row
    if is_empty:
        raise ValueError(f"{file}: expected at least one row, got an empty file")


def _open(file: Path) -> TextIO:
    # "-sig" skips the byte order mark that some editors write
    return file.open(encoding="utf-8-sig")


def _read_lines(file: Path) -> Iterable[Row]:
    """Read JSON lines; one that is no JSON object comes as it is, and `parse_row` says why."""
    rows: list[Row] = []
    with _open(file) as lines:
        # Not `for line in lines`: a line without an end would be all of the file. Nor splitlines:
        # JSON strings may hold U+2028 and other characters that it takes for line ends
        for number, line in enumerate(iter(lambda: lines.readline(MAX_LINE + 1), ""), start=1):
            if not line.strip():
                continue
            place = f"{file.name}:{number}"
            if len(line) > MAX_LINE:
                # Where the next row begins is not known: what follows is the rest of this line
                problem = f"expected a line of at most {MAX_LINE} characters, got a longer one"
                raise ValueError(f"{place}: {problem}; end each row with a newline")
            try:
                row = json.loads(line, object_pairs_hook=unique_keys)
            except (ValueError, RecursionError):
                row = None  # no JSON, a key twice, a depth or a number that is refused
            rows.append((place, row if isinstance(row, dict) else line.rstrip("\r\n")))
    return rows


def _read_json(file: Path) -> Iterable[Row]:
    """Read a JSON array, an object with one list of rows, or JSON lines that are named .json."""
    with _open(file) as source:
        text = source.read()
    if not text.strip():
        return []
    try:
        data = json.loads(text, object_pairs_hook=unique_keys)
    except LiteralError as error:
        # Which row it is cannot be known here; lines of JSON lose only that row
        raise ValueError(f"{file}: {error}; {error.hint}") from None
    except json.JSONDecodeError as error:
        # More than one value: lines of JSON under the wrong name
        if error.msg == "Extra data":
            return _read_lines(file)
        raise ValueError(
            f"{file}:{error.lineno}: expected JSON, got {error.msg}; repair the file"
        ) from None
    except (ValueError, RecursionError):
        raise ValueError(
            f"{file}: expected JSON without numbers of thousands of digits and hundreds of nested "
            "levels, got some; write the rows as JSON lines, of which only the bad ones are dropped"
        ) from None
    if isinstance(data, dict) and not _ROW_KEYS & set(data):
        lists = [value for value in data.values() if isinstance(value, list)]
        if len(lists) != 1:
            problem = f"expected an object with one list of rows, got {len(lists)} lists"
            raise ValueError(f"{file}: {problem}; give an array")
        data = lists[0]
    rows = data if isinstance(data, list) else [data]
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            problem = f"expected a JSON object, got {shorten(repr(row))}; repair the row"
            raise ValueError(f"{file.name}:{number}: {problem}")
    return [(f"{file.name}:{number}", row) for number, row in enumerate(rows, start=1)]
