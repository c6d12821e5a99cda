"""The fused low-rank path in plain PyTorch against the formula: values, every gradient, masks, groups, compile."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lora import fused
from lora import steps as plain
from lora.config import LoRAConfig
from lora.inject import add_lora
from lora.layer import LoRALinear

M, K, SIZES = 37, 83, (129, 40, 64)  # nothing divides anything
SCALINGS = [2.5, 0.7, 1.0]


def make(dtype: torch.dtype, ranks: tuple[int, ...]):
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


def formula(x, weights, lora_a, lora_b, mask=None, p=0.0):
    """The same in the dtype of the arguments, one operation after the other."""
    kept = x if mask is None else x * mask / (1 - p)
    pairs = zip(weights, lora_a, lora_b, SCALINGS, strict=False)
    return [
        F.linear(x, w) + (0 if a is None else c * F.linear(F.linear(kept, a), b))
        for w, a, b, c in pairs
    ]


def results(outputs, dys, x, lora_a, lora_b) -> list[Tensor]:
    """Outputs, then the gradients of x and of every A and B."""
    parameters = [x, *(m for m in (*lora_a, *lora_b) if m is not None)]
    return [*outputs, *torch.autograd.grad(outputs, parameters, dys)]


def cast(tensors, dtype):
    return [
        None if t is None else t.detach().to(dtype).requires_grad_(t.requires_grad) for t in tensors
    ]


@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize(
    "ranks", [(1,), (4,), (8,), (16,), (24,), (64,), (16, 4, 8), (16, 0, 3), (0, 8)], ids=str
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_no_more_than_twice_the_error_of_the_formula(dtype, ranks, p, monkeypatch):
    x, weights, lora_a, lora_b = make(dtype, ranks)
    dys = [torch.randn(M, w.shape[0]).to(dtype) for w in weights]
    seed = torch.tensor([11])
    monkeypatch.setattr(torch, "randint", lambda *args, **kwargs: seed)
    mask = plain.keep_mask(M, K, p, seed, x.device) if p else None
    outputs = fused.fused_linears(x, weights, lora_a, lora_b, SCALINGS[: len(ranks)], p, "torch")
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
def test_the_mask_has_its_rate_and_its_seed(p):
    mask = plain.keep_mask(1000, 2003, p, torch.tensor([3]), torch.device("cpu"))
    sigma = (p * (1 - p) / mask.numel()) ** 0.5
    assert abs((~mask).float().mean().item() - p) < 4 * sigma
    assert abs((~mask[:, ::7]).float().mean().item() - p) < 12 * sigma
    assert torch.equal(mask, plain.keep_mask(1000, 2003, p, torch.tensor([3]), torch.device("cpu")))
    assert not torch.equal(
        mask, plain.keep_mask(1000, 2003, p, torch.tensor([4]), torch.device("cpu"))
    )


def test_expanded_and_transposed_gradients_and_inputs():
    x, weights, lora_a, lora_b = make(torch.float32, (8, 4))
    wide = torch.randn(K, M).T.requires_grad_()  # not contiguous
    for inputs in (x, wide):
        got = results(
            [
                fused.fused_linears(inputs, weights, lora_a, lora_b, SCALINGS[:2], 0.0, "torch")[
                    0
                ].sum()
            ],
            None,
            inputs,
            lora_a[:1],
            lora_b[:1],
        )  # noqa: E501
        want = results(
            [formula(inputs, weights, lora_a, lora_b)[0].sum()],
            None,
            inputs,
            lora_a[:1],
            lora_b[:1],
        )
        for a, b in zip(got, want, strict=True):
            assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)


def test_backward_twice_gives_the_same():
    x, weights, lora_a, lora_b = make(torch.float32, (16, 4))
    loss = sum(
        y.square().sum()
        for y in fused.fused_linears(x, weights, lora_a, lora_b, SCALINGS[:2], 0.2, "torch")
    )
    parameters = [x, *lora_a, *lora_b]
    first = torch.autograd.grad(loss, parameters, retain_graph=True)
    assert all(
        torch.equal(a, b) for a, b in zip(first, torch.autograd.grad(loss, parameters), strict=True)
    )


def test_no_gradient_of_x_where_none_is_asked():
    x, weights, lora_a, lora_b = make(torch.float32, (4,))
    y = fused.fused_linears(x.detach(), weights, lora_a, lora_b, SCALINGS[:1], 0.0, "torch")[0]
    y.sum().backward()
    assert lora_a[0].grad is not None and lora_b[0].grad is not None


def test_backward_keeps_x_once_and_nothing_of_its_size_in_float32():
    x, weights, lora_a, lora_b = make(torch.bfloat16, (16, 4, 8))
    kept: dict[int, int] = {}

    def note(t: Tensor) -> Tensor:
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        outputs = fused.fused_linears(x, weights, lora_a, lora_b, SCALINGS, 0.1, "torch")
    frozen = sum(w.nbytes for w in weights) + x.nbytes
    small = sum(m.nbytes for m in (*lora_a, *lora_b)) * 2 + M * 28 * 2 + 64
    assert sum(kept.values()) <= frozen + small
    assert outputs[0].dtype == torch.bfloat16


def test_the_operators_pass_pytorchs_own_checks():
    x, weights, lora_a, lora_b = make(torch.float32, (4, 8))
    arguments = (
        x,
        weights,
        torch.cat([a.detach() for a in lora_a]).requires_grad_(),
        lora_b,
        SCALINGS[:2],
        0.0,
        torch.zeros(1, dtype=torch.int64),
        "torch",
    )
    torch.library.opcheck(torch.ops.gemma_lora.forward.default, arguments)


def test_a_model_computes_the_same_in_both_ways(make_model, randomized, relative):
    """Grouped q, k, v and gate, up against one linear at a time; v_proj of one layer has no LoRA, ranks differ."""
    tokens = torch.randint(0, 60, (2, 17))
    found = {}
    for impl in ("reference", "torch"):
        model = make_model()
        targets = r"model\.layers\.\d\.(self_attn\.[qko]_proj|mlp\..*)|model\.layers\.1\.self_attn\.v_proj"
        add_lora(
            model,
            LoRAConfig(rank=4, alpha=8, targets=targets, rank_pattern={"q_proj": 6}),
            impl=impl,
        )
        randomized(model)
        logits = model(tokens)
        logits.square().mean().backward()
        found[impl] = [logits.detach(), *(p.grad for p in model.parameters() if p.requires_grad)]
    for ours, truth in zip(found["torch"], found["reference"], strict=True):
        assert relative(ours, truth) < 1e-4


def test_checkpointing_repeats_the_mask(make_model, randomized):
    gradients = []
    for mode in ("none", "full", "selective"):
        model = make_model()
        add_lora(model, LoRAConfig(rank=4, dropout=0.5), impl="torch")
        randomized(model)
        model.train()
        model.model.checkpoint_activations = mode
        torch.manual_seed(5)
        model(
            torch.randint(0, 60, (1, 12), generator=torch.Generator().manual_seed(1))
        ).square().mean().backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    for other in gradients[1:]:
        assert all(
            torch.allclose(a, b, rtol=1e-5, atol=1e-7)
            for a, b in zip(gradients[0], other, strict=True)
        )
    assert any(g.abs().max() > 0 for g in gradients[0])


def test_it_compiles():
    torch._dynamo.reset()
    layer = LoRALinear(
        torch.nn.Linear(16, 24, bias=False).requires_grad_(False),
        4,
        2.0,
        0.0,
        torch.Generator(),
        "torch",
    )
    torch.nn.init.normal_(layer.lora_B)
    x = torch.randn(5, 16)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    assert torch.allclose(compiled(x), layer(x), atol=1e-6)
