"""Checkpoints: a resumed run takes bit-identical steps, and a stop at any moment leaves one that
loads."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lora.config import LoRAConfig
from lora.inject import add_lora, trainable_parameters
from model.transformer import Gemma2
from train import make_optimizer
from training import checkpoint as state
from training.checkpoint import load_checkpoint, read_counters, save_checkpoint, settle

TOKENS = torch.tensor([[2, 5, 58, 7, 59, 9, 30]])


@pytest.fixture
def make_run(make_model: Callable[..., Gemma2], randomized: Callable[[nn.Module], None]) -> Any:
    """make_run(seed) -> a tiny LoRA model in training mode and its optimizer, before the first
    step."""

    def make(seed: int = 0, **changes: Any) -> Any:
        model = make_model()
        options: dict[str, Any] = {
            "rank": 4,
            "alpha": 8,
            "dropout": 0.3,
            "token_ids": (58, 59),
        } | changes
        add_lora(model, LoRAConfig(**options), seed)
        return model.train(), make_optimizer(model, 0.1, row_lr_scale=2.5)

    return make


def set_learning_rate(optimizer: Any, rate: Any) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]


def take_steps(model: Any, optimizer: Any, first: Any, last: Any) -> Any:
    """Steps whose dropout masks come from the global generator; returns the losses."""
    losses = []
    for step in range(first, last + 1):
        set_learning_rate(optimizer, 0.01 * step)
        loss = torch.nn.functional.cross_entropy(model(TOKENS)[0, :-1], TOKENS[0, 1:])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
    return losses


def save(folder: Path, model: Any, optimizer: Any, step: int = 0) -> None:
    save_checkpoint(
        folder,
        model,
        optimizer=optimizer,
        rng={"cpu": torch.get_rng_state()},
        counters={"step": step, "text": "ö"},
    )


def values(model: Any) -> Any:
    return {
        name: parameter.detach().clone() for name, parameter in trainable_parameters(model).items()
    }


def test_going_on_is_bit_identical(make_run: Callable[..., Any], tmp_path: Path) -> None:
    model, optimizer = make_run()
    take_steps(model, optimizer, 1, 3)
    save(tmp_path / "checkpoint", model, optimizer, 3)
    expected = take_steps(model, optimizer, 4, 7)

    other, fresh = make_run(seed=1)
    torch.manual_seed(99)
    rng = load_checkpoint(tmp_path / "checkpoint", other, fresh)
    assert read_counters(tmp_path / "checkpoint") == {"step": 3, "text": "ö"} and set(rng) == {
        "cpu"
    }
    torch.set_rng_state(rng["cpu"])
    assert take_steps(other, fresh, 4, 7) == expected
    wanted, got = values(model), values(other)
    assert wanted.keys() == got.keys() and all(
        torch.equal(wanted[name], got[name]) for name in wanted
    )


def test_a_checkpoint_before_the_first_step(make_run: Callable[..., Any], tmp_path: Path) -> None:
    model, optimizer = make_run()
    save(tmp_path / "c", model, optimizer)
    expected = take_steps(model, optimizer, 1, 2)
    other, fresh = make_run(seed=1)
    torch.set_rng_state(load_checkpoint(tmp_path / "c", other, fresh)["cpu"])
    assert take_steps(other, fresh, 1, 2) == expected


def test_loading_twice_and_saving_over_the_loaded_file(
    make_run: Callable[..., Any], tmp_path: Path
) -> None:
    """The tensors that were read must not lie in the file that the next checkpoint replaces."""
    model, optimizer = make_run()
    take_steps(model, optimizer, 1, 2)
    save(tmp_path / "c", model, optimizer, 2)
    other, fresh = make_run(seed=1)
    torch.set_rng_state(load_checkpoint(tmp_path / "c", other, fresh)["cpu"])
    for step in (3, 4):
        take_steps(other, fresh, step, step)
        save(tmp_path / "c", other, fresh, step)
    third, again = make_run(seed=2)
    load_checkpoint(tmp_path / "c", third, again)
    assert all(
        torch.equal(a, b)
        for a, b in zip(values(third).values(), values(other).values(), strict=True)
    )


def test_rows_have_a_rate_of_their_own(make_run: Callable[..., Any]) -> None:
    model, optimizer = make_run()
    set_learning_rate(optimizer, 0.02)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    named = trainable_parameters(model)
    assert len(rates) == len(named)
    assert all(
        rates[id(p)] == (0.05 if name.endswith("rows") else 0.02) for name, p in named.items()
    )
    assert 0.05 in rates.values() and all(
        group["weight_decay"] == 0.1 for group in optimizer.param_groups
    )


class Stop(BaseException):
    """A kill: nothing in the program may catch it."""


def stop_at(monkeypatch: pytest.MonkeyPatch, number: Any) -> Any:
    """Makes the file system operation `number` of save_checkpoint, counted from 0, stop the
    program; half of a file is written where a file is. Returns the list of operations that were
    done."""
    done: list[Any] = []

    def wrap(name: str, real: Any, half: Any = None) -> Any:
        def operation(*arguments: Any, **options: Any) -> Any:
            if len(done) == number:
                if half:
                    half(*arguments)
                raise Stop
            done.append(name)
            return real(*arguments, **options)

        return operation

    half_file = wrap(
        "save_file", state.save_file, lambda tensors, path: Path(path).write_bytes(b"half")
    )
    monkeypatch.setattr(state, "save_file", half_file)
    monkeypatch.setattr(state.shutil, "rmtree", wrap("rmtree", shutil.rmtree))
    for name in ("rename", "mkdir"):
        monkeypatch.setattr(Path, name, wrap(name, getattr(Path, name)))
    write = wrap(
        "write_text", Path.write_text, lambda path, text: path.write_bytes(text[:5].encode())
    )
    monkeypatch.setattr(Path, "write_text", write)
    return done


@pytest.mark.parametrize("first", range(10))
def test_a_stop_at_any_moment_and_another_one_after_it_leave_a_checkpoint(
    make_run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: Any
) -> None:
    """Steps 1 and 2 are saved; the next save stops at operation `first`, and the one after that at
    any operation."""
    model, optimizer = make_run()
    folder, marks = tmp_path / "checkpoint", {}

    def save_step(step: int) -> None:
        with torch.no_grad():
            next(iter(trainable_parameters(model).values())).fill_(float(step))
        save(folder, model, optimizer, step)

    def loaded() -> Any:
        assert settle(folder) == ""
        other, fresh = make_run(seed=1)
        load_checkpoint(folder, other, fresh)
        step = read_counters(folder)["step"]
        assert (next(iter(trainable_parameters(other).values())) == step).all()
        return step

    save_step(1)
    with monkeypatch.context() as patch:
        done = stop_at(patch, first)
        try:
            save_step(2)
        except Stop:
            marks["stopped"] = True
    assert loaded() in (1, 2)
    assert marks or (len(done) <= first and loaded() == 2)
    backup = shutil.copytree(tmp_path, tmp_path.with_name(tmp_path.name + "-backup"))
    for second in range(12):
        shutil.rmtree(tmp_path)
        shutil.copytree(backup, tmp_path)
        with monkeypatch.context() as patch:
            stop_at(patch, second)
            try:
                save_step(3)
            except Stop:
                pass
        assert loaded() in (1, 2, 3)
    save_step(4)
    assert loaded() == 4 and [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
    assert read_counters(folder / "previous")["step"] in (2, 3) and not settle(folder)


def test_no_checkpoint(tmp_path: Path) -> None:
    for broken in ("nowhere", "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        for read in (settle, read_counters):
            with pytest.raises(FileNotFoundError, match=f"{broken}.*--resume"):
                read(tmp_path / broken)


@pytest.mark.parametrize(
    "changes",
    [
        {"rank": 8},
        {"targets": ("q_proj",)},
        {"token_ids": (58,)},
        {"token_ids": (), "adapt": "course"},
    ],
)
def test_another_model_is_refused_in_one_error_and_left_alone(
    make_run: Callable[..., Any], tmp_path: Path, changes: Any
) -> None:
    model, optimizer = make_run()
    take_steps(model, optimizer, 1, 1)
    save(tmp_path / "c", model, optimizer)
    other, fresh = make_run(seed=1, **changes)
    before, names = values(other), trainable_parameters(model)
    odd = {
        n
        for n in {*names, *before}
        if n not in names or n not in before or names[n].shape != before[n].shape
    }
    with pytest.raises(ValueError, match="other LoRA flags") as caught:
        load_checkpoint(tmp_path / "c", other, fresh)
    assert odd and set(str(caught.value).rpartition(": ")[2].split(", ")) == odd
    assert (
        all(torch.equal(before[name], value) for name, value in values(other).items())
        and not fresh.state
    )


@pytest.mark.parametrize("content", [b"", b"half", b"\x80" * 100])
def test_files_that_cannot_be_read(
    make_run: Callable[..., Any], tmp_path: Path, content: Any
) -> None:
    model, optimizer = make_run()
    save(tmp_path / "c", model, optimizer)
    (tmp_path / "c" / "state.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"state\.safetensors: not a readable checkpoint"):
        load_checkpoint(tmp_path / "c", model, optimizer)
    (tmp_path / "c" / "state.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"state\.json"):
        read_counters(tmp_path / "c")
    (tmp_path / "c" / "state.json").write_text("[1]")
    with pytest.raises(ValueError, match="expected a JSON object"):
        read_counters(tmp_path / "c")


def test_no_pickle(make_run: Callable[..., Any], tmp_path: Path) -> None:
    model, optimizer = make_run()
    take_steps(model, optimizer, 1, 1)
    save(tmp_path / "c", model, optimizer)
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == [
        "state.json",
        "state.safetensors",
    ]
    content = (tmp_path / "c" / "state.safetensors").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    kinds = {name.split(".")[0] for name in header}
    assert kinds == {"parameter", "step", "exp_avg", "exp_avg_sq", "rng"}
    assert json.loads((tmp_path / "c" / "state.json").read_text())["step"] == 0
