"""Exercise 2: the gradients of a LoRA layer, by hand.

    y = x W^T + s x A^T B^T       x (M, K), W (N, K), A (r, K), B (N, r), s a number

W is frozen, so three gradients are wanted: those of x, A and B. As it is here, the low-rank path is
forgotten: nothing would be learned, and what lies below gets a wrong gradient.
"""

import torch
from torch import Tensor

from lora.reference import lora_linear_reference


def backward(
    dy: Tensor, x: Tensor, weight: Tensor, a: Tensor, b: Tensor, scaling: float
) -> tuple[Tensor, Tensor, Tensor]:
    """From dy (M, N), the gradient of y: those of x (M, K), of A (r, K) and of B (N, r)."""
    dx = dy @ weight
    return dx, torch.zeros_like(a), torch.zeros_like(b)


def test_the_gradients_are_those_of_autograd() -> None:
    torch.manual_seed(0)
    # Doubles: only a wrong formula is off by more than a billionth.
    shapes = {"x": (7, 12), "weight": (10, 12), "a": (3, 12), "b": (10, 3), "dy": (7, 10)}
    x, weight, a, b, dy = (torch.randn(s, dtype=torch.float64) for s in shapes.values())
    inputs = [tensor.requires_grad_() for tensor in (x, a, b)]
    y = lora_linear_reference(x, x @ weight.T, a, b, scaling=4.0, p=0.0)
    expected = torch.autograd.grad(y, inputs, dy)
    with torch.no_grad():
        found = backward(dy, x, weight, a, b, 4.0)
    for name, ours, theirs in zip(("x", "A", "B"), found, expected, strict=True):
        assert ours.shape == theirs.shape, f"the gradient of {name} has the shape {ours.shape}"
        assert torch.allclose(ours, theirs), f"the gradient of {name} is off"
