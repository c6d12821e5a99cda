"""How matrices of 16-bit numbers are multiplied: in their own dtype, or in float32 by slices.

One place decides for model, LoRA, attention and loss, because what a processor can do and what it
does fast differ: avx512_bf16 without AMX is half as fast as float32 on one processor and three
times as fast on another. So on a CPU a program times one product of each (`pick_products`) and
says what is to be used (`use_products`); until then hardware that can multiply bf16 does.

Shapes: M rows, K in, N out.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# Bytes of float32 that a slice of a 16-bit weight takes: it should be in the cache when it is read.
SLICE_BYTES = 8 << 20
PROBE = (512, 1024, 1024)  # M, K, N of the products that are timed
ROUNDS = 7
ENOUGH = 1.0  # seconds; on a machine that is busy with other work two rounds must do
# float32 must take at most this share of bf16's time: 16-bit activations are worth something
# themselves, and two figures close to each other must not change places from run to run.
MUCH_FASTER = 0.8
NO_HARDWARE = "this CPU does not multiply bf16 in hardware"

Seconds = dict[str, float]  # of one product in each dtype, by the dtype's flag


@dataclass(frozen=True)
class Products:
    """What bfloat16 matrices are multiplied in on this CPU, bf16 or fp32, and why."""

    name: str
    reason: str


# What the program has said; "bf16" leaves it to the hardware, which may have none.
_used = ["bf16"]


def use_products(name: str) -> None:
    """From here on a CPU multiplies bfloat16 matrices in `name`, bf16 (where it can) or fp32."""
    assert name in ("bf16", "fp32"), name
    _used[0] = name


def used_products() -> str:
    """What `use_products` was last called with; bf16 before that."""
    return _used[0]


def multiplies_bf16() -> bool:
    """True on a CPU with instructions for products of bfloat16 numbers."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def has_fast_matmul(x: Tensor) -> bool:
    """True where matrices of x's dtype are best multiplied in that dtype.

    A CPU without bf16 instructions, and every CPU in fp16, gets a scalar loop from PyTorch: one
    512 x 9216 x 2304 product took 38 s in fp16 against 0.11 s in float32 on the same two cores.
    """
    if x.device.type != "cpu" or x.dtype in (torch.float32, torch.float64):
        return True
    return x.dtype == torch.bfloat16 and _used[0] == "bf16" and multiplies_bf16()


def product_dtype(x: Tensor) -> torch.dtype:
    """The dtype that products with x are computed in: its own, or float32."""
    return x.dtype if has_fast_matmul(x) else torch.float32


def product(x: Tensor, weight: Tensor) -> Tensor:
    """x W^T (M, N) in x's dtype: x (M, K); weight (N, K) in the same dtype, or a narrower one."""
    if weight.dtype == x.dtype:
        return x @ weight.T
    y = x.new_empty(x.shape[0], weight.shape[0])
    rows = _slice_rows(weight)
    # Into its place: parts put together afterwards would be one more pass over y.
    for part, into in zip(weight.split(rows), y.split(rows, dim=1), strict=True):
        torch.mm(x, part.to(x.dtype).T, out=into)
    return y


def add_product_(total: Tensor | None, dy: Tensor, weight: Tensor) -> Tensor:
    """total (M, K) += dy W in place, a new one for None: dy (M, N), weight (N, K) as above."""
    if weight.dtype == dy.dtype:
        return dy @ weight if total is None else total.addmm_(dy, weight)
    if total is None:
        total = dy.new_zeros(dy.shape[0], weight.shape[1])
    rows = _slice_rows(weight)
    for part, of_part in zip(weight.split(rows), dy.split(rows, dim=1), strict=True):
        total.addmm_(of_part, part.to(dy.dtype))
    return total


def _slice_rows(weight: Tensor) -> int:
    return max(1, SLICE_BYTES // (4 * weight.shape[1]))


def time_products() -> Seconds:
    """The least time of a product as `product` makes it, in bf16 and in float32 by slices.

    Infinite for bf16, and 0 for float32, where there is nothing to choose.
    """
    if not multiplies_bf16():
        return {"bf16": float("inf"), "fp32": 0.0}
    m, k, n = PROBE
    # Ones: the time is the same, and no generator moves.
    x, weight = torch.ones(m, k, dtype=torch.bfloat16), torch.ones(n, k, dtype=torch.bfloat16)
    best = {"bf16": float("inf"), "fp32": float("inf")}
    begin = time.perf_counter()
    # In turns, so that what else the machine does falls on both; the first round also prepares.
    for index in range(ROUNDS):
        if index > 1 and time.perf_counter() - begin > ENOUGH:
            break
        for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
            start = time.perf_counter()
            product(x.to(dtype), weight).to(torch.bfloat16)
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def pick_products(seconds: Seconds) -> Products:
    """The faster way of `time_products`, and why."""
    if seconds["bf16"] == float("inf"):
        return Products("fp32", NO_HARDWARE)
    found = {name: f"{1e3 * s:.2f} ms in {name}" for name, s in seconds.items()}
    sizes = " x ".join(str(n) for n in PROBE)
    name = "fp32" if seconds["fp32"] < MUCH_FASTER * seconds["bf16"] else "bf16"
    return Products(name, f"a {sizes} product took {found['bf16']} and {found['fp32']}")


def _alone(times: Tensor) -> Tensor:
    return times


def choose_products(
    dtype: str, device: torch.device, kept: str = "", agree: Callable[[Tensor], Tensor] = _alone
) -> Products | None:
    """How `--dtype dtype` multiplies bf16 on a CPU, in use from here on; None where it has none.

    Timed for "auto" alone: what a user names gives the same bits whatever the machine does beside
    it. So does `kept`, the name that a run began with. `agree` adds the times of several ranks.
    """
    if device.type != "cpu" or dtype in ("fp32", "fp16"):
        use_products("bf16")  # nothing of an earlier choice is left to whoever comes next
        return None
    if dtype == "auto" and not kept:
        seconds = time_products()
        both = agree(torch.tensor(list(seconds.values()), dtype=torch.float64))
        chosen = pick_products(dict(zip(seconds, both.tolist(), strict=True)))
    elif not multiplies_bf16():
        chosen = Products("fp32", NO_HARDWARE)
    else:
        chosen = Products(kept or "bf16", "as the run began" if kept else "asked for")
    use_products(chosen.name)
    return chosen
