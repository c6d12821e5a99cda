"""Packs hold every example once and no more than fits; targets never cross a document."""

import random
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.chat import Example
from data.packing import IGNORED, Batch, collate, epoch_order, pack_examples


def example(length: int, first: int = 100) -> Example:
    return Example(
        list(range(first, first + length)), [False] + [True] * (length - 1), f"f:{first}"
    )


A = Example([2, 11, 12, 13], [False, False, True, True])
B = Example([2, 21, 22], [True, True, False])


def test_a_batch_position_by_position() -> None:
    batch = collate([[A, B], [B]], pad_id=0, length=8)
    assert batch.tokens.tolist() == [[2, 11, 12, 13, 2, 21, 22, 0], [2, 21, 22, 0, 0, 0, 0, 0]]
    assert batch.positions.tolist() == [[0, 1, 2, 3, 0, 1, 2, 0], [0, 1, 2, 0, 0, 0, 0, 0]]
    assert batch.documents.tolist() == [[0, 0, 0, 0, 1, 1, 1, -1], [0, 0, 0, -1, -1, -1, -1, -1]]
    x = IGNORED
    assert batch.targets.tolist() == [[x, 12, 13, x, 21, x, x, x], [21, x, x, x, x, x, x, x]]
    assert batch.num_supervised == 4
    assert all(tensor.dtype == torch.int64 for tensor in vars(batch).values())


def test_a_batch_is_padded_to_the_longest_pack_or_to_the_length() -> None:
    assert collate([[A], [A, B]], 0).tokens.shape == (2, 7)
    assert collate([[A]], 0, 9).tokens.shape == (1, 9)
    with pytest.raises(
        ValueError, match="expected packs of at most 6 tokens, got 1 packs, the longest of 7"
    ):
        collate([[A, B]], 0, 6)
    with pytest.raises(ValueError, match="got 0 packs"):
        collate([], 0)


def check_targets(batch: Batch, packs: list[list[Example]]) -> None:
    """By definition, independent of how the rows were laid out."""
    for row, pack in enumerate(packs):
        flat = [
            (number, place, item)
            for number, item in enumerate(pack)
            for place in range(len(item.tokens))
        ]
        for position, (number, place, item) in enumerate(flat):
            has_target = place + 1 < len(item.tokens) and item.trainable[place + 1]
            assert batch.targets[row, position] == (
                item.tokens[place + 1] if has_target else IGNORED
            )
            assert (
                batch.documents[row, position] == number and batch.positions[row, position] == place
            )
        assert (batch.documents[row, len(flat) :] == -1).all() and (
            batch.targets[row, len(flat) :] == IGNORED
        ).all()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=30))
def test_packs_hold_everything_once(lengths: list[int]) -> None:
    examples = [example(length, first=100 * number) for number, length in enumerate(lengths)]
    packing = pack_examples(examples, 20)
    assert sorted(item.where for pack in packing.packs for item in pack) == sorted(
        item.where for item in examples
    )
    assert all(0 < sum(len(item.tokens) for item in pack) <= 20 for pack in packing.packs)
    assert packing.efficiency == sum(lengths) / (20 * len(packing.packs))
    check_targets(collate(packing.packs, 0, 20), packing.packs)


def naive(lengths: list[int], room: int) -> list[list[int]]:
    """First-fit decreasing as the textbook has it."""
    packs: list[list[int]] = []
    for length in sorted(lengths, reverse=True):
        for pack in packs:
            if sum(pack) + length <= room:
                pack.append(length)
                break
        else:
            packs.append([length])
    return packs


def test_packing_is_first_fit_decreasing_and_repeats() -> None:
    lengths = random.Random(0).choices(range(1, 50), k=300)
    examples = [example(length, first=number) for number, length in enumerate(lengths)]
    packing = pack_examples(examples, 60)
    assert [[len(item.tokens) for item in pack] for pack in packing.packs] == naive(lengths, 60)
    assert packing == pack_examples(examples, 60)
    assert pack_examples([], 60).packs == []
    with pytest.raises(
        ValueError, match="f:7: expected at most 9 tokens, got 10; drop or truncate it first"
    ):
        pack_examples([example(10, first=7)], 9)


def test_packing_many_rows_is_fast() -> None:
    lengths = random.Random(0).choices(range(10, 1500), k=20_000)
    examples = [Example([0] * length, [], "") for length in lengths]
    begin = time.perf_counter()
    assert pack_examples(examples, 1500).efficiency > 0.95
    assert time.perf_counter() - begin < 5  # about 0.15 s; trying every pack in turn takes minutes


def test_every_epoch_has_its_own_order() -> None:
    assert sorted(epoch_order(50, seed=1, epoch=0)) == list(range(50))
    assert epoch_order(50, 1, 0) == epoch_order(50, 1, 0) != epoch_order(50, 1, 1)
    assert epoch_order(50, 1, 0) != epoch_order(50, 2, 0)
