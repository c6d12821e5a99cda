"""What a step relies on: packing, padding, accumulation, recomputation change no gradient."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from lora.config import LoRAConfig
from lora.inject import add_lora, trainable_parameters
from lora.layer import LoRALinear
from model.loss import supervised_loss
from model.transformer import Gemma2

Documents = tuple[list[Tensor], list[Tensor]]
Pass = tuple[Tensor, Tensor | None, Tensor | None, Tensor]  # tokens, positions, documents, targets
Result = tuple[float, int, dict[str, Tensor]]

ADAPTS = {
    "rows": LoRAConfig(rank=4, alpha=8, dropout=0.0, token_ids=(57, 58, 59)),
    "course": LoRAConfig(rank=4, alpha=8, dropout=0.0, adapt="course"),
}
SIZES = (9, 5, 13, 7)  # longer and shorter than the window of 5


@pytest.fixture(params=["gemma2", "gemma3"])
def family(request: pytest.FixtureRequest) -> str:
    """Every test here holds for both."""
    return str(request.param)


@pytest.fixture
def adapted(make_model: Callable[..., Gemma2]) -> Callable[..., Gemma2]:
    """adapted(config) -> model with nonzero LoRA everywhere."""

    def make(config: LoRAConfig, **changes: Any) -> Gemma2:
        model = add_lora(make_model(**changes), config)
        generator = torch.Generator().manual_seed(5)
        for parameter in trainable_parameters(model).values():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
        return model

    return make


@pytest.fixture
def documents() -> Documents:
    """Token ids and targets (1, n) of four documents; the vocabulary's last tokens are trained."""
    generator = torch.Generator().manual_seed(3)
    tokens = [torch.randint(40, 60, (1, n), generator=generator) for n in SIZES]
    targets = [torch.cat((row[:, 1:], torch.tensor([[-100]])), dim=1) for row in tokens]
    return tokens, [
        row.masked_fill(torch.rand(row.shape, generator=generator) < 0.3, -100) for row in targets
    ]


def total_and_gradients(model: Gemma2, batches: Sequence[Pass]) -> Result:
    """Summed loss, supervised count and gradients, accumulated as a training step does."""
    model.zero_grad()
    total, count = 0.0, 0
    for tokens, positions, ids, targets in batches:
        loss, n = supervised_loss(model, model.model(tokens, positions, ids), targets)
        loss.backward()
        total, count = total + loss.item(), count + n
    gradients = {}
    for name, parameter in trainable_parameters(model).items():
        assert parameter.grad is not None, name
        gradients[name] = parameter.grad.clone()
    return total, count, gradients


def assert_same(one: Result, other: Result, tolerance: float = 1e-5) -> None:
    (total, count, gradients), (total_2, count_2, gradients_2) = one, other
    assert count == count_2 > 0 and abs(total - total_2) < tolerance * abs(total)
    norm, norm_2 = (
        torch.cat([g.flatten() for g in gs.values()]).norm() for gs in (gradients, gradients_2)
    )
    assert abs(norm - norm_2) < tolerance * norm
    for name, gradient in gradients.items():
        assert gradient.abs().max() > 0, name
        assert (gradient - gradients_2[name]).norm() < 10 * tolerance * gradient.norm(), name


def pack(tokens: list[Tensor], targets: list[Tensor], padding: int) -> Pass:
    rows = [*tokens, torch.full((1, padding), 50)]
    positions = torch.cat([torch.arange(row.shape[1])[None] for row in rows], dim=1)
    ids = torch.cat([torch.full_like(row, i) for i, row in enumerate(rows)], dim=1)
    return (
        torch.cat(rows, dim=1),
        positions,
        ids,
        torch.cat([*targets, torch.full((1, padding), -100)], dim=1),
    )


@pytest.mark.parametrize("adapt", ADAPTS)
@pytest.mark.parametrize("tied", [True, False])
def test_packed_documents_train_as_separate_ones(
    adapted: Callable[..., Gemma2], documents: Documents, adapt: str, tied: bool
) -> None:
    model = adapted(ADAPTS[adapt], tie_word_embeddings=tied)
    separate = total_and_gradients(
        model, [(t, None, None, y) for t, y in zip(*documents, strict=True)]
    )
    assert_same(separate, total_and_gradients(model, [pack(*documents, padding=0)]))
    assert_same(separate, total_and_gradients(model, [pack(*documents, padding=6)]))


@pytest.mark.parametrize("adapt", ADAPTS)
def test_four_micro_batches_equal_one_batch_of_four(
    adapted: Callable[..., Gemma2], documents: Documents, adapt: str
) -> None:
    """Right-padded to one length: padding is in every token's future, so no mask is needed."""
    model = adapted(ADAPTS[adapt])
    width = max(SIZES)
    rows = [torch.nn.functional.pad(t, (0, width - t.shape[1]), value=50) for t in documents[0]]
    targets = [
        torch.nn.functional.pad(t, (0, width - t.shape[1]), value=-100) for t in documents[1]
    ]
    separate = total_and_gradients(
        model, [(t, None, None, y) for t, y in zip(rows, targets, strict=True)]
    )
    assert_same(
        separate, total_and_gradients(model, [(torch.cat(rows), None, None, torch.cat(targets))])
    )


@pytest.mark.parametrize("adapt", ADAPTS)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_checkpointed_activations_give_the_same_gradients(
    adapted: Callable[..., Gemma2], documents: Documents, adapt: str, dropout: float
) -> None:
    model = adapted(ADAPTS[adapt]).train()
    for module in model.modules():
        if isinstance(module, LoRALinear):
            module.dropout = dropout
    results = []
    for mode in ("none", "full", "selective", "none"):
        model.model.checkpoint_activations = mode
        torch.manual_seed(11)
        results.append(total_and_gradients(model, [pack(*documents, padding=2)]))
    assert_same(results[0], results[3], tolerance=1e-7)
    assert_same(results[0], results[1], tolerance=1e-6)
    assert_same(results[0], results[2], tolerance=1e-6)
    if dropout:
        model.eval()
        assert (
            abs(total_and_gradients(model, [pack(*documents, padding=2)])[0] - results[0][0]) > 1e-3
        )


@pytest.mark.parametrize("adapt", ADAPTS)
def test_only_adapter_parameters_train_and_the_base_gets_no_gradient(
    adapted: Callable[..., Gemma2], documents: Documents, adapt: str
) -> None:
    model = adapted(ADAPTS[adapt])
    before = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    total_and_gradients(model, [pack(*documents, padding=0)])
    for name, parameter in model.named_parameters():
        is_adapter = "lora_" in name or name.endswith(".rows")
        assert parameter.requires_grad == is_adapter, name
        if not is_adapter:
            assert parameter.grad is None and torch.equal(parameter, before[name]), name
