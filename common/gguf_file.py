"""A GGUF file: its fields, and its tensors as float32 numbers, read through a mapping of the file.

Separate because the configuration, the weights and the tokenizer of a model are all read from this
one file. The header is read here and not by the `gguf` package, whose reader takes 16 s for the
three arrays of Gemma 3's 262,144 pieces; the package turns quantized weights into numbers.
Source: the specification, github.com/ggml-org/ggml/blob/master/docs/gguf.md, version 3.
"""

import mmap
import struct
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.json_file import check_regular, show

MAX_BYTES = 1 << 40
MAX_ENTRIES = 1 << 24  # fields, tensors, elements of an array: no vocabulary has more
MAX_TEXT = 1 << 24
# struct's letters by the file's numbers of types; 8 is a text, 9 an array.
SCALARS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
TEXT, ARRAY, FLOAT32 = 8, 9, 6
SLICE = 1 << 22  # numbers that are unpacked at a time: the rest stays as it is in the file


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies: its shape as PyTorch has it, its type by number, its first byte."""

    shape: tuple[int, ...]
    kind: int
    offset: int


@dataclass
class GGUFFile:
    """The file at `path`; arrays among the fields are lists.

    Raises: ValueError for anything but a whole GGUF file of version 2 or 3.
    """

    path: Path
    fields: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Entry] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if check_regular(self.path, MAX_BYTES) == 0:
            raise self._broken("got an empty file")
        with self.path.open("rb") as file:
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._at = 0
        try:
            self._read_header()
        except struct.error:
            raise self._broken("it ends inside its header") from None

    def _broken(self, problem: str) -> ValueError:
        return ValueError(f"{self.path}: not a readable GGUF file ({problem}); download it again")

    def _read_header(self) -> None:
        magic, version, num_tensors, num_fields = self._take("4sIQQ")
        if magic != b"GGUF" or version not in (2, 3):
            raise self._broken(f"it begins with {show(magic)}, version {version}")
        for count in (num_tensors, num_fields):
            if count > MAX_ENTRIES:
                raise self._broken(f"it names {count} entries")
        for _ in range(num_fields):
            name = self._text()
            self.fields[name] = self._value(self._take("I")[0])
        tensors = {}
        for _ in range(num_tensors):
            name = self._text()
            (rank,) = self._take("I")
            if rank > 4:
                raise self._broken(f"{show(name)} has {rank} dimensions")
            shape = self._take(f"{rank}Q")[::-1]  # the innermost comes first in the file
            kind, offset = self._take("IQ")
            tensors[name] = Entry(shape, kind, offset)
        # The tensors begin at the next multiple of this, and their offsets count from there.
        step = self.fields.get("general.alignment", 32)
        if type(step) is not int or step < 1:
            raise self._broken(f"its alignment is {show(step)}")
        start = -(-self._at // step) * step
        self.tensors = {
            name: Entry(e.shape, e.kind, start + e.offset) for name, e in tensors.items()
        }

    def _take(self, form: str) -> tuple[Any, ...]:
        values = struct.unpack_from("<" + form, self._bytes, self._at)
        self._at += struct.calcsize("<" + form)
        return values

    def _text(self) -> str:
        (length,) = self._take("Q")
        if length > MAX_TEXT:
            raise self._broken(f"it has a text of {length} bytes")
        (raw,) = self._take(f"{length}s")
        try:
            return str(raw, "utf-8")
        except UnicodeDecodeError:
            raise self._broken(f"{show(raw)} is not UTF-8") from None

    def _value(self, kind: int) -> Any:
        if kind == TEXT:
            return self._text()
        if kind == ARRAY:
            return self._array()
        if kind not in SCALARS:
            raise self._broken(f"it has a field of type {kind}")
        (value,) = self._take(SCALARS[kind])
        # 1e-6 and not 9.99999997e-7: the shortest number that is this one in float32.
        return float(str(np.float32(value))) if kind == FLOAT32 else value

    def _array(self) -> list[Any]:
        kind, count = self._take("IQ")
        if count > MAX_ENTRIES or kind == ARRAY:
            raise self._broken(f"it has an array of {count} entries of type {kind}")
        if kind == TEXT:
            return [self._text() for _ in range(count)]
        if kind not in SCALARS:
            raise self._broken(f"it has an array of type {kind}")
        return list(self._take(f"{count}{SCALARS[kind]}"))

    def require(self, name: str, kind: type) -> Any:
        """A field that must be there and of a type (int, float, str, list).

        Raises: ValueError naming it.
        """
        value = self.fields.get(name)
        # Not isinstance: True is an int, and no size.
        if type(value) is not kind:
            got = "none" if name not in self.fields else show(value)
            raise ValueError(
                f"{self.path}: expected a field {name} ({kind.__name__}), got {got}; "
                "give a GGUF file as llama.cpp's converter writes it"
            )
        return value

    def tensor(self, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
        """A tensor's numbers in `dtype`, on the CPU; some rows at a time are float32 before.

        Raises: ValueError without the `gguf` package, for a quantization that it does not know, and
        where the file ends before the tensor does.
        """
        dequantize, sizes, kinds = _package(self.path)
        entry = self.tensors[name]
        kind = kinds.get(entry.kind)
        if kind is None:
            raise self._unknown(name, f"number {entry.kind}")
        block, nbytes = sizes[kind]
        width = max((1, *entry.shape[-1:]))  # without numbers: no rows; a lone number: one
        rows, row_bytes = prod(entry.shape) // width, width // block * nbytes
        if width % block or entry.offset + rows * row_bytes > len(self._bytes):
            raise self._broken(f"{name} does not fit: it ends before its {rows} rows of {width} do")
        raw = np.frombuffer(self._bytes, np.uint8, rows * row_bytes, entry.offset)
        raw = raw.reshape(rows, row_bytes)
        result = torch.empty(rows, width, dtype=dtype)
        for first in range(0, rows, step := max(1, SLICE // width)):
            part = slice(first, first + step)
            try:
                numbers = dequantize(raw[part], kind)
            except NotImplementedError:
                raise self._unknown(name, kind.name) from None
            # A copy: numbers that were no others in the file are a view of it.
            result[part] = torch.from_numpy(np.array(numbers).reshape(-1, width))
        return result.view(entry.shape)

    def _unknown(self, name: str, kind: str) -> ValueError:
        return ValueError(
            f"{self.path}: {name} has the quantization {kind}, which the gguf package cannot turn "
            "into numbers; give a file with others, such as F16, Q8_0 or Q4_K"
        )


def is_gguf(path: Path) -> bool:
    """True for the name of a GGUF file."""
    return path.suffix.lower() == ".gguf"


def _package(path: Path) -> tuple[Any, dict[Any, tuple[int, int]], dict[int, Any]]:
    """How to dequantize, the sizes of a block by type (numbers, bytes), and the types by number."""
    try:
        import gguf
    except ImportError:
        raise ValueError(
            f"{path}: reading GGUF takes the gguf package, which is not installed; "
            "install it with `pip install gguf`"
        ) from None
    kinds = {int(kind): kind for kind in gguf.GGML_QUANT_SIZES}
    return gguf.dequantize, gguf.GGML_QUANT_SIZES, kinds
