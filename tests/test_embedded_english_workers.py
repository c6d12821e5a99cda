"""Two processes that share a step make the update that one process makes alone, to the bit."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from builders import TOKENIZER
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from embedded.english.gate import gate_documents
from embedded.english.generate.recipe import Recipe
from embedded.english.generate.thoughts import Document
from embedded.english.network import see_branches
from embedded.english.packs import Batch, packs, to_batch
from embedded.english.pretrain import main, stage_batches, train_step
from embedded.english.stages import STAGES
from embedded.english.workers import this_process
from embedded.pretrain_model import head_loss, new_model
from embedded.pretrain_state import Optimizers
from model.loader import save_gemma2


def two_batches() -> list[Batch]:
    tokenizer = Tokenizer.from_file(str(TOKENIZER / "tokenizer.json"))
    found = packs(tokenizer, gate_documents("one", Recipe(("travel",)), 8), 512)
    return [to_batch(list(islice(found, 1)), 512) for _ in range(2)]


def trained(batches: list[Batch]) -> tuple[dict[str, torch.Tensor], list[float]]:
    """The masters after two steps on the same batches, and the losses."""
    torch.set_num_threads(1)
    base = new_model(0, torch.float32)
    see_branches(base)
    optimizers = Optimizers(base, 0.02, 3e-3)
    losses = [train_step(base, head_loss, optimizers, batches, scale=1.0) for _ in range(2)]
    masters = {name: p.detach() for name, p in optimizers.masters.items()}
    return masters, losses


def share(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    assert this_process() == (rank, 2)
    masters, losses = trained(two_batches()[rank::2])
    save_file(masters | {"losses": torch.tensor(losses)}, f"{folder}/{rank}.safetensors")
    dist.destroy_process_group()


def test_two_processes_make_the_update_of_one(tmp_path: Path) -> None:
    mp.spawn(share, args=(str(tmp_path),), nprocs=2)
    masters, losses = trained(two_batches())
    assert losses[1] < losses[0]
    for rank in range(2):
        found = load_file(tmp_path / f"{rank}.safetensors")
        assert torch.equal(found.pop("losses"), torch.tensor(losses))
        assert found.keys() == masters.keys()
        assert all(torch.equal(found[name], masters[name]) for name in masters)


def test_batches_are_dealt_out_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Tokenizer.from_file(str(TOKENIZER / "tokenizer.json"))
    monkeypatch.setattr("embedded.english.pretrain.documents", lambda _: endless())
    alone = list(islice(stage_batches(STAGES[4], tokenizer, 0), 2))
    for rank in range(2):
        monkeypatch.setattr("embedded.english.pretrain.this_process", lambda rank=rank: (rank, 2))
        # The first step was made before a stop.
        (own,) = next(stage_batches(STAGES[4], tokenizer, 1))
        assert (own.tokens == alone[1][rank].tokens).all()
    assert (alone[1][0].tokens != alone[1][1].tokens).any()


def endless() -> Iterator[Document]:
    seed = 0
    while True:
        yield from gate_documents("one", Recipe(("travel",)), 4, seed=(seed := seed + 1))


def test_a_limit_by_the_clock_needs_one_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_gemma2(new_model(0, torch.bfloat16), base := tmp_path / "base")
    monkeypatch.setattr("embedded.english.pretrain.missing_packages", list)
    monkeypatch.setattr("embedded.english.pretrain.join", lambda: None)
    monkeypatch.setattr("embedded.english.pretrain.this_process", lambda: (0, 2))
    assert main(["--after", str(base), "--minutes", "1"]) == 2
    assert "expected one process, whose clock counts" in capsys.readouterr().err
    # The first stage has one batch a step.
    assert main(["--after", str(base), "--last", "0"]) == 2
    assert "divides its 1 batches a step, got 2" in capsys.readouterr().err
