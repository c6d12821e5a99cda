"""What bf16 matrices are multiplied in on a CPU: chosen by time, used everywhere, kept by a run."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import train
from common import products
from common.products import (
    choose_products,
    has_fast_matmul,
    pick_products,
    product_dtype,
    time_products,
    use_products,
    used_products,
)
from lora.config import LoRAConfig
from lora.inject import add_lora, trainable_parameters
from lora.ops import lora_linear
from lora.steps import keep_mask
from model.fused import softcap
from model.loss import supervised_loss
from model.transformer import Gemma2

CPU = torch.device("cpu")
HALF = torch.zeros(1, dtype=torch.bfloat16)
Times = Callable[..., None]


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> Times:
    """times(bf16=s, fp32=s): a processor with bf16 instructions and these times of a product."""

    def pretend(**seconds: float) -> None:
        monkeypatch.setattr(products, "multiplies_bf16", lambda: True)
        monkeypatch.setattr(products, "time_products", lambda: seconds)

    return pretend


@pytest.mark.parametrize(
    ("bf16", "fp32", "name"), [(1.0, 4.0, "bf16"), (1.0, 0.5, "fp32"), (1.0, 0.9, "bf16")]
)
def test_the_faster_one_is_used_from_then_on(
    times: Times, bf16: float, fp32: float, name: str
) -> None:
    times(bf16=bf16, fp32=fp32)
    chosen = choose_products("auto", CPU)
    assert chosen is not None and chosen.name == name == used_products()
    assert f"{1e3 * bf16:.2f} ms in bf16 and {1e3 * fp32:.2f} ms in fp32" in chosen.reason
    assert has_fast_matmul(HALF) == (name == "bf16")
    assert product_dtype(HALF) == (torch.bfloat16 if name == "bf16" else torch.float32)
    assert has_fast_matmul(HALF.float()) and not has_fast_matmul(HALF.half())


def test_what_is_named_or_was_begun_with_is_not_timed(times: Times) -> None:
    def refuse() -> Any:
        raise AssertionError("timed")

    times(bf16=1.0, fp32=0.1)
    products.time_products = refuse  # restored with what `times` has replaced
    found = [choose_products(*asked) for asked in (("bf16", CPU), ("auto", CPU, "bf16"))]
    assert [c.name for c in found if c] == ["bf16"] * 2 and has_fast_matmul(HALF)
    began = choose_products("auto", CPU, "fp32")
    assert began is not None and began.name == "fp32" and not has_fast_matmul(HALF)
    # Where there is no bf16 to multiply, none of it is left to the next model in the process.
    for asked in (("auto", torch.device("cuda")), ("fp32", CPU), ("fp16", CPU)):
        use_products("fp32")
        assert choose_products(*asked) is None and has_fast_matmul(HALF)


def test_ranks_decide_by_the_sum_of_their_times(times: Times) -> None:
    times(bf16=1.0, fp32=2.0)  # here; on the other rank the other way round, and by more
    other = torch.tensor([9.0, 1.0], dtype=torch.float64)
    chosen = choose_products("auto", CPU, agree=lambda mine: mine + other)
    assert chosen is not None and chosen.name == "fp32"


def test_without_instructions_there_is_nothing_to_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "multiplies_bf16", lambda: False)
    for asked in (("auto", CPU), ("bf16", CPU), ("auto", CPU, "bf16")):
        chosen = choose_products(*asked)
        assert chosen is not None and chosen.name == "fp32" and "hardware" in chosen.reason
    use_products("bf16")
    assert not has_fast_matmul(HALF)


def test_a_busy_machine_is_timed_for_two_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def slow(x: Tensor, weight: Tensor) -> Tensor:
        calls.append(1)
        return x

    monkeypatch.setattr(products, "multiplies_bf16", lambda: True)
    monkeypatch.setattr(products, "product", slow)
    clock = SimpleNamespace(perf_counter=lambda: 0.6 * len(calls))
    monkeypatch.setattr(products, "time", clock)
    time_products()
    assert len(calls) == 4  # two rounds of two


def test_timing_draws_no_random_number() -> None:
    state = torch.get_rng_state()
    assert pick_products(time_products()).name in ("bf16", "fp32")
    assert torch.equal(torch.get_rng_state(), state)


def everything(model: Gemma2, targets: Tensor) -> list[Tensor]:
    """Loss and gradients of a step's forward and backward pass."""
    tokens = torch.arange(3, 3 + targets.numel()).view(targets.shape)
    loss, _ = supervised_loss(model, model.hidden(tokens), targets)
    loss.backward()
    grads = [p.grad for p in trainable_parameters(model).values()]
    return [loss.detach(), *(grad for grad in grads if grad is not None)]


def is_rounded_once(ours: Tensor, truth: Tensor) -> bool:
    """True if bf16's own rounding of the float64 truth, half of 2^-7, is all that differs."""
    error, rest = (ours.double() - truth).abs(), 1e-5 * truth.abs().max()
    return ours.dtype == torch.bfloat16 and bool((error <= 2.0**-8 * truth.abs() + rest).all())


@pytest.mark.parametrize("p", [0.0, 0.3])
def test_lora_in_float32_slices_rounds_nothing_but_its_results(
    monkeypatch: pytest.MonkeyPatch, p: float
) -> None:
    monkeypatch.setattr(products, "SLICE_BYTES", 4 * 32 * 7)  # seven rows: many slices, a short one
    use_products("fp32")
    x, weight = torch.randn(40, 32).bfloat16(), torch.randn(48, 32).bfloat16()
    a, b, dy = torch.randn(3, 32), torch.randn(48, 3), torch.randn(40, 48).bfloat16()
    torch.manual_seed(5)
    mask = keep_mask(x, p, torch.randint(2**62, (1,)))
    true = [t.double().requires_grad_() for t in (x, a, b)]
    right = true[0] @ weight.double().T
    right = right + 0.7 * (true[0] * mask / (1 - p)) @ true[1].T @ true[2].T
    right.backward(dy.double())
    ours = [t.requires_grad_() for t in (x, a, b)]
    torch.manual_seed(5)
    y = lora_linear(ours[0], weight, ours[1], ours[2], 0.7, p, True, "torch")
    y.backward(dy)
    grads = [(t.grad, u.grad) for t, u in zip(ours, true, strict=True)]
    assert is_rounded_once(y.detach(), right.detach()) and is_rounded_once(*grads[0])  # type: ignore[arg-type]
    for mine, theirs in grads[1:]:  # float32, as the factors are
        assert mine is not None and theirs is not None
        assert (mine.double() - theirs).norm() <= 1e-6 * theirs.norm()


@pytest.mark.parametrize("cap", [6.0, None])
def test_a_loss_in_float32_slices_rounds_nothing_but_its_gradient(
    make_model: Callable[..., Gemma2], cap: float | None
) -> None:
    use_products("fp32")
    model = make_model(dtype=torch.bfloat16, final_logit_softcapping=cap)
    model.requires_grad_(False)  # a frozen head: by blocks of the vocabulary
    hidden = torch.randn(2, 20, 32).bfloat16().requires_grad_()
    targets = torch.randint(0, 60, (2, 20))
    loss, _ = supervised_loss(model, hidden, targets)
    loss.backward()
    true = hidden.detach().double().requires_grad_()
    logits = softcap(true @ model.lm_head.weight.detach().double().T, cap)
    right = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
    right.backward()
    assert abs(loss.item() - right.item()) <= 1e-6 * right.item()
    assert hidden.grad is not None and true.grad is not None
    assert is_rounded_once(hidden.grad, true.grad)


@pytest.mark.parametrize("impl", ["torch", "reference"])
def test_no_bf16_product_is_left_where_fp32_is_faster(
    make_model: Callable[..., Gemma2], impl: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every large product of a step, by the dtypes that PyTorch multiplies."""
    from torch.utils._python_dispatch import TorchDispatchMode

    seen: set[torch.dtype] = set()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):  # type: ignore[no-untyped-def]
            if function._schema.name.split("::")[1] in ("mm", "bmm", "addmm", "addmm_", "linear"):
                seen.update(a.dtype for a in args if isinstance(a, Tensor))
            return function(*args, **(kwargs or {}))

    use_products("fp32")
    model = make_model(dtype=torch.bfloat16).train()
    add_lora(model, LoRAConfig(rank=3, dropout=0.1, token_ids=(5, 9)), impl=impl)
    with Watch():
        everything(model, torch.randint(3, 50, (1, 40)))
    assert seen == {torch.float32}


@pytest.fixture
def run(small_base: Path, small_rows: Path, tmp_path: Path) -> Callable[..., tuple[int, Path]]:
    """run(*flags) -> exit code and the folder of a small run."""
    common = ["--model", str(small_base), "--dataset", str(small_rows), "--device", "cpu"]
    common += "--max-length 256 --accumulate 1 --eval-fraction 0 --eval-calls 0".split()
    folder = tmp_path / "run"
    return lambda *flags: (train.main([*common, *flags, "--output", str(folder)]), folder)


def test_a_run_keeps_what_it_began_with(run: Any, times: Times) -> None:
    """The times turn round between a run and its resumption: the second follows the first."""
    times(bf16=1.0, fp32=0.1)
    code, folder = run("--max-steps", "1", "--dtype", "auto")
    record = json.loads((folder / "run.json").read_text())
    name, reason = record["choices"]["products"]
    assert code == 0 and name == "fp32" and "1000.00 ms in bf16 and 100.00 ms in fp32" in reason
    times(bf16=0.1, fp32=1.0)
    flags = ("--max-steps", "2", "--dtype", "auto")
    assert run(*flags, "--resume")[0] == 0 and used_products() == "fp32"
    assert json.loads((folder / "run.json").read_text())["choices"]["products"][0] == "fp32"
    assert run(*flags, "--overwrite")[0] == 0 and used_products() == "bf16"
    state = folder / "checkpoint" / "state.json"
    content = json.loads(state.read_text())
    del content["sha256"]
    state.write_text(json.dumps(content | {"products": "fp8"}))
    assert run(*flags, "--resume")[0] == 2
