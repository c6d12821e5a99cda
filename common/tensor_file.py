"""The header of a safetensors file: what its tensors are, before one of them is read.

Separate because a base and an adapter are both compared by their shapes before memory is asked for.
"""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

FLOATS = ("F32", "F16", "BF16")
Headers = dict[str, tuple[tuple[int, ...], str]]  # shape and type ("F32", "BF16", ...) by name


def open_tensors(file: Path, device: str = "cpu") -> Any:
    """A reader of the file's tensors, to be used in a `with`.

    Raises: ValueError for anything but a safetensors file.
    """
    try:
        return safe_open(file, framework="pt", device=device)
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{file}: not a readable safetensors file ({error}); download it again"
        ) from error


def read_headers(*files: Path) -> Headers:
    """What the files say of every tensor; reads no data.

    Raises: ValueError as `open_tensors`.
    """
    headers: Headers = {}
    for file in files:
        with open_tensors(file) as reader:
            for name in reader.keys():  # noqa: SIM118 (the reader is no dict)
                entry = reader.get_slice(name)
                headers[name] = (tuple(entry.get_shape()), entry.get_dtype())
    return headers
