"""Files written in one step: a reader of the path finds the old content or the new, never half.

Separate because models, adapters, tokenizers and run folders all replace what an earlier run left,
and a run may be stopped at any moment.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

PARTIAL = ".partial"  # ends the name of a file that is being written


def write_text(path: Path, text: str) -> None:
    """Replaces `path` by a UTF-8 file with this text."""
    replace_file(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Replaces `path` by a safetensors file of contiguous tensors, no two of which share memory.

    They may be the memory-mapped content of the very file that is replaced. Transformers expects
    the `metadata` {"format": "pt"} in a file of weights.
    """

    def write(partial: Path) -> None:
        save_file(dict(tensors), partial, metadata=metadata)
        partial.chmod(0o644)  # safetensors makes a file that only its owner can read

    replace_file(path, write)


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Replaces `path` by the file that `write` makes at the path it is given.

    Raises: OSError that names the file, where the disk is full or fails.
    """
    # In the same folder: a rename is one step only inside one file system.
    partial = path.with_name(path.name + PARTIAL)
    try:
        write(partial)
        flush(partial)
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        if getattr(error, "filename", None):
            raise
        # What fails while it writes names no file by itself.
        raise OSError(f"{path}: could not be written ({error})") from error


def flush(path: Path) -> None:
    """Waits until the content of a file is on the disk.

    Before a rename, because a power cut may otherwise leave the new name with nothing in it.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
