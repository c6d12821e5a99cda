"""The pretraining loop: it learns, its rate ends at zero, and a checkpoint continues exactly."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import TOKENIZER
from tokenizers import Tokenizer
from torch.utils.data import DataLoader

from embedded.generate.batches import Batch, batches
from embedded.pretrain import Documents, parse_args, rate_scale, train_step
from embedded.pretrain_gate import gate
from embedded.pretrain_model import (
    compile_blocks,
    compute_dtype,
    head_loss,
    hidden_states,
    new_model,
    start_model,
    tile_attention,
)
from embedded.pretrain_state import Optimizers, State, load_checkpoint, save_checkpoint
from model import attention, layers
from model.loader import load_gemma2, save_gemma2

ROWS, LENGTH = 2, 128


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(TOKENIZER / "tokenizer.json"))


def first_batches(tokenizer: Tokenizer, count: int) -> list[Batch]:
    stream = batches(tokenizer, 0, ROWS, LENGTH, {"user": 0.12})
    return [next(stream) for _ in range(count)]


def test_tiles_of_queries_give_the_models_own_attention(tokenizer: Tokenizer) -> None:
    stream = batches(tokenizer, 0, ROWS, 512, {})  # longer than the window, and several tiles
    batch = next(stream)
    base = new_model(0, torch.float32)
    assert batch.documents.max() > 1 and base.config.sliding_window < 512
    with torch.no_grad():
        expected = hidden_states(base, batch)
        tile_attention(base)
        found = hidden_states(base, batch)
    real = torch.from_numpy(batch.documents > 0)  # padding attends to other padding, and is unused
    torch.testing.assert_close(found[real], expected[real], rtol=1e-4, atol=1e-4)


def test_compiled_blocks_ask_no_question_about_the_processor(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The names that `compile_blocks` replaces in model/ are those that the products call."""

    def refuse(x: torch.Tensor) -> bool:
        raise AssertionError("asked")

    for module in (layers, attention):
        monkeypatch.setattr(module, "has_fast_matmul", refuse)  # restored after the test
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **_: None)  # eager: a second
    base, batch = new_model(0, compute_dtype()), first_batches(tokenizer, 1)[0]
    with torch.no_grad():
        with pytest.raises(AssertionError, match="asked"):
            hidden_states(base, batch)
        compile_blocks(base)
        assert hidden_states(base, batch).shape == (ROWS, LENGTH, base.config.hidden_size)


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
    train_step(base, head_loss, optimizers, made[:1], scale=1.0)
    save_checkpoint(tmp_path / "last", optimizers, State(5, 1, 2.0, [{"seed": 3}]))
    train_step(base, head_loss, optimizers, made[1:], scale=1.0)
    other = new_model(1, torch.float32)
    loaded = Optimizers(other, 0.02, 3e-3)
    assert load_checkpoint(tmp_path / "last", loaded) == State(5, 1, 2.0, [{"seed": 3}])
    train_step(other, head_loss, loaded, made[1:], scale=1.0)
    for name, p in base.named_parameters():
        torch.testing.assert_close(dict(other.named_parameters())[name], p, rtol=0, atol=0)


def test_a_state_counts_what_its_model_had_seen_before() -> None:
    state = State(5, 1, 2.4, earlier={"tokens": 100, "steps": 7, "seconds": 30})
    assert state.totals() == {"tokens": 105, "steps": 8, "seconds": 32}
    assert State(5, 1, 2.4).totals()["tokens"] == 5


def test_rate_warms_up_stays_and_decays_to_zero() -> None:
    trunk, decay = parse_args([]), parse_args(["--decay-tokens", "1000", "--minutes", "1"])
    late = State(10_000_000, 1, 0.0)
    assert rate_scale(trunk, State(), State()) < 0.01 and rate_scale(trunk, late, State()) == 1.0
    assert rate_scale(decay, State(10_000_500, 1, 0.0), late) == pytest.approx(0.5)
    assert rate_scale(decay, State(10_000_100, 1, 45.0), late) == pytest.approx(0.25)
    assert rate_scale(decay, State(10_002_000, 1, 0.0), late) == 0.0


def test_the_gate_scores_every_kind_between_zero_and_one(tokenizer: Tokenizer) -> None:
    scores = gate(new_model(0, compute_dtype()), tokenizer, rows=2, length=768, documents=8)
    kinds = ("fill", "double", "none", "coined", "everyday", "natural")
    assert {f"{kind}_whole" for kind in kinds} <= set(scores)
    assert {"fill_pick", "fill_list", "fill_fill"} <= set(scores)
    assert all(0.0 <= value <= 1.0 for value in scores.values())


def test_init_starts_from_the_exported_weights(tmp_path: Path) -> None:
    save_gemma2(new_model(1, torch.bfloat16), tmp_path)
    base = start_model(seed=0, device="cpu", init=tmp_path)
    exported = load_gemma2(tmp_path, dtype=compute_dtype())
    for name, p in exported.named_parameters():
        assert torch.equal(dict(base.named_parameters())[name], p)


def test_worker_processes_write_other_documents(tokenizer: Tokenizer) -> None:
    args = parse_args(["--rows", str(ROWS), "--length", str(LENGTH)])
    loader = DataLoader(Documents(tokenizer, 0, args), batch_size=None, num_workers=2)
    made = list(itertools.islice(loader, 4))
    alone = next(iter(Documents(tokenizer, 0, args)))
    assert (made[0].tokens == alone.tokens).all() and isinstance(made[0].tokens, np.ndarray)
    assert not (made[0].tokens == made[1].tokens).all()
