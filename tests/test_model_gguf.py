"""GGUF against the same weights from safetensors, bit for bit; what such a file may not be."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import train
from common.gguf_file import GGUFFile
from model.config import Gemma2Config
from model.loader import load_gemma2, save_gemma2
from model.transformer import Gemma2

gguf = pytest.importorskip("gguf")
from gguf_files import SMALL, Fields, model_fields, model_tensors, write  # noqa: E402

Make = Callable[..., Gemma2]
Change = Callable[[Fields, dict[str, Any]], object]


@pytest.fixture(params=["gemma2", "gemma3"])
def family(request: pytest.FixtureRequest) -> str:
    """Every test here holds for both."""
    return str(request.param)


def make_small(make_model: Make, **changes: Any) -> Gemma2:
    """A model that such a file can describe: Gemma 3's pattern and second base have no fields."""
    model = make_model()
    gemma3: dict[str, Any] = {"sliding_window_pattern": 6, "rope_local_base_freq": 1e4}
    more = gemma3 if model.config.has_qk_norms else {}
    return make_model(**SMALL, num_hidden_layers=7, **more | changes)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q5_0", "Q4_1"])
def test_a_file_is_the_safetensors_of_its_numbers_bit_for_bit(
    make_model: Make, family: str, tmp_path: Path, kind: str
) -> None:
    model = make_small(make_model, tie_word_embeddings=kind != "F16")
    path = write(tmp_path / "m.gguf", family, model_fields(model), model_tensors(model, kind))
    save_gemma2(model, tmp_path / "folder")
    tokens = torch.arange(20)[None]
    for dtype in (None, torch.float32, torch.bfloat16):
        ours, theirs = load_gemma2(path, dtype=dtype), load_gemma2(tmp_path / "folder", dtype=dtype)
        right = dict(theirs.named_parameters())
        for name, parameter in ours.named_parameters():
            assert parameter.dtype == right[name].dtype and torch.equal(parameter, right[name]), (
                name
            )
        with torch.no_grad():
            assert torch.equal(ours(tokens), theirs(tokens))
    assert len(right) == len(list(ours.parameters()))
    assert vars(ours.config) == vars(theirs.config) | {"eos_token_id": 1}


@pytest.mark.parametrize("layers", [46, 62])
def test_the_scale_of_the_27b_models_is_that_of_their_width(
    make_model: Make, family: str, tmp_path: Path, layers: int
) -> None:
    """Gemma-2's has 46 layers, Gemma 3's 62; the field that would say it is not in the file."""
    fields = model_fields(make_small(make_model)) | {f"{family}.block_count": layers}
    tensors = {"token_embd.weight": np.zeros((60, 32), dtype=np.float32)}
    config = Gemma2Config.from_json(write(tmp_path / "m.gguf", family, fields, tensors))
    is_27b = layers == {"gemma2": 46, "gemma3": 62}[family]
    assert config.query_pre_attn_scalar == (8 if is_27b else 16)


def test_numbers_come_in_slices_of_rows_and_in_every_shape(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common.gguf_file.SLICE", 3 * 256)
    blocks = np.random.default_rng(0).integers(0, 256, (10, 2, 144), dtype=np.uint8)
    # Two float16 scales open a block of Q4_K; random ones could be infinite.
    blocks[..., :4] = np.array([0.25, 0.5], dtype=np.float16).view(np.uint8)
    kind = gguf.GGMLQuantizationType.Q4_K
    tensors = {
        "k": (blocks.reshape(10, 288), kind),
        "cube": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    }
    file = GGUFFile(write(tmp_path / "m.gguf", "gemma2", {"a": 1e-6, "b": [3, 4]}, tensors))
    truth = torch.from_numpy(gguf.dequantize(blocks.reshape(10, 288), kind))
    assert torch.equal(file.tensor("k"), truth) and truth.shape == (10, 512)
    assert torch.equal(file.tensor("k", torch.bfloat16), truth.bfloat16())
    assert torch.equal(file.tensor("cube"), torch.arange(24.0).view(2, 3, 4))
    assert (file.fields["a"], file.fields["b"]) == (1e-6, [3, 4])


def drop(name: str) -> Change:
    """Takes out the field or tensor whose name ends so."""

    def change(fields: Fields, tensors: dict[str, Any]) -> None:
        entries = fields if any(field.endswith(name) for field in fields) else tensors
        entries.pop(next(key for key in entries if key.endswith(name)))

    return change


def widen(fields: Fields, tensors: dict[str, Any]) -> None:
    tensors["blk.1.ffn_up.weight"] = np.zeros((3, 32), dtype=np.float32)
    tensors["rope_freqs.weight"] = np.zeros(4, dtype=np.float32)


ERRORS: dict[str, tuple[Change, str]] = {
    "no field": (drop(".block_count"), r"expected a field gemma\d.block_count \(int\), got none"),
    "no id": (drop("eos_token_id"), r"tokenizer.ggml.eos_token_id \(int\), got none"),
    "a text": (lambda f, t: f.update({k: "x" for k in f if "length" in k}), "got 'x'; give a GGUF"),
    "no tensor": (drop("blk.1.attn_v.weight"), "missing model.layers.1.self_attn.v_proj.weight"),
    "no embedding": (drop("token_embd.weight"), "vocab_size=0"),
    "shapes": (widen, r"unexpected rope_freqs.*up_proj.weight has shape \(3, 32\), expected \(64"),
    "architecture": (
        lambda f, t: f.update({"general.architecture": "llama"}),
        "expected the architecture gemma2 or gemma3, got 'llama'",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_what_does_not_fit_is_one_sentence_and_exit_code_2(
    make_model: Make, family: str, tmp_path: Path, capsys: Any, name: str
) -> None:
    model = make_small(make_model)
    fields, tensors = model_fields(model), model_tensors(model, "F32")
    change, part = ERRORS[name]
    change(fields, tensors)
    path = write(tmp_path / "m.gguf", fields.get("general.architecture", family), fields, tensors)
    with pytest.raises(ValueError, match=part) as caught:
        load_gemma2(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)
    if name == "no field":
        assert train.main(["--model", str(path), "--output", str(tmp_path / "run")]) == 2
        assert part.split("\\")[0] in capsys.readouterr().err


def test_a_file_cut_anywhere_is_one_sentence(make_model: Make, family: str, tmp_path: Path) -> None:
    model = make_small(make_model)
    path = write(tmp_path / "m.gguf", family, model_fields(model), model_tensors(model, "Q8_0"))
    whole = path.read_bytes()
    for length in (0, 3, 4, 20, 30, 200, 700, 2000, len(whole) // 2, len(whole) - 200):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="m.gguf: not a readable GGUF file.*download it again"):
            load_gemma2(path)
    path.write_bytes(b"GGUS" + whole[4:])
    with pytest.raises(ValueError, match="it begins with b'GGUS'"):
        load_gemma2(path)
    path.write_bytes(whole[:4] + b"\0\0\0\3" + whole[8:])  # the other order of bytes
    with pytest.raises(ValueError, match="not a readable GGUF file"):
        load_gemma2(path)


@pytest.mark.parametrize("kind", [15, 77])
def test_a_quantization_that_has_no_numbers_is_named(
    make_model: Make, family: str, tmp_path: Path, kind: int
) -> None:
    """Q8_K, which the package has no way to turn into numbers, and a type that it does not know."""
    model = make_small(make_model)
    path = write(tmp_path / "m.gguf", family, model_fields(model), model_tensors(model, "F32"))
    raw, name = path.read_bytes(), b"blk.0.attn_q.weight"
    place = raw.index(name) + len(name) + 4 + 2 * 8  # behind the number of dimensions, and two
    path.write_bytes(raw[:place] + kind.to_bytes(4, "little") + raw[place + 4 :])
    file = GGUFFile(path)
    entry = file.tensors[name.decode()]
    # A width of 256, which its blocks need
    file.tensors[name.decode()] = type(entry)((2, 256), entry.kind, entry.offset)
    with pytest.raises(ValueError, match="blk.0.attn_q.weight has the quantization") as caught:
        file.tensor(name.decode())
    assert ("Q8_K" if kind == 15 else "number 77") in str(caught.value)


def test_without_the_package_the_error_says_what_to_install(
    make_model: Make, family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_small(make_model)
    path = write(tmp_path / "m.gguf", family, model_fields(model), model_tensors(model, "F32"))
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert Gemma2Config.from_json(path).hidden_size == 32  # fields need no package
    with pytest.raises(ValueError, match="takes the gguf package.*pip install gguf"):
        load_gemma2(path)
