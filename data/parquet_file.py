"""Rows of a Parquet file, in batches, none of which is unpacked before it is known how large it is.

Separate because a Parquet file can hold a million equal rows in a few bytes: what it unpacks to
must be bounded by more than its size on disk. The footer bounds the number of values; texts are
read as dictionaries, where an equal text lies in memory once, and their lengths are added up before
any is copied.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.json_file import check_regular

MAX_BYTES = 1 << 40
# A file may unpack to this much, and to that many times its own size; real data sets compress to a
# tenth, seldom to a thirtieth.
_FREE, _EXPANSION = 64 << 20, 100
_ROW, _VALUE = 1024, 8  # what a row and a value count for at least, in bytes
_BATCH_ROWS, _BATCH_BYTES = 256, 512 << 20
_MAX_LEVELS = 64


def read_parquet(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a Parquet file.

    Raises: ValueError for anything but a Parquet file, and for one that unpacks to far more than
    its own size.
    """
    import pyarrow  # here, because only this kind of file needs it
    import pyarrow.parquet

    budget = _FREE + _EXPANSION * check_regular(file, MAX_BYTES)
    try:
        # The footer alone; it names the columns of text for the second, real opening
        footer = pyarrow.parquet.ParquetFile(file)
        columns = [footer.schema.column(i) for i in range(len(footer.schema))]
        _check_footer(file, footer.metadata, columns, budget)
        texts = [column.path for column in columns if column.physical_type == "BYTE_ARRAY"]
        source = pyarrow.parquet.ParquetFile(file, read_dictionary=texts)
        for batch in source.iter_batches(batch_size=_BATCH_ROWS):
            size = sum(_unpacked(column) for column in batch.columns)
            budget -= size + _ROW * len(batch)
            if budget < 0 or size > _BATCH_BYTES:
                raise ValueError(_too_large(file))
            yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError, OverflowError) as error:
        got = " ".join(str(error).split())
        raise ValueError(f"{file}: expected a Parquet file, got {got}; download it again") from None


def _check_footer(file: Path, metadata: Any, columns: list[Any], budget: int) -> None:
    if any(column.max_definition_level > _MAX_LEVELS for column in columns):
        raise ValueError(f"{file}: expected columns of at most {_MAX_LEVELS} levels, got more")
    size = _ROW * metadata.num_rows
    for group in range(metadata.num_row_groups):
        for place, column in enumerate(columns):
            chunk = metadata.row_group(group).column(place)
            # A text's own length is added when it is read; 0 is the length of any other type
            values = chunk.num_values * max(_VALUE, column.length)
            size += max(values, chunk.total_uncompressed_size)
    if size > budget:
        raise ValueError(_too_large(file))


def _too_large(file: Path) -> str:
    return (
        f"{file}: expected rows that unpack to at most {_FREE >> 20} MB and {_EXPANSION} times the "
        "file's size, got more; write them as JSON lines, or split the file"
    )


def _unpacked(array: Any) -> int:
    """The bytes that an Arrow array's values would take with every text written out."""
    import pyarrow.compute

    types = pyarrow.types
    if types.is_dictionary(array.type):
        lengths = pyarrow.compute.binary_length(array.dictionary).take(array.indices)
        return int(pyarrow.compute.sum(lengths).as_py() or 0) + _VALUE * len(array)
    if types.is_struct(array.type):
        return sum(_unpacked(array.field(i)) for i in range(array.type.num_fields))
    if types.is_map(array.type):
        return _unpacked(array.keys) + _unpacked(array.items)
    if types.is_list(array.type) or types.is_large_list(array.type):
        return _unpacked(array.flatten()) + _VALUE * len(array)
    return int(array.nbytes)
