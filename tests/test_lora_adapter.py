"""The adapter against PEFT in both directions: outputs, gradients, merging, files; the reader.

PEFT gives the padding token (id 0) no embedding gradient; in training no padding is supervised or
seen, so id 0 is left out here. B is random everywhere: at its start of zero most errors do not
show.
"""

import json
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from lora.adapter import adapter_tensors, load_adapter, merge_adapter, read_config, save_adapter
from lora.config import LoRAConfig
from lora.inject import add_lora, trainable_parameters
from lora.layer import LoRALinear
from lora.wrapped import WrappedLayer
from model.config import Gemma2Config
from model.embedding import resize_embedding
from model.loader import load_gemma2, save_gemma2
from model.loss import supervised_loss
from model.transformer import Gemma2

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

IDS = (3, 41, 59)
PREFIX = "base_model.model."
DELTA = ".token_adapter.trainable_tokens_delta"
VARIANTS: dict[str, dict[str, Any]] = {
    "seven": {},
    "rows": {"token_ids": IDS},
    "course": {"adapt": "course"},
    "rslora": {"use_rslora": True, "token_ids": IDS},
    "patterns": {
        "adapt": "course",
        "rank_pattern": {
            "q_proj": 2,
            r"layers\.1\.mlp\.down_proj": 7,
            "lm_head": 5,
            "model.embed_tokens": 3,
        },
        "alpha_pattern": {"v_proj": 3, r".*\.0\.mlp\.up_proj": 11, "embed_tokens": 9},
    },
    "rslora and patterns": {
        "use_rslora": True,
        "rank_pattern": {"gate_proj": 6},
        "alpha_pattern": {"gate_proj": 5},
    },
    "some names": {
        "targets": ("self_attn.q_proj", "model.layers.2.mlp.down_proj"),
        "token_ids": IDS,
    },
    "expression": {
        "targets": r"model\.layers\.[02]\.(mlp|self_attn)\.(up|k|o)_proj",
        "token_ids": IDS,
    },
    "course, expression": {"targets": r".*\.(q|down)_proj", "adapt": "course"},
    "embedding only": {"targets": ("q_proj", "embed_tokens")},
    "head only": {"targets": ("lm_head",)},
}
BOTH = pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])


@pytest.fixture(params=["gemma2", "gemma3"])
def family(request: pytest.FixtureRequest) -> str:
    """Every test here holds for both."""
    return str(request.param)


@pytest.fixture
def base(make_model: Callable[..., Gemma2], tmp_path: Path) -> Callable[[bool], Path]:
    """base(tied) -> folder of a plain model."""

    def make(tied: bool) -> Path:
        save_gemma2(make_model(tie_word_embeddings=tied), tmp_path / "base")
        return tmp_path / "base"

    return make


def hf_load(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=dtype
    ).eval()


def peft_load(hf: Any, folder: Path) -> Any:
    """PEFT only warns at what it cannot place: here that is an error."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = peft.PeftModel.from_pretrained(hf, folder, is_trainable=True).eval()
    bad = [
        str(w.message)
        for w in caught
        if "adapter keys" in str(w.message) or "nexpected" in str(w.message)
    ]
    assert not bad, bad
    return model


def adapted(folder: Path, config: LoRAConfig) -> Gemma2:
    model = add_lora(load_gemma2(folder), config)
    fill(trainable_parameters(model).values())
    return model


def fill(parameters: Iterable[Tensor]) -> None:
    for parameter in parameters:
        parameter.data.normal_(std=0.3)


def batch() -> tuple[Tensor, Tensor]:
    tokens = torch.randint(1, 60, (2, 14))
    tokens[0, :6] = torch.tensor(IDS * 2)
    targets = torch.randint(1, 60, (2, 14))
    targets[1, 3:6] = torch.tensor(IDS)
    targets[:, ::4] = -100
    return tokens, targets


def assert_equal(ours: Gemma2, theirs: Any, parity: Callable[[str, Tensor, Tensor], float]) -> None:
    """Logits within 1e-5, and the gradient of every trained tensor within 1e-4, name by name."""
    tokens, targets = batch()
    logits = theirs(tokens).logits
    assert parity("outputs against PEFT, float32", ours(tokens), logits) < 1e-5
    loss, count = supervised_loss(ours, ours.model(tokens), targets)
    truth = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
    assert parity("loss against PEFT, float32", loss, truth) < 1e-5
    (loss / count).backward()
    (truth / count).backward()
    mine = {name: p.grad for name, p in adapter_tensors(ours).items()}
    right = {
        name.replace(".default", ""): p.grad
        for name, p in theirs.named_parameters()
        if p.requires_grad
    }
    assert set(mine) == set(right)
    for name, gradient in right.items():
        assert gradient.abs().max() > 0, name
        ours_of_it = mine[name]
        assert ours_of_it is not None, name
        error = parity("gradients against PEFT, float32", ours_of_it, gradient)
        assert error < 1e-4, name


@BOTH
@pytest.mark.parametrize("variant", VARIANTS)
def test_ours_loads_in_peft(
    base: Callable[[bool], Path],
    parity: Callable[[str, Tensor, Tensor], float],
    tmp_path: Path,
    tied: bool,
    variant: str,
) -> None:
    config = LoRAConfig(rank=4, alpha=8, dropout=0.0, base_model="base", **VARIANTS[variant])
    ours = adapted(base(tied), config)
    save_adapter(ours, tmp_path / "adapter", config)
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {t.dtype for t in tensors.values()} == {torch.float32}
    assert_equal(ours, peft_load(hf_load(base(tied)), tmp_path / "adapter"), parity)


def peft_config(variant: str, tied: bool) -> Any:
    """The same variant as a PEFT user would write it."""
    ours = LoRAConfig(rank=4, alpha=8, dropout=0.0, **VARIANTS[variant])
    rows = list(ours.token_ids) or None
    targets = ours.all_targets
    return peft.LoraConfig(
        r=4,
        lora_alpha=8,
        lora_dropout=0.0,
        target_modules=targets if isinstance(targets, str) else list(targets),
        trainable_token_indices=rows
        if tied or not rows
        else {"embed_tokens": rows, "lm_head": rows},
        use_rslora=ours.use_rslora,
        rank_pattern=ours.rank_pattern,
        alpha_pattern=ours.alpha_pattern,
        task_type="CAUSAL_LM",
    )


def peft_save(hf: Any, config: Any, folder: Path, copies: bool | str) -> Any:
    model = peft.get_peft_model(hf, config)
    fill(p for p in model.parameters() if p.requires_grad)
    model.save_pretrained(folder, save_embedding_layers=copies)
    return model.eval()


@BOTH
@pytest.mark.parametrize("copies", [True, False], ids=["base copies", "no copies"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.filterwarnings("ignore")
def test_pefts_loads_here(
    base: Callable[[bool], Path],
    parity: Callable[[str, Tensor, Tensor], float],
    tmp_path: Path,
    tied: bool,
    copies: bool,
    variant: str,
) -> None:
    """PEFT 0.21.2 reads all of these; on a tied model token rows are given as a list."""
    folder = base(tied)
    theirs = peft_save(hf_load(folder), peft_config(variant, tied), tmp_path / "peft", copies)
    ours = load_gemma2(folder)
    config = load_adapter(ours, tmp_path / "peft")
    assert config.rank == 4 and config.token_ids == VARIANTS[variant].get("token_ids", ())
    assert_equal(ours, theirs, parity)


@pytest.mark.parametrize("copies", [True, False])
@pytest.mark.filterwarnings("ignore")
def test_pefts_token_list_on_an_untied_model_trains_the_embedding_alone(
    base: Callable[[bool], Path],
    parity: Callable[[str, Tensor, Tensor], float],
    tmp_path: Path,
    copies: bool,
) -> None:
    folder = base(False)
    config = peft.LoraConfig(
        r=4, target_modules=["q_proj"], trainable_token_indices=list(IDS), task_type="CAUSAL_LM"
    )
    theirs = peft_save(hf_load(folder), config, tmp_path / "peft", copies)
    ours = load_gemma2(folder)
    save_adapter(ours, tmp_path / "again", load_adapter(ours, tmp_path / "peft"))
    assert_equal(ours, theirs, parity)
    again = load_gemma2(folder)
    load_adapter(again, tmp_path / "again")
    tokens, _ = batch()
    assert torch.equal(again(tokens), ours(tokens))


@BOTH
@pytest.mark.parametrize("variant", VARIANTS)
def test_merged_equals_unmerged_and_loads_in_transformers(
    base: Callable[[bool], Path],
    relative: Callable[[Tensor, Tensor], float],
    tmp_path: Path,
    tied: bool,
    variant: str,
) -> None:
    config = LoRAConfig(rank=4, alpha=8, dropout=0.3, **VARIANTS[variant])
    ours = adapted(base(tied), config)
    tokens, _ = batch()
    with torch.no_grad():
        before = ours(tokens)
        merged = merge_adapter(ours)
        assert relative(merged(tokens), before) < 1e-5
        is_whole = config.matches("model.embed_tokens") or config.matches("lm_head")
        assert merged.config.tie_word_embeddings == (tied and not is_whole)
        save_gemma2(merged, tmp_path / "merged")
        assert relative(hf_load(tmp_path / "merged")(tokens).logits, before) < 1e-5
    assert torch.equal(load_gemma2(tmp_path / "merged")(tokens), merged(tokens))
    with pytest.raises(ValueError, match="nothing to merge"):
        merge_adapter(merged)
    with pytest.raises(ValueError, match="nothing to save"):
        save_adapter(merged, tmp_path / "none", config)


@BOTH
@pytest.mark.parametrize("adapt", ["rows", "course"])
@pytest.mark.parametrize("targets", [("q_proj", "up_proj"), r".*\.(q|up)_proj"], ids=str)
def test_new_tokens_survive_in_our_reader_and_in_peft(
    base: Callable[[bool], Path],
    relative: Callable[[Tensor, Tensor], float],
    tmp_path: Path,
    tied: bool,
    adapt: str,
    targets: Any,
) -> None:
    """A base of 60 rows and four new: each reader resizes it and finds the rows in the adapter."""
    folder = base(tied)
    config = LoRAConfig(
        rank=4, alpha=8, dropout=0.0, targets=targets, adapt=adapt, token_ids=(60, 61, 62, 63)
    )
    ours = load_gemma2(folder)
    resize_embedding(ours, torch.randn(4, 32))
    if not tied:
        ours.lm_head.weight.data[60:] = torch.randn(4, 32)
    add_lora(ours, config)
    fill(trainable_parameters(ours).values())
    save_adapter(ours, tmp_path / "adapter", config)
    tokens = torch.randint(50, 64, (2, 14))
    with torch.no_grad():
        truth = ours(tokens)

        again = load_gemma2(folder)
        resize_embedding(again, torch.zeros(4, 32))
        read = load_adapter(again, tmp_path / "adapter")
        assert (read.adapt, read.token_ids) == (adapt, config.token_ids)
        assert torch.equal(again(tokens), truth)
        save_adapter(again, tmp_path / "second", read)
        for name in ("adapter_config.json", "adapter_model.safetensors", "new_rows.safetensors"):
            first, second = tmp_path / "adapter" / name, tmp_path / "second" / name
            assert first.exists() == second.exists()
            assert not first.exists() or first.read_bytes() == second.read_bytes()

        hf = hf_load(folder)
        hf.resize_token_embeddings(64, mean_resizing=False)
        if adapt == "course":  # the lines of lora/adapter.py's docstring
            rows = load_file(tmp_path / "adapter" / "new_rows.safetensors")
            hf.get_input_embeddings().weight.data[rows["ids"]] = rows["embed_tokens"]
            hf.get_output_embeddings().weight.data[rows["ids"]] = rows["lm_head"]
        assert relative(peft_load(hf, tmp_path / "adapter")(tokens).logits, truth) < 1e-5


@BOTH
@pytest.mark.filterwarnings("ignore")
def test_new_tokens_of_pefts_own_course_adapter_come_from_its_base_copies(
    base: Callable[[bool], Path],
    relative: Callable[[Tensor, Tensor], float],
    tmp_path: Path,
    tied: bool,
) -> None:
    hf = hf_load(base(tied))
    hf.resize_token_embeddings(64, mean_resizing=False)
    hf.get_input_embeddings().weight.data[60:] = torch.randn(4, 32)
    theirs = peft_save(hf, peft_config("course", tied), tmp_path / "peft", "auto")
    ours = load_gemma2(base(tied))
    resize_embedding(ours, torch.zeros(4, 32))
    load_adapter(ours, tmp_path / "peft")
    tokens = torch.randint(50, 64, (2, 14))
    assert relative(ours(tokens), theirs(tokens).logits) < 1e-5


@pytest.mark.parametrize("variant", ["rows", "course"])
def test_bf16_is_as_close_to_the_truth_as_peft(
    base: Callable[[bool], Path], tmp_path: Path, variant: str
) -> None:
    config = LoRAConfig(rank=4, alpha=8, dropout=0.0, **VARIANTS[variant])
    save_gemma2(load_gemma2(base(True), dtype=torch.bfloat16), tmp_path / "narrow")
    save_adapter(adapted(tmp_path / "narrow", config), tmp_path / "adapter", config)
    tokens = torch.randint(1, 60, (8, 24))
    results = []
    with torch.no_grad():
        for dtype in (torch.float32, torch.bfloat16):
            ours = load_gemma2(tmp_path / "narrow", dtype=dtype)
            load_adapter(ours, tmp_path / "adapter")
            results.append(
                (
                    ours(tokens),
                    peft_load(hf_load(tmp_path / "narrow", dtype), tmp_path / "adapter")(tokens),
                )
            )
        merged = merge_adapter(ours)(tokens)
    (_, truth), (mine, theirs) = results
    error, allowed, after = (
        (x.float() - truth.logits).square().mean().sqrt() for x in (mine, theirs.logits, merged)
    )
    assert error <= 2 * allowed, f"{error:.2e} against {allowed:.2e}"
    assert after <= 3 * allowed, f"merged: {after:.2e} against {allowed:.2e}"


def test_the_2b_adapter_stays_under_100_mb(tmp_path: Path) -> None:
    with torch.device("meta"):
        model = Gemma2(Gemma2Config(vocab_size=256008))
    config = LoRAConfig(token_ids=tuple(range(256000, 256008)))
    sizes = {name: p.numel() * 4 for name, p in adapter_tensors(add_lora(model, config)).items()}
    assert sum(sizes.values()) == 20_766_720 * 4 + 8 * 2304 * 4 < 100e6


def test_an_older_adapters_files_do_not_survive_in_the_folder(
    base: Callable[[bool], Path], tmp_path: Path
) -> None:
    folder = base(True)
    course = LoRAConfig(rank=4, adapt="course", token_ids=IDS)
    save_adapter(adapted(folder, course), tmp_path / "adapter", course)
    assert (tmp_path / "adapter" / "new_rows.safetensors").is_file()
    rows = LoRAConfig(rank=4, token_ids=IDS)
    save_adapter(adapted(folder, rows), tmp_path / "adapter", rows)
    assert sorted(p.name for p in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


@pytest.mark.parametrize("adapt", ["rows", "course"])
@BOTH
def test_adapters_keep_their_keys(
    make_model: Callable[..., Gemma2], tmp_path: Path, adapt: str, tied: bool
) -> None:
    """PEFT's keys, written out: those of earlier adapters, which every later reader expects."""
    parts = [f"self_attn.{letter}_proj" for letter in "qkvo"]
    parts += ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    paths = [f"model.layers.{layer}.{part}" for layer in range(3) for part in parts]
    if adapt == "course":
        paths.append("lm_head")
    keys = {f"{PREFIX}{path}.lora_{factor}.weight" for path in paths for factor in "AB"}
    if adapt == "course":
        keys |= {f"{PREFIX}model.embed_tokens.lora_embedding_{factor}" for factor in "AB"}
    else:  # the rows that a tied head shares appear once
        keys |= {f"{PREFIX}{path}{DELTA}" for path in ("model.embed_tokens", "lm_head")[: 2 - tied]}
    config = LoRAConfig(rank=4, adapt=adapt, token_ids=IDS)
    model = add_lora(make_model(tie_word_embeddings=tied), config)
    save_adapter(model, tmp_path, config)
    assert set(load_file(tmp_path / "adapter_model.safetensors")) == keys


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("adapt", ["rows", "course"])
def test_every_layer_merges_itself_in_place_and_in_the_bases_dtype(
    make_model: Callable[..., Gemma2], adapt: str, dtype: torch.dtype
) -> None:
    """merged() is the frozen module itself; its weight is the float32 sum, rounded once."""
    model = add_lora(make_model(dtype=dtype), LoRAConfig(rank=4, adapt=adapt, token_ids=IDS))
    fill(trainable_parameters(model).values())
    layers = [module for module in model.modules() if isinstance(module, WrappedLayer)]
    assert len(layers) == 23
    for layer in layers[1:-1]:
        assert isinstance(layer, LoRALinear)
        before, storage = layer.weight.detach().double(), layer.weight.data_ptr()
        base, low = layer.base, layer.lora_B.detach().double() @ layer.lora_A.detach().double()
        assert layer.merged() is base and base.weight.data_ptr() == storage
        truth = before + layer.scaling * low
        unit = torch.finfo(dtype).eps
        assert base.weight.dtype == dtype
        assert ((base.weight - truth).abs() <= 0.51 * unit * truth.abs() + 1e-6).all()
    embedding = layers[0]
    assert embedding.merged() is embedding.base and embedding.weight.dtype == dtype


# The strict reader.


@pytest.fixture
def saved(base: Callable[[bool], Path], tmp_path: Path) -> tuple[Path, Path]:
    """An adapter folder of ours, and the base that it belongs to."""
    config = LoRAConfig(rank=4, dropout=0.0, token_ids=IDS)
    save_adapter(adapted(base(True), config), tmp_path / "adapter", config)
    return tmp_path / "adapter", tmp_path / "base"


def edit_config(adapter: Path, **changes: Any) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_tensors(adapter: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file({name: t.clone() for name, t in tensors.items()}, path)


def test_every_tensor_that_does_not_fit_is_named(saved: tuple[Path, Path]) -> None:
    adapter, base = saved

    def change(tensors: dict[str, Tensor]) -> None:
        del tensors[f"{PREFIX}model.layers.0.mlp.up_proj.lora_B.weight"]
        tensors[f"{PREFIX}model.layers.7.mlp.up_proj.lora_B.weight"] = torch.zeros(2)
        tensors[f"{PREFIX}model.layers.1.self_attn.q_proj.lora_A.weight"] = torch.zeros(5, 32)
        tensors[f"{PREFIX}model.embed_tokens{DELTA}"] = torch.zeros(2, 32)
        tensors[f"{PREFIX}lm_head.weight"] = torch.zeros(61, 32)

    edit_tensors(adapter, change)
    with pytest.raises(ValueError) as caught:
        load_adapter(load_gemma2(base), adapter)
    for part in (
        f"missing {PREFIX}model.layers.0.mlp.up_proj.lora_B.weight",
        f"unexpected {PREFIX}model.layers.7.mlp.up_proj.lora_B.weight",
        f"{PREFIX}model.layers.1.self_attn.q_proj.lora_A.weight has shape (5, 32), "
        "expected (4, 32)",
        f"{PREFIX}model.embed_tokens{DELTA} has shape (2, 32), expected (3, 32)",
        "copy of lm_head has shape (61, 32), expected (60, 32)",
        str(adapter),
    ):
        assert part in str(caught.value)


def test_a_duplicate_under_the_tied_head_must_be_one(saved: tuple[Path, Path]) -> None:
    adapter, base = saved
    edit_tensors(
        adapter,
        lambda t: t.update(
            {f"{PREFIX}lm_head{DELTA}": t[f"{PREFIX}model.embed_tokens{DELTA}"] + 0}
        ),
    )
    load_adapter(load_gemma2(base), adapter)
    edit_tensors(adapter, lambda t: t[f"{PREFIX}lm_head{DELTA}"].add_(1))
    with pytest.raises(ValueError, match="differs from"):
        load_adapter(load_gemma2(base), adapter)


def test_base_copies_that_differ_on_a_tied_model_are_refused(saved: tuple[Path, Path]) -> None:
    adapter, base = saved
    pair = {"model.embed_tokens": torch.zeros(60, 32), "lm_head": torch.ones(60, 32)}
    edit_tensors(
        adapter,
        lambda t: t.update({f"{PREFIX}{n}.base_layer.weight": copy for n, copy in pair.items()}),
    )
    with pytest.raises(ValueError, match="differ on a tied model"):
        load_adapter(load_gemma2(base), adapter)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"peft_type": "IA3", "r": None, "bias": "all"}, ["'IA3'", "r is missing", "bias='all'"]),
        (
            {"use_dora": True, "bias": "lora_only", "fan_in_fan_out": True},
            ["use_dora", "bias", "fan_in_fan_out"],
        ),
        (
            {"modules_to_save": ["lm_head"], "layers_to_transform": [0]},
            ["modules_to_save", "layers_to_transform"],
        ),
        ({"init_lora_weights": "pissa"}, ["init_lora_weights='pissa'"]),
        (
            {"target_modules": ["q_proj", "lm_head"], "ensure_weight_tying": True},
            ["ensure_weight_tying"],
        ),
        (
            {"trainable_token_indices": {"embed_tokens": [1], "lm_head": [2]}},
            ["trainable_token_indices"],
        ),
        ({"trainable_token_indices": {"lm_head": [2]}}, ["trainable_token_indices"]),
        ({"trainable_token_indices": 7}, ["trainable_token_indices"]),
        (
            {"r": "16", "lora_alpha": "x", "lora_dropout": None},
            ["rank must", "alpha must", "dropout must"],
        ),
        (
            {"r": 0, "rank_pattern": [1], "alpha_pattern": {"q_proj": "x"}},
            ["rank must", "rank_p", "alpha_p"],
        ),
        ({"target_modules": 5}, ["adapter_config.json"]),
        ({"target_modules": [1, 2]}, ["targets must"]),
        ({"target_modules": "(q_proj"}, ["regular expression"]),
        ({"target_modules": ["query"]}, ["'query'"]),
        ({"trainable_token_indices": [3, 41, 60]}, ["below 60"]),
    ],
)
def test_what_cannot_be_read_right_is_refused_with_all_reasons(
    saved: tuple[Path, Path], changes: dict[str, Any], parts: list[str]
) -> None:
    adapter, base = saved
    edit_config(adapter, **changes)
    with pytest.raises(ValueError) as caught:
        load_adapter(load_gemma2(base), adapter)
    for part in parts:
        assert part in str(caught.value)


def test_broken_and_missing_files_are_one_sentence(saved: tuple[Path, Path]) -> None:
    adapter, base = saved
    weights, config = adapter / "adapter_model.safetensors", adapter / "adapter_config.json"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        load_adapter(load_gemma2(base), adapter)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match="adapter_model.safetensors"):
        load_adapter(load_gemma2(base), adapter)
    config.write_text("{")
    with pytest.raises(ValueError, match="adapter_config.json: expected JSON"):
        read_config(adapter)
    config.unlink()
    with pytest.raises(FileNotFoundError, match="adapter_config.json"):
        read_config(adapter)


def test_a_base_that_was_not_resized_is_told_so(
    base: Callable[[bool], Path], tmp_path: Path
) -> None:
    config = LoRAConfig(rank=4, adapt="course", token_ids=(60, 61))
    ours = load_gemma2(base(True))
    resize_embedding(ours, torch.randn(2, 32))
    save_adapter(add_lora(ours, config), tmp_path / "adapter", config)
    with pytest.raises(ValueError, match="rows up to 61 of a vocabulary of 60.*resize"):
        load_adapter(load_gemma2(base(True)), tmp_path / "adapter")
    odd = {"ids": torch.tensor([60]), "embed_tokens": torch.zeros(2, 32)}
    save_file(odd, tmp_path / "adapter" / "new_rows.safetensors")
    with pytest.raises(ValueError, match="new_rows.safetensors: expected ids"):
        load_adapter(load_gemma2(base(True)), tmp_path / "adapter")
