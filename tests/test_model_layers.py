"""What the model asks of the modules that LoRA puts in place of its own, without importing them."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from lora.config import LoRAConfig
from lora.inject import add_lora
from model.attention import MaskedAttention, attention_mask
from model.layers import JointLinear, Linear, TokenHead, project
from model.transformer import Gemma2


class Joint(nn.Module):
    def forward_group(self, x: Tensor, linears: Sequence[nn.Module]) -> list[Tensor]:
        return [x + place for place, _ in enumerate(linears)]


def test_the_one_linear_that_knows_a_joint_way_computes_all() -> None:
    x = torch.randn(2, 3, 4)
    plain = Linear(4, 5), Linear(4, 6)
    outputs = project(x, *plain)
    assert all(torch.equal(y, linear(x)) for y, linear in zip(outputs, plain, strict=True))
    for place in range(3):
        linears: list[nn.Module] = [Linear(4, 5), Linear(4, 6)]
        linears.insert(place, Joint())
        outputs = project(x, *linears)
        assert all(torch.equal(y, x + i) for i, y in enumerate(outputs)) and len(outputs) == 3


def test_loras_modules_are_what_the_model_looks_for(make_model: Callable[..., Gemma2]) -> None:
    model = make_model()
    name = "model.layers.0.self_attn.q_proj"
    assert not isinstance(model.get_submodule(name), JointLinear)
    assert not isinstance(model.lm_head, TokenHead)
    add_lora(model, LoRAConfig(rank=2, token_ids=(3, 7)))
    assert isinstance(model.get_submodule(name), JointLinear)
    assert isinstance(model.lm_head, TokenHead)
    ids, rows = model.lm_head.replaced_rows()
    assert ids == (3, 7) and rows.shape == (2, 32)


def test_a_block_is_one_graph(make_model: Callable[..., Gemma2]) -> None:
    """What the pretraining compiles: neither `Pass` nor the protocols break it."""
    torch._dynamo.reset()
    model = make_model()
    tokens = torch.randint(0, 60, (2, 15))
    positions = torch.arange(15).expand(2, 15)
    # Masks, whose products are plain operators: the tiles of documents are a loop over the data.
    masks = [attention_mask(positions, positions, None, None, window) for window in (None, 5)]
    model.model.choose_attention = lambda *_, **__: MaskedAttention(*masks)  # type: ignore[method-assign]
    with torch.no_grad():
        truth = model(tokens)
        for layer in model.model.layers:
            layer.compile(backend="aot_eager", fullgraph=True, dynamic=False)
        torch.testing.assert_close(model(tokens), truth)


def test_one_row_is_multiplied_by_pytorchs_own_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    linear, plain, ways = Linear(64, 48).bfloat16(), torch.nn.functional.linear, []

    def note(*args: Tensor) -> Tensor:
        ways.append(bool(torch.backends.mkldnn.enabled))
        return plain(*args)

    monkeypatch.setattr("model.layers.F.linear", note)
    x = torch.randn(3, 1, 64).bfloat16()
    with torch.no_grad():
        whole, rows = linear(x), [linear(row[None]) for row in x]
    # bf16 has 8 bits: each sum is in float32, and rounded once
    torch.testing.assert_close(torch.cat(rows), whole, rtol=2**-7, atol=2**-9)
    linear(x[:1])  # training keeps its product
    assert ways == [True, False, False, False, True] and torch.backends.mkldnn.enabled
