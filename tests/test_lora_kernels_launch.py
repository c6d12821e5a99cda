"""The launcher that keeps compiled forms: which arguments share one, and what it is called with."""

from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from lora.kernels import launch as module
from lora.kernels.launch import launch


class Kernel:
    """Stands in for a compiled kernel's function; `compiled` are the argument lists it has seen."""

    arg_names = ("x", "seed", "rows", "p", "COLS", "RANK")

    def __init__(self) -> None:
        self.compiled: list[tuple[Any, ...]] = []
        self.run: list[tuple[Any, ...]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def first(*args: Any, **constants: Any) -> Any:
            self.compiled.append((grid, args, constants))
            return Form(self)

        return first


class Form:
    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *args: self.kernel.run.append((grid, args))


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    monkeypatch.setattr(module, "_forms", {})
    return Kernel()


X = torch.zeros(64)
CONSTANTS = {"RANK": 16, "COLS": 128, "num_warps": 4}


def test_the_second_launch_runs_the_form_of_the_first(kernel: Kernel) -> None:
    launch(kernel, (3, 2), (X, 2**61 + 1, 8, 0.5), **CONSTANTS)
    assert kernel.compiled == [((3, 2), (X, 2**61 + 1, 8, 0.5), CONSTANTS)] and not kernel.run
    # Another seed, another float and another grid need no other form; constants come in the order
    # of the signature, without the compiler's options.
    launch(kernel, (5,), (X, 2**60 + 3, 8, 0.25), **CONSTANTS)
    assert len(kernel.compiled) == 1
    assert kernel.run == [((5, 1, 1), (X, 2**60 + 3, 8, 0.25, 128, 16))]


@pytest.mark.parametrize(
    ("args", "changes"),
    [
        ((X[1:], 2**61 + 1, 8, 0.5), {}),  # 4 bytes further: no aligned loads
        ((X.half(), 2**61 + 1, 8, 0.5), {}),
        ((X, 2**61, 8, 0.5), {}),  # 16 divides it
        ((X, 5, 8, 0.5), {}),  # 32 bits
        ((X, 2**61 + 1, 1, 0.5), {}),
        ((X, 2**61 + 1, 16, 0.5), {}),
        ((X, 2**61 + 1, 8, 0.5), {"RANK": 32}),
        ((X, 2**61 + 1, 8, 0.5), {"num_warps": 8}),
    ],
)
def test_what_may_decide_the_form_has_its_own(
    kernel: Kernel, args: tuple[Any, ...], changes: dict[str, int]
) -> None:
    launch(kernel, (1,), (X, 2**61 + 1, 8, 0.5), **CONSTANTS)
    launch(kernel, (1,), args, **CONSTANTS | changes)
    assert len(kernel.compiled) == 2 and not kernel.run
    launch(kernel, (1,), args, **CONSTANTS | changes)
    assert len(kernel.compiled) == 2 and len(kernel.run) == 1


def test_forms_do_not_pile_up(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LIMIT", 3)
    for rows in range(2, 12):
        launch(kernel, (1,), (X, 0, rows, 0.5), **CONSTANTS)
        assert len(module._forms) <= 3
    launch(kernel, (1,), (X, 0, 11, 0.5), **CONSTANTS)
    assert len(kernel.compiled) == 10 and len(kernel.run) == 1


def test_the_interpreter_gives_no_form_to_keep(kernel: Kernel) -> None:
    kernel.__class__ = type(
        "Interpreted", (Kernel,), {"__getitem__": lambda *_: lambda *a, **k: None}
    )
    for _ in range(2):
        launch(kernel, (1,), (X, 0, 8, 0.5), **CONSTANTS)
    assert not module._forms
