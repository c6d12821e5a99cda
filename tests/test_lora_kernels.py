"""The Triton kernels against the formulas, in Triton's interpreter.

The interpreter has to be chosen before Triton is imported, so this file runs itself once more in a
process of its own: the functions named `interpreted_*` are collected only there, and here one test
for each of them reports what it said. Letters: M rows, K in, N out, R stacked ranks. `pytest -o
python_functions='interpreted_*'` with TRITON_INTERPRET=1 runs them directly.
"""

import importlib.util
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lora.kernels import tiles
from lora.kernels.tiles import Tile

IS_INSIDE = os.environ.get("TRITON_INTERPRET") == "1"
if IS_INSIDE:
    from lora.kernels import gathered
    from lora.kernels import steps as launch
    from lora.layer import LoRALinear, LowRank, fused_linears
    from lora.many import ManyLinear
    from lora.rows import Adapters, Row

M, K, N = 37, 83, 129
SCALING = 1.7
SEED = torch.tensor([2**61 + 12345])
TINY = Tile(16, 16, 1, 1)


def inputs(dtype: torch.dtype, ranks: tuple[int, ...], rows: int = M) -> dict[str, Tensor]:
    """x, dx (M, K), dy, y (M, N), s, ds (M, R); in float32 a (R, K), b (N, R), scale (R)."""
    R, generator = sum(ranks), torch.Generator().manual_seed(sum(ranks))
    shapes = {
        "x": (rows, K),
        "dx": (rows, K),
        "dy": (rows, N),
        "y": (rows, N),
        "s": (rows, R),
        "ds": (rows, R),
    }
    values = {
        name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()
    }
    values |= {
        "a": torch.randn(R, K, generator=generator),
        "b": torch.randn(N, R, generator=generator),
    }
    return values | {
        "scale": torch.cat([torch.full((rank,), 0.3 + 0.9 * i) for i, rank in enumerate(ranks)])
    }


def formulas(v: dict[str, Tensor], keep: Tensor, p: float, dtype: torch.dtype) -> dict[str, Tensor]:
    """The five steps as they are written, every operand and result in `dtype`."""
    v = {name: value.to(dtype) for name, value in v.items()}
    dropped = torch.where(keep, v["x"], 0) / (1 - p)
    return {
        "shrink": (dropped @ v["a"].T) * v["scale"],
        "ds": SCALING * (v["dy"] @ v["b"]),
        "db": v["dy"].T @ v["s"],
        "da": v["ds"].T @ dropped,
        "dx": v["dx"] + torch.where(keep, v["ds"] @ v["a"], 0) / (1 - p),
        "y": v["y"] + v["s"] @ v["b"].T,
    }


def kernels(v: dict[str, Tensor], p: float) -> dict[str, Tensor]:
    dx, y = v["dx"].clone(), v["y"].clone()
    da = launch.shrink_backward_(dx, v["ds"], v["x"], v["a"], p, SEED)
    launch.expand_(y, v["s"], v["b"])
    ds, db = launch.expand_backward(v["dy"], v["b"], v["s"], SCALING)
    shrunk = launch.shrink(v["x"], v["a"], v["scale"], p, SEED)
    return {"shrink": shrunk, "ds": ds, "db": db, "da": da, "dx": dx, "y": y}


def assert_close(v: dict[str, Tensor], p: float) -> None:
    """Every largest error within twice that of the formula in its dtype, against float64."""
    dtype, keep = v["x"].dtype, launch.keep_mask(v["x"], p, SEED)
    truth, plain = formulas(v, keep, p, torch.float64), formulas(v, keep, p, dtype)
    for name, ours in kernels(v, p).items():
        assert (
            ours.dtype == (torch.float32 if name in ("da", "db") else dtype)
            and ours.shape == truth[name].shape
        ), name
        error, allowed = (
            (ours - truth[name]).abs().max(),
            2 * (plain[name] - truth[name]).abs().max(),
        )
        if (
            dtype == torch.float32
        ):  # both round in the last bit: with few products the formula's error may be 0
            allowed += 2e-7 * truth[name].abs().max()
        assert error <= allowed, f"{name}: error {error:.2e}, allowed {allowed:.2e}"


@pytest.mark.parametrize("p", [0.0, 0.3])
def interpreted_operator_and_its_gradients(p: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The operator on a group: q and v with unequal ranks, k without; backward twice is equal."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 19, K, generator=generator).requires_grad_()
    weights = [torch.randn(n, K, generator=generator) for n in (N, 24, 40)]
    lora_a = [
        torch.randn(r, K, generator=generator).requires_grad_() if r else None for r in (8, 0, 24)
    ]
    lora_b = [
        torch.randn(w.shape[0], r, generator=generator).requires_grad_() if r else None
        for w, r in zip(weights, (8, 0, 24), strict=True)
    ]
    monkeypatch.setattr(torch, "randint", lambda *args, **kwargs: SEED)
    linears = [
        LowRank(*parts) for parts in zip(weights, lora_a, lora_b, (SCALING, 0.0, 0.5), strict=True)
    ]
    ours = fused_linears(x, linears, p=p, impl="triton")
    keep = launch.keep_mask(x.view(38, K), p, SEED).view(2, 19, K)
    dropped = torch.where(keep, x, 0) / (1 - p)
    truth = [
        x @ w.T + (0 if a is None or b is None else c * (dropped @ a.T @ b.T))
        for w, a, b, c in zip(weights, lora_a, lora_b, (SCALING, 0.0, 0.5), strict=True)
    ]
    trained = [x, *(m for m in (*lora_a, *lora_b) if m is not None)]
    dys = [torch.randn(y.shape, generator=generator) for y in truth]
    got, again = (torch.autograd.grad(ours, trained, dys, retain_graph=True) for _ in range(2))
    for name, a, b in zip(
        range(99), (*ours, *got), (*truth, *torch.autograd.grad(truth, trained, dys)), strict=False
    ):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max(), name
    assert all(torch.equal(a, b) for a, b in zip(got, again, strict=True))


@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize(
    "ranks", [(1,), (4,), (8,), (16,), (24,), (64,), (8, 1, 24), (64, 64, 64)], ids=str
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def interpreted_results_match_the_formulas(
    dtype: torch.dtype, ranks: tuple[int, ...], p: float
) -> None:
    assert_close(inputs(dtype, ranks), p)


# Two slices of the rank, the second one partly empty; and several blocks of rows.
@pytest.mark.parametrize(
    "dtype, ranks, rows", [(torch.float16, (24, 56), M), (torch.float32, (4,), 200)], ids=str
)
def interpreted_results_match_with_many_partial_sums(
    dtype: torch.dtype, ranks: tuple[int, ...], rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "tile_for", lambda *args: TINY)
    monkeypatch.setattr(tiles, "WANTED_PROGRAMS", 20)
    assert tiles.split_rows(200, K, TINY) == (4, 4) and tiles.split_columns(M, K, TINY) == (6, 1)
    assert_close(inputs(dtype, ranks, rows), 0.3)


def interpreted_bfloat16_products_are_upcast() -> None:
    """The interpreter's bfloat16 truncates: one bit more is allowed."""
    v = inputs(torch.bfloat16, (24,))
    truth = formulas(v, launch.keep_mask(v["x"], 0.3, SEED), 0.3, torch.float64)
    for name, ours in kernels(v, 0.3).items():
        assert (ours - truth[name]).abs().max() <= 2**-6 * truth[name].abs().max(), name


def interpreted_few_rows_and_none() -> None:
    for dtype in (torch.float32, torch.float16):
        assert_close(inputs(dtype, (8, 4), rows=1), 0.3)
    results = kernels(inputs(torch.float16, (8, 4), rows=0), 0.3)
    shapes = {
        "shrink": (0, 12),
        "ds": (0, 12),
        "db": (N, 12),
        "da": (12, K),
        "dx": (0, K),
        "y": (0, N),
    }
    assert {name: tuple(value.shape) for name, value in results.items()} == shapes
    assert (
        not results["da"].any() and not results["db"].any() and results["da"].dtype == torch.float32
    )


def interpreted_strided_inputs_give_the_same_bits() -> None:
    v = inputs(torch.float16, (24,))
    v["dy"] = v["dy"][:1, :1].expand(M, N)  # the gradient of a sum
    dense = {name: value.contiguous() for name, value in v.items()}
    wide = torch.randn(M, 3 * K).half()
    wide[:, K : 2 * K] = v["x"]
    strided = v | {
        "x": wide[:, K : 2 * K],
        "ds": v["ds"].T.contiguous().T,
        "s": torch.cat([v["s"], v["s"]], 1)[:, :24],
    }
    strided |= {"a": v["a"].T.contiguous().T, "b": torch.stack([v["b"], v["b"]], 2)[..., 0]}
    assert not any(strided[name].is_contiguous() for name in ("x", "dy", "ds", "s", "a", "b"))
    for name, ours in kernels(strided, 0.3).items():
        assert torch.equal(ours, kernels(dense, 0.3)[name]), name


def interpreted_in_place_results_keep_what_lies_beside_them() -> None:
    v = inputs(torch.float16, (8,))
    wide = torch.full((M + 2, N + 5), 7.0, dtype=torch.float16)
    wide[1:-1, 2 : N + 2] = v["y"]
    launch.expand_(wide[1:-1, 2 : N + 2], v["s"], v["b"])
    assert torch.equal(wide[1:-1, 2 : N + 2], kernels(v, 0.0)["y"])
    assert (
        (wide[0] == 7).all()
        and (wide[-1] == 7).all()
        and (wide[:, :2] == 7).all()
        and (wide[:, N + 2 :] == 7).all()
    )
    with pytest.raises(ValueError, match="one element apart"):
        launch.expand_(v["y"].T.contiguous().T, v["s"], v["b"])


def interpreted_nothing_else_is_written_and_two_runs_are_equal() -> None:
    v = inputs(torch.float16, (24, 8))
    before = {name: value.clone() for name, value in v.items()}
    first, second = kernels(v, 0.3), kernels(v, 0.3)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(torch.equal(v[name], before[name]) for name in v)


def interpreted_offsets_beyond_two_to_the_31(monkeypatch: pytest.MonkeyPatch) -> None:
    """Across tiles; inside one tile, rows * stride must stay below."""
    monkeypatch.setattr(launch, "tile_for", lambda *args: TINY)
    # The last of 40 rows 2^26 elements apart begins past 2^31; the memory is reserved, not touched.
    rows, stride = 40, 2**26
    storage = torch.empty(rows * stride, dtype=torch.float16)
    x = storage.as_strided((rows, K), (stride, 1))
    v = inputs(torch.float16, (8,), rows=rows)
    x.copy_(v["x"])
    expected = kernels(v, 0.3)
    assert torch.equal(launch.shrink(x, v["a"], v["scale"], 0.3, SEED), expected["shrink"])
    da = launch.shrink_backward_(None, v["ds"], x, v["a"], 0.3, SEED)
    assert torch.equal(da, expected["da"])
    x.copy_(v["dx"])
    da = launch.shrink_backward_(x, v["ds"], v["x"], v["a"], 0.3, SEED)
    assert torch.equal(x, expected["dx"]) and torch.equal(da, expected["da"])
    x.copy_(v["dy"][:, :K])
    factors = (v["b"][:K], v["s"], SCALING)
    ours = launch.expand_backward(x, *factors)
    assert all(map(torch.equal, ours, launch.expand_backward(x.contiguous(), *factors)))
    # ds in its place among the other linears': between columns that stay as they are.
    among = torch.full((rows, 3 + 8 + 2), 7.0, dtype=torch.float16)
    launch.expand_backward(x, *factors, among[:, 3:11])
    assert torch.equal(among[:, 3:11], ours[0])
    assert (among[:, :3] == 7).all() and (among[:, 11:] == 7).all()


def philox(rows: int, groups: int, seed: int) -> np.ndarray:
    """Four 32-bit words for each (row, group) by Philox4x32-7, written from the paper.

    The counter is (group, row, 0, 0).
    """
    shape = (rows, groups)
    c0, c1 = np.broadcast_arrays(
        np.arange(groups, dtype=np.uint64)[None, :], np.arange(rows, dtype=np.uint64)[:, None]
    )
    c2, c3 = np.zeros(shape, np.uint64), np.zeros(shape, np.uint64)
    k0, k1, low = np.uint64(seed % 2**32), np.uint64(seed >> 32), np.uint64(0xFFFFFFFF)
    for _ in range(7):
        p0, p1 = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = (
            (p1 >> np.uint64(32)) ^ c1 ^ k0,
            p1 & low,
            (p0 >> np.uint64(32)) ^ c3 ^ k1,
            p0 & low,
        )
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & low, (k1 + np.uint64(0xBB67AE85)) & low
    return np.stack([c0, c1, c2, c3], axis=-1)


def interpreted_mask_is_the_documented_one() -> None:
    known = [
        0x5F6FB709,
        0x0D893F64,
        0x4F121F81,
        0x4F730A48,
    ]  # Random123's test vector: 7 rounds, counter and key zero
    assert philox(1, 1, 0)[0, 0].tolist() == known
    words = philox(M, 11, int(SEED))  # 11 groups of 8 columns hold K = 83
    halves = np.stack([words & np.uint64(0xFFFF), words >> np.uint64(16)], axis=-1).reshape(M, 88)[
        :, :K
    ]
    for p in (0.05, 0.3, 0.999):
        assert np.array_equal(
            launch.keep_mask(torch.empty(M, K), p, SEED).numpy(), halves >= round(p * 65536)
        )


def interpreted_mask_has_its_rate_and_depends_on_seed_and_place_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    masks = {
        seed: launch.keep_mask(torch.empty(512, 640), 0.05, torch.tensor([seed]))
        for seed in (0, 1, 2**32, -3)
    }
    count, p = 512 * 640, 0.05
    for mask in masks.values():
        assert abs((~mask).sum().item() - count * p) < 4 * (count * p * (1 - p)) ** 0.5
        assert (mask.float().mean(0) > 0.85).all() and (
            mask.float().mean(1) > 0.85
        ).all()  # no dead row or column
    for seed, mask in masks.items():
        for other in masks.keys() - {seed}:  # both dropped: p^2 of the elements, as chance has it
            both = (~mask & ~masks[other]).sum().item()
            assert abs(both - count * p * p) < 4 * (count * p * p * (1 - p * p)) ** 0.5
    monkeypatch.setattr(launch, "MASK", Tile(16, 32, 1, 1))
    part = launch.keep_mask(torch.empty(100, 83), 0.05, torch.tensor([1]))
    assert torch.equal(part, masks[1][:100, :83])
    few, none = torch.empty(5, 7), torch.empty(0, 7)
    assert launch.keep_mask(few, 0.0, SEED).all()
    assert launch.keep_mask(none, 0.5, SEED).shape == (0, 7)
    with pytest.raises(ValueError, match="probability"):
        launch.keep_mask(few, 1.0, SEED)


def interpreted_all_kernels_make_the_same_mask_whatever_their_tiles(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With factors of ones and identities each kernel shows the mask itself."""
    p, keep = 0.5, launch.keep_mask(torch.empty(M, K), 0.5, SEED).float()
    ones = torch.ones(M, 1)
    for tile in (TINY, Tile(32, 64, 1, 1), Tile(64, 128, 1, 1)):
        monkeypatch.setattr(launch, "tile_for", lambda *args, tile=tile: tile)
        dx = torch.zeros(M, K)
        launch.shrink_backward_(dx, ones, torch.ones(M, K), torch.ones(1, K), p, SEED)
        assert torch.equal(dx, keep / (1 - p))
        assert torch.equal(
            launch.shrink(torch.ones(M, K), torch.eye(K), torch.ones(K), p, SEED), keep / (1 - p)
        )
        da = launch.shrink_backward_(None, torch.eye(M), torch.ones(M, K), torch.eye(M, K), p, SEED)
        assert torch.equal(da, keep / (1 - p))


@pytest.mark.parametrize("positions", [1, 40])
@pytest.mark.parametrize("rank", [1, 24, 96])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def interpreted_gathered_rows_read_their_own_factors(
    dtype: torch.dtype, rank: int, positions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Error within twice that of the formula in its dtype; rows of the base keep every bit."""
    # Two programs of two steps over the columns, and more positions than a tile has rows.
    small = Tile(16, 32, 1, 1)
    monkeypatch.setattr(gathered, "_tile", lambda *args: small)
    monkeypatch.setattr(tiles, "WANTED_PROGRAMS", 6 if positions == 1 else 20)
    assert tiles.split_columns(80 if positions == 1 else 240, K, small) == (2, 2)
    generator = torch.Generator().manual_seed(rank)
    index = torch.tensor([2, -1, 0, 2, 1])
    scale = torch.tensor([1.0, 7.0, 0.5, 2.0, 1.5])
    scalings = torch.tensor([2.0, 0.25, 1.0])

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    x, y = random(5, positions, K), random(5, positions, N)
    a, b = random(3, rank, K), random(3, rank, N)
    ours = y.clone()
    gathered.add_gathered_(ours, x, (a, b, scalings), index, scale)
    own = index.clamp(min=0)
    factor = (scale * scalings[own] * (index >= 0))[:, None, None]

    def formula(dtype: torch.dtype) -> Tensor:
        wide = [tensor.to(dtype) for tensor in (x, y, a[own], b[own], factor)]
        low = (wide[0] @ wide[2].transpose(1, 2)) * wide[4]
        return wide[1] + low @ wide[3]

    truth = formula(torch.float64)
    allowed = 2 * (formula(dtype) - truth).abs().max()
    if dtype == torch.float32:
        allowed += 2e-7 * truth.abs().max()
    assert (ours - truth).abs().max() <= allowed
    assert torch.equal(ours[1], y[1])


def interpreted_layers_of_several_adapters_give_the_same_both_ways() -> None:
    adapters = Adapters(["first", "second"], torch.device("cpu"))
    bases = [torch.nn.Linear(K, n, bias=False).requires_grad_(False) for n in (N, 24)]
    layers = [
        [LoRALinear(base, rank, 2.0, 0.0, torch.Generator(), "torch") for rank in (4, 8)]
        for base in bases
    ]
    for lora in (lora for pair in layers for lora in pair):
        torch.nn.init.normal_(lora.lora_B)
    linears = [ManyLinear(base, pair, adapters) for base, pair in zip(bases, layers, strict=True)]
    adapters.use([Row("second"), Row(), Row("first", 0.5), Row("second")])
    x = torch.randn(4, 3, K)
    with torch.no_grad():
        plain = linears[0].forward_group(x, linears)
        for linear, pair in zip(linears, layers, strict=True):
            linear.a = torch.stack(
                [F.pad(own.lora_A, (0, 0, 0, 8 - len(own.lora_A))) for own in pair]
            )
            linear.impl = "triton"
        for ours, truth in zip(linears[0].forward_group(x, linears), plain, strict=True):
            torch.testing.assert_close(ours, truth, rtol=1e-5, atol=1e-5)


def interpreted_gathered_output_must_be_a_plain_matrix() -> None:
    y = torch.zeros(2, N, 3).transpose(1, 2)
    factors = (torch.zeros(1, 4, K), torch.zeros(1, 4, N), torch.ones(1))
    with pytest.raises(ValueError, match="contiguous y"):
        gathered.add_gathered_(
            y, torch.zeros(2, 3, K), factors, torch.zeros(2).long(), torch.ones(2)
        )


INTERPRETED = sorted(name for name in list(globals()) if name.startswith("interpreted_"))


@pytest.fixture(scope="session")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """For each function the messages of its failed cases, from one run in the interpreter."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    report = tmp_path_factory.mktemp("interpreter") / "report.xml"
    # In one process: workers of its own would each import everything once more.
    command = [sys.executable, "-m", "pytest", __file__, "-q", "-n", "0", "-p", "no:cacheprovider"]
    command += ["-o", "python_functions=interpreted_*", f"--junitxml={report}"]
    done = subprocess.run(
        command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found: dict[str, list[str]] = {name: [] for name in INTERPRETED}
    cases = list(ElementTree.parse(report).iter("testcase"))
    assert {case.get("name", "").split("[")[0] for case in cases} == set(INTERPRETED)
    for case in cases:
        faults = [
            fault.text or "" for tag in ("failure", "error", "skipped") for fault in case.iter(tag)
        ]
        found[case.get("name", "").split("[")[0]] += [
            f"{case.get('name')}: {fault}" for fault in faults
        ]
    return found


@pytest.mark.parametrize("name", INTERPRETED)
def test_in_the_interpreter(name: str, verdicts: dict[str, list[str]]) -> None:
    assert not verdicts[name], "\n".join(verdicts[name])


def test_support_needs_tensor_cores() -> None:
    assert [
        tiles.supported(capability)[0] for capability in ((7, 5), (8, 0), (8, 9), (9, 0), (12, 0))
    ] == [
        False,
        *[True] * 4,
    ]
    assert "sm_75" in tiles.supported((7, 5))[1]


def test_ranks_are_padded_and_too_large_ones_refused() -> None:
    assert [tiles.padded(rank) for rank in (1, 16, 17, 48, 192)] == [16, 16, 32, 64, 256]
    with pytest.raises(ValueError, match="at most 256"):
        tiles.tile_for((9, 0), "shrink", 257, torch.bfloat16)


@pytest.mark.parametrize("rows", [1, 37, 512, 1500, 8192, 100_000])
def test_splits_cover_everything_once(rows: int) -> None:
    tile = Tile(64, 128, 4, 3)
    for cols in (83, 2304, 9216):
        blocks, steps = tiles.split_rows(rows, cols, tile)
        assert (blocks - 1) * steps * 64 < rows <= blocks * steps * 64
        splits, steps = tiles.split_columns(rows, cols, tile)
        assert (splits - 1) * steps * 128 < cols <= splits * steps * 128
