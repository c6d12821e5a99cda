"""Norm, rotation and gated product: their own backward passes against autograd's, and compiled."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import model.fused as module
from model.fused import (
    FP16_SHRINK,
    ResidualNorm,
    RMSNorm,
    geglu,
    rms_norm,
    rotary_tables,
    rotate,
    tanh_,
)

Relative = Callable[[Tensor, Tensor], float]
Function = Callable[..., Tensor]
Case = tuple[Function, Function, list[Tensor]]


def plain_norm(x: Tensor, weight: Tensor, residual: Tensor) -> Tensor:
    return residual + x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * (1 + weight)


def plain_rotation(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


def cases() -> dict[str, Case]:
    """Ours, autograd's, and the arguments."""

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float32).requires_grad_()

    cos, sin = rotary_tables(torch.arange(7)[None].expand(2, 7), 12, 100.0)
    return {
        "norm": (
            lambda x, w, r: rms_norm(x, w, eps=1e-6, residual=r),
            plain_norm,
            [noise(2, 7, 32), noise(32), noise(2, 7, 32)],
        ),
        "norm alone": (
            lambda x, w: rms_norm(x, w, eps=1e-6),
            lambda x, w: plain_norm(x, w, torch.zeros(())),
            [noise(2, 7, 32), noise(32)],
        ),
        "rotation": (
            lambda q, k: torch.cat(rotate(q, k, cos, sin), 2),
            lambda q, k: plain_rotation(torch.cat((q, k), 2), cos, sin),
            [noise(2, 7, 3, 12), noise(2, 7, 2, 12)],
        ),
        "geglu": (
            geglu,
            lambda g, u: F.gelu(g, approximate="tanh") * u,
            [noise(2, 7, 48), noise(2, 7, 48)],
        ),
    }


@pytest.mark.parametrize("name", ["norm", "norm alone", "rotation", "geglu"])
def test_values_and_gradients_are_autograds(relative: Relative, name: str) -> None:
    ours, truth, arguments = cases()[name]
    results = []
    for function in (ours, truth):
        y = function(*arguments)
        upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(2))
        results.append([y, *torch.autograd.grad(y, arguments, upstream)])
    for mine, right in zip(*results, strict=True):
        assert relative(mine, right) < 1e-6


def test_the_passes_compile(monkeypatch: pytest.MonkeyPatch, relative: Relative) -> None:
    """What CUDA runs: each pass through torch.compile, here with the front end alone."""
    torch._dynamo.reset()
    for name in ("_norm", "_norm_backward", "_rotated", "_geglu", "_geglu_backward"):
        plain = getattr(module, name).__wrapped__
        monkeypatch.setattr(module, name, torch.compile(plain, backend="aot_eager", fullgraph=True))
    for ours, truth, arguments in cases().values():
        results = []
        for function in (ours, truth):
            y = function(*arguments)
            results.append([y, *torch.autograd.grad(y.square().sum(), arguments)])
        for mine, right in zip(*results, strict=True):
            assert relative(mine, right) < 1e-5


@pytest.mark.parametrize("size", [1e-2, 1.0, 1e3])
def test_the_norm_of_a_shrunk_float16_x_is_that_of_x_itself(size: float) -> None:
    """At 1e-2 the mean square is near eps: an eps that does not scale changes the result."""
    plain, after = RMSNorm(64, 1e-4), ResidualNorm(64, 1e-4)
    torch.nn.init.normal_(plain.weight, std=0.5)
    after.load_state_dict(plain.state_dict())
    # Multiples of 2^-4 up to 4: exact in float16, times the factor too.
    exponent = 2.0 ** round(math.log2(size))
    x = torch.randint(-64, 65, (5, 64)) / 16 * exponent
    shrunk = (x * FP16_SHRINK).half()
    assert torch.equal(shrunk.float() / FP16_SHRINK, x)
    truth = plain(x)
    torch.testing.assert_close(after(shrunk, torch.zeros_like(x)), truth, rtol=1e-6, atol=1e-6)
    # In float32 nothing was shrunk, and the residual is added in its own dtype.
    assert torch.equal(after(x, torch.ones_like(x)), 1.0 + truth)


def test_tanh_in_place_is_within_two_units_in_the_last_place() -> None:
    x = torch.cat([torch.linspace(-30, 30, 200_001), torch.linspace(-1e-2, 1e-2, 100_001)])
    exact = torch.tanh(x.double())
    assert (tanh_(x) - exact).abs().max() < 2.4e-7
