"""The block masks made from the documents' runs, against FlexAttention's own, made element by
element; and when the kernel is taken."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from model import attention_flex
from model.attention_flex import block_mask, can_run, first_keys

CPU = torch.device("cpu")


def packs(length: int, batch: int = 3) -> Tensor:
    """Document ids (B, T): one document, short ones, and some that end at a block's edge."""
    rows = [torch.zeros(length, dtype=torch.int64), torch.arange(length) // 57]
    edges = torch.arange(length) // 128
    edges[-length // 5 :] = -1  # padding
    return torch.stack([*rows, edges][:batch])


def by_elements(documents: Tensor, window: int | None) -> BlockMask:
    """The same mask by FlexAttention itself, which looks at every query and key."""

    def sees(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        near = query >= key if window is None else (query >= key) & (query - key < window)
        return near & (documents[b, query] == documents[b, key])

    batch, length = documents.shape
    return create_block_mask(sees, batch, None, length, length, device="cpu")


def listed(counts: Tensor, indices: Tensor) -> list[list[int]]:
    """The blocks that each block meets; what stands behind their number has no meaning."""
    pairs = zip(counts.flatten().tolist(), indices.flatten(0, 2).tolist(), strict=True)
    return [row[:count] for count, row in pairs]


@pytest.mark.parametrize("length", [40, 128, 300, 512, 1500])
@pytest.mark.parametrize("window", [None, 1, 100, 128, 129, 400])
def test_masks_are_flexattentions_own(length: int, window: int | None) -> None:
    documents = packs(length)
    ours, theirs = block_mask(first_keys(documents, window), CPU), by_elements(documents, window)
    for name in ("kv", "full_kv", "q", "full_q"):
        mine, right = (
            listed(getattr(mask, f"{name}_num_blocks"), getattr(mask, f"{name}_indices"))
            for mask in (ours, theirs)
        )
        assert mine == right, name
    assert ours.seq_lengths == theirs.seq_lengths and ours.shape == theirs.shape
    b, query, key = torch.meshgrid(*(torch.arange(n) for n in (3, length, length)), indexing="ij")
    head = torch.zeros(())
    assert torch.equal(ours.mask_mod(b, head, query, key), theirs.mask_mod(b, head, query, key))


def test_only_16_bit_models_on_cards_with_room_take_the_kernel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In float32 it compiles for ten minutes."""
    card: Any = SimpleNamespace(major=9, shared_memory_per_block_optin=227 * 1024)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    cuda = torch.device("cuda")
    found = {}
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        can_run.cache_clear()
        found[dtype] = can_run(cuda, dtype)
    assert found == {torch.bfloat16: True, torch.float16: True, torch.float32: False}
    can_run.cache_clear()
    card.shared_memory_per_block_optin = 99 * 1024  # sm_86
    assert not can_run(cuda, torch.bfloat16) and not can_run(CPU, torch.bfloat16)
    can_run.cache_clear()


def test_tiles_depend_on_the_card_and_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    for major, width, queries in ((9, 256, 128), (8, 256, 64), (9, 64, None), (12, 256, None)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_, m=major: (m, 0))
        attention_flex._options.cache_clear()
        options = attention_flex._options(cuda, width)
        assert (options and options["fwd_BLOCK_M"]) == queries
    attention_flex._options.cache_clear()
    assert attention_flex._options(CPU, 256) is None
