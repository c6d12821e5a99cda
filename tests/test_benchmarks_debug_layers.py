"""`python -m benchmarks.debug_layers`: nothing is off in sound models, and damage is found."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FAMILIES, randomize
from gguf_files import SMALL, model_fields, model_tensors, write

from benchmarks import debug_layers
from benchmarks.debug_layers import Difference, main
from model.loader import save_gemma2
from model.transformer import Gemma2

pytest.importorskip("transformers")
Printed = dict[str, list[str]]


def printed(text: str) -> Printed:
    """The lines of the table: the part's name -> the other cells."""
    rows = [line.split("│")[1:-1] for line in text.splitlines() if "│" in line]
    return {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in rows}


@pytest.fixture(params=["gemma2", "gemma3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A checkpoint of two random layers, one sliding and one full."""
    model = Gemma2(replace(FAMILIES[request.param], num_hidden_layers=2, sliding_window_pattern=2))
    randomize(model)
    save_gemma2(model, tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def damaged(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, float], None]:
    """damaged(name, factor): the parameter of that name is read wrongly from every checkpoint."""

    def damage(name: str, factor: float) -> None:
        load: Any = debug_layers.load_gemma2

        def load_wrongly(*args: Any) -> Gemma2:
            model: Gemma2 = load(*args)
            with torch.no_grad():
                model.get_parameter(name).mul_(factor)
            return model

        monkeypatch.setattr(debug_layers, "load_gemma2", load_wrongly)

    return damage


def test_the_embedded_base_is_transformers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--text", "What time is it in Oslo?"]) == 0
    table = printed(capsys.readouterr().out)
    assert [name for name in table if name.startswith("layers.")] == [
        f"layers.{number}" for number in range(6)
    ]
    assert {"embed_tokens", "norm", "logits"} <= set(table)
    assert all(float(cells[2]) < 1e-5 and not cells[3] for cells in table.values())
    assert float(table["logits"][0]) > 1  # numbers of a size at which something can be off


def test_both_families_agree_in_every_layer(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--model", str(folder), "--length", "17"]) == 0  # longer than the window of 5
    table = printed(capsys.readouterr().out)
    assert list(table) == ["embed_tokens", "layers.0", "layers.1", "norm", "logits"]


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("model.embed_tokens.weight", "embed_tokens"),
        ("model.layers.0.self_attn.v_proj.weight", "layers.0.self_attn"),
        ("model.layers.1.mlp.up_proj.weight", "layers.1.mlp"),
        ("model.layers.1.post_feedforward_layernorm.weight", "layers.1"),
        ("model.norm.weight", "norm"),
    ],
)
def test_the_first_damaged_part_is_marked(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    damaged: Callable[[str, float], None],
    name: str,
    part: str,
) -> None:
    damaged(name, 1.5)
    assert main(["--model", str(folder)]) == 1
    table = printed(capsys.readouterr().out)
    marks = {part: cells[3] for part, cells in table.items()}
    assert [name for name, mark in marks.items() if mark == "first off"] == [part]
    before = list(marks)[: list(marks).index(part)]
    assert not any(marks[name] for name in before)
    # Attention and MLP are shown where they help: in the layer that is off.
    shown = [name for name in table if name.endswith(("self_attn", "mlp"))]
    layer = part.removesuffix(".self_attn").removesuffix(".mlp")
    is_layer = part.startswith("layers.")
    assert shown == ([f"{layer}.self_attn", f"{layer}.mlp"] if is_layer else [])


def test_a_gguf_file_is_compared_too(tmp_path: Path) -> None:
    # What a GGUF file does not say, Transformers takes from the 2B model.
    like_2b: dict[str, Any] = SMALL | {"head_dim": 256, "query_pre_attn_scalar": 256}
    like_2b |= {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
    model = Gemma2(replace(FAMILIES["gemma2"], **like_2b))
    randomize(model)
    pieces = {"tokenizer.ggml.tokens": [f"<{id}>" for id in range(model.config.vocab_size)]}
    fields, tensors = model_fields(model) | pieces, model_tensors(model, "Q8_0")
    path = write(tmp_path / "model.gguf", "gemma2", fields, tensors)
    assert main(["--model", str(path)]) == 0


def test_a_number_that_is_none_is_off() -> None:
    assert Difference("norm", 1.0, float("nan"), 1e-4).is_off
    assert Difference("norm", 0.0, 1e-3, 1e-4).is_off
    assert not Difference("norm", 2.0, 1e-4, 1e-4).is_off


def test_wrong_inputs_are_one_sentence(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert main(["--model", str(tmp_path / "none")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("debug_layers: ") and said.count("\n") == 1
    assert main(["--model", str(folder), "--text", "Hi"]) == 2  # it has no tokenizer
    assert "tokenizer.json" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert main(["--model", str(folder)]) == 2
    said = capsys.readouterr().err
    assert "pip install transformers" in said and said.count("\n") == 1
