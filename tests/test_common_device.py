"""Choices for hardware that is not here, by standing in for what PyTorch reports; generator states
and memory figures."""

import platform
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from common import device as runtime
from common.device import (
    available_memory_bytes,
    describe,
    peak_memory_bytes,
    pick_device,
    pick_precision,
    rng_state,
    seed_everything,
    set_rng_state,
)

CPU, CUDA, MPS = torch.device("cpu"), torch.device("cuda"), torch.device("mps")
LARGE = 2_600_000_000


@pytest.fixture
def hardware(monkeypatch: pytest.MonkeyPatch) -> Any:
    """hardware(cuda=number of cards, mps=bool, capability=(major, minor), mac=release)"""

    def pretend(cuda: Any = 0, mps: Any = False, capability: Any = (9, 0), mac: Any = "") -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)  # a T4 says so too
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.setattr(platform, "mac_ver", lambda: (mac, ("", "", ""), ""))

    return pretend


def test_auto_takes_cuda_then_mps_then_the_cpu(hardware: Any) -> None:
    hardware(cuda=1, mps=True)
    assert pick_device("auto") == CUDA
    hardware(mps=True)
    assert pick_device("auto") == MPS
    hardware()
    assert pick_device("auto") == CPU


def test_devices_by_name(hardware: Any) -> None:
    hardware(cuda=2, mps=True)
    assert [pick_device(name) for name in ("cpu", "cuda", "cuda:1", "mps")] == [
        CPU,
        CUDA,
        torch.device("cuda:1"),
        MPS,
    ]


@pytest.mark.parametrize(
    "name", ["cuda", "mps", "cuda:0", "tpu", "", "CPU", "cpu:x", "cuda:-1", "xpu", "cpu:0:1"]
)
def test_devices_that_are_not_there(hardware: Any, name: str) -> None:
    hardware()
    with pytest.raises(ValueError, match="--device"):
        pick_device(name)


def test_a_card_number_beyond_the_last(hardware: Any) -> None:
    hardware(cuda=2)
    with pytest.raises(ValueError, match="cuda:2"):
        pick_device("cuda:2")


@pytest.mark.parametrize(
    ("capability", "name", "scaler"),
    [
        ((7, 5), "fp16", True),
        ((7, 0), "fp16", True),
        ((8, 0), "bf16", False),
        ((8, 9), "bf16", False),
        ((9, 0), "bf16", False),
        ((12, 0), "bf16", False),
    ],
)
def test_precision_on_cuda(hardware: Any, capability: Any, name: str, scaler: Any) -> None:
    hardware(cuda=1, capability=capability)
    precision = pick_precision("auto", CUDA, LARGE)
    assert (precision.name, precision.needs_scaler) == (name, scaler)
    assert f"{capability[0]}.{capability[1]}" in precision.reason
    assert precision.dtype == {"bf16": torch.bfloat16, "fp16": torch.float16}[name]


@pytest.mark.parametrize(
    ("release", "name"),
    [("15.1", "bf16"), ("14.0", "bf16"), ("26.0", "bf16"), ("13.6.1", "fp32"), ("", "fp32")],
)
def test_precision_on_mps(hardware: Any, release: Any, name: str) -> None:
    hardware(mps=True, mac=release)
    precision = pick_precision("auto", MPS, LARGE)
    assert (precision.name, precision.needs_scaler) == (name, False) and (
        release or "unknown"
    ) in precision.reason


@pytest.mark.parametrize("is_fast", [True, False])
def test_precision_on_a_cpu(monkeypatch: pytest.MonkeyPatch, is_fast: Any) -> None:
    monkeypatch.setattr(runtime, "has_fast_matmul", lambda x: is_fast)
    assert pick_precision("auto", CPU, 3_000_000).name == ("bf16" if is_fast else "fp32")
    large = pick_precision("auto", CPU, LARGE)
    assert (
        large.name == "bf16"
        and not large.needs_scaler
        and ("in hardware" in large.reason) == is_fast
    )


def test_precision_by_name() -> None:
    assert [pick_precision(name, CPU, 1).needs_scaler for name in ("bf16", "fp16", "fp32")] == [
        False,
        True,
        False,
    ]
    with pytest.raises(ValueError, match="--dtype"):
        pick_precision("float16", CPU, 1)


def test_memory_is_read_from_the_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (5, 7))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Card")
    assert (available_memory_bytes(CUDA), peak_memory_bytes(CUDA), describe(CUDA)) == (5, 3, "Card")


def test_memory_of_this_machine_is_plausible() -> None:
    assert 2**24 < available_memory_bytes(CPU) < 2**45
    before = peak_memory_bytes(CPU)
    held = bytearray(before + 2**26)
    held[::4096] = b"\1" * len(held[::4096])
    assert 2**24 < before < peak_memory_bytes(CPU) < 2**45
    assert peak_memory_bytes(CPU) >= len(held) and describe(CPU).startswith("cpu (")


def test_memory_without_meminfo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "Path", lambda name: SimpleNamespace(is_file=lambda: False))
    assert 2**28 < available_memory_bytes(MPS) < 2**45


def test_peak_memory_is_in_bytes_on_a_mac_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime.resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=1000))
    monkeypatch.setattr(sys, "platform", "darwin")
    assert peak_memory_bytes(CPU) == 1000
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(runtime.Path, "is_file", lambda path: False)  # no /proc
    assert peak_memory_bytes(CPU) == 1000 * 1024


def test_generator_states_come_back() -> None:
    seed_everything(5)
    first = torch.rand(3)
    states = rng_state(CPU)
    second = torch.nn.functional.dropout(torch.ones(50))
    torch.rand(1000)
    set_rng_state(states, CPU)
    assert torch.equal(torch.nn.functional.dropout(torch.ones(50)), second)
    seed_everything(5)
    assert torch.equal(torch.rand(3), first) and states["cpu"].dtype == torch.uint8


def test_a_state_of_another_device_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    given = []
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: given.append(device))
    states = rng_state(CPU)
    set_rng_state({**states, "mps": torch.zeros(4, dtype=torch.uint8)}, CUDA)
    assert given == []
    set_rng_state({**states, "cuda": torch.zeros(4, dtype=torch.uint8)}, CUDA)
    assert given == [CUDA]


def test_seeds_that_fit() -> None:
    for seed in (0, -1, 2**63 - 1, -(2**63)):
        seed_everything(seed)
    for seed in (2**63, -(2**63) - 1, 10**30):
        with pytest.raises(ValueError, match="64 bits"):
            seed_everything(seed)
