"""The pretraining loop: it learns, its rate ends at zero, and a checkpoint goes on as if nothing had happened."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from torch.utils.data import DataLoader

from embedded.generate.batches import Batch, batches
from embedded.pretrain import (
    Documents,
    compute_dtype,
    gate,
    head_loss,
    new_model,
    parse_args,
    rate_scale,
    start_model,
    train_step,
)
from embedded.pretrain_state import Optimizers, State, load_checkpoint, save_checkpoint
from model.loader import load_gemma2

FOLDER = Path(__file__).parents[1] / "embedded" / "weights"
ROWS, LENGTH = 2, 128


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(FOLDER / "tokenizer.json"))


def first_batches(tokenizer: Tokenizer, count: int) -> list[Batch]:
    stream = batches(tokenizer, 0, ROWS, LENGTH, {"user": 0.12})
    return [next(stream) for _ in range(count)]


@pytest.mark.parametrize("muon_lr", [0.02, 0.0])
def test_a_few_steps_lower_the_loss(tokenizer: Tokenizer, muon_lr: float) -> None:
    base = new_model(0, compute_dtype())
    optimizers = Optimizers(base, muon_lr, 3e-3)
    made = first_batches(tokenizer, 1)
    losses = [train_step(base, head_loss, optimizers, made, scale=1.0)[1] for _ in range(6)]
    assert losses[-1] < losses[0] - 1.0


def test_a_checkpoint_continues_exactly(tokenizer: Tokenizer, tmp_path: Path) -> None:
    made = first_batches(tokenizer, 2)
    base = new_model(0, torch.float32)
    optimizers = Optimizers(base, 0.02, 3e-3)
    train_step(base, head_loss, optimizers, made[:1], 1.0)
    save_checkpoint(tmp_path / "last", optimizers, State(5, 1, 2.0, [{"seed": 3}]))
    train_step(base, head_loss, optimizers, made[1:], 1.0)
    other = new_model(1, torch.float32)
    loaded = Optimizers(other, 0.02, 3e-3)
    assert load_checkpoint(tmp_path / "last", loaded) == State(5, 1, 2.0, [{"seed": 3}])
    train_step(other, head_loss, loaded, made[1:], 1.0)
    for name, p in base.named_parameters():
        torch.testing.assert_close(dict(other.named_parameters())[name], p, rtol=0, atol=0)


def test_a_state_counts_what_its_model_had_seen_before() -> None:
    state = State(5, 1, 2.4, earlier={"tokens": 100, "steps": 7, "seconds": 30})
    assert (
        state.totals() == {"tokens": 105, "steps": 8, "seconds": 32}
        and State(5, 1, 2.4).totals()["tokens"] == 5
    )


def test_rate_warms_up_stays_and_decays_to_zero() -> None:
    trunk, decay = parse_args([]), parse_args(["--decay-tokens", "1000", "--minutes", "1"])
    late = State(10_000_000, 1, 0.0)
    assert rate_scale(trunk, State(), State()) < 0.01 and rate_scale(trunk, late, State()) == 1.0
    assert rate_scale(decay, State(10_000_500, 1, 0.0), late) == pytest.approx(0.5)
    assert rate_scale(decay, State(10_000_100, 1, 45.0), late) == pytest.approx(0.25)
    assert rate_scale(decay, State(10_002_000, 1, 0.0), late) == 0.0


def test_the_gate_scores_every_kind_between_zero_and_one(tokenizer: Tokenizer) -> None:
    scores = gate(new_model(0, compute_dtype()), tokenizer, rows=2, length=768, documents=8)
    assert {
        "fill_pick",
        "fill_list",
        "fill_fill",
        "fill_whole",
        "double_whole",
        "none_whole",
        "coined_whole",
        "everyday_whole",
    } <= set(scores)
    assert all(0.0 <= value <= 1.0 for value in scores.values())


def test_init_starts_from_the_exported_weights() -> None:
    base = start_model(parse_args(["--init", str(FOLDER)]))
    exported = load_gemma2(FOLDER, dtype=compute_dtype())
    for name, p in exported.named_parameters():
        assert torch.equal(dict(base.named_parameters())[name], p)


def test_worker_processes_write_other_documents(tokenizer: Tokenizer) -> None:
    args = parse_args(["--rows", str(ROWS), "--length", str(LENGTH)])
    made = list(
        itertools.islice(
            DataLoader(Documents(tokenizer, 0, args), batch_size=None, num_workers=2), 4
        )
    )
    alone = next(iter(Documents(tokenizer, 0, args)))
    assert (made[0].tokens == alone.tokens).all() and isinstance(made[0].tokens, np.ndarray)
    assert not (made[0].tokens == made[1].tokens).all()
