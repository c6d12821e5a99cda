"""Files of rows -> (place, row) pairs: JSONL, JSON and Parquet, from this machine or the hub.

Separate because it knows formats of files and nothing of conversations.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from common.hub import fetch
from data.lenient_json import shorten

Row = tuple[str, dict[str, Any]]  # "file:line", object
# Parquet first: a repository that has the same rows in two formats is read from the faster one
PATTERNS = ["*.parquet", "*.jsonl", "*.ndjson", "*.json"]
_SHOWN = 5  # a broken file has as many problems as lines


def read_rows(path_or_repo: str | Path) -> Iterator[Row]:
    """Yield ("file:number", row) for every row of a file, a folder or a hub data set.

    Numbers count lines of a JSONL file and rows of the others, from 1. Of a folder or a hub data
    set, the files with "train" in their name are read, or all if no name says so.

    Raises: FileNotFoundError for nothing there or no file of a known kind; ValueError for an empty
    file, bytes that are not UTF-8, or lines that are no JSON objects (the first ones are named).
    """
    path = fetch(path_or_repo, PATTERNS, "dataset")
    for file in _training_files(path) if path.is_dir() else [path]:
        yield from _read_file(file)


def _training_files(folder: Path) -> list[Path]:
    files = sorted(
        {
            file
            for pattern in PATTERNS
            for file in folder.rglob(pattern)
            if file.name != "dataset_infos.json"
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
    if file.suffix == ".parquet":
        rows = _read_parquet(file)
    else:
        try:
            # "-sig" skips the byte order mark that some editors write
            text = file.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"{file}: expected UTF-8, got {error}; convert the file") from None
        rows = _read_json(file, text) if file.suffix == ".json" else _read_lines(file, text)
    # A generator, so emptiness shows only at its end
    is_empty = True
    for row in rows:
        is_empty = False
        yield row
    if is_empty:
        raise ValueError(f"{file}: expected at least one row, got an empty file")


def _read_lines(file: Path, text: str) -> Iterable[Row]:
    """Read JSON lines, all before the first is returned, so that a cut file is noticed at once."""
    rows: list[Row] = []
    broken: list[str] = []
    # split, not splitlines: JSON strings may hold U+2028 and other characters that Python takes for
    # line ends
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        place = f"{file.name}:{number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            broken.append(f"{place}: expected a JSON object, got {shorten(line)} ({error})")
            continue
        if isinstance(row, dict):
            rows.append((place, row))
        else:
            broken.append(f"{place}: expected a JSON object, got {shorten(line)}")
    if broken:
        more = f"\nand {len(broken) - _SHOWN} more broken lines" if len(broken) > _SHOWN else ""
        raise ValueError("\n".join(broken[:_SHOWN]) + more + "\nrepair or remove them")
    return rows


def _read_json(file: Path, text: str) -> Iterable[Row]:
    """Read a JSON array, an object with one list of rows, or JSON lines that are named .json."""
    if not text.strip():
        return []
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        # More than one value: lines of JSON under the wrong name
        if error.msg == "Extra data":
            return _read_lines(file, text)
        raise ValueError(
            f"{file}:{error.lineno}: expected JSON, got {error.msg}; repair the file"
        ) from None
    if isinstance(data, dict) and not {"conversations", "messages"} & set(data):
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


def _read_parquet(file: Path) -> Iterator[Row]:
    import pyarrow  # here, because only this kind of file needs it
    import pyarrow.parquet

    try:
        source = pyarrow.parquet.ParquetFile(file)
        number = 0
        # In batches: a file of gigabytes is never in memory as Python objects at once
        for batch in source.iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                yield f"{file.name}:{number}", row
    except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError, OSError) as error:
        raise ValueError(
            f"{file}: expected a Parquet file, got {error}; download it again"
        ) from None
