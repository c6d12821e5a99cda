"""The footer of a Parquet file, checked in a process of its own
(`python -m data.parquet_footer FILE BYTES`): at some broken footers pyarrow ends the process
instead of raising. Prints the columns of text; exit code 2 with a sentence for what is no such file
or claims to unpack to more than so many bytes.
"""

import json
import sys
from typing import Any

# A file may unpack to this much, and to that many times its own size; real data sets compress to a
# tenth, seldom to a thirtieth.
FREE, EXPANSION = 64 << 20, 100
ROW, VALUE = 1024, 8  # what a row and a value count for at least, in bytes
_MAX_LEVELS = 64


def check_footer(metadata: Any, columns: list[Any], budget: int) -> None:
    """Raises: ValueError for columns too deep, or values that need more than `budget` bytes."""
    if any(column.max_definition_level > _MAX_LEVELS for column in columns):
        raise ValueError(f"expected columns of at most {_MAX_LEVELS} levels, got more")
    size = ROW * metadata.num_rows
    for group in range(metadata.num_row_groups):
        for place, column in enumerate(columns):
            chunk = metadata.row_group(group).column(place)
            # A text's own length is added when it is read; 0 is the length of any other type
            values = chunk.num_values * max(VALUE, column.length)
            size += max(values, chunk.total_uncompressed_size)
    if size > budget:
        raise ValueError(too_large())


def too_large() -> str:
    """What is wrong with a file that unpacks to too much."""
    return (
        f"expected rows that unpack to at most {FREE >> 20} MB and {EXPANSION} times the "
        "file's size, got more; write them as JSON lines, or split the file"
    )


def main(path: str, budget: str) -> int:
    import pyarrow.parquet

    try:
        footer = pyarrow.parquet.ParquetFile(path)
        columns = [footer.schema.column(i) for i in range(len(footer.schema))]
        check_footer(footer.metadata, columns, int(budget))
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError, OverflowError) as error:
        got = " ".join(str(error).split())
        print(f"expected a Parquet file, got {got}; download it again", file=sys.stderr)
        return 2
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    print(json.dumps([c.path for c in columns if c.physical_type == "BYTE_ARRAY"]))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
