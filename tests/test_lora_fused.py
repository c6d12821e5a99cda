"""The fused low-rank path in plain PyTorch against the formula: values, gradients, masks."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lora import steps as plain
from lora.config import LoRAConfig
from lora.inject import add_lora
from lora.layer import LoRALinear, LowRank, fused_linears
from lora.ops import lora_linear
from model.transformer import Gemma2

M, K, SIZES = 37, 83, (129, 40, 64)  # nothing divides anything
SCALINGS = [2.5, 0.7, 1.0]


Group = tuple[Tensor, list[Tensor], list[Tensor | None], list[Tensor | None]]


@pytest.fixture(params=["gemma2", "gemma3"])
def family(request: pytest.FixtureRequest) -> str:
    """Every test here holds for both."""
    return str(request.param)


def make(dtype: torch.dtype, ranks: tuple[int, ...]) -> Group:
    """x, weights, A and B of a group; rank 0 is a linear without LoRA."""
    torch.manual_seed(1)
    x = torch.randn(M, K).to(dtype).requires_grad_()
    weights = [(torch.randn(n, K) * K**-0.5).to(dtype) for n in SIZES[: len(ranks)]]
    lora_a = [(torch.randn(r, K) * K**-0.5).requires_grad_() if r else None for r in ranks]
    lora_b = [
        (torch.randn(n, r) * 0.3).requires_grad_() if r else None
        for n, r in zip(SIZES, ranks, strict=False)
    ]
    return x, weights, lora_a, lora_b


def fused(
    x: Tensor,
    weights: Sequence[Tensor],
    lora_a: Sequence[Tensor | None],
    lora_b: Sequence[Tensor | None],
    p: float = 0.0,
) -> list[Tensor]:
    """The operator on the group, with the plain steps."""
    linears = [LowRank(*parts) for parts in zip(weights, lora_a, lora_b, SCALINGS, strict=False)]
    return fused_linears(x, linears, p=p, impl="torch")


def formula(
    x: Tensor,
    weights: Sequence[Tensor],
    lora_a: Sequence[Tensor | None],
    lora_b: Sequence[Tensor | None],
    mask: Tensor | None = None,
    p: float = 0.0,
) -> list[Tensor]:
    """The same in the dtype of the arguments, one operation after the other."""
    kept = x if mask is None else x * mask / (1 - p)
    outputs = []
    for w, a, b, c in zip(weights, lora_a, lora_b, SCALINGS, strict=False):
        y = F.linear(x, w)
        outputs.append(y if a is None or b is None else y + c * F.linear(F.linear(kept, a), b))
    return outputs


def given(matrices: Sequence[Tensor | None]) -> list[Tensor]:
    return [matrix for matrix in matrices if matrix is not None]


def results(
    outputs: Sequence[Tensor],
    dys: Sequence[Tensor] | None,
    x: Tensor,
    lora_a: Sequence[Tensor | None],
    lora_b: Sequence[Tensor | None],
) -> list[Tensor]:
    """Outputs, then the gradients of x and of every A and B."""
    parameters = [x, *given(lora_a), *given(lora_b)]
    return [*outputs, *torch.autograd.grad(outputs, parameters, dys)]


def gradients_of(model: nn.Module) -> list[Tensor]:
    found = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(gradient is not None for gradient in found)
    return given(found)


def cast(tensors: Sequence[Tensor | None], dtype: torch.dtype) -> list[Any]:
    return [
        None if t is None else t.detach().to(dtype).requires_grad_(t.requires_grad) for t in tensors
    ]


@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize(
    "ranks", [(1,), (4,), (8,), (16,), (24,), (64,), (16, 4, 8), (16, 0, 3), (0, 8)], ids=str
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_no_more_than_twice_the_error_of_the_formula(
    dtype: torch.dtype, ranks: tuple[int, ...], p: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, weights, lora_a, lora_b = make(dtype, ranks)
    dys = [torch.randn(M, w.shape[0]).to(dtype) for w in weights]
    seed = torch.tensor([11])
    monkeypatch.setattr(torch, "randint", lambda *args, **kwargs: seed)
    mask = plain.keep_mask(x, p, seed) if p else None
    outputs = fused(x, weights, lora_a, lora_b, p)
    ours = results(outputs, dys, x, lora_a, lora_b)
    errors = []
    for precision in (torch.float64, dtype):
        xx, (ww, aa, bb) = (
            cast([x], precision)[0],
            (cast(ts, precision) for ts in (weights, lora_a, lora_b)),
        )
        errors.append(results(formula(xx, ww, aa, bb, mask, p), cast(dys, precision), xx, aa, bb))
    for name, (one, truth, same) in enumerate(zip(ours, *errors, strict=True)):
        error, own = (((t.double() - truth).norm() / truth.norm()).item() for t in (one, same))
        assert error <= 2 * own + 1e-7, (name, error, own)
    assert all(g.dtype == torch.float32 for g in ours[len(ranks) + 1 :])


@pytest.mark.parametrize("p", [0.01, 0.05, 0.5])
def test_the_mask_has_its_rate_and_its_seed(p: float) -> None:
    x = torch.empty(1000, 2003)
    mask = plain.keep_mask(x, p, torch.tensor([3]))
    sigma = (p * (1 - p) / mask.numel()) ** 0.5
    assert abs((~mask).float().mean().item() - p) < 4 * sigma
    assert abs((~mask[:, ::7]).float().mean().item() - p) < 12 * sigma
    assert torch.equal(mask, plain.keep_mask(x, p, torch.tensor([3])))
    assert not torch.equal(mask, plain.keep_mask(x, p, torch.tensor([4])))


def test_expanded_and_transposed_gradients_and_inputs() -> None:
    x, weights, lora_a, lora_b = make(torch.float32, (8, 4))
    wide = torch.randn(K, M).T.requires_grad_()  # not contiguous
    for inputs in (x, wide):
        sums = [f(inputs, weights, lora_a, lora_b)[0].sum() for f in (fused, formula)]
        got, want = (results([y], None, inputs, lora_a[:1], lora_b[:1]) for y in sums)
        for ours, truth in zip(got, want, strict=True):
            assert torch.allclose(ours, truth, rtol=1e-4, atol=1e-5)


def test_backward_twice_gives_the_same() -> None:
    x, weights, lora_a, lora_b = make(torch.float32, (16, 4))
    loss = torch.stack([y.square().sum() for y in fused(x, weights, lora_a, lora_b, 0.2)]).sum()
    parameters = [x, *given(lora_a), *given(lora_b)]
    first = torch.autograd.grad(loss, parameters, retain_graph=True)
    second = torch.autograd.grad(loss, parameters)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


class Products(TorchDispatchMode):
    """Counts the matrix products whose result has x's shape: what dx is made of."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        is_product = func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm_)
        self.count += is_product and tuple(result.shape) == (M, K)
        return result


@pytest.mark.parametrize("p", [0.0, 0.2])
def test_no_gradient_of_x_is_computed_where_none_is_asked(
    p: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two linears: dy W of both and ds A are three products of x's shape, or none at all."""
    x, weights, lora_a, lora_b = make(torch.float32, (4, 8))
    given_dx = []
    step = plain.shrink_backward_

    def note(dx: Tensor | None, *args: Any) -> Tensor:
        given_dx.append(dx)
        return step(dx, *args)

    monkeypatch.setattr(plain, "shrink_backward_", note)
    for inputs, products in ((x, 3), (x.detach(), 0)):
        loss = torch.cat(fused(inputs, weights, lora_a, lora_b, p), dim=1).sum()
        with Products() as counter:
            loss.backward()
        assert counter.count == products
    assert x.grad is not None and given_dx[0] is not None and given_dx[1] is None
    assert all(matrix.grad is not None for matrix in (*given(lora_a), *given(lora_b)))


def test_a_weight_that_wants_a_gradient_is_refused() -> None:
    """The operator gives it none; "auto" takes the reference, which does."""
    x, weights, (a, _), (b, _) = make(torch.float32, (4, 8))
    assert a is not None and b is not None
    weight = weights[0].requires_grad_()
    with pytest.raises(ValueError, match="frozen weight"):
        lora_linear(x, weight, a, b, 2.0, impl="torch")
    lora_linear(x, weight, a, b, 2.0).sum().backward()
    assert weight.grad is not None


def test_backward_keeps_x_once_and_nothing_of_its_size_in_float32() -> None:
    x, weights, lora_a, lora_b = make(torch.bfloat16, (16, 4, 8))
    kept: dict[int, int] = {}

    def note(t: Tensor) -> Tensor:
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        outputs = fused(x, weights, lora_a, lora_b, 0.1)
    frozen = sum(w.nbytes for w in weights) + x.nbytes
    small = sum(m.nbytes for m in (*given(lora_a), *given(lora_b))) * 2 + M * 28 * 2 + 64
    assert sum(kept.values()) <= frozen + small
    assert outputs[0].dtype == torch.bfloat16


def test_a_model_computes_the_same_in_both_ways(
    make_model: Callable[..., Gemma2],
    randomized: Callable[[nn.Module], None],
    relative: Callable[[Tensor, Tensor], float],
) -> None:
    """Groups against one linear at a time; one layer's v_proj has no LoRA, and ranks differ."""
    tokens = torch.randint(0, 60, (2, 17))
    found = {}
    for impl in ("reference", "torch"):
        model = make_model()
        layers = r"model\.layers\."
        targets = rf"{layers}\d\.(self_attn\.[qko]_proj|mlp\..*)|{layers}1\.self_attn\.v_proj"
        config = LoRAConfig(rank=4, alpha=8, targets=targets, rank_pattern={"q_proj": 6})
        add_lora(model, config, impl=impl)
        randomized(model)
        logits = model(tokens)
        logits.square().mean().backward()
        found[impl] = [logits.detach(), *gradients_of(model)]
    for ours, truth in zip(found["torch"], found["reference"], strict=True):
        assert relative(ours, truth) < 1e-4


def test_checkpointing_repeats_the_mask(
    make_model: Callable[..., Gemma2], randomized: Callable[[nn.Module], None]
) -> None:
    gradients = []
    for mode in ("none", "full", "selective"):
        model = make_model()
        add_lora(model, LoRAConfig(rank=4, dropout=0.5), impl="torch")
        randomized(model)
        model.train()
        model.model.checkpoint_activations = mode
        torch.manual_seed(5)
        tokens = torch.randint(0, 60, (1, 12), generator=torch.Generator().manual_seed(1))
        model(tokens).square().mean().backward()
        gradients.append(gradients_of(model))
    for other in gradients[1:]:
        assert all(
            torch.allclose(a, b, rtol=1e-5, atol=1e-7)
            for a, b in zip(gradients[0], other, strict=True)
        )
    assert any(g.abs().max() > 0 for g in gradients[0])


def compiled_pair(p: float, whole: bool) -> tuple[list[Tensor], list[Tensor], str]:
    """Output and gradients of a layer as called and compiled, from one seed; the graphs' code."""
    torch._dynamo.reset()
    code = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        code.append(graph.print_readable(print_output=False))
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    base = nn.Linear(16, 24, bias=False).requires_grad_(False)
    linear = LoRALinear(base, 4, 2.0, p, torch.Generator(), "torch")
    nn.init.normal_(linear.lora_B)
    x = torch.randn(5, 16, requires_grad=True)
    found = []
    for call in (linear, torch.compile(linear, backend=backend, fullgraph=whole)):
        torch.manual_seed(3)
        y = call(x)
        grads = torch.autograd.grad(y.square().sum(), [x, linear.lora_A, linear.lora_B])
        found.append([y, *grads])
    return found[0], found[1], "".join(code)


def test_it_compiles() -> None:
    """Without dropout the whole layer is one graph, its products included."""
    called, compiled, code = compiled_pair(0.0, whole=True)
    for ours, truth in zip(compiled, called, strict=True):
        assert torch.allclose(ours, truth, atol=1e-6)
    assert "addmm_" in code


def test_a_compiled_caller_runs_the_operator_as_it_is_with_dropout() -> None:
    """The graph breaks at the operator, no part of which is compiled: the same seed and mask."""
    called, compiled, code = compiled_pair(0.5, whole=False)
    for ours, truth in zip(compiled, called, strict=True):
        assert torch.equal(ours, truth)
    assert code and "addmm_" not in code
