"""Every kernel, for every row of the tile table, compiled for GPUs that are not here.

The launchers run on meta tensors of Gemma-2-2B's sizes while the kernels are replaced by a
recorder: what is compiled is what a GPU would be asked to run. Read from the result: registers
spilled (none may be), shared memory per block, and whether the matrix products use tensor cores.
`pytest -m slow tests/test_lora_kernels_compile.py` compiles the full grid: every padded rank, both
dtypes, with and without dropout, small M, and the consumer cards that share the default rows.
"""

import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton")
if triton.knobs.runtime.interpret:
    pytest.skip(
        "Triton's interpreter is on in this process, its compiler off", allow_module_level=True
    )

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from lora.kernels import gathered, tiles  # noqa: E402
from lora.kernels import steps as launch  # noqa: E402

KIB = 1024
SHARED_LIMIT = {
    75: 64 * KIB,
    80: 163 * KIB,
    86: 99 * KIB,
    89: 99 * KIB,
    90: 227 * KIB,
    100: 227 * KIB,
    120: 99 * KIB,
}  # bytes per block
TENSOR_CORES = ("wgmma.mma_async", "mma.sync", "tcgen05.mma")
ELEMENTWISE = ("keep_mask_kernel", "sum_parts_kernel", "sum_both_kernel")
POINTERS = {
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.int64: "*i64",
    torch.bool: "*i1",
}
HIDDEN, WIDE = 2304, 9216
Launch = tuple[Any, dict[str, Any]]


class Recorder:
    """Replaces a kernel: `recorder[grid](...)` notes the kernel's arguments and runs nothing."""

    def __init__(self, kernel: Any, launches: list[Launch]) -> None:
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def record(*args: Any, **options: Any) -> None:
            self.launches.append(
                (self.kernel, {**dict(zip(self.kernel.arg_names, args, strict=False)), **options})
            )

        return record


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Launch]]:
    recorded: list[Launch] = []
    for module in (launch, gathered):
        for name in [name for name in vars(module) if name.endswith("_kernel")]:
            monkeypatch.setattr(module, name, Recorder(getattr(module, name), recorded))
    yield recorded


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def launch_all(dtype: torch.dtype, M: int, K: int, N: int, R: int, p: float) -> None:
    x, dy, low = (
        empty(M, K, dtype=dtype),
        empty(M, N, dtype=dtype),
        empty(M, R, dtype=dtype),
    )
    seed = torch.tensor([2**61])
    launch.shrink(x, empty(R, K), empty(R), p, seed)
    launch.shrink_backward_(x, low, x, empty(R, K), p, seed)
    launch.expand_backward(dy, empty(N, R), low, 2.0)
    launch.expand_(dy, low, empty(N, R))


def launch_gathered(dtype: torch.dtype, rows: int, positions: int, K: int, N: int, R: int) -> None:
    x, y = empty(rows, positions, K, dtype=dtype), empty(rows, positions, N, dtype=dtype)
    factors = (empty(4, R, K, dtype=dtype), empty(4, R, N, dtype=dtype), empty(4))
    index = empty(rows, dtype=torch.int64)
    gathered.add_gathered_(y, x, factors, index, empty(rows))


def compile_launch(kernel: Any, arguments: dict[str, Any], target: int) -> Any:
    """The kernel compiled for sm_<target>, specialised as a launch would be."""
    signature, constants, attributes = {}, {}, {}
    for index, parameter in enumerate(kernel.params):
        value, name = arguments[parameter.name], parameter.name
        is_specialized = isinstance(value, int) and not parameter.do_not_specialize
        if parameter.is_constexpr or (is_specialized and value == 1):
            signature[name], constants[name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[name] = POINTERS[value.dtype]
            attributes[index,] = [
                ["tt.divisibility", 16]
            ]  # PyTorch's allocator aligns to 512 bytes
        else:
            integer = "i64" if name == "seed" else "i32"
            signature[name] = "fp32" if isinstance(value, float) else integer
            if is_specialized and value % 16 == 0:
                attributes[index,] = [["tt.divisibility", 16]]
    options = {name: value for name, value in arguments.items() if name not in kernel.arg_names}
    source = ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", target, 32), options=options)


def resources(compiled: Any, tmp_path: Path) -> dict[str, int]:
    """Registers, and bytes of stack and local memory a thread (spills), from the machine code."""
    file = tmp_path / "kernel.cubin"
    file.write_bytes(compiled.asm["cubin"])
    tool = triton.knobs.nvidia.cuobjdump.path
    text = subprocess.run(
        [tool, "-res-usage", str(file)], capture_output=True, text=True, check=True
    ).stdout
    return {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}


def problems(
    launches: list[Launch], target: int, tmp_path: Path, ignore: tuple[str, ...] = ()
) -> list[str]:
    """One line for each launch that spills, is too large, misses tensor cores or no pipeline."""
    found = []
    for kernel, arguments in launches:
        name, compiled = kernel.__name__, compile_launch(kernel, arguments, target)
        used, shared, ptx = (
            resources(compiled, tmp_path),
            compiled.metadata.shared,
            compiled.asm["ptx"],
        )
        cores = [instruction for instruction in TENSOR_CORES if instruction in ptx]
        faults = {
            # 8 bytes are one number, sm_100's copy of the seed, and no part of a tile.
            "spills": used["STACK"] + used["LOCAL"] > 8,
            "shared memory": shared > SHARED_LIMIT[target],
            "no tensor cores": name not in ELEMENTWISE and not cores,
            "no pipeline": arguments.get("STEPS", 1) > 1 and "cp.async" not in ptx,
        }
        sizes = {key: value for key, value in arguments.items() if isinstance(value, int)}
        report = f"{name} sm_{target} {used} shared={shared} {cores} {sizes}"
        print(report)
        found += [
            f"{fault}: {report}" for fault, is_so in faults.items() if is_so and fault not in ignore
        ]
    return found


def on(target: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (launch, gathered):
        monkeypatch.setattr(module, "capability_of", lambda device: (target // 10, target % 10))


# Each bucket's largest rank, but 192 in the last: six stacked factors of rank 32, or three of 64.
RANKS = {16: 16, 64: 64, 256: 192}
BF16, FP16 = torch.bfloat16, torch.float16
FAST = [
    *(
        (target, dtype, rank, 0.05)
        for target in (80, 90, 100)
        for dtype in (BF16, FP16)
        for rank in RANKS.values()
    ),
    *((target, BF16, 16, 0.0) for target in (80, 90, 100)),
    *((86, BF16, rank, 0.05) for rank in RANKS.values()),
]
SLOW = [
    (target, dtype, rank, p)
    for target in SHARED_LIMIT
    if target >= 80
    for dtype in (BF16, FP16)
    for rank in (16, 32, 64, 128, 192)
    for p in (0.05, 0.0)
]


@pytest.mark.parametrize("target, dtype, rank, p", FAST, ids=str)
def test_every_row_of_the_table_compiles(
    target: int,
    dtype: torch.dtype,
    rank: int,
    p: float,
    launches: list[Launch],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    on(target, monkeypatch)
    launch_all(dtype, 8192, HIDDEN, WIDE, rank, p)
    assert not problems(launches, target, tmp_path)


@pytest.mark.parametrize("target", [80, 90])
@pytest.mark.parametrize("rank", RANKS.values())
def test_rows_of_several_adapters_compile(
    target: int, rank: int, launches: list[Launch], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    on(target, monkeypatch)
    for positions in (1, 300):
        launch_gathered(BF16, 16, positions, HIDDEN, WIDE, rank)
    names = [kernel.__name__ for kernel, _ in launches]
    assert names.count("gathered_shrink_kernel") == names.count("gathered_expand_kernel") == 2
    assert not problems(launches, target, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("target, dtype, rank, p", SLOW, ids=str)
def test_the_full_grid_compiles(
    target: int,
    dtype: torch.dtype,
    rank: int,
    p: float,
    launches: list[Launch],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    if request.config.getoption("-m") != "slow":
        pytest.skip("minutes of compiling: run pytest -m slow")
    on(target, monkeypatch)
    for rows in (8192, 37):
        launch_all(dtype, rows, HIDDEN, WIDE, rank, p)
    assert not problems(launches, target, tmp_path)


def test_sizes_that_divide_nothing_compile(
    launches: list[Launch], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An address an element, not one for eight: slow, may spill; no real model has such sizes."""
    on(90, monkeypatch)
    launch_all(BF16, 37, 83, 129, 1, 0.05)
    assert not problems(launches, 90, tmp_path, ignore=("spills", "no pipeline"))


def test_float32_compiles_within_the_smallest_card(
    launches: list[Launch], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    on(86, monkeypatch)
    launch_all(torch.float32, 512, HIDDEN, WIDE, 64, 0.05)
    assert not problems(launches, 86, tmp_path, ignore=("no tensor cores",))


@pytest.mark.parametrize("target", [75, 80, 90, 100])
def test_elementwise_kernels_compile(
    target: int, launches: list[Launch], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    on(target, monkeypatch)
    launch.keep_mask(empty(8192, HIDDEN), 0.05, torch.tensor([2**61]))
    launch.sum_parts(empty(8, 8192, 16), FP16)
    launch.expand_backward(empty(8192, WIDE, dtype=BF16), empty(WIDE, 16), empty(8192, 16), 2.0)
    launches[:] = [(kernel, how) for kernel, how in launches if kernel.__name__ in ELEMENTWISE]
    assert [kernel.__name__ for kernel, _ in launches] == list(ELEMENTWISE)
    assert not problems(launches, target, tmp_path)


def test_every_row_of_the_table_is_reached(
    launches: list[Launch], monkeypatch: pytest.MonkeyPatch
) -> None:
    used = set()

    def note(*args: Any) -> tiles.Tile:
        used.add(args[:3])
        return tiles.tile_for(*args)

    monkeypatch.setattr(launch, "tile_for", note)
    for target in (80, 86, 90, 100):
        on(target, monkeypatch)
        for rank in RANKS.values():
            launch_all(BF16, 8192, HIDDEN, WIDE, rank, 0.05)
    keys = {
        (tiles.architecture(capability), kernel, tiles.bucket(rank))
        for capability, kernel, rank in used
    }
    assert keys >= set(tiles.TILES)
