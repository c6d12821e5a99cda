"""Runs docs/course.ipynb from top to bottom, and keeps what its cells gave.

    python -m benchmarks.notebook             # writes the outputs into the notebook
    python -m benchmarks.notebook --check     # writes nothing; exit code 1 if a cell fails

A digest of the code is written beside the outputs, so that a test can tell, without running it,
that the committed outputs are those of the committed code.
"""

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.atomic import write_text
from common.cli import USER_ERRORS, Parser
from common.json_file import read_object

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "docs" / "course.ipynb"
DIGEST = "code_sha256"  # in the notebook's metadata
CELL_SECONDS = (
    1800  # the longest cell trains for some twenty on two idle cores; machines are shared
)

Notebook = dict[str, Any]


def code_digest(notebook: Notebook) -> str:
    """A digest of all code cells, in their order."""
    cells = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]
    return hashlib.sha256(json.dumps(cells).encode()).hexdigest()


def run(path: Path) -> Notebook:
    """The notebook of the file with fresh outputs, run in the repository's root, offline.

    Raises: ValueError without the libraries, or naming the cell that failed.
    """
    try:
        import nbformat
        from nbclient import NotebookClient
        from nbclient.exceptions import CellExecutionError
    except ImportError as error:
        raise ValueError(f"expected nbclient, got {error}; pip install -e '.[dev]'") from None
    content = nbformat.read(path, as_version=4)
    os.environ["HF_HUB_OFFLINE"] = "1"
    place = {"metadata": {"path": str(ROOT)}}
    client = NotebookClient(content, timeout=CELL_SECONDS, kernel_name="python3", resources=place)
    try:
        client.execute()
    except CellExecutionError as error:
        raise ValueError(f"{path}: expected cells that run, got {error}; mend it") from None
    # What the editor and the machine leave behind would change with every run.
    for cell in content["cells"]:
        cell["metadata"] = {}
    content["metadata"]["language_info"] = {"name": "python"}
    content["metadata"][DIGEST] = code_digest(content)
    done: Notebook = json.loads(nbformat.writes(content))
    return done


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser("Runs docs/course.ipynb from top to bottom, and keeps what its cells gave.")
    parser.prog = "python -m benchmarks.notebook"
    add = parser.add_argument
    add("file", type=Path, nargs="?", default=NOTEBOOK, help="default: docs/course.ipynb")
    add("--check", action="store_true", help="write nothing")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, 1 if a cell fails, 2 for a wrong input."""
    args, start = parse_args(argv), time.perf_counter()
    try:
        read_object(args.file)
        notebook = run(args.file)
    except USER_ERRORS as error:
        print(f"notebook: {error}", file=sys.stderr)
        return 1 if "expected cells that run" in str(error) else 2
    if not args.check:
        write_text(args.file, json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")
    seconds = time.perf_counter() - start
    count = sum(cell["cell_type"] == "code" for cell in notebook["cells"])
    print(f"{args.file.name}: {count} cells in {seconds:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
