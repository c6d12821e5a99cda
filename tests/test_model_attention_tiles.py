"""Attention tile by tile inside documents against masks over all keys: values and gradients."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import model.attention_tiles as module
from common.products import product_dtype
from model.attention import attend, attention_mask
from model.attention_tiles import TiledAttention, document_spans, tiles

Relative = Callable[[Tensor, Tensor], float]
B, T, H, HKV, D = 2, 29, 4, 2, 12
DOCUMENTS = torch.tensor([[7] * 11 + [3] * 1 + [9] * 17, [0] * 25 + [-1] * 4])
POSITIONS = torch.tensor([[*range(11), 0, *range(17)], [*range(25), *range(4)]])


def inputs(dtype: torch.dtype) -> list[Tensor]:
    shapes = ((B, T, H, D), (B, T, HKV, D), (B, T, HKV, D))
    return [(torch.randn(shape) * 1.5).to(dtype).requires_grad_() for shape in shapes]


def with_gradients(out: Tensor, parameters: list[Tensor]) -> list[Tensor]:
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(5)).to(out.dtype)
    return [out, *torch.autograd.grad(out, parameters, upstream)]


def dense(qkv: list[Tensor], window: int | None, cap: float | None) -> list[Tensor]:
    mask = attention_mask(POSITIONS, POSITIONS, DOCUMENTS, DOCUMENTS, window)
    query, keys, values = qkv
    return with_gradients(attend(query, keys, values, mask, scale=0.3, cap=cap), qkv)


def tiled(qkv: list[Tensor], window: int | None, cap: float | None) -> list[Tensor]:
    query, keys, values = qkv
    tiled = TiledAttention(document_spans(DOCUMENTS, B, T), product_dtype(query))
    return with_gradients(tiled(query, keys, values, window=window, scale=0.3, cap=cap), qkv)


@pytest.mark.parametrize("tile", [1, 4, 128])
@pytest.mark.parametrize("window", [None, 2, 5, 16])
@pytest.mark.parametrize("cap", [2.0, 50.0, None])
@pytest.mark.parametrize("earlier", [3, 512])
def test_it_equals_masked_attention(
    monkeypatch: pytest.MonkeyPatch,
    relative: Relative,
    tile: int,
    window: int | None,
    cap: float | None,
    earlier: int,
) -> None:
    monkeypatch.setitem(module.TILE, "cpu", tile)
    monkeypatch.setattr(module, "EARLIER", earlier)
    qkv = inputs(torch.float32)
    for ours, truth in zip(tiled(qkv, window, cap), dense(qkv, window, cap), strict=True):
        assert relative(ours, truth) < (2e-6 if cap != 50.0 else 1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bits_are_as_close_to_the_truth(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    monkeypatch.setitem(module.TILE, "cpu", 4)
    qkv = inputs(dtype)
    wide = [x.detach().float().requires_grad_() for x in qkv]
    for ours, naive, truth in zip(
        tiled(qkv, 5, 2.0), dense(qkv, 5, 2.0), dense(wide, 5, 2.0), strict=True
    ):
        assert ours.dtype == dtype
        assert (ours.float() - truth).norm() <= 1.5 * (naive.float() - truth).norm()


def test_float16_scores_do_not_overflow_before_they_are_scaled(relative: Relative) -> None:
    """q k^T reaches 300,000 here, where float16 ends at 65,504."""
    wide = [x.detach() * 80 for x in inputs(torch.float32)]
    half = [x.half() for x in wide]
    assert torch.einsum("bthd,bsgd->bhgts", *wide[:2]).abs().max() > 65_504
    found = []
    for qkv in (half, [x.float() for x in half]):
        attend = TiledAttention(document_spans(DOCUMENTS, B, T))
        found.append(attend(*qkv, window=None, scale=3e-4, cap=50.0))
    assert relative(found[0], found[1]) < 5e-3


def test_tiles_cover_each_query_once_and_no_key_of_another_document() -> None:
    spans = document_spans(DOCUMENTS, B, T)
    assert spans == [(0, 0, 11), (0, 11, 12), (0, 12, 29), (1, 0, 25), (1, 25, 29)]
    for window in (None, 6):
        covered = [
            (tile.row, query)
            for tile in tiles(spans, window, 192)
            for query in range(tile.start, tile.stop)
        ]
        assert sorted(covered) == [(row, query) for row in range(B) for query in range(T)]
        for tile in tiles(spans, window, 192):
            assert DOCUMENTS[tile.row, tile.first_key] == DOCUMENTS[tile.row, tile.stop - 1]
            assert window is None or tile.first_key >= tile.start - window + 1


def test_nothing_of_the_size_of_the_scores_is_saved() -> None:
    qkv = inputs(torch.float32)
    saved: list[int] = []

    def count(x: Tensor) -> Tensor:
        saved.append(x.numel())
        return x

    with torch.autograd.graph.saved_tensors_hooks(count, lambda x: x):
        tiled = TiledAttention(document_spans(DOCUMENTS, B, T))
        tiled(*qkv, window=None, scale=0.3, cap=2.0)
    assert sum(saved) == 2 * B * T * (H + HKV) * D  # queries, keys, values and the result
