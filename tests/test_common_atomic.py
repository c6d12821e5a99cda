"""common/atomic.py: a stop leaves the old file; tensors may come out of the file they replace."""

import stat
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from common import atomic
from common.atomic import write_tensors, write_text


def test_a_text_is_replaced_and_no_partial_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    write_text(path, "old")
    write_text(path, "new \u00fc\n")
    assert path.read_bytes() == "new \u00fc\n".encode()
    assert [file.name for file in tmp_path.iterdir()] == ["config.json"]


def test_a_stop_in_the_middle_leaves_the_old_text(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):  # half a surrogate pair: fails while writing
        write_text(path, "new \ud800")
    assert path.read_text(encoding="utf-8") == "old"


def test_a_stop_in_the_middle_leaves_the_old_tensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(tensors: dict[str, torch.Tensor], path: Path, metadata: None) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    path = tmp_path / "x.safetensors"
    write_tensors(path, {"x": torch.ones(3)})
    monkeypatch.setattr(atomic, "save_file", half)
    with pytest.raises(KeyboardInterrupt):
        write_tensors(path, {"x": torch.zeros(3)})
    assert torch.equal(load_file(path)["x"], torch.ones(3))


def test_tensors_may_be_the_mapped_content_of_the_file_they_replace(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    values = torch.arange(100_000, dtype=torch.float32)
    write_tensors(path, {"x": values, "y": values + 1}, metadata={"format": "pt"})
    mapped = load_file(path)
    write_tensors(path, {"y": mapped["x"], "x": mapped["y"]}, metadata={"format": "pt"})
    again = load_file(path)
    assert torch.equal(again["x"], values + 1) and torch.equal(again["y"], values)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644  # not only the owner reads it


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's full device")
def test_a_full_disk_is_a_sentence_that_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "config.json.partial").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"config\.json: could not be written .*No space left"):
        write_text(tmp_path / "config.json", "{}")
    assert not (tmp_path / "config.json").exists()


def test_tensors_for_which_there_is_no_room_name_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device")

    monkeypatch.setattr(atomic, "save_file", full)
    with pytest.raises(OSError, match=r"x\.safetensors: could not be written .*No space left"):
        write_tensors(tmp_path / "x.safetensors", {"x": torch.ones(3)})
