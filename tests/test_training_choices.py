"""How many packs a forward pass takes: a GPU folds a step's passes into one, and the step stays."""

import argparse
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from data.chat import Example
from lora.config import LoRAConfig
from lora.inject import add_lora, trainable_parameters
from model.config import Gemma2Config
from model.recompute import MicroBatch
from model.transformer import Gemma2
from training import choices
from training.batches import StepBatches
from training.ranks import Ranks
from training.run import StepLoss

CUDA = torch.device("cuda")
ONE = MicroBatch(Gemma2Config(), 1500, torch.bfloat16)


def flags(**changes: Any) -> argparse.Namespace:
    given = {"micro_batch": 1, "accumulate": 4, "fold": True, "checkpoint_activations": "auto"}
    return argparse.Namespace(**given | changes)


@pytest.mark.parametrize(
    ("gigabytes", "changes", "packs"),
    [
        (80, {}, 4),
        (80, {"fold": False}, 1),  # --micro-batch was given
        (800, {"accumulate": 16}, 8),  # 12,000 tokens; 16 packs would be more than enough
        (80, {"micro_batch": 2, "accumulate": 3}, 6),
        (24, {}, 2),
        (16, {}, 1),
        (16, {"checkpoint_activations": "full"}, 4),
    ],
)
def test_a_card_takes_as_many_packs_at_once_as_fit(
    monkeypatch: pytest.MonkeyPatch, gigabytes: int, changes: dict[str, Any], packs: int
) -> None:
    monkeypatch.setattr(choices, "available_memory_bytes", lambda _: gigabytes * 10**9)
    assert choices.pick_packs(flags(**changes), ONE, CUDA)[0] == packs


def test_other_devices_take_what_the_flags_say() -> None:
    assert choices.pick_packs(flags(), ONE, torch.device("cpu"))[0] == 1


def batches(shape: tuple[int, int] | None, ranks: Ranks | None = None) -> StepBatches:
    """Seven packs of three documents, of which a rank takes four a step."""
    examples = [
        Example(list(range(3 + i, 3 + i + n)), [k > 1 for k in range(n)])
        for i, n in enumerate((4, 6, 5) * 7)
    ]
    packs = [examples[i : i + 3] for i in range(0, 21, 3)]
    return StepBatches(packs, 1, 4, ranks or Ranks(), seed=0, pad_id=0, shape=shape)


@pytest.mark.parametrize("ranks", [Ranks(), Ranks(0, 2)])
def test_what_a_run_shows_is_what_its_steps_take(ranks: Ranks) -> None:
    data = batches(None, ranks)
    data = replace(data, packs=[pack[:i] for i, pack in enumerate(data.packs, start=1)])
    for steps in range(8):
        taken = [pack for step in range(1, steps + 1) for pack in data.of_step(step)]
        assert data.num_shown(steps) == sum(map(len, taken))
    assert data.num_shown(1) < sum(map(len, data.packs)) or ranks.count > 1


def gradients(model: Gemma2, data: StepBatches, step: int) -> list[torch.Tensor]:
    """Summed loss and gradients of a step, as `train.train_step` adds them up."""
    step_loss, total = StepLoss(model), torch.zeros(())
    for batch in data.micro_batches(data.of_step(step)):
        loss = step_loss(batch)
        loss.backward()
        total += loss.detach()
    found = [p.grad for p in trainable_parameters(model).values()]
    model.zero_grad(set_to_none=True)
    assert all(grad is not None for grad in found)
    return [total, *(grad for grad in found if grad is not None)]


@pytest.mark.parametrize("step", [1, 2], ids=["whole", "the epoch's last, short"])
def test_a_folded_step_is_the_same_step(
    make_model: Callable[..., Gemma2],
    randomized: Callable[[nn.Module], None],
    relative: Callable[..., float],
    step: int,
) -> None:
    model = make_model()
    add_lora(model, LoRAConfig(rank=3, dropout=0.0, token_ids=(5, 9)))
    randomized(model)
    one_by_one, at_once = batches(None), batches((4, 20))
    assert one_by_one.packs_per_step == at_once.packs_per_step == 4
    folded = at_once.micro_batches(at_once.of_step(step))
    assert [tuple(batch.tokens.shape) for batch in folded] == [(4, 20)]
    assert len(one_by_one.micro_batches(one_by_one.of_step(step))) == (4 if step == 1 else 3)
    ours, theirs = gradients(model, at_once, step), gradients(model, one_by_one, step)
    for mine, other in zip(ours, theirs, strict=True):
        assert relative(mine, other) < 1e-5


def test_ranks_share_a_folded_step() -> None:
    parts = [
        data.micro_batches(data.of_step(1))
        for data in (batches((4, 20), Ranks(index, 2)) for index in range(2))
    ]
    assert [len(part) for part in parts] == [1, 1]
    whole = replace(batches(None), accumulate=8)
    tokens = [batch.num_supervised for part in parts for batch in part]
    alone = [batch.num_supervised for batch in whole.micro_batches(whole.of_step(1))]
    assert sum(tokens) == sum(alone) and min(tokens) > 0
