"""Packs of the embedded pretraining: a branch sees the list and itself, and stands as if it were
alone.
"""

from random import Random

import torch

from embedded.english.network import hidden_states, see_branches
from embedded.english.packs import Placed, branch_mask, tensors, to_batch
from embedded.pretrain_model import CONFIG, new_model


def _placed(rng: Random, shared: int, *branches: int) -> Placed:
    def coded(count: int, tag: str) -> tuple[list[int], list[str]]:
        return [rng.randrange(6, CONFIG.vocab_size) for _ in range(count)], [tag] * count

    return Placed(coded(shared, "page"), [coded(count, "pick") for count in branches])


def test_a_branch_gives_the_same_logits_alone_and_among_others() -> None:
    placed = _placed(Random(0), 5, 4, 6, 3)
    base = new_model(0, torch.float32)
    see_branches(base)

    def states(one: Placed) -> torch.Tensor:
        return hidden_states(base, to_batch([[one]], 64))[0]

    with torch.no_grad():
        whole, alone = states(placed), states(Placed(placed.shared, [placed.branches[1]]))
    torch.testing.assert_close(whole[9:15], alone[5:11], rtol=1e-4, atol=1e-4)


def test_positions_go_on_from_the_shared_part_and_a_later_branch_begins_without_a_target() -> None:
    batch = to_batch([[_placed(Random(1), 3, 2, 2)]], 8)
    assert batch.positions[0].tolist() == [0, 1, 2, 3, 4, 3, 4, 0]
    assert batch.groups[0].tolist() == [64, 64, 64, 65, 65, 66, 66, 0]
    assert batch.weights[0].tolist() == [0, 0, 0, 1, 1, 0, 1, 0]


def test_the_mask_hides_other_branches_other_documents_and_what_is_too_far_back() -> None:
    _, positions, groups, _ = tensors(
        to_batch([[_placed(Random(2), 2, 2, 2), _placed(Random(3), 1, 1)]], 8)
    )
    mask = branch_mask(positions, groups, None)[0, 0]
    assert mask[4].tolist() == [True, True, False, False, True, False, False, False]
    assert mask[7].tolist() == [False, False, False, False, False, False, True, True]
    assert branch_mask(positions, groups, 2)[0, 0, 4].tolist() == [
        False,
        True,
        False,
        False,
        True,
        False,
        False,
        False,
    ]
