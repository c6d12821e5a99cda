"""How much the backward pass computes again, by the free memory, and that it changes nothing."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from model import recompute
from model.config import Gemma2Config
from model.recompute import CHECKPOINTING, MicroBatch, pick_checkpointing
from model.transformer import Gemma2

CPU, CUDA, MPS = torch.device("cpu"), torch.device("cuda"), torch.device("mps")
CONFIG = Gemma2Config()


@pytest.fixture(params=["gemma2", "gemma3"])
def family(request: pytest.FixtureRequest) -> str:
    """Every test here holds for both."""
    return str(request.param)


def test_checkpointing_follows_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gemma-2-2B: more is recomputed the more tokens there are and the less memory is free."""
    free = dict.fromkeys(("cuda", "cpu", "mps"), 80 * 10**9)
    monkeypatch.setattr(recompute, "available_memory_bytes", lambda device: free[device.type])
    batch = MicroBatch(CONFIG, 1500, torch.bfloat16)
    assert pick_checkpointing("auto", batch, CUDA)[0] == "none"
    free["cuda"] = 12 * 10**9
    mode, reason = pick_checkpointing("auto", batch, CUDA)
    assert mode == "selective" and "of 12.0 GB free" in reason
    with_copies = MicroBatch(CONFIG, 1500, torch.bfloat16, copies=True)
    assert pick_checkpointing("auto", with_copies, CUDA)[0] == "full"

    def modes(dtype: torch.dtype, device: torch.device) -> list[int]:
        batches = [MicroBatch(CONFIG, tokens, dtype) for tokens in range(64, 30_000, 64)]
        picked = [pick_checkpointing("auto", batch, device)[0] for batch in batches]
        return [CHECKPOINTING.index(mode) for mode in picked]

    order = modes(torch.float32, CPU)
    assert order == sorted(order) and set(order) == {0, 1, 2}
    assert modes(torch.bfloat16, MPS).index(1) > order.index(1)  # half the bytes, more tokens


def test_ranks_that_share_the_weights_have_more_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recompute, "available_memory_bytes", lambda device: 8 * 10**9)
    alone = MicroBatch(CONFIG, 1500, torch.bfloat16)
    one_of_four = MicroBatch(CONFIG, 1500, torch.bfloat16, slices=4)
    weights = 2 * CONFIG.num_parameters
    assert alone.memory_bytes("full") - one_of_four.memory_bytes("full") == weights - weights // 4
    picked = [pick_checkpointing("auto", batch, CUDA)[0] for batch in (alone, one_of_four)]
    assert picked == ["full", "none"]


def test_gemma3s_norms_keep_queries_and_keys_too() -> None:
    gemma3 = replace(CONFIG, model_type="gemma3_text")
    batches = [MicroBatch(config, 10, torch.bfloat16) for config in (gemma3, CONFIG)]
    more = [batch.activation_bytes_per_token("selective") for batch in batches]
    assert more[0] - more[1] == 2 * (8 + 4) * 256  # bytes, heads, width


def test_checkpointing_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recompute, "available_memory_bytes", lambda device: 0)
    batch = MicroBatch(CONFIG, 10**6, torch.bfloat16)
    for name in CHECKPOINTING:
        assert pick_checkpointing(name, batch, CPU) == (name, "asked for")


def kept_and_gradients(model: Gemma2, mode: str) -> tuple[int, list[Tensor]]:
    """The elements that autograd saves in a forward pass, and every gradient."""
    model.model.checkpoint_activations = mode
    saved = 0

    def count(x: Tensor) -> Tensor:
        nonlocal saved
        saved += x.numel()
        return x

    tokens = torch.arange(30).view(2, 15)
    with torch.autograd.graph.saved_tensors_hooks(count, lambda x: x):
        loss = model(tokens).square().sum()
    return saved, list(torch.autograd.grad(loss, list(model.parameters())))


def test_selective_and_full_recomputation_give_the_same_gradients(
    make_model: Callable[..., Gemma2],
) -> None:
    model = make_model()
    kept, truth = kept_and_gradients(model, "none")
    for mode in ("selective", "full"):
        less, gradients = kept_and_gradients(model, mode)
        # The inner hooks of "selective" hide what they drop, and keep what they keep, from ours.
        assert less < kept
        for ours, theirs in zip(gradients, truth, strict=True):
            assert torch.equal(ours, theirs)
