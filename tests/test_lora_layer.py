"""LoRALinear and lora_linear: formula, dropout, start, precision, choice of implementation."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lora.config import LINEARS, LoRAConfig
from lora.implementations import resolve_impl
from lora.inject import add_lora, trainable_parameters
from lora.layer import FEW_ROWS, LoRALinear
from lora.ops import lora_linear
from model.layers import Linear
from model.transformer import Gemma2
from training.checkpoint import load_checkpoint

MakeModel = Callable[..., Gemma2]
Relative = Callable[[Tensor, Tensor], float]


def raw(
    rows: tuple[int, ...] = (3, 5),
    k: int = 24,
    n: int = 40,
    r: int = 4,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x (*rows, k), weight (n, k), A (r, k) and B (n, r)."""
    x = torch.randn(*rows, k, dtype=dtype)
    return x, torch.randn(n, k, dtype=dtype) / 5, torch.randn(r, k) / 5, torch.randn(n, r)


def test_the_formula_with_raw_tensors(relative: Relative) -> None:
    x, weight, lora_a, lora_b = raw()
    truth = x.double() @ (weight.double() + 2.5 * lora_b.double() @ lora_a.double()).T
    assert relative(lora_linear(x, weight, lora_a, lora_b, 2.5), truth) < 1e-6
    assert (
        relative(lora_linear(x, weight, lora_a, lora_b, 2.5, dropout=0.5, training=False), truth)
        < 1e-6
    )


def test_gradients_with_raw_tensors_in_float64() -> None:
    x, weight, lora_a, lora_b = (t.double().requires_grad_() for t in raw(rows=(3,), k=5, n=4, r=2))
    frozen = weight.detach()
    assert torch.autograd.gradcheck(
        lambda x, a, b: lora_linear(x, frozen, a, b, 1.5, impl="reference"), (x, lora_a, lora_b)
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bit_results_are_rounded_once_from_the_low_rank_path(dtype: torch.dtype) -> None:
    x, weight, lora_a, lora_b = raw(dtype=dtype)
    y = lora_linear(x, weight, lora_a, lora_b, 2.5, impl="reference")
    truth = x.double() @ (weight.double() + 2.5 * lora_b.double() @ lora_a.double()).T
    assert y.dtype == dtype and lora_a.dtype == torch.float32
    unit = torch.finfo(dtype).eps
    assert (
        (y - truth).abs() <= unit * (truth.abs() + (x.double() @ weight.double().T).abs())
    ).all()


def test_dropout_masks_at_its_rate_and_rescales() -> None:
    """With A = B = identity the low-rank path shows the mask itself."""
    base = torch.nn.Linear(64, 64, bias=False).requires_grad_(False)
    base.weight.zero_()
    layer = LoRALinear(base, 64, 1.0, 0.25, torch.Generator())
    layer.lora_A.data, layer.lora_B.data = torch.eye(64), torch.eye(64)
    x = torch.ones(1000, 64)
    y = layer.train()(x)
    assert set(y.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    # 64,000 draws: 0.25 within 5 standard deviations.
    assert abs((y == 0).float().mean().item() - 0.25) < 5 * (0.25 * 0.75 / y.numel()) ** 0.5
    assert not torch.equal(layer(x), y)  # drawn anew
    assert torch.equal(layer.eval()(x), x)


def test_dropout_reaches_the_gradients_of_both_factors_through_the_same_mask() -> None:
    x, weight, lora_a, lora_b = raw()
    lora_a.requires_grad_()
    lora_b.requires_grad_()
    torch.manual_seed(4)
    y = lora_linear(x, weight, lora_a, lora_b, 2.5, dropout=0.4, training=True, impl="reference")
    torch.manual_seed(4)
    dropped = torch.nn.functional.dropout(x, 0.4, True)
    truth = x @ weight.T + 2.5 * dropped @ lora_a.T @ lora_b.T
    dy = torch.randn_like(y)
    for mine, right in zip(
        *(torch.autograd.grad(out, [lora_a, lora_b], dy) for out in (y, truth)), strict=True
    ):
        assert torch.allclose(mine, right, rtol=1e-4, atol=1e-4)


def test_implementations_are_chosen_or_refused_by_name() -> None:
    x, weight, lora_a, lora_b = raw()
    same = lora_linear(x, weight, lora_a, lora_b, 1.0, impl="reference")
    assert torch.equal(lora_linear(x, weight, lora_a, lora_b, 1.0), same)
    with pytest.raises(ValueError, match="'fast'"):
        lora_linear(x, weight, lora_a, lora_b, 1.0, impl="fast")
    with pytest.raises(ValueError, match=r"(?i)triton"):
        lora_linear(x, weight, lora_a, lora_b, 1.0, impl="triton")


@pytest.mark.parametrize("adapt", ["rows", "course"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_training_starts_from_the_base_in_float32(
    make_model: MakeModel, relative: Relative, adapt: str, dtype: torch.dtype
) -> None:
    tokens = torch.randint(0, 60, (2, 8))
    before = make_model(dtype=dtype)(tokens)
    model = add_lora(make_model(dtype=dtype), LoRAConfig(adapt=adapt, token_ids=(1, 59)), seed=3)
    # The token rows are a product of their own, which may round differently in the last place.
    assert relative(model(tokens), before) < (1e-6 if dtype == torch.float32 else 1e-2)
    trained = trainable_parameters(model)
    assert {p.dtype for p in trained.values()} == {torch.float32}
    num_factors = sum("lora_A" in name for name in trained)
    num_rows = sum(name.endswith("rows") for name in trained)
    assert (num_factors, num_rows) == ((21, 1) if adapt == "rows" else (23, 0))
    config = LoRAConfig(adapt=adapt, token_ids=(1, 59))
    again = trainable_parameters(add_lora(make_model(dtype=dtype), config, seed=3))
    assert all(torch.equal(p, again[name]) for name, p in trained.items())


def test_a_starts_within_pefts_bound() -> None:
    """Kaiming-uniform with a = sqrt(5) is uniform within 1 / sqrt(K), as PEFT's own layer is."""
    peft = pytest.importorskip("peft")
    size_in, size_out, rank = 400, 8, 64
    base = nn.Linear(size_in, size_out, bias=False).requires_grad_(False)
    ours = LoRALinear(base, rank, 1.0, 0.0, torch.Generator().manual_seed(1)).lora_A.detach()
    config = peft.LoraConfig(r=rank, target_modules=["0"])
    theirs = peft.get_peft_model(nn.Sequential(base), config).base_model.model[0].lora_A["default"]
    for lora_a in (ours, theirs.weight.detach()):
        scaled = lora_a * size_in**0.5  # uniform in [-1, 1]: the mean square is 1 / 3
        assert scaled.abs().max() <= 1 + 1e-6
        assert scaled.max() > 0.999 and scaled.min() < -0.999
        # The square of such a number has the standard deviation sqrt(1/5 - 1/9).
        allowed = 5 * (4 / 45 / scaled.numel()) ** 0.5
        assert abs(scaled.square().mean().item() - 1 / 3) < allowed


@pytest.mark.parametrize("impl", ["reference", "torch"])
@pytest.mark.parametrize("name", LINEARS)
def test_dropout_acts_in_every_linear_in_training_and_never_in_evaluation(
    make_model: MakeModel, randomized: Callable[[nn.Module], None], name: str, impl: str
) -> None:
    """All linears have LoRA and dropout in their groups; one B lets its path through."""
    tokens = torch.randint(0, 60, (2, 9))

    def outputs(dropout: float, is_training: bool) -> list[Tensor]:
        model = add_lora(make_model(), LoRAConfig(rank=4, dropout=dropout), impl=impl)
        randomized(model)
        for path, module in model.named_modules():
            if isinstance(module, LoRALinear) and not path.endswith(name):
                module.lora_B.data.zero_()
        model.train(is_training)
        found = []
        for seed in (7, 7, 8):
            torch.manual_seed(seed)
            found.append(model(tokens).detach())
        return found

    first, same_seed, other_seed = outputs(0.5, is_training=True)
    without = outputs(0.0, is_training=True)[0]
    assert torch.equal(first, same_seed) and not torch.equal(first, other_seed)
    assert not torch.allclose(first, without, rtol=1e-3, atol=1e-3)
    assert all(torch.equal(output, without) for output in outputs(0.5, is_training=False))


@pytest.mark.parametrize("adapt", ["rows", "course"])
def test_checkpoints_of_earlier_runs_find_their_parameters(
    make_model: MakeModel, tmp_path: Path, adapt: str
) -> None:
    """A checkpoint stores tensors by parameter name: as they always were, written out here."""
    parts = [f"self_attn.{letter}_proj" for letter in "qkvo"]
    parts += ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    paths = [f"model.layers.{layer}.{part}" for layer in range(3) for part in parts]
    if adapt == "course":
        paths += ["model.embed_tokens", "lm_head"]
    names = {f"{path}.{factor}" for path in paths for factor in ("lora_A", "lora_B")}
    if adapt == "rows":
        names.add("model.embed_tokens.trained.rows")
    model = add_lora(make_model(), LoRAConfig(rank=4, adapt=adapt, token_ids=(1, 59)))
    trained = trainable_parameters(model)
    assert set(trained) == names
    stored = {name: torch.randn(parameter.shape) for name, parameter in trained.items()}
    save_file({f"parameter.{n}": t for n, t in stored.items()}, tmp_path / "state.safetensors")
    (tmp_path / "state.json").write_text("{}")
    load_checkpoint(tmp_path, model, torch.optim.AdamW(trained.values()))
    assert all(torch.equal(parameter, stored[name]) for name, parameter in trained.items())


def test_the_implementation_is_chosen_once_for_where_the_model_will_run(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """add_lora decides and refuses; a model may still lie elsewhere than it will run."""

    def impls(**options: Any) -> set[str]:
        model = add_lora(make_model(), LoRAConfig(rank=2), **options)
        return {module.impl for module in model.modules() if isinstance(module, LoRALinear)}

    assert impls() == {"torch"} and impls(impl="reference") == {"reference"}
    model = make_model()
    with pytest.raises(ValueError, match="triton cannot run here"):
        add_lora(model, LoRAConfig(rank=2), impl="triton")
    assert not any(isinstance(module, LoRALinear) for module in model.modules())
    # The model still lies on the CPU, but will be moved to a GPU before it runs.
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr("lora.implementations.supported", lambda capability: (True, "sm_90"))
    assert impls(device=torch.device("cuda")) == {"triton"}
    assert resolve_impl("auto", "cuda", torch.float64)[0] == "reference"


def test_a_missing_target_lists_near_names(make_model: MakeModel) -> None:
    with pytest.raises(ValueError, match="'q_prj'.*did you mean q_proj") as caught:
        add_lora(make_model(), LoRAConfig(targets=("q_prj", "v_proj", "zzz")))
    assert "'zzz'" in str(caught.value) and "down_proj" in str(caught.value)
    with pytest.raises(ValueError, match="no module matches"):
        add_lora(make_model(), LoRAConfig(targets=r".*\.mlp\.q_proj"))


@pytest.mark.parametrize(
    ("config", "part"),
    [
        (LoRAConfig(token_ids=(60,)), "below 60"),
        (LoRAConfig(token_ids=(-1,)), "below 60"),
        (LoRAConfig(token_ids=(5, 5)), "different ids"),
        (
            LoRAConfig(targets=("q_proj", "embed_tokens"), token_ids=(5,)),
            "embed_tokens is a LoRA target",
        ),
        (LoRAConfig(targets=("norm",)), "'norm'"),
    ],
)
def test_a_refused_configuration_leaves_the_model_as_it_was(
    make_model: MakeModel, config: LoRAConfig, part: str
) -> None:
    model = make_model()
    names = [name for name, _ in model.named_parameters()]
    with pytest.raises(ValueError, match=part):
        add_lora(model, config)
    assert [name for name, p in model.named_parameters() if p.requires_grad] == names


def test_a_second_adapter_is_refused(make_model: MakeModel) -> None:
    model = add_lora(make_model(), LoRAConfig())
    with pytest.raises(ValueError, match="already carries LoRA"):
        add_lora(model, LoRAConfig())


def test_every_field_out_of_range_is_named() -> None:
    with pytest.raises(ValueError) as caught:
        LoRAConfig(
            rank=0, alpha=-1, dropout=1.0, adapt="all", targets=(), rank_pattern={"q_proj": 0}
        )
    for part in (
        "rank must",
        "alpha must",
        "dropout must",
        "adapt must",
        "targets must",
        "rank_pattern must",
    ):
        assert part in str(caught.value)
    with pytest.raises(ValueError, match="regular expression"):
        LoRAConfig(targets="(q_proj")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("adapted", [(True, True), (True, False)], ids=str)
def test_few_rows_without_gradients_need_no_training_machinery(
    dtype: torch.dtype,
    adapted: tuple[bool, ...],
    monkeypatch: pytest.MonkeyPatch,
    relative: Relative,
) -> None:
    generator = torch.Generator().manual_seed(0)
    linears: list[nn.Module] = [
        Linear(24, width).to(dtype).requires_grad_(False) for width in (40, 16)
    ]
    for place, is_adapted in enumerate(adapted):
        if is_adapted:
            base = linears[place]
            assert isinstance(base, nn.Linear)
            layer = LoRALinear(base, 4, 2.5, 0.0, generator, impl="torch")
            layer.lora_B.data.normal_(generator=generator)
            linears[place] = layer.eval()
    first = linears[0]
    assert isinstance(first, LoRALinear)
    x = torch.randn(2, 3, 24, generator=generator).to(dtype)
    expected = first.forward_group(x, linears)
    many = torch.randn(1, FEW_ROWS + 1, 24, generator=generator).to(dtype)
    monkeypatch.setattr("lora.layer.fused_linears", None)  # so that its use would be an error
    with torch.no_grad():
        found = [first.forward_group(x, linears), [linear(x) for linear in linears]]
        with pytest.raises(TypeError):
            first.forward_group(many, linears)
    for outputs in found:
        for y, truth in zip(outputs, expected, strict=True):
            assert y.dtype == dtype
            assert relative(y, truth) < (1e-6 if dtype == torch.float32 else 1e-2)
