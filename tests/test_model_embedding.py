"""New rows differ from one another, and a resize leaves everything else as it was."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lora.config import LoRAConfig
from lora.inject import add_lora
from model.embedding import new_rows, resize_embedding
from model.loader import load_gemma2, save_gemma2
from model.transformer import Gemma2

# The first and third tag have the same pieces.
PIECES = [[4, 5, 6], [4, 7, 5, 6], [4, 5, 6], [9], [9, 9]]


@pytest.fixture(params=["gemma2", "gemma3"])
def family(request: pytest.FixtureRequest) -> str:
    """Every test here holds for both."""
    return str(request.param)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_new_rows_differ_far_above_bf16_resolution(
    make_model: Callable[..., Gemma2], dtype: torch.dtype
) -> None:
    model = make_model(dtype=dtype)
    rows = new_rows(model, PIECES, seed=1)
    assert rows.shape == (5, 32) and rows.dtype == dtype
    for i in range(5):
        for j in range(i):
            gap = (rows[i].float() - rows[j].float()).abs()
            # More than 8 units in the last place of bf16, for nine elements in ten.
            assert (gap > 8 * 2**-8 * rows[i].float().abs()).float().mean() > 0.5
            assert gap.mean() > 0.1 * rows.float().std()
    weight = model.model.embed_tokens.weight.float()
    nearest = torch.cosine_similarity(rows[0].float(), weight[[4, 5, 6]].mean(0), dim=0)
    assert nearest > 0.7  # still about the mean of the pieces


def test_new_rows_are_seeded_and_checked(make_model: Callable[..., Gemma2]) -> None:
    model = make_model()
    assert torch.equal(new_rows(model, PIECES, 1), new_rows(model, PIECES, 1))
    assert not torch.equal(new_rows(model, PIECES, 1), new_rows(model, PIECES, 2))
    wrong: list[list[list[int]]] = [[[]], [[60]], [[-1]]]
    for pieces in wrong:
        with pytest.raises(ValueError, match="60 entries"):
            new_rows(model, pieces, 0)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_resize_keeps_old_logits_tying_and_gradients(
    make_model: Callable[..., Gemma2], tmp_path: Path, tied: bool, dtype: torch.dtype
) -> None:
    model = make_model(dtype=dtype, tie_word_embeddings=tied)
    model.model.embed_tokens.weight.requires_grad_(False)
    if not tied:
        model.lm_head.weight.requires_grad_(True)
    tokens = torch.randint(0, 60, (2, 9))
    before = model(tokens)
    rows = new_rows(model, [*PIECES, [1], [2], [3]], seed=0)  # 68 rows: as if padded
    resize_embedding(model, rows)
    assert model.config.vocab_size == 68 == model.model.config.vocab_size
    assert torch.equal(model(tokens)[..., :60], before)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    assert not model.model.embed_tokens.weight.requires_grad
    assert model.lm_head.weight.requires_grad != tied
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert model.model.embed_tokens.num_embeddings == model.lm_head.out_features == 68
    assert torch.equal(model.lm_head.weight[60:], rows)

    with_new = torch.cat((tokens, torch.tensor([[67], [60]])), dim=1)
    save_gemma2(model, tmp_path)
    assert torch.equal(load_gemma2(tmp_path)(with_new), model(with_new))


def test_wrong_rows_and_wrapped_models_are_refused(make_model: Callable[..., Gemma2]) -> None:
    model = make_model()
    for shape in ((2, 31), (32,), (1, 2, 32)):
        with pytest.raises(ValueError, match=r"\(n, 32\)"):
            resize_embedding(model, torch.zeros(shape))
    add_lora(model, LoRAConfig(rank=2, adapt="rows", token_ids=(3,)))
    with pytest.raises(ValueError, match="LoRA"):
        resize_embedding(model, torch.zeros(1, 32))
