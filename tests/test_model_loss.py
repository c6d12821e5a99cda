"""The chunked loss against F.cross_entropy on whole logits: values, gradients, and memory."""

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import model.loss as loss_module
import model.sweep as sweep_module
from lora.config import LoRAConfig
from lora.inject import add_lora, trainable_parameters
from model.layers import TokenHead
from model.loss import supervised_loss
from model.transformer import Gemma2

Problem = Callable[..., tuple[Gemma2, Tensor, Tensor]]

HEADS: dict[str, LoRAConfig | None] = {
    "plain": None,
    "rows, tied": LoRAConfig(rank=3, dropout=0.0, token_ids=(3, 50, 59)),
    "LoRA on head": LoRAConfig(rank=3, dropout=0.0, adapt="course"),
}


@pytest.fixture
def problem(
    make_model: Callable[..., Gemma2],
    randomized: Callable[[nn.Module], None],
    monkeypatch: pytest.MonkeyPatch,
) -> Problem:
    """problem(head, dtype, **changes) -> model, hidden (B, T, D), targets, a third supervised."""
    # Four rows and seven columns: neither the last chunk nor the last block is full.
    monkeypatch.setattr(loss_module, "CHUNK_BYTES", 4 * 60 * 4)
    monkeypatch.setitem(loss_module.SWEEP_ROWS, "cpu", 4)
    monkeypatch.setitem(sweep_module.BLOCK_BYTES, "cpu", 4 * 7 * 4)

    def make(
        head: str, dtype: torch.dtype = torch.float32, **changes: Any
    ) -> tuple[Gemma2, Tensor, Tensor]:
        model = make_model(dtype=dtype, **changes)
        model.requires_grad_(False)
        lora = HEADS[head]
        if lora is not None:
            frozen = {id(p) for p in model.parameters()}
            add_lora(model, lora)
            for parameter in trainable_parameters(model).values():
                assert id(parameter) not in frozen
                parameter.data.normal_(std=0.3)
        hidden = (torch.randn(2, 15, 32) * 2).to(dtype).requires_grad_()
        targets = torch.randint(0, 60, (2, 15))
        targets[:, torch.arange(15) % 3 != 0] = -100
        return model, hidden, targets

    return make


def reference(model: Gemma2, hidden: Tensor, targets: Tensor) -> Tensor:
    logits = model.logits(hidden)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")


def gradients(model: Gemma2, hidden: Tensor, loss: Tensor) -> tuple[Tensor, ...]:
    params = [p for p in model.lm_head.parameters() if p.requires_grad]
    return torch.autograd.grad(loss, [hidden, *params])


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("cap", [6.0, None])
@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_value_and_gradients_equal_cross_entropy_on_whole_logits(
    problem: Problem,
    relative: Callable[[Tensor, Tensor], float],
    head: str,
    cap: float | None,
    scale: float,
) -> None:
    model, hidden, targets = problem(head, final_logit_softcapping=cap)
    loss, count = supervised_loss(model, hidden, targets, scale)
    truth = reference(model, hidden, targets)
    assert count == 10
    assert relative(loss, truth) < 1e-6
    ours, theirs = gradients(model, hidden, loss * scale), gradients(model, hidden, truth * scale)
    assert len(ours) == {"plain": 1, "rows, tied": 2, "LoRA on head": 3}[head]
    for mine, right in zip(ours, theirs, strict=True):
        assert mine.dtype == right.dtype and relative(mine, right) < 1e-5
    assert ours[0][:, 1].abs().max() == 0  # an unsupervised position


@pytest.mark.parametrize("cap", [6.0, None])
def test_one_kernel_for_a_block_computes_what_passes_in_place_do(
    problem: Problem,
    relative: Callable[[Tensor, Tensor], float],
    monkeypatch: pytest.MonkeyPatch,
    cap: float | None,
) -> None:
    """The functions that CUDA compiles, as they are written."""
    monkeypatch.setattr(sweep_module, "_capped_pass_", sweep_module._capped_kernel)
    monkeypatch.setattr(sweep_module, "_uncapped_pass_", sweep_module._uncapped_kernel)
    model, hidden, targets = problem("rows, tied", final_logit_softcapping=cap)
    loss, _ = supervised_loss(model, hidden, targets)
    truth = reference(model, hidden, targets)
    assert relative(loss, truth) < 1e-6
    ours, theirs = gradients(model, hidden, loss), gradients(model, hidden, truth)
    for mine, right in zip(ours, theirs, strict=True):
        assert relative(mine, right) < 1e-5


@pytest.mark.parametrize("rows", [1, 3, 5, 10, 11, 1000])
def test_every_chunk_size_gives_the_same(
    problem: Problem,
    relative: Callable[[Tensor, Tensor], float],
    monkeypatch: pytest.MonkeyPatch,
    rows: int,
) -> None:
    model, hidden, targets = problem("LoRA on head")
    monkeypatch.setattr(loss_module, "CHUNK_BYTES", rows * 60 * 4)
    loss, _ = supervised_loss(model, hidden, targets)
    truth = reference(model, hidden, targets)
    assert relative(loss, truth) < 1e-6
    for mine, right in zip(
        gradients(model, hidden, loss), gradients(model, hidden, truth), strict=True
    ):
        assert relative(mine, right) < 1e-5


@pytest.mark.parametrize("cap", [30.0, None])
def test_confident_logits_stay_finite(
    problem: Problem, relative: Callable[[Tensor, Tensor], float], cap: float | None
) -> None:
    """exp(30), 60 times over, and without a cap exp(9000): a maximum that must come off in time."""
    model, hidden, targets = problem("rows, tied", final_logit_softcapping=cap)
    loss, _ = supervised_loss(model, hidden * 1e3, targets)
    truth = reference(model, hidden * 1e3, targets)
    assert relative(loss, truth) < 1e-5
    ours, theirs = gradients(model, hidden, loss), gradients(model, hidden, truth)
    for mine, right in zip(ours, theirs, strict=True):
        assert torch.isfinite(mine).all()
        assert cap is not None or relative(mine, right) < 1e-5


@pytest.mark.parametrize("head", ["plain", "rows, tied"])
@pytest.mark.parametrize("confidence", [1.0, 5.0])
@pytest.mark.parametrize("cap", [30.0, None])
def test_a_confident_bf16_gradient_does_not_drown_in_rounding(
    problem: Problem, head: str, confidence: float, cap: float | None
) -> None:
    """Against the exact gradient at the same bf16 logits; at 5.0 the targets are over 0.99 sure."""
    model, hidden, _ = problem(head, torch.bfloat16, final_logit_softcapping=cap)
    weight = effective_weight(model)
    targets = torch.arange(30).view(2, 15) + 30  # the replaced rows 50 and 59 among them
    hidden = (
        confidence * 4 * weight[targets] / weight[targets].float().norm(dim=-1, keepdim=True) ** 2
    )
    hidden = (hidden * 2).to(torch.bfloat16).requires_grad_()
    loss, _ = supervised_loss(model, hidden, targets)
    (ours,) = torch.autograd.grad(loss, hidden)
    z = (hidden.detach().flatten(0, 1) @ weight.T).double()
    y = (z if cap is None else cap * torch.tanh(z / cap)).requires_grad_()
    truth = F.cross_entropy(y, targets.flatten(), reduction="sum")
    (d_y,) = torch.autograd.grad(truth, y)
    slope = 1.0 if cap is None else 1 - torch.tanh(z / cap) ** 2
    exact = ((d_y * slope) @ weight.double()).view_as(hidden)
    if confidence > 1:
        assert truth / 30 < 0.01
    assert abs(loss.item() - truth.item()) < 1e-3 * truth.item() + 1e-6
    assert ((ours.double() - exact).norm() / exact.norm()).item() < 0.01


def effective_weight(model: Gemma2) -> Tensor:
    """The head's weight with its trained rows in place."""
    weight = model.lm_head.weight.detach().clone()
    if isinstance(model.lm_head, TokenHead):
        ids, rows = model.lm_head.replaced_rows()
        weight[list(ids)] = rows.detach().to(weight.dtype)
    return weight


@pytest.mark.parametrize("head", HEADS)
def test_no_supervised_position_gives_zero_and_zero_gradients(problem: Problem, head: str) -> None:
    model, hidden, targets = problem(head)
    loss, count = supervised_loss(model, hidden, torch.full_like(targets, -100))
    assert (loss.item(), count) == (0.0, 0)
    for gradient in gradients(model, hidden, loss):
        assert gradient.abs().max() == 0


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("cap", [6.0, None])
def test_16_bit_heads_are_as_close_to_the_truth_as_whole_logits(
    problem: Problem, head: str, dtype: torch.dtype, cap: float | None
) -> None:
    """fp16 on a CPU goes through the upcast product, into whose result token rows are written."""
    model, hidden, targets = problem(head, dtype, final_logit_softcapping=cap)
    # 60 rows in chunks of 40: more than the upcast's least number.
    targets = torch.randint(0, 60, (4, 15))
    loss_module.CHUNK_BYTES = 40 * 60 * 4
    hidden = torch.randn(4, 15, 32).mul(2).to(dtype).requires_grad_()
    wide, _, _ = problem(head, final_logit_softcapping=cap)
    with torch.no_grad():
        for into, value in zip(wide.parameters(), model.parameters(), strict=True):
            into.copy_(value)
    wide_hidden = hidden.detach().float().requires_grad_()
    truth = reference(wide, wide_hidden, targets)
    naive, (loss, _) = reference(model, hidden, targets), supervised_loss(model, hidden, targets)
    assert (loss - truth).abs() <= 2 * (naive - truth).abs() + 1e-4 * truth
    groups = (
        gradients(model, hidden, loss),
        gradients(model, hidden, naive),
        gradients(wide, wide_hidden, truth),
    )
    for mine, other, right in zip(*groups, strict=True):
        error, allowed = ((g.float() - right).norm() / right.norm() for g in (mine, other))
        assert mine.dtype == other.dtype
        assert error <= 2 * allowed + 1e-6, f"{error:.2e} against {allowed:.2e}"


def test_a_scaled_fp16_gradient_does_not_underflow(problem: Problem) -> None:
    """Divided by 5 million tokens, an unscaled fp16 gradient would be zero."""
    model, hidden, targets = problem("plain", torch.float16)
    scale = 65536.0
    loss, _ = supervised_loss(model, hidden, targets, scale / 5e6)
    (gradient,) = torch.autograd.grad(loss * (scale / 5e6), hidden)
    assert torch.isfinite(gradient).all() and gradient.abs().max() > 0


def vocabulary_wide_tensors() -> list[tuple[int, ...]]:
    gc.collect()
    return [
        tuple(t.shape)
        for t in gc.get_objects()
        if type(t) is torch.Tensor and t.shape[-1:] == (60,)
    ]


@pytest.mark.parametrize("head", HEADS)
def test_no_logits_stay_alive_after_the_forward(problem: Problem, head: str) -> None:
    model, hidden, targets = problem(head)
    params = [tuple(p.shape) for p in model.lm_head.parameters() if p.requires_grad]
    before = vocabulary_wide_tensors()
    inside: list[tuple[int, ...]] = []

    def note(x: Tensor) -> Tensor:
        inside.append(tuple(x.shape))
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        loss, _ = supervised_loss(model, hidden, targets)
    assert vocabulary_wide_tensors() == before
    # The 10 supervised rows in chunks of 4: even during a chunk autograd keeps no (rows, V) tensor.
    assert inside and not {(10, 60), (4, 60), (2, 60)} & set(inside)
    saved: Any = loss.grad_fn
    assert [tuple(t.shape) for t in saved.saved_tensors] == [(10, 32), *params]


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("cap", [6.0, None])
def test_evaluation_takes_no_gradient(
    problem: Problem,
    relative: Callable[[Tensor, Tensor], float],
    monkeypatch: pytest.MonkeyPatch,
    head: str,
    cap: float | None,
) -> None:
    model, hidden, targets = problem(head, final_logit_softcapping=cap)
    asked: list[bool] = []
    modes: list[bool] = []
    handle = model.lm_head.register_forward_hook(lambda *_: modes.append(torch.is_grad_enabled()))
    for name in ("_sweep_capped", "_sweep_uncapped"):
        sweep = getattr(sweep_module, name)

        def recording(*args: Any, sweep: Any = sweep) -> Any:
            asked.append(args[-1].needs_grad)
            return sweep(*args)

        monkeypatch.setattr(sweep_module, name, recording)
    with torch.no_grad():
        loss, _ = supervised_loss(model, hidden, targets)
    handle.remove()
    assert (modes or asked) and not any(modes) and not any(asked)
    assert not loss.requires_grad and relative(loss, reference(model, hidden, targets)) < 1e-6
