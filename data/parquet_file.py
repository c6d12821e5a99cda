"""Rows of a Parquet file, in batches, none of which is unpacked before it is known how large it is.

Separate because a Parquet file can hold a million equal rows in a few bytes: what it unpacks to
must be bounded by more than its size on disk. The footer bounds the number of values
(parquet_footer.py); texts are read as dictionaries, where an equal text lies in memory once, and
their lengths are added up before any is copied.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.json_file import check_regular
from data.parquet_footer import EXPANSION, FREE, ROW, VALUE, too_large

MAX_BYTES = 1 << 40
_BATCH_ROWS, _BATCH_BYTES = 256, 512 << 20
_SECONDS = 120  # for a footer


def read_parquet(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a Parquet file.

    Raises: ValueError for anything but a Parquet file, and for one that unpacks to far more than
    its own size.
    """
    import pyarrow  # here, because only this kind of file needs it
    import pyarrow.parquet

    budget = FREE + EXPANSION * check_regular(file, MAX_BYTES)
    texts = _text_columns(file, budget)
    try:
        source = pyarrow.parquet.ParquetFile(file, read_dictionary=texts)
        for batch in source.iter_batches(batch_size=_BATCH_ROWS):
            size = sum(_unpacked(column) for column in batch.columns)
            budget -= size + ROW * len(batch)
            if budget < 0 or size > _BATCH_BYTES:
                raise ValueError(f"{file}: {too_large()}")
            yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError, OverflowError) as error:
        got = " ".join(str(error).split())
        raise ValueError(f"{file}: expected a Parquet file, got {got}; download it again") from None


def _text_columns(file: Path, budget: int) -> list[str]:
    """The columns of text, once the footer was found sound by a process of its own: pyarrow ends
    the process at some broken footers, where it should raise.
    """
    # An absolute path: the process runs in the repository's root, where -m finds the package
    command = [sys.executable, "-m", "data.parquet_footer", str(file.resolve()), str(budget)]
    root = Path(__file__).parents[1]
    try:
        done = subprocess.run(command, capture_output=True, cwd=root, timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        raise ValueError(f"{file}: its footer took over {_SECONDS} s; download it again") from None
    said = done.stderr.decode("utf-8", "replace").strip()
    if done.returncode == 2:
        raise ValueError(f"{file}: {said}")
    if done.returncode:
        raise ValueError(
            f"{file}: expected a Parquet file, got a footer that pyarrow fails at; "
            "download it again"
        )
    columns: list[str] = json.loads(done.stdout)
    return columns


def _unpacked(array: Any) -> int:
    """The bytes that an Arrow array's values would take with every text written out."""
    import pyarrow.compute

    types = pyarrow.types
    if types.is_dictionary(array.type):
        lengths = pyarrow.compute.binary_length(array.dictionary).take(array.indices)
        return int(pyarrow.compute.sum(lengths).as_py() or 0) + VALUE * len(array)
    if types.is_struct(array.type):
        return sum(_unpacked(array.field(i)) for i in range(array.type.num_fields))
    if types.is_map(array.type):
        return _unpacked(array.keys) + _unpacked(array.items)
    if types.is_list(array.type) or types.is_large_list(array.type):
        # Not .values, which ignores where a slice begins and ends, and would count too much
        return _unpacked(array.flatten()) + VALUE * len(array)
    return int(array.nbytes)
