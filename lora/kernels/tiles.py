"""Tile sizes of the low-rank kernels: one frozen table, and how work is cut into programs.

Separate, because it is what changes when somebody measures on a new GPU, and because it needs no
Triton: whoever chooses an implementation may ask `supported` first. Letters: M rows, K in, N out, R
stacked ranks.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from types import MappingProxyType

import torch

WANTED_PROGRAMS = 128  # about one for each multiprocessor of an A100 (108) or H100 (132)
# Row tiles that one program of a reduction over M reads: with more, too few programs remain.
MAX_STEPS = 16


@dataclass(frozen=True)
class Tile:
    """One program's tile: `rows` of M by `cols` of K or N.

    `warps` work on it, with `stages` of loads in flight.
    """

    rows: int
    cols: int
    warps: int
    stages: int

    @property
    def options(self) -> dict[str, int]:
        """What the launch passes on to the compiler.

        Fused multiply-adds are asked for because the default is changing.
        """
        return {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": True}


# The largest padded rank that a row of the table serves; a rank takes the first that is enough.
RANK_BUCKETS = (16, 64, 256)
# expand_backward works on slices of the rank: with more columns of b in a program its strips of dy
# become narrow, and the partial ds, one for each strip, would outgrow dy.
MAX_SLICE = 64

# (architecture, kernel, rank bucket); an architecture without a row of its own takes that of "any",
# which fits in the 99 KB of a consumer card (sm_86, sm_89, sm_120). Chosen by byte counts and the
# compiler's report (no spill; mostly two blocks to a multiprocessor); not yet timed on a GPU.
TILES: Mapping[tuple[str, str, int], Tile] = MappingProxyType(
    {
        ("any", "shrink", 16): Tile(64, 64, 4, 3),
        ("any", "shrink", 64): Tile(64, 64, 4, 3),
        ("any", "shrink", 256): Tile(64, 32, 8, 2),
        ("any", "expand_backward", 16): Tile(32, 256, 8, 2),
        ("any", "expand_backward", 64): Tile(64, 128, 8, 2),
        ("any", "grad_a", 16): Tile(32, 128, 4, 3),
        ("any", "grad_a", 64): Tile(64, 128, 8, 2),
        ("any", "grad_a", 256): Tile(32, 64, 8, 2),
        ("any", "add_product", 16): Tile(64, 128, 4, 1),
        ("any", "add_product", 64): Tile(64, 64, 8, 1),
        ("any", "add_product", 256): Tile(64, 64, 8, 1),
        ("sm_80", "shrink", 16): Tile(64, 128, 4, 4),
        ("sm_80", "shrink", 64): Tile(128, 64, 8, 3),
        ("sm_80", "expand_backward", 16): Tile(32, 512, 8, 3),
        ("sm_80", "grad_a", 16): Tile(64, 128, 4, 4),
        ("sm_80", "grad_a", 64): Tile(64, 128, 8, 3),
        ("sm_80", "add_product", 64): Tile(64, 128, 8, 1),
        ("sm_90", "shrink", 16): Tile(64, 128, 4, 4),
        ("sm_90", "shrink", 64): Tile(128, 64, 8, 3),
        ("sm_90", "shrink", 256): Tile(128, 32, 8, 2),
        ("sm_90", "expand_backward", 16): Tile(32, 512, 8, 3),
        ("sm_90", "expand_backward", 64): Tile(64, 256, 8, 2),
        ("sm_90", "grad_a", 16): Tile(64, 128, 4, 4),
        ("sm_90", "grad_a", 64): Tile(64, 128, 8, 3),
        ("sm_90", "grad_a", 256): Tile(32, 128, 8, 3),
        ("sm_90", "add_product", 64): Tile(128, 128, 8, 1),
        ("sm_90", "add_product", 256): Tile(128, 64, 8, 1),
        ("sm_100", "shrink", 16): Tile(64, 128, 4, 4),
        ("sm_100", "shrink", 64): Tile(128, 64, 8, 3),
        ("sm_100", "expand_backward", 16): Tile(32, 512, 8, 3),
        ("sm_100", "expand_backward", 64): Tile(64, 256, 8, 2),
        ("sm_100", "grad_a", 16): Tile(64, 128, 4, 4),
        ("sm_100", "grad_a", 64): Tile(64, 128, 8, 3),
        ("sm_100", "grad_a", 256): Tile(32, 128, 8, 3),
        ("sm_100", "add_product", 64): Tile(128, 128, 8, 1),
        ("sm_100", "add_product", 256): Tile(128, 64, 8, 1),
    }
)
# Decoding has a token a row, and each row factors of its own: a block of 16 rows, the fewest that
# tl.dot takes, reads them once and is otherwise empty. By rank bucket, of every architecture.
FEW_ROWS: Mapping[int, Tile] = MappingProxyType(
    {16: Tile(16, 128, 4, 3), 64: Tile(16, 64, 4, 3), 256: Tile(16, 32, 4, 2)}
)
# float32 operands run without tensor cores and take twice the room; one small tile serves every
# rank and architecture.
FLOAT32 = Tile(32, 32, 8, 2)
MASK = Tile(32, 128, 4, 1)
SUM = Tile(8, 256, 4, 1)  # rows: partial results that are loaded at once


def supported(capability: tuple[int, int]) -> tuple[bool, str]:
    """Whether the kernels with matrix products should run on this compute capability, and why."""
    if find_spec("triton") is None:
        return False, "Triton is not installed"
    name = f"sm_{capability[0]}{capability[1]}"
    if capability < (8, 0):
        reason = "below sm_80 Triton's tl.dot compiles to scalar multiply-adds, not to tensor cores"
        return False, f"{name}: {reason}"
    return True, f"{name}: tensor cores through tl.dot"


def architecture(capability: tuple[int, int]) -> str:
    """The table's name for a compute capability; what was not compiled for takes the safe rows."""
    major, minor = capability
    # sm_86 and sm_89 have the A100's number in front but a consumer card's shared memory.
    return {8: "sm_80" if minor == 0 else "any", 9: "sm_90", 10: "sm_100"}.get(major, "any")


def padded(rank: int) -> int:
    """The power of two, 16 at least, that `rank` is padded to: tl.dot takes nothing else."""
    return max(16, 1 << (rank - 1).bit_length())


def bucket(rank: int) -> int:
    """The rank bucket of the table that serves `rank`. Raises: ValueError for a rank over 256."""
    if rank > RANK_BUCKETS[-1]:
        raise ValueError(
            f"lora kernels: expected a stacked rank of at most {RANK_BUCKETS[-1]}, got {rank}"
        )
    return next(size for size in RANK_BUCKETS if rank <= size)


def tile_for(capability: tuple[int, int], kernel: str, rank: int, dtype: torch.dtype) -> Tile:
    """The tile of `kernel` at `rank` (padded or not) on this capability.

    Raises: ValueError for a rank over 256.
    """
    size = bucket(rank)  # first, so that a rank too large is refused in float32 too
    if dtype.itemsize > 2:
        return FLOAT32
    return TILES.get((architecture(capability), kernel, size)) or TILES["any", kernel, size]


def split_columns(num_rows: int, num_cols: int, tile: Tile) -> tuple[int, int]:
    """(splits, column tiles in each) for a reduction over columns.

    Enough programs, and few different step counts.
    """
    programs, total = -(-num_rows // tile.rows), -(-num_cols // tile.cols)
    # By powers of two: the step count is compiled into the kernel, and each new one costs seconds.
    splits = 1
    while programs * splits < WANTED_PROGRAMS and splits < total and splits < 16:
        splits *= 2
    steps = -(-total // splits)
    # Counted again: after rounding up, fewer splits may hold all tiles, and none must be empty.
    return -(-total // steps), steps


def split_rows(num_rows: int, num_cols: int, tile: Tile) -> tuple[int, int]:
    """(blocks, row tiles in each) for a reduction over rows; a power of two from 2 to MAX_STEPS.

    Not 1: without a loop the compiler loads everything at once, and spills.
    """
    strips, total = -(-num_cols // tile.cols), -(-num_rows // tile.rows)
    # As long as possible, since every block leaves partial sums of the size of the whole result.
    steps = MAX_STEPS
    while steps > 2 and -(-total // steps) * strips < WANTED_PROGRAMS:
        steps //= 2
    return -(-total // steps), steps


@lru_cache
def capability_of(device: torch.device) -> tuple[int, int]:
    """The compute capability of a tensor's device when a kernel is launched; (0, 0) on a CPU."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)
