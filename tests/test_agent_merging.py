"""What a merge leaves for other programs and what it says; a failed one is in nobody's way."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from builders import TOKENIZER
from conftest import randomize
from safetensors.torch import load_file, save_file

import infer
from agent import loading, merging
from agent.merging import MergeReport
from benchmarks.tiny_base import tiny_config
from data.tokenizer import Tokenizer
from lora.adapter import merge_adapter, save_adapter
from lora.config import LoRAConfig
from lora.inject import add_lora
from lora.wrapped import add_delta_
from model.loader import load_gemma2, save_gemma2
from model.transformer import Gemma2


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    config = tiny_config(2048, max_position_embeddings=512, sliding_window=64)
    model = Gemma2(config)
    randomize(model)
    save_gemma2(model.to(torch.bfloat16), folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TOKENIZER / name, folder / name)
    return folder


def make_adapter(base: Path, folder: Path, size: float = 0.3, adapt: str = "rows") -> Path:
    tokenizer = Tokenizer.from_pretrained(base)
    model = loading.load_base(base, tokenizer, torch.device("cpu"), torch.float32)
    ids = tuple(sorted(tokenizer.tag_ids.values()))
    config = LoRAConfig(rank=4, alpha=8, adapt=adapt, token_ids=ids, base_model=str(base))
    add_lora(model, config)
    for seed, parameter in enumerate(p for p in model.parameters() if p.requires_grad):
        generator = torch.Generator().manual_seed(seed)
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * size)
    save_adapter(model, folder, config)
    tokenizer.save(folder)
    return folder


def merge(adapter: Path, folder: Path, *more: str) -> int:
    return infer.main(["--adapter", str(adapter), "--merge", str(folder), "--device", "cpu", *more])


def test_says_how_much_outlived_the_rounding(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert merge(make_adapter(base, tmp_path / "a"), tmp_path / "large") == 0
    large = capsys.readouterr()
    assert "rounding to bfloat16 left 100.0%" in large.out and "outlived" not in large.err
    assert merge(make_adapter(base, tmp_path / "b", size=0.003), tmp_path / "small") == 0
    small = capsys.readouterr()
    assert "warning: in 14 of 16 layers less than 50% of the delta outlived" in small.err
    assert merge(tmp_path / "b", tmp_path / "wide", "--dtype", "fp32") == 0
    wide = capsys.readouterr()
    assert "left 100.0%" in wide.out and "outlived" not in wide.err
    assert "greedy replies to 2 questions are the same" in wide.out


def test_the_share_of_a_delta_is_what_arrived_of_it() -> None:
    left, right = torch.tensor([[1.0], [1.0]]), torch.tensor([[0.5, 0.25]])
    assert add_delta_(torch.zeros(2, 2, dtype=torch.bfloat16), left, right, 1.0) == 1.0
    # bfloat16 has 8 bits: at 256 the next number is 258, so 0.5 and 0.25 are lost
    assert add_delta_(torch.full((2, 2), 256.0, dtype=torch.bfloat16), left, right, 1.0) == 0.0
    half = torch.tensor([[256.0, 0.0]], dtype=torch.bfloat16)
    assert add_delta_(half, left[:1], torch.tensor([[1.0, 1.0]]), 1.0) == 0.5
    assert add_delta_(half, left[:1], torch.zeros(1, 2), 1.0) == 1.0


def test_replies_that_differ_are_said() -> None:
    report = MergeReport()
    merging._compare([[1, 2, 3], [4]], [[1, 2, 9], [4]], report)
    assert "1 of 2 questions differ after merging, first at token 3" in report.warnings[0]
    merging._compare([[], []], [[], []], report)
    assert "no reply was compared" in report.facts[0]


@pytest.mark.parametrize("name", ["lora_A", "trainable_tokens_delta"])
def test_an_adapter_that_is_not_finite_is_refused(
    base: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = make_adapter(base, tmp_path / "a")
    tensors = load_file(adapter / "adapter_model.safetensors")
    next(tensor for key, tensor in tensors.items() if name in key)[0, 0] = float("nan")
    save_file(tensors, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    assert merge(adapter, tmp_path / "merged") == 2
    assert "not finite" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_failed_merge_does_not_block_its_retry(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = make_adapter(base, tmp_path / "a")

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "merged").mkdir()  # empty folders are taken
    with monkeypatch.context() as patch:
        patch.setattr(Tokenizer, "save", fail)
        assert merge(adapter, tmp_path / "merged") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "merged"]
    assert merge(adapter, tmp_path / "merged") == 0
    assert load_gemma2(tmp_path / "merged").config.vocab_size == 2056
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "merged"]


def test_the_courses_recipe_is_said_to_fit_few_programs(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert merge(make_adapter(base, tmp_path / "a", adapt="course"), tmp_path / "merged") == 0
    err = capsys.readouterr().err
    assert "vLLM refuses it" in err and "llama.cpp's converter leaves the head out" in err
    assert not json.loads((tmp_path / "merged" / "config.json").read_text())["tie_word_embeddings"]
    assert merge(make_adapter(base, tmp_path / "b"), tmp_path / "rows") == 0
    assert "vLLM refuses" not in capsys.readouterr().err


def test_tools_beside_merge_are_refused(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = make_adapter(base, tmp_path / "a")
    assert merge(adapter, tmp_path / "merged", "--tools", "x.py") == 2
    assert "--tools" in capsys.readouterr().err


GEMMA: Any = SimpleNamespace(is_byte_level=False)


def test_sentencepiece_comes_from_the_bases_folder(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "merged").mkdir()
    report = MergeReport()
    merging._add_sentencepiece(tmp_path / "merged", GEMMA, str(tmp_path / "base"), report)
    assert "llama.cpp's converter needs it" in report.warnings[0]
    (tmp_path / "base" / "tokenizer.model").write_bytes(b"pieces")
    merging._add_sentencepiece(tmp_path / "merged", GEMMA, str(tmp_path / "base"), report)
    assert (tmp_path / "merged" / "tokenizer.model").read_bytes() == b"pieces"
    assert len(report.warnings) == 1


def test_sentencepiece_comes_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()

    def fetch(name: str, patterns: list[str]) -> Path:
        assert (name, patterns) == ("google/gemma-2-2b-it", ["tokenizer.model"])
        (snapshot / "tokenizer.model").write_bytes(b"pieces")
        return snapshot

    monkeypatch.setattr(merging, "model_folder", lambda _: snapshot)
    monkeypatch.setattr(merging, "fetch", fetch)
    report = MergeReport()
    (tmp_path / "merged").mkdir()
    merging._add_sentencepiece(tmp_path / "merged", GEMMA, "google/gemma-2-2b-it", report)
    assert (tmp_path / "merged" / "tokenizer.model").read_bytes() == b"pieces"
    assert report == MergeReport()


def test_a_byte_level_tokenizer_promises_no_llama_cpp(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert merge(make_adapter(base, tmp_path / "a"), tmp_path / "merged") == 0
    assert "does not know this byte-level tokenizer" in capsys.readouterr().out
    assert not (tmp_path / "merged" / "tokenizer.model").exists()


def test_the_modelfile_writes_the_trained_words(base: Path, tmp_path: Path) -> None:
    assert merge(make_adapter(base, tmp_path / "a"), tmp_path / "merged") == 0
    text = (tmp_path / "merged" / "Modelfile").read_text()
    assert text.count("{{ if ") + text.count("{{- if ") + text.count("{{- range ") == text.count(
        "{{ end }}"
    ) + text.count("{{- end }}") + text.count("{{ end -}}")
    for part in (".Tools", ".ToolCalls", "<tool_call>\n", '"Untried'[1:], "FROM .", "@"):
        assert (part in text) == (part != "@")


def test_merging_still_returns_the_plain_model(base: Path, tmp_path: Path) -> None:
    model, _ = loading.load_model(str(base), make_adapter(base, tmp_path / "a"))
    shares: dict[str, float] = {}
    assert merge_adapter(model, shares) is model
    assert len(shares) == 16 and all(0 <= share <= 1 for share in shares.values())
