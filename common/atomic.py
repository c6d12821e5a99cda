"""Files written in one step: a reader of the path finds the old content or the new, never half.

Separate because models, adapters, tokenizers and run folders all replace what an earlier run left,
and a run may be stopped at any moment.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor


def write_text(path: Path, text: str) -> None:
    """Replaces `path` by a UTF-8 file with this text."""
    _replace(path, lambda partial: partial.write_text(text, encoding="utf-8"))


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

    _replace(path, write)


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    # In the same folder: a rename is one step only inside one file system.
    partial = path.with_name(path.name + ".partial")
    write(partial)
    partial.replace(path)
