"""The continuous batch: whoever comes and goes beside a row, its ids are those it has alone."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from lora.adapter import load_adapter, save_adapter
from lora.config import LoRAConfig
from lora.inject import add_lora
from lora.many import add_adapters
from lora.rows import Row
from model.generate import Sampling, generate
from model.transformer import Gemma2
from serve import batch as module
from serve.batch import Batch, Request

Maker = Callable[..., Gemma2]
STOP = 3


@pytest.fixture
def folders(make_model: Maker, tmp_path: Path) -> dict[str, Path]:
    for number, name in enumerate(("first", "second")):
        config = LoRAConfig(rank=3, alpha=6, token_ids=(50, 51))
        model = add_lora(make_model(max_position_embeddings=256), config, seed=number)
        for key, parameter in model.named_parameters():
            if "lora" in key or key.endswith("rows"):
                parameter.data = 0.3 * torch.randn(parameter.shape)
        save_adapter(model, tmp_path / name, config)
    return {name: tmp_path / name for name in ("first", "second")}


class Odd:
    """A guide that lets every second id be even only."""

    def __init__(self) -> None:
        self.count = 0

    def accepts(self, id: int) -> bool:
        return self.count % 2 == 0 or id % 2 == 0

    def allowed(self) -> Sequence[int]:
        return [id for id in range(60) if self.accepts(id)]

    def advance(self, id: int) -> None:
        self.count += 1


def requests() -> list[Request]:
    generator = torch.Generator().manual_seed(2)
    made = []
    for number, length in enumerate((5, 70, 1, 33, 12, 64, 2, 20)):
        prompt = torch.randint(4, 60, (length,), generator=generator).tolist()
        row = Row((None, "first", "second")[number % 3])
        sampling = Sampling(0.8 if number % 2 else 0.0, 0.9, seed=number, forbidden=(number + 10,))
        guide = Odd() if number in (2, 3) else None
        most = (40, 90, 7, 100, 1, 64, 130, 20)[number]
        made.append(Request(prompt, most, frozenset({STOP}), row, sampling, guide))
    return made


def alone(make_model: Maker, folders: dict[str, Path], request: Request) -> list[int]:
    model = make_model(max_position_embeddings=256)
    if request.row.adapter:
        load_adapter(model, folders[request.row.adapter])
    guide = None if request.guide is None else Odd()
    most, sampling = request.max_new_tokens, request.sampling
    return generate(model, [request.prompt], most, [STOP], sampling, [guide])[0]


@pytest.fixture
def batch(make_model: Maker, folders: dict[str, Path]) -> Batch:
    model = make_model(max_position_embeddings=256)
    return Batch(model, add_adapters(model, folders))


def test_rows_that_come_and_go_write_what_they_write_alone(
    batch: Batch, make_model: Maker, folders: dict[str, Path]
) -> None:
    made = requests()
    waiting, left, step = list(made), made[5], 0
    ended = set()
    while waiting or len(batch):
        if waiting and step % 3 == 0:  # joins between two steps of the others
            news = [batch.join(waiting.pop(0))]
        else:
            news = batch.step() if len(batch) else []
        ended |= {id(one.request) for one in news if one.is_last}
        step += 1
        if step == 40:
            batch.leave(left)
            batch.leave(left)  # one that has left is no error
    for number, request in enumerate(made):
        expected = alone(make_model, folders, request)
        if request is left and len(request.written) < len(expected):
            assert id(request) not in ended and len(request.written) > 5
            expected = expected[: len(request.written)]
        assert request.written == expected, number


def test_the_cache_shrinks_when_nobody_is_left(batch: Batch) -> None:
    long, short = requests()[1], requests()[0]
    batch.join(long)
    batch.join(short)
    assert batch.cache.max_length > module.STEP
    batch.leave(long)
    assert batch.cache.max_length > module.STEP  # the other row's entries lie in it
    batch.leave(short)
    assert batch.cache.max_length == module.STEP and len(batch.cache.rows) == 0


def test_room_is_for_the_longest_row_that_each_could_become(
    batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_ENTRIES", 300)
    small, large = (
        Request([5], 99, frozenset()),
        Request([5, 6], 298, frozenset()),
    )
    assert batch.has_room(large)
    batch.join(small)
    assert batch.has_room(Request([5], 149, frozenset()))
    assert not batch.has_room(Request([5], 150, frozenset())) and not batch.has_room(large)
