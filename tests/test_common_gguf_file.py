"""A GGUF file byte by byte, as its specification has it, and what is refused in one."""

import struct
from pathlib import Path
from typing import Any

import pytest
import torch

from common.gguf_file import GGUFFile, is_gguf

Field = tuple[str, int, bytes]  # name, number of the type, value
FLOAT, TEXT, ARRAY = 6, 8, 9


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def tensor(name: str, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    """An entry of the header; the innermost size comes first."""
    sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
    return text(name) + sizes + struct.pack("<IQ", kind, offset)


def write(
    folder: Path,
    fields: list[Field] = [],  # noqa: B006  (nothing changes it)
    tensors: list[bytes] = [],  # noqa: B006
    *,
    counts: tuple[int, int] | None = None,
    data: bytes = b"",
    step: int = 32,
) -> Path:
    """A file of version 3: its header, zeros up to a multiple of `step`, then the data."""
    num_tensors, num_fields = counts or (len(tensors), len(fields))
    raw = b"GGUF" + struct.pack("<IQQ", 3, num_tensors, num_fields)
    for name, kind, value in fields:
        raw += text(name) + struct.pack("<I", kind) + value
    raw += b"".join(tensors)
    path = folder / "m.gguf"
    path.write_bytes(raw + bytes(-len(raw) % step) + data)
    return path


SCALARS: list[tuple[int, str, Any]] = [
    *((0, "B", 200), (1, "b", -3), (2, "H", 60_000), (3, "h", -300), (4, "I", 4 * 10**9)),
    *((5, "i", -5), (7, "?", True), (10, "Q", 2**63 + 1), (11, "q", -(2**40)), (12, "d", 0.1)),
]


def test_every_type_of_field(tmp_path: Path) -> None:
    fields = [(f"one {kind}", kind, struct.pack("<" + form, v)) for kind, form, v in SCALARS]
    fields += [
        (f"two {kind}", ARRAY, struct.pack(f"<IQ2{form}", kind, 2, value, value))
        for kind, form, value in SCALARS
    ]
    fields += [
        ("float", FLOAT, struct.pack("<f", 1e-6)),
        ("text", TEXT, text("é")),
        ("texts", ARRAY, struct.pack("<IQ", TEXT, 2) + text("a") + text("")),
        ("none", ARRAY, struct.pack("<IQ", TEXT, 0)),
    ]
    expected = {f"one {kind}": value for kind, _, value in SCALARS}
    expected |= {f"two {kind}": [value, value] for kind, _, value in SCALARS}
    # 1e-6 and not 9.99999997e-7, which is what the four bytes are in float64.
    expected |= {"float": 1e-6, "text": "é", "texts": ["a", ""], "none": []}
    file = GGUFFile(write(tmp_path, fields))
    assert file.fields == expected and file.fields["one 7"] is True
    assert file.require("text", str) == "é" and file.require("two 4", list) == [4 * 10**9] * 2
    for name, got in (("one 7", "got True"), ("gone", "got none"), ("text", "got 'é'")):
        with pytest.raises(ValueError, match=rf"m.gguf: expected a field {name} \(int\), {got}"):
            file.require(name, int)


@pytest.mark.parametrize("step", [32, 64, 8])
def test_tensors_begin_at_a_multiple_of_the_alignment(tmp_path: Path, step: int) -> None:
    pytest.importorskip("gguf")
    alignment = [("general.alignment", 4, struct.pack("<I", step))] if step != 32 else []
    # Of a header that is this long each alignment has another next multiple.
    fields = [*alignment, ("x", TEXT, text("x" * 20))]
    shapes: dict[str, tuple[int, ...]] = {
        "row": (3,),
        "one": (),
        "none": (2, 0),
        "four": (1, 2, 1, 3),
    }
    places = {"row": 0, "one": 12, "none": 16, "four": 16}
    entries = [tensor(name, shape, 0, places[name]) for name, shape in shapes.items()]
    data = struct.pack("<3ff6f", 1, 2, 3, 4, *range(6))
    file = GGUFFile(write(tmp_path, fields, entries, data=data, step=step))
    numbers = {name: file.tensor(name) for name in shapes}
    assert {name: tuple(found.shape) for name, found in numbers.items()} == shapes
    assert numbers["row"].tolist() == [1, 2, 3] and numbers["one"].item() == 4
    assert torch.equal(numbers["four"], torch.arange(6.0).view(1, 2, 1, 3))  # up to the last byte
    assert file.tensors["one"].offset % step == 12 % step


def test_a_row_longer_than_a_slice_is_one_slice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gguf")
    monkeypatch.setattr("common.gguf_file.SLICE", 4)
    data = struct.pack("<18f", *range(18))
    file = GGUFFile(write(tmp_path, [], [tensor("t", (3, 6), 0, 0)], data=data))
    assert torch.equal(file.tensor("t"), torch.arange(18.0).view(3, 6))


def array(kind: int, count: int, *values: bytes) -> list[Field]:
    return [("x", ARRAY, struct.pack("<IQ", kind, count) + b"".join(values))]


@pytest.mark.parametrize(
    ("parts", "problem"),
    [
        ({"counts": (2**40, 0)}, "it names 1099511627776 entries"),
        ({"counts": (0, 2**24 + 1)}, "it names 16777217 entries"),
        ({"counts": (0, 1)}, "it ends inside its header"),
        ({"tensors": [tensor("t", (1,) * 5, 0, 0)]}, "'t' has 5 dimensions"),
        ({"fields": [("x", TEXT, struct.pack("<Q", 2**60))]}, f"it has a text of {2**60} bytes"),
        ({"fields": [("x", TEXT, text(b"\xff"))]}, r"b'\\xff' is not UTF-8"),
        ({"fields": [("x", 13, b"")]}, "it has a field of type 13"),
        ({"fields": array(13, 1)}, "it has an array of type 13"),
        ({"fields": array(ARRAY, 1)}, "it has an array of 1 entries of type 9"),
        ({"fields": array(0, 2**50)}, f"it has an array of {2**50} entries of type 0"),
        ({"fields": [("general.alignment", 4, struct.pack("<I", 0))]}, "its alignment is 0"),
        ({"fields": [("general.alignment", TEXT, text("a"))]}, "its alignment is 'a'"),
    ],
)
def test_what_is_no_header_is_one_sentence(
    tmp_path: Path, parts: dict[str, Any], problem: str
) -> None:
    path = write(tmp_path, **parts)
    with pytest.raises(ValueError) as caught:
        GGUFFile(path)
    expected = problem.replace("\\\\", "\\")
    assert str(caught.value) == (
        f"{path}: not a readable GGUF file ({expected}); download it again"
    )


def test_a_tensor_that_does_not_fit_is_one_sentence(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    q8_0 = 8  # 32 numbers in 34 bytes
    entries = [
        tensor("odd", (2, 33), q8_0, 0),
        tensor("long", (2, 64), q8_0, 34),
        tensor("whole", (1, 64), q8_0, 0),
    ]
    file = GGUFFile(write(tmp_path, [], entries, data=bytes(68 + 34)))
    for name, shape in (("odd", "2 rows of 33"), ("long", "2 rows of 64")):
        with pytest.raises(ValueError, match=f"{name} does not fit: it ends before its {shape} do"):
            file.tensor(name)
    assert torch.equal(file.tensor("whole"), torch.zeros(1, 64))


def test_the_name_says_that_it_is_such_a_file() -> None:
    assert is_gguf(Path("a/m.gguf")) and is_gguf(Path("M.GGUF"))
    assert not is_gguf(Path("gguf")) and not is_gguf(Path("m.gguf.part"))
