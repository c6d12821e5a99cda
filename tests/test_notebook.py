"""docs/course.ipynb: its outputs are those of its code, and the program that runs it."""

import ast
import base64
import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import notebook
from benchmarks.notebook import DIGEST, NOTEBOOK, ROOT, code_digest, main

CONTENT: dict[str, Any] = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
CODE = [cell for cell in CONTENT["cells"] if cell["cell_type"] == "code"]
OUTPUTS = [output for cell in CODE for output in cell["outputs"]]


def test_the_committed_outputs_are_those_of_the_committed_code() -> None:
    assert CONTENT["metadata"][DIGEST] == code_digest(CONTENT), "run python -m benchmarks.notebook"
    # From top to bottom, in one go, and without an error.
    assert [cell["execution_count"] for cell in CODE] == list(range(1, len(CODE) + 1))
    kinds = {output["output_type"] for cell in CODE for output in cell["outputs"]}
    assert kinds <= {"stream", "display_data", "execute_result"}
    errors = [
        output for cell in CODE for output in cell["outputs"] if output.get("name") == "stderr"
    ]
    assert not errors


def test_it_has_pictures_and_no_path_of_the_machine_that_ran_it() -> None:
    outputs = [output for cell in CODE for output in cell["outputs"]]
    pictures = [
        output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", {})
    ]
    assert len(pictures) >= 5
    assert all(base64.b64decode(picture).startswith(b"\x89PNG") for picture in pictures)
    text = "".join("".join(output.get("text", "")) for output in outputs)
    assert "loss" in text and not any(place in text for place in ("/root", "/tmp", str(ROOT)))


def test_it_is_a_valid_notebook() -> None:
    nbformat = pytest.importorskip("nbformat")
    nbformat.validate(nbformat.from_dict(CONTENT))
    assert NOTEBOOK.stat().st_size < 1_000_000


def test_everything_that_it_imports_is_there() -> None:
    """What a changed name would break, found without running it."""
    trees = [ast.parse("".join(cell["source"])) for cell in CODE]
    imports = [
        node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)
    ]
    assert len(imports) > 15
    for node in imports:
        module = importlib.import_module(node.module or "")
        assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)


def test_the_commands_that_it_names_have_their_files() -> None:
    text = "".join("".join(c["source"]) for c in CONTENT["cells"] if c["cell_type"] == "markdown")
    words = text.replace("`", " ").split()
    files = [
        word for word in words if word.startswith(("recipes/", "docs/", "agent/", "embedded/"))
    ]
    assert len(files) >= 3 and all((ROOT / word.rstrip(").,")).exists() for word in files)


def write(path: Path, *sources: str) -> Path:
    cells = [
        {"cell_type": "code", "id": f"c{n}", "metadata": {}, "source": source, "outputs": []}
        | {"execution_count": None}
        for n, source in enumerate(sources)
    ]
    content = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_a_notebook_is_run_in_the_repository_and_a_failing_cell_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    good = write(
        tmp_path / "good.ipynb", "import os\nx = 20", "print(x + 3, os.path.exists('train.py'))"
    )
    before = good.read_bytes()
    assert main([str(good), "--check"]) == 0 and good.read_bytes() == before
    assert main([str(good)]) == 0
    found = json.loads(good.read_text())
    assert "".join(found["cells"][1]["outputs"][0]["text"]) == "23 True\n"
    assert found["metadata"][DIGEST] == code_digest(found)
    bad = write(tmp_path / "bad.ipynb", "1 / 0")
    before = bad.read_bytes()
    assert main([str(bad)]) == 1 and bad.read_bytes() == before
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_wrong_inputs_are_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main([str(tmp_path / "none.ipynb")]) == 2
    (tmp_path / "text.ipynb").write_text("no JSON")
    assert main([str(tmp_path / "text.ipynb")]) == 2
    monkeypatch.setitem(notebook.sys.modules, "nbclient", None)
    assert main([str(write(tmp_path / "a.ipynb", "1"))]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 3 and all(line.startswith("notebook: ") for line in said)
    assert "pip install -e '.[dev]'" in said[-1]
