"""What a run is made of, as checksums: a resumed run must meet the same rows and the same base."""

import hashlib
import json
import threading
from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from common.gguf_file import is_gguf
from data.chat import Example
from model.loader import checkpoint_files


def file_digest(path: Path) -> str:
    """The sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def json_digest(content: Any) -> str:
    """The sha256 of anything JSON can hold, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def rows_digest(examples: Iterable[Example]) -> str:
    """The sha256 of rows as the model meets them: token ids and which of them it learns, in order.

    So a file may move or be compressed, but a changed row, another order, another split or another
    way of rendering is seen.
    """
    digest = hashlib.sha256()
    for example in examples:
        # The length first: the same ids cut into other rows are other rows.
        digest.update(len(example.tokens).to_bytes(8, "little"))
        digest.update(array("q", example.tokens).tobytes())
        digest.update(bytes(example.trainable))
    return digest.hexdigest()


class BaseDigest:
    """The sha256 of a base's configuration and weights, taken in a thread.

    All of it, because a sample sees only the changes that it happens to hit. A thread, because the
    5 GB of Gemma-2-2B take seconds that loading and the first steps need anyway: hashing releases
    Python's lock, and the files are in the page cache for the loader.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._found, self._error = folder, "", ""
        # A daemon: a run that ends early does not wait for it.
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def result(self) -> str:
        """Waits for the thread. Raises: OSError for a file that has become unreadable."""
        self._thread.join()
        if self._error:
            raise OSError(f"{self.folder}: the base could not be read again ({self._error})")
        return self._found

    def _run(self) -> None:
        try:
            files = _weight_files(self.folder)
            self._found = json_digest([(file.name, file_digest(file)) for file in files])
        except (OSError, ValueError) as error:
            self._error = str(error)  # the loader meets it too, and says it better


def _weight_files(folder: Path) -> list[Path]:
    """The files that the loader reads; `folder` may be a GGUF file, which has everything."""
    if is_gguf(folder):
        return [folder]
    return [folder / "config.json", *checkpoint_files(folder)]
