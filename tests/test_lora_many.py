"""Several adapters over one base: what a row gives must not depend on the rows beside it."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lora.adapter import load_adapter, save_adapter
from lora.config import LoRAConfig
from lora.inject import add_lora
from lora.many import add_adapters
from lora.rows import Adapters, Row
from model.attention import KVCache
from model.transformer import Gemma2

Maker = Callable[..., Gemma2]
# Different ranks, scalings, targets and tokens: what two adapters share hides a mixed-up index.
CONFIGS = {
    "first": LoRAConfig(rank=4, alpha=8, token_ids=(50, 51)),
    "second": LoRAConfig(rank=2, alpha=6, targets=("q_proj", "down_proj"), token_ids=(51, 7)),
    "third": LoRAConfig(rank=3, alpha=3, use_rslora=True, rank_pattern={"v_proj": 6}),
}
ROWS = (Row("first"), Row(), Row("third"), Row("second"), Row("first", 0.5), Row("second", 0.0))


@pytest.fixture
def folders(
    make_model: Maker, randomized: Callable[[torch.nn.Module], None], tmp_path: Path
) -> dict[str, Path]:
    for seed, (name, config) in enumerate(CONFIGS.items()):
        model = make_model()
        add_lora(model, config)
        torch.manual_seed(seed)
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if "lora" in key or key.endswith("rows"):
                    parameter.copy_(0.3 * torch.randn(parameter.shape))
        save_adapter(model, tmp_path / name, config)
    return {name: tmp_path / name for name in CONFIGS}


@pytest.fixture
def many(make_model: Maker, folders: dict[str, Path]) -> tuple[Gemma2, Adapters]:
    model = make_model()
    return model, add_adapters(model, folders)


def alone(make_model: Maker, folders: dict[str, Path], row: Row, **changes: object) -> Gemma2:
    model = make_model(**changes)
    if row.adapter:
        load_adapter(model, folders[row.adapter])
        # Half of an adapter is half of its deltas, and rows half way from the base's.
        for name, module in model.named_modules():
            if hasattr(module, "scaling"):
                module.scaling *= row.scale
            if name.endswith(".trained"):
                whole = make_model(**changes).get_submodule(name.removesuffix(".trained"))
                base = whole.get_parameter("weight")[module.ids]
                module.rows.data = base + row.scale * (module.rows.data - base)
    return model


def tokens(rows: int, length: int) -> Tensor:
    ids = torch.randint(60, (rows, length), generator=torch.Generator().manual_seed(1))
    ids[:, ::4] = torch.tensor([7, 50, 51]).repeat(length)[: ids[:, ::4].shape[1]]
    return ids


def use_and_run(model: Gemma2, adapters: Adapters, rows: Sequence[Row], ids: Tensor) -> Tensor:
    adapters.use(rows)
    logits: Tensor = model(ids)
    return logits


@torch.no_grad()
@pytest.mark.parametrize("length", [1, 9])
@pytest.mark.parametrize("tied", [True, False])
def test_each_row_of_a_batch_has_its_own_adapter(
    make_model: Maker, folders: dict[str, Path], length: int, tied: bool
) -> None:
    if not tied:
        for name, config in CONFIGS.items():
            model = add_lora(make_model(tie_word_embeddings=False), config)
            for key, parameter in model.named_parameters():
                if "lora" in key or key.endswith("rows"):
                    parameter.copy_(0.3 * torch.randn(parameter.shape))
            save_adapter(model, folders[name], config)
    changes = {"tie_word_embeddings": tied}
    model = make_model(**changes)
    adapters = add_adapters(model, folders)
    ids = tokens(len(ROWS), length)
    got = use_and_run(model, adapters, ROWS, ids)
    for number, row in enumerate(ROWS):
        expected = alone(make_model, folders, row, **changes)(ids[number : number + 1])
        torch.testing.assert_close(got[number : number + 1], expected, rtol=2e-5, atol=2e-5)
        # A batch of one adapter goes another way, which must give the same.
        same = use_and_run(model, adapters, [row, row], ids[number].repeat(2, 1))
        torch.testing.assert_close(same[:1], expected, rtol=2e-5, atol=2e-5)


@torch.no_grad()
def test_batches_may_use_some_of_the_adapters(
    make_model: Maker, folders: dict[str, Path], many: tuple[Gemma2, Adapters]
) -> None:
    ids = tokens(3, 5)
    # What one batch has copied of the stacks must not serve the next one.
    for first, second in [("first", "third"), ("second", "third"), ("third", "first")]:
        rows = [Row(first), Row(second, 2.0), Row(first)]
        got = use_and_run(*many, rows, ids)
        for number, row in enumerate(rows):
            expected = alone(make_model, folders, row)(ids[number : number + 1])
            torch.testing.assert_close(got[number : number + 1], expected, rtol=2e-5, atol=2e-5)


@torch.no_grad()
def test_the_base_is_the_base_to_the_last_bit(
    make_model: Maker, many: tuple[Gemma2, Adapters]
) -> None:
    ids = tokens(2, 9)
    expected = make_model()(ids)
    assert torch.equal(use_and_run(*many, [Row("first", 0.0), Row()], ids), expected)
    assert torch.equal(many[0](ids), expected)  # as it was left


@torch.no_grad()
def test_greedy_ids_of_sixteen_rows_and_four_choices(
    make_model: Maker, folders: dict[str, Path], many: tuple[Gemma2, Adapters]
) -> None:
    model, adapters = many
    rows = [Row(name) for name in (*CONFIGS, None)] * 4
    prompts = tokens(16, 6)
    assert greedy(model, prompts, lambda: adapters.use(rows)) == [
        greedy(alone(make_model, folders, row), prompt[None])[0]
        for row, prompt in zip(rows, prompts, strict=True)
    ]


def greedy(
    model: Gemma2, prompts: Tensor, before: Callable[[], None] = lambda: None
) -> list[list[int]]:
    before()
    cache = KVCache(model.config, len(prompts), 30, "cpu", torch.float32)
    ids = model.logits(model.hidden(prompts, cache=cache)[:, -1]).argmax(-1)
    written = [ids]
    for step in range(20):
        positions = torch.full((len(prompts), 1), prompts.shape[1] + step)
        hidden = model.hidden(ids[:, None], positions=positions, cache=cache)[:, 0]
        ids = model.logits(hidden).argmax(-1)
        written.append(ids)
    return torch.stack(written, dim=1).tolist()


def test_what_cannot_be_served_together_is_named(
    make_model: Maker, folders: dict[str, Path]
) -> None:
    config = LoRAConfig(rank=2, adapt="course")
    course = add_lora(make_model(), config)
    save_adapter(course, folders["third"], config)
    with pytest.raises(ValueError, match="adapter third: .*adapts the whole embed_tokens"):
        add_adapters(make_model(), folders)
    model = add_lora(make_model(), CONFIGS["first"])
    model.get_parameter("model.layers.0.self_attn.q_proj.lora_B").data[0, 0] = float("inf")
    save_adapter(model, folders["first"], CONFIGS["first"])
    with pytest.raises(ValueError, match="adapter first: .*finite numbers.*q_proj"):
        add_adapters(make_model(), {"first": folders["first"]})
    with pytest.raises(ValueError, match="expected 0 to 4, got 5.0"):
        Row("first", 5.0)
    with pytest.raises(KeyError, match="nobody"):
        add_adapters(make_model(), {}).use([Row("nobody")])
