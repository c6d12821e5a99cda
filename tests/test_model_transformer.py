"""Both families against Transformers, through files; cached and packed against plain passes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from model.attention import KVCache
from model.attention_flex import FlexAttention
from model.attention_tiles import TiledAttention, document_spans
from model.config import GEMMA3_ONLY, Gemma2Config
from model.fused import RMSNorm
from model.loader import load_gemma2, save_gemma2
from model.transformer import Embedding, Gemma2

transformers = pytest.importorskip("transformers")

# Transformers wants hidden_size to be a multiple of the heads, though nothing depends on it.
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {},
    "three heads, one kv": {"num_attention_heads": 3, "num_key_value_heads": 1, "hidden_size": 30},
    "six heads, two kv": {
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "hidden_size": 30,
    },
    "five heads, five kv": {
        "num_attention_heads": 5,
        "num_key_value_heads": 5,
        "hidden_size": 30,
        "query_pre_attn_scalar": 7,
    },
    "no attention cap": {"attn_logit_softcapping": None},
    "no final cap": {"final_logit_softcapping": None},
    "no caps, untied": {
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "tie_word_embeddings": False,
    },
    "window of one": {"sliding_window": 1},
    "untied, other eps": {"tie_word_embeddings": False, "rms_norm_eps": 1e-3},
    "window of all": {"sliding_window": 64},
}


@pytest.fixture(params=["gemma2", "gemma3"])
def family(request: pytest.FixtureRequest) -> str:
    """Every test here holds for both."""
    return str(request.param)


def hf_load(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=dtype
    ).eval()


def hf_random(config: Gemma2Config, randomized: Callable[[nn.Module], None]) -> Any:
    """A Transformers model of the same shape that owes nothing to our saving code."""
    values = {
        name: value
        for name, value in vars(config).items()
        if not name.endswith("_id") and name not in (*GEMMA3_ONLY, "rope_theta")
    }
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": config.rope_theta}
    kind = transformers.Gemma2Config
    if config.model_type == "gemma3_text":
        kind = transformers.Gemma3TextConfig
        local = {"rope_type": "default", "rope_theta": config.rope_local_base_freq}
        scaled = rope | {"rope_type": "linear", "factor": config.rope_factor}
        rope = {"full_attention": scaled, "sliding_attention": local}
        values["sliding_window_pattern"] = config.sliding_window_pattern
    hf_config = kind(**values, rope_parameters=rope, attn_implementation="eager")
    model = transformers.AutoModelForCausalLM.from_config(hf_config).eval()
    randomized(model)
    return model


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES.keys())
def test_logits_equal_transformers_through_files_both_ways(
    make_model: Callable[..., Gemma2],
    parity: Callable[[str, Tensor, Tensor], float],
    randomized: Callable[[nn.Module], None],
    tmp_path: Path,
    changes: dict[str, Any],
) -> None:
    name = "logits against Transformers, float32"
    ours = make_model(**changes)
    tokens = torch.randint(0, ours.config.vocab_size, (3, 17))  # rows longer than the window of 5

    save_gemma2(ours, tmp_path / "ours")
    with torch.no_grad():
        theirs = hf_load(tmp_path / "ours")(tokens).logits
        assert parity(name, ours(tokens), theirs) < 1e-5
        assert theirs.abs().max() > 2  # the numbers are large enough for the caps to matter

    hf = hf_random(ours.config, randomized)
    hf.save_pretrained(tmp_path / "hf")
    loaded = load_gemma2(tmp_path / "hf")
    with torch.no_grad():
        assert parity(name, loaded(tokens), hf(tokens).logits) < 1e-5
    assert (
        loaded.lm_head.weight is loaded.model.embed_tokens.weight
    ) == ours.config.tie_word_embeddings


def test_shards_of_both_sides_load(
    make_model: Callable[..., Gemma2],
    relative: Callable[[Tensor, Tensor], float],
    randomized: Callable[[nn.Module], None],
    tmp_path: Path,
) -> None:
    ours = make_model()
    tokens = torch.randint(0, 60, (2, 9))
    save_gemma2(ours, tmp_path / "ours", max_shard_bytes=20_000)
    hf = hf_random(ours.config, randomized)
    hf.save_pretrained(tmp_path / "hf", max_shard_size="20KB")
    assert len(list((tmp_path / "ours").glob("model-*.safetensors"))) > 2
    assert (tmp_path / "hf" / "model.safetensors.index.json").is_file()
    with torch.no_grad():
        assert relative(hf_load(tmp_path / "ours")(tokens).logits, ours(tokens)) < 1e-5
        assert relative(load_gemma2(tmp_path / "hf")(tokens), hf(tokens).logits) < 1e-5
        assert torch.equal(load_gemma2(tmp_path / "ours")(tokens), ours(tokens))


def test_bf16_is_as_close_to_the_float64_truth_as_transformers(
    make_model: Callable[..., Gemma2], tmp_path: Path
) -> None:
    save_gemma2(make_model(hidden_size=64, num_hidden_layers=4), tmp_path)
    tokens = torch.randint(0, 60, (4, 24))
    with torch.no_grad():
        narrow = hf_load(tmp_path, torch.bfloat16)
        # The truth starts from the weights that bf16 can hold, so that only arithmetic is compared.
        truth = hf_load(tmp_path, torch.bfloat16).double()(tokens).logits
        ours = load_gemma2(tmp_path, dtype=torch.bfloat16)(tokens)
        theirs = narrow(tokens).logits
    assert ours.dtype == torch.float32
    error, allowed = (ours - truth).square().mean().sqrt(), (theirs - truth).square().mean().sqrt()
    assert error <= 2 * allowed, f"{error:.2e} against {allowed:.2e}"


@pytest.mark.parametrize("chunks", [[1] * 16, [7, 1, 1, 7], [3, 13], [16]], ids=str)
def test_cached_decoding_equals_uncached_across_the_window(
    make_model: Callable[..., Gemma2],
    relative: Callable[[Tensor, Tensor], float],
    chunks: list[int],
) -> None:
    model = make_model()
    tokens = torch.randint(0, 60, (2, 16))  # the window of 5 ends inside
    cache = KVCache(model.config, 2, 16, "cpu", torch.float32)
    logits, start = [], 0
    with torch.no_grad():
        for size in chunks:
            part = slice(start, start + size)
            positions = torch.arange(start, start + size).expand(2, size)
            logits.append(model(tokens[:, part], positions=positions, cache=cache))
            start += size
        assert relative(torch.cat(logits, dim=1), model(tokens)) < 1e-5


def test_rows_of_different_lengths_share_a_cache(
    make_model: Callable[..., Gemma2], relative: Callable[[Tensor, Tensor], float]
) -> None:
    """Right-padded prompts of 9 and 4 tokens, then three steps each at its own position."""
    model = make_model()
    tokens = torch.randint(0, 60, (2, 12))
    lengths = torch.tensor([9, 4])
    cache = KVCache(model.config, 2, 12, "cpu", torch.float32)
    with torch.no_grad():
        model(tokens[:, :9], cache=cache)  # row 1's entries 4..8 are padding to it
        steps = []
        for step in range(3):
            positions = (lengths + step)[:, None]
            steps.append(model(tokens.gather(1, positions), positions=positions, cache=cache))
        for row, length in enumerate(lengths.tolist()):
            alone = model(tokens[row : row + 1, : length + 3])[:, length:]
            assert relative(torch.cat(steps, dim=1)[row : row + 1], alone) < 1e-5


def test_a_full_cache_and_documents_with_a_cache_are_refused(
    make_model: Callable[..., Gemma2],
) -> None:
    model = make_model()
    cache = KVCache(model.config, 1, 3, "cpu", torch.float32)
    tokens = torch.zeros(1, 4, dtype=torch.long)
    with pytest.raises(ValueError, match="cache of 3"):
        model(tokens, cache=cache)
    with pytest.raises(ValueError, match="documents"):
        model(tokens[:, :2], documents=tokens[:, :2], cache=cache)


def test_packed_logits_equal_separate_ones_and_padding_does_not_matter(
    make_model: Callable[..., Gemma2], relative: Callable[[Tensor, Tensor], float]
) -> None:
    model = make_model()
    parts = [torch.randint(0, 60, (1, n)) for n in (9, 1, 12, 4)]
    padding = torch.full((1, 3), 7)
    tokens = torch.cat([*parts, padding], dim=1)
    sizes = [p.shape[1] for p in (*parts, padding)]
    documents = torch.cat([torch.full((1, n), i) for i, n in enumerate(sizes)], dim=1)
    positions = torch.cat([torch.arange(n)[None] for n in sizes], dim=1)
    with torch.no_grad():
        packed = model(tokens, positions, documents)
        separate = torch.cat([model(p) for p in parts], dim=1)
    assert relative(packed[:, : separate.shape[1]], separate) < 1e-5


def test_the_embeddings_factor_is_rounded_as_in_transformers() -> None:
    """sqrt(3584) is 59.87, in bfloat16 59.75; that of the 2B model, 48, would hide an error."""
    shape: dict[str, Any]
    shape = {"hidden_size": 3584, "vocab_size": 50, "intermediate_size": 4, "num_hidden_layers": 1}
    shape |= {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 2}
    ours = Gemma2(Gemma2Config(**shape)).bfloat16()
    theirs = transformers.Gemma2Model(transformers.Gemma2Config(**shape)).bfloat16()
    weight, tokens = ours.model.embed_tokens.weight.detach(), torch.arange(50)[None]
    with torch.no_grad():
        theirs.embed_tokens.weight.copy_(weight)
        embedded = ours.model.embed_tokens(tokens)
        first = theirs(tokens, output_hidden_states=True).hidden_states[0]
    assert torch.equal(embedded, first)
    assert torch.equal(embedded[0], weight * torch.tensor(59.75, dtype=torch.bfloat16))
    unrounded = (weight.float() * 3584**0.5).bfloat16()
    assert (embedded[0] != unrounded).float().mean() > 0.2
    # In float32 nothing is lost, and a changed dtype takes its own factor along.
    assert Embedding(2, 3584).scale.item() == pytest.approx(3584**0.5, rel=1e-7)


def test_the_attention_of_a_pass_multiplies_in_what_the_device_is_fast_at(
    make_model: Callable[..., Gemma2],
) -> None:
    """float16 has no product on a CPU; only the decoder asks, once for all layers."""
    positions = torch.arange(4)[None]
    for dtype in (torch.float32, torch.float16):
        attend = make_model(dtype=dtype).model.choose_attention(positions, None, None)
        assert isinstance(attend, TiledAttention) and attend.dtype == torch.float32


def test_rms_norm_gradients_equal_autograds(relative: Callable[[Tensor, Tensor], float]) -> None:
    norm = RMSNorm(24, 1e-3)
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(3, 5, 24, requires_grad=True)
    dy = torch.randn(3, 5, 24)
    weight = norm.weight.detach().double().requires_grad_()
    wide = x.detach().double().requires_grad_()
    truth = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-3) * (1 + weight)
    expected = torch.autograd.grad(truth, (wide, weight), dy.double())
    got = torch.autograd.grad(norm(x), (x, norm.weight), dy)
    assert relative(norm(x), truth) < 1e-6
    for ours, theirs in zip(got, expected, strict=True):
        assert relative(ours, theirs) < 1e-6


def test_float16_survives_outputs_and_residuals_beyond_its_range(
    make_model: Callable[..., Gemma2], relative: Callable[[Tensor, Tensor], float]
) -> None:
    """o_proj and down_proj give more than 65,504, and the residual stream grows past it too."""
    model = make_model(final_logit_softcapping=None)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.get_parameter("self_attn.o_proj.weight").mul_(3e4)
            layer.get_parameter("mlp.down_proj.weight").mul_(1e4)
            layer.get_parameter("post_feedforward_layernorm.weight").add_(5e4)
    tokens = torch.randint(0, 60, (2, 17))
    with torch.no_grad():
        truth = model(tokens)
        peak = max(h.abs().max().item() for h in outputs_of(model, ("down_proj", "o_proj"), tokens))
        assert peak > 65_504
        ours = model.half()(tokens)
    assert torch.isfinite(ours).all() and relative(ours, truth) < 2e-2


def outputs_of(model: Gemma2, names: tuple[str, ...], tokens: Tensor) -> list[Tensor]:
    """What the modules whose names end in one of the names return for the tokens."""
    found: list[Tensor] = []
    hooks = [
        m.register_forward_hook(lambda _m, _i, y: found.append(y))
        for n, m in model.named_modules()
        if n.endswith(names)
    ]
    model(tokens)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("window", [5, 40])
def test_flexattention_sees_what_the_loop_over_documents_sees(
    make_model: Callable[..., Gemma2],
    relative: Callable[[Tensor, Tensor], float],
    monkeypatch: pytest.MonkeyPatch,
    window: int,
) -> None:
    """Uncompiled on a CPU, where it has no backward pass; all of it on a GPU."""
    model = make_model(sliding_window=window, head_dim=16)
    documents = torch.tensor([[0] * 9 + [1] * 8, [0] * 3 + [1] * 12 + [-1] * 2])
    spans = document_spans(documents, 2, 17)
    positions = torch.cat([torch.arange(stop - start) for _, start, stop in spans]).view(2, 17)
    tokens = torch.randint(0, 60, (2, 17))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model.to(device).requires_grad_(device == "cuda")
    tokens, positions, documents = (x.to(device) for x in (tokens, positions, documents))
    results = []
    flex = FlexAttention.of(documents, window, tokens.device, is_compiled=device == "cuda")
    for attend in (TiledAttention(spans), flex):
        monkeypatch.setattr(model.model, "choose_attention", lambda *_, attend=attend: attend)
        logits = model(tokens, positions, documents)
        parameters = [p for p in model.model.layers.parameters() if p.requires_grad]
        gradients: tuple[Tensor, ...] = ()
        if parameters:
            gradients = torch.autograd.grad(logits.square().sum(), parameters)
        results.append([logits, *gradients])
    for ours, theirs in zip(*results, strict=True):
        assert relative(ours, theirs) < (1e-5 if device == "cpu" else 1e-2)
