"""Strict loading: what can be wrong with a folder or a hub id, and what loading costs in memory."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.config import Gemma2Config
from model.loader import load_gemma2, save_gemma2
from model.transformer import Gemma2


@pytest.fixture
def folder(make_model: Callable[..., Gemma2], tmp_path: Path) -> Path:
    save_gemma2(make_model(), tmp_path)
    return tmp_path


def edit_tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    raw = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in raw.items() if v != "DELETE"}))


def test_every_difference_is_named_in_one_error(folder: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        del tensors["model.norm.weight"], tensors["model.layers.1.mlp.up_proj.weight"]
        tensors["model.layers.9.extra.weight"] = torch.zeros(2)
        tensors["model.layers.0.self_attn.q_proj.weight"] = torch.zeros(3, 32)
        tensors["model.layers.0.mlp.gate_proj.weight"] = torch.zeros(48, 32, dtype=torch.int8)

    edit_tensors(folder, change)
    with pytest.raises(ValueError) as caught:
        load_gemma2(folder)
    message = str(caught.value)
    for part in (
        "missing model.norm.weight (32,)",
        "missing model.layers.1.mlp.up_proj.weight (48, 32)",
        "unexpected model.layers.9.extra.weight (2,)",
        "model.layers.0.self_attn.q_proj.weight has shape (3, 32), expected (48, 32)",
        "model.layers.0.mlp.gate_proj.weight is I8",
    ):
        assert part in message
    assert str(folder) in message


def test_a_tied_duplicate_of_the_head_loads_and_a_different_head_does_not(
    folder: Path, make_model: Callable[..., Gemma2]
) -> None:
    edit_tensors(
        folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()})
    )
    loaded = load_gemma2(folder)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert torch.equal(
        load_gemma2(folder, dtype=torch.bfloat16).lm_head.weight,
        make_model().lm_head.weight.bfloat16(),
    )

    edit_tensors(folder, lambda t: t["lm_head.weight"].add_(1))
    with pytest.raises(ValueError, match="tie_word_embeddings"):
        load_gemma2(folder)


@pytest.mark.parametrize("length", [0, 5, 200, -100])
def test_a_truncated_file_is_one_sentence(folder: Path, length: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match="model.safetensors: not a readable safetensors file"):
        load_gemma2(folder)


def test_a_missing_shard_and_a_broken_index_are_named(
    make_model: Callable[..., Gemma2], tmp_path: Path
) -> None:
    save_gemma2(make_model(), tmp_path, max_shard_bytes=30_000)
    shard = sorted(tmp_path.glob("model-*"))[1]
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=shard.name):
        load_gemma2(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("[1")
    with pytest.raises(ValueError, match="index.json: expected JSON"):
        load_gemma2(tmp_path)
    (tmp_path / "model.safetensors.index.json").unlink()
    with pytest.raises(FileNotFoundError, match="neither model.safetensors nor"):
        load_gemma2(tmp_path)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"model_type": "llama"}, "'llama'"),
        ({"hidden_size": "DELETE", "head_dim": "DELETE"}, "hidden_size, head_dim"),
        (
            {"num_hidden_layers": "three", "rms_norm_eps": "small"},
            "num_hidden_layers='three'.*rms_norm_eps='small'",
        ),
        ({"num_attention_heads": 3}, "multiple of"),
        ({"head_dim": 7}, "even"),
        ({"hidden_activation": "silu"}, "silu"),
        ({"layer_types": ["full_attention"] * 3}, "layer_types"),
        ({"attention_bias": True}, "attention_bias"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        (
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
            "scaled rotary",
        ),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "scaled rotary"),
    ],
)
def test_what_is_not_a_supported_gemma2_configuration_is_refused(
    folder: Path, changes: dict[str, Any], part: str
) -> None:
    edit_config(folder, **changes)
    with pytest.raises(ValueError, match=part) as caught:
        load_gemma2(folder)
    assert "config" in str(caught.value)


def test_broken_config_files(folder: Path) -> None:
    for content, kind in (("{", ValueError), ("[]", ValueError), (None, FileNotFoundError)):
        path = folder / "config.json"
        path.write_text(content) if content else path.unlink()
        with pytest.raises(kind, match="config.json"):
            load_gemma2(folder)


def test_newer_transformers_configuration_loads(folder: Path) -> None:
    rope = {"rope_theta": 1234.0, "rope_type": "default"}
    types = ["sliding_attention", "full_attention", "sliding_attention"]
    edit_config(
        folder,
        rope_theta="DELETE",
        torch_dtype="DELETE",
        dtype="float32",
        rope_parameters=rope,
        layer_types=types,
        transformers_version="5.23.0",
        use_bidirectional_attention=None,
        eos_token_id=[1, 107],
    )
    config = load_gemma2(folder).config
    assert (config.rope_theta, config.stop_ids) == (1234.0, (1, 107))
    edit_config(folder, rope_parameters={"full_attention": rope, "sliding_attention": rope})
    assert load_gemma2(folder).config.rope_theta == 1234.0


PUBLISHED = """{
"architectures": ["Gemma2ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
"attn_logit_softcapping": 50.0, "bos_token_id": 2, "cache_implementation": "hybrid",
"eos_token_id": [1, 107], "final_logit_softcapping": 30.0, "head_dim": 256,
"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 2304,
"initializer_range": 0.02, "intermediate_size": 9216, "max_position_embeddings": 8192,
"model_type": "gemma2", "num_attention_heads": 8, "num_hidden_layers": 26,
"num_key_value_heads": 4, "pad_token_id": 0, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06,
"rope_theta": 10000.0, "sliding_window": 4096, "torch_dtype": "bfloat16", "use_cache": true,
"vocab_size": 256000
}"""


def test_the_real_models_published_configuration_loads(tmp_path: Path) -> None:
    """google/gemma-2-2b-it's config.json, whose null and absent fields mean different things."""
    (tmp_path / "config.json").write_text(PUBLISHED)
    assert Gemma2Config.from_json(tmp_path) == Gemma2Config()
    edit_config(tmp_path, attn_logit_softcapping=None)
    assert Gemma2Config.from_json(tmp_path).attn_logit_softcapping is None


class FakeResponse:
    """As much of an HTTP response as the hub's errors ask for."""

    headers: dict[str, str] = {}
    request = None
    status_code = 403


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (GatedRepoError, ValueError),
        (RepositoryNotFoundError, FileNotFoundError),
        (LocalEntryNotFoundError, FileNotFoundError),
        (ConnectionError, ValueError),
    ],
)
def test_a_hub_id_that_cannot_be_had_is_one_sentence_with_its_page(
    monkeypatch: pytest.MonkeyPatch, kind: Any, expected: type[Exception]
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        if issubclass(kind, RepositoryNotFoundError):
            raise kind("403 Client Error.\n\nCannot access", response=FakeResponse())
        raise kind("no\nnetwork")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(expected) as caught:
        load_gemma2("google/gemma-2-2b-it")
    message = str(caught.value)
    assert "https://huggingface.co/google/gemma-2-2b-it" in message
    assert "\n" not in message and message.startswith("google/gemma-2-2b-it:")
    if kind is GatedRepoError:
        assert "licence" in message and "hf auth login" in message


@pytest.mark.parametrize(
    "name", ["/no/such/folder", "./missing", "gemma", "a/b/c", "some folder/gemma 2"]
)
def test_what_can_be_no_hub_id_is_a_missing_folder(name: str) -> None:
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        load_gemma2(name)


def test_a_file_where_a_folder_is_expected(folder: Path) -> None:
    with pytest.raises(ValueError, match="expected a folder with config.json .* got another file"):
        load_gemma2(folder / "config.json")


def test_dtype_conversion_and_evaluation_mode(folder: Path) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        loaded = load_gemma2(folder, dtype=dtype)
        assert {p.dtype for p in loaded.parameters()} == {dtype}
        assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
        save_gemma2(loaded, folder / str(dtype))
        again = load_gemma2(folder / str(dtype))  # no dtype: the checkpoint's own
        assert {p.dtype for p in again.parameters()} == {dtype}
        assert json.loads((folder / str(dtype) / "config.json").read_text())["torch_dtype"] in str(
            dtype
        )


def test_saving_over_the_folder_that_is_loaded_keeps_it_whole(
    folder: Path, make_model: Callable[..., Gemma2]
) -> None:
    """The weights are the mapped file itself; a save in another form leaves no stale file."""
    tokens = torch.arange(8)[None]
    expected = make_model()(tokens)
    for limit in (5_000_000_000, 30_000, 20_000, 5_000_000_000):
        save_gemma2(load_gemma2(folder), folder, max_shard_bytes=limit)
        assert torch.equal(load_gemma2(folder)(tokens), expected)
        kinds = [
            (folder / name).exists()
            for name in ("model.safetensors", "model.safetensors.index.json")
        ]
        assert kinds == ([True, False] if limit > 30_000 else [False, True])
    assert not list(folder.glob("*.partial"))


MEASURE = """
import re, sys
from model.loader import load_gemma2
def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
load_gemma2(sys.argv[1])  # what PyTorch itself allocates on first use
before = anonymous()
loaded = load_gemma2(sys.argv[2])
size = sum(p.nbytes for p in loaded.parameters())
print(anonymous() - before, size, loaded.lm_head.weight.sum().item() != 0)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_loading_copies_nothing_on_a_cpu(
    make_model: Callable[..., Gemma2], folder: Path, tmp_path: Path
) -> None:
    save_gemma2(make_model(vocab_size=200_000, hidden_size=64), tmp_path / "large")
    command = [sys.executable, "-c", MEASURE, str(folder), str(tmp_path / "large")]
    run = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1]
    )
    grown, size, _ = run.stdout.split()
    assert int(size) > 50_000_000
    assert int(grown) < int(size) / 4, (
        f"{grown} bytes of private memory for {size} bytes of weights"
    )
