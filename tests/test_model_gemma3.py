"""Gemma 3's text models: random configurations against Transformers, and what their files say."""

import json
import random
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from model.config import Gemma2Config
from model.loader import load_gemma2, save_gemma2
from model.transformer import Gemma2

transformers = pytest.importorskip("transformers")

# google/gemma-3-270m's config.json, in the newer spelling.
SMALL: dict[str, Any] = {
    "_sliding_window_pattern": 6,
    "architectures": ["Gemma3ForCausalLM"],
    "attn_logit_softcapping": None,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "final_logit_softcapping": None,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 640,
    "intermediate_size": 2048,
    "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 3,
    "max_position_embeddings": 32768,
    "model_type": "gemma3_text",
    "num_attention_heads": 4,
    "num_hidden_layers": 18,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "rope_parameters": {
        "full_attention": {"rope_theta": 1000000.0, "rope_type": "default"},
        "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
    },
    "sliding_window": 512,
    "tie_word_embeddings": True,
    "use_bidirectional_attention": False,
    "vocab_size": 262144,
}
# google/gemma-3-4b-it's, in the older one: what it leaves out is the class's default.
LARGE: dict[str, Any] = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "eos_token_id": [1, 106],
    "model_type": "gemma3",
    "text_config": {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
    "vision_config": {"hidden_size": 1152},
}
SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim")
SAME = (*SIZES, "num_key_value_heads", "vocab_size", "sliding_window", "max_position_embeddings")


def read(raw: dict[str, Any], folder: Path) -> Gemma2Config:
    (folder / "config.json").write_text(json.dumps(raw))
    return Gemma2Config.from_json(folder)


def random_config(seed: int) -> Gemma2Config:
    """Sizes, heads, window, pattern, bases and scaling drawn at random; no two fields tied."""
    draw = random.Random(seed)
    groups, heads = draw.choice([1, 2, 3]), draw.choice([1, 2, 4])
    return Gemma2Config(
        model_type="gemma3_text",
        vocab_size=draw.randint(40, 90),
        hidden_size=groups * heads * draw.randint(3, 8),
        intermediate_size=draw.randint(20, 60),
        num_hidden_layers=draw.randint(1, 8),
        num_attention_heads=groups * heads,
        num_key_value_heads=groups,
        head_dim=2 * draw.randint(2, 9),
        max_position_embeddings=64,
        rms_norm_eps=draw.choice([1e-6, 1e-3]),
        rope_theta=draw.choice([100.0, 1e4, 1e6]),
        rope_local_base_freq=draw.choice([50.0, 1e4]),
        rope_factor=draw.choice([1.0, 1.0, 8.0, 2.5]),
        sliding_window=draw.randint(1, 24),
        sliding_window_pattern=draw.randint(1, 7),
        query_pre_attn_scalar=draw.randint(4, 40),
        attn_logit_softcapping=None,
        final_logit_softcapping=None,
        tie_word_embeddings=draw.random() < 0.7,
    )


@pytest.mark.parametrize("seed", range(24))
def test_a_random_configuration_has_the_logits_of_transformers(
    randomized: Callable[[nn.Module], None],
    parity: Callable[[str, Tensor, Tensor], float],
    tmp_path: Path,
    seed: int,
) -> None:
    config = random_config(seed)
    ours = Gemma2(config).eval()
    randomized(ours)
    save_gemma2(ours, tmp_path / "ours")
    theirs = transformers.Gemma3ForCausalLM.from_pretrained(
        tmp_path / "ours", attn_implementation="eager", dtype=torch.float32
    ).eval()
    tokens = torch.randint(0, config.vocab_size, (2, 23))
    theirs.save_pretrained(tmp_path / "theirs")
    again = load_gemma2(tmp_path / "theirs")
    with torch.no_grad():
        truth = theirs(tokens).logits
        assert parity("logits against Transformers, float32", ours(tokens), truth) < 1e-5
        assert torch.equal(again(tokens), ours(tokens))
    kept = {name: value for name, value in vars(config).items() if not name.endswith("_id")}
    kept.pop("sliding_window_pattern")  # where no layer is full, any larger pattern is the same
    assert {name: getattr(again.config, name) for name in kept} == kept
    assert config.num_parameters == sum(p.numel() for p in ours.parameters())


def test_published_configurations(tmp_path: Path) -> None:
    small = read(SMALL, tmp_path)
    assert [i for i in range(18) if not small.is_sliding(i)] == [5, 11, 17]
    assert (small.rope_theta, small.rope_local_base_freq, small.rope_factor) == (1e6, 1e4, 1.0)
    assert small.num_parameters == 268_098_176 and small.has_qk_norms
    large = read(LARGE, tmp_path)
    assert (large.rope_theta, large.rope_local_base_freq, large.rope_factor) == (1e6, 1e4, 8.0)
    assert large.stop_ids == (1, 106) and large.final_logit_softcapping is None
    for config in (small, large):
        config.to_json(tmp_path / "config.json")
        assert Gemma2Config.from_json(tmp_path) == config
    # The rest as Transformers' own class reads the same files.
    for raw, config in ((SMALL, small), (LARGE["text_config"], large)):
        theirs = transformers.Gemma3TextConfig(**raw)
        assert [getattr(theirs, name) for name in SAME] == [getattr(config, n) for n in SAME]
        kinds = ["full_attention", "sliding_attention"]
        layers = range(config.num_hidden_layers)
        assert theirs.layer_types == [kinds[config.is_sliding(i)] for i in layers]


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"layer_types": ["full_attention", "sliding_attention"] * 9}, "every n-th of 18 layers"),
        ({"layer_types": ["sliding_attention"] * 17}, "every n-th of 18 layers"),
        ({"layer_types": 3}, "every n-th"),
        ({"layer_types": None, "_sliding_window_pattern": 0}, "sliding_window_pattern=0"),
        ({"rope_parameters": {"rope_type": "default"}}, "rotary embeddings are not supported"),
        ({"rope_parameters": None, "rope_scaling": {"rope_type": "yarn"}}, "not supported.*yarn"),
        (
            {"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": "8"}},
            "rope_factor='8'",
        ),
        ({"hidden_size": None}, "missing hidden_size"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ({"model_type": "gemma3"}, "expected a text_config, got None"),
        ({"model_type": "gemma3n_text"}, "only gemma2 and gemma3"),
    ],
)
def test_what_cannot_be_run_right_is_refused(
    tmp_path: Path, changes: dict[str, Any], part: str
) -> None:
    with pytest.raises(ValueError, match=part) as caught:
        read(SMALL | changes, tmp_path)
    assert str(caught.value).startswith(str(tmp_path))


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_the_text_part_of_a_model_that_sees_pictures_loads(tmp_path: Path, prefix: str) -> None:
    ours = Gemma2(replace(random_config(3), tie_word_embeddings=True)).eval()
    save_gemma2(ours, tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    whole = {"model_type": "gemma3", "text_config": raw, "eos_token_id": [1, 106]}
    (tmp_path / "config.json").write_text(json.dumps(whole))
    weights = tmp_path / "model.safetensors"
    nested = {prefix + k.removeprefix("model."): v for k, v in load_file(weights).items()}
    before = prefix.removesuffix("language_model.model.").removesuffix("language_model.")
    pictures = {f"{before}{name}.x.weight": torch.zeros(2) for name in ("vision_tower",)}
    save_file(nested | pictures, weights, metadata={"format": "pt"})
    loaded = load_gemma2(tmp_path)
    tokens = torch.arange(20)[None]
    assert torch.equal(loaded(tokens), ours(tokens))
    assert loaded.config.stop_ids == (1, 106)
    name = f"{prefix}layers.0.self_attn.q_norm.weight"
    tensors = load_file(weights)
    save_file({k: v for k, v in tensors.items() if k != name}, weights, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="missing model.layers.0.self_attn.q_norm.weight"):
        load_gemma2(tmp_path)


def test_gemma2s_files_neither_have_nor_hear_of_gemma3s_fields(tmp_path: Path) -> None:
    Gemma2Config().to_json(tmp_path / "config.json")
    raw = json.loads((tmp_path / "config.json").read_text())
    added = {"architectures", "attention_bias", "attention_dropout", "hidden_act", "model_type"}
    new = {"rope_local_base_freq", "rope_factor", "sliding_window_pattern"}
    assert set(raw) == set(asdict(Gemma2Config())) - new | added
    assert raw["model_type"] == "gemma2"
    assert read(raw | {"sliding_window_pattern": 6, "rope_factor": 8}, tmp_path) == Gemma2Config()
