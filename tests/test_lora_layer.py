"""LoRALinear and lora_linear: the formula, dropout, starting values, precision, and the choice of implementation."""

import pytest
import torch

from lora.config import LoRAConfig
from lora.inject import add_lora, trainable_parameters
from lora.layer import LoRALinear
from lora.ops import lora_linear


def raw(rows=(3, 5), k=24, n=40, r=4, dtype=torch.float32):
    x = torch.randn(*rows, k, dtype=dtype)
    return x, torch.randn(n, k, dtype=dtype) / 5, torch.randn(r, k) / 5, torch.randn(n, r)


def test_the_formula_with_raw_tensors(relative):
    x, weight, lora_a, lora_b = raw()
    truth = x.double() @ (weight.double() + 2.5 * lora_b.double() @ lora_a.double()).T
    assert relative(lora_linear(x, weight, lora_a, lora_b, 2.5), truth) < 1e-6
    assert (
        relative(lora_linear(x, weight, lora_a, lora_b, 2.5, dropout=0.5, training=False), truth)
        < 1e-6
    )


def test_gradients_with_raw_tensors_in_float64():
    x, weight, lora_a, lora_b = (t.double().requires_grad_() for t in raw(rows=(3,), k=5, n=4, r=2))
    assert torch.autograd.gradcheck(
        lambda *ts: lora_linear(*ts, 1.5, impl="reference"), (x, weight.detach(), lora_a, lora_b)
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bit_results_are_rounded_once_from_the_low_rank_path(dtype):
    x, weight, lora_a, lora_b = raw(dtype=dtype)
    y = lora_linear(x, weight, lora_a, lora_b, 2.5, impl="reference")
    truth = x.double() @ (weight.double() + 2.5 * lora_b.double() @ lora_a.double()).T
    assert y.dtype == dtype and lora_a.dtype == torch.float32
    unit = torch.finfo(dtype).eps
    assert (
        (y - truth).abs() <= unit * (truth.abs() + (x.double() @ weight.double().T).abs())
    ).all()


def test_dropout_masks_at_its_rate_and_rescales(make_model):
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


def test_dropout_reaches_the_gradients_of_both_factors_through_the_same_mask():
    x, weight, lora_a, lora_b = raw()
    lora_a.requires_grad_(), lora_b.requires_grad_()
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


def test_implementations_are_chosen_or_refused_by_name():
    x, weight, lora_a, lora_b = raw()
    same = lora_linear(x, weight, lora_a, lora_b, 1.0, impl="reference")
    assert torch.equal(lora_linear(x, weight, lora_a, lora_b, 1.0), same)
    with pytest.raises(ValueError, match="'fast'"):
        lora_linear(x, weight, lora_a, lora_b, 1.0, impl="fast")
    with pytest.raises(ValueError, match=r"(?i)triton"):
        lora_linear(x, weight, lora_a, lora_b, 1.0, impl="triton")


@pytest.mark.parametrize("adapt", ["rows", "course"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_training_starts_from_the_base_in_float32(make_model, relative, adapt, dtype):
    tokens = torch.randint(0, 60, (2, 8))
    before = make_model(dtype=dtype)(tokens)
    model = add_lora(make_model(dtype=dtype), LoRAConfig(adapt=adapt, token_ids=(1, 59)), seed=3)
    # The token rows are a product of their own, which may round differently in the last place.
    assert relative(model(tokens), before) < (1e-6 if dtype == torch.float32 else 1e-2)
    trained = trainable_parameters(model)
    assert {p.dtype for p in trained.values()} == {torch.float32}
    assert (
        sum("lora_A" in name for name in trained),
        sum(name.endswith("rows") for name in trained),
    ) == ((21, 1) if adapt == "rows" else (23, 0))
    again = trainable_parameters(
        add_lora(make_model(dtype=dtype), LoRAConfig(adapt=adapt, token_ids=(1, 59)), seed=3)
    )
    assert all(torch.equal(p, again[name]) for name, p in trained.items())


def test_a_missing_target_lists_near_names(make_model):
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
def test_a_refused_configuration_leaves_the_model_as_it_was(make_model, config, part):
    model = make_model()
    names = [name for name, _ in model.named_parameters()]
    with pytest.raises(ValueError, match=part):
        add_lora(model, config)
    assert [name for name, p in model.named_parameters() if p.requires_grad] == names


def test_a_second_adapter_is_refused(make_model):
    model = add_lora(make_model(), LoRAConfig())
    with pytest.raises(ValueError, match="already carries LoRA"):
        add_lora(model, LoRAConfig())


def test_every_field_out_of_range_is_named():
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
