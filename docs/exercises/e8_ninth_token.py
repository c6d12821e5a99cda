"""Exercise 8: a ninth special token.

The project gives a model eight new tokens, such as <think> and <tool_call>. Give it one more,
<plan>. A token needs a row in the embedding, which tells what it means where it is read, and one in
the head, which tells when it is written; in Gemma both are the same matrix. As it is here, the
embedding gets a row of zeros, and the head none.
"""

import torch
from torch import nn

from agent.loading import load_base
from common.constants import EMBEDDED_MODEL
from data.tokenizer import Tokenizer
from lora.config import LoRAConfig
from lora.inject import add_lora, trainable_parameters
from model.transformer import Gemma2


def add_token(model: Gemma2, pieces: list[int]) -> int:
    """Gives the model one more token, whose name the ids `pieces` spell; returns its id.

    Its row should start near the mean of those of its pieces, and be no copy of it.
    """
    embedding = model.model.embed_tokens
    row = torch.zeros(1, embedding.weight.shape[1])
    embedding.weight = nn.Parameter(torch.cat([embedding.weight, row]))
    return len(embedding.weight) - 1


def test_the_ninth_token_can_be_read_written_and_trained() -> None:
    tokenizer = Tokenizer.from_pretrained(EMBEDDED_MODEL)
    model = load_base(EMBEDDED_MODEL, tokenizer, torch.device("cpu"), torch.float32).eval()
    tokens = torch.tensor([tokenizer.encode("Plan a trip to Oslo.")])
    pieces, old = tokenizer.encode("<plan>"), model.model.embed_tokens.weight.detach().clone()
    with torch.no_grad():
        before = model(tokens)
        ninth = add_token(model, pieces)
        assert ninth == len(old) == max(tokenizer.tag_ids.values()) + 1
        after = model(tokens)
        assert after.shape[-1] == len(old) + 1, "the head has no row for it: it is never written"
        # A head of one more column sums in another order.
        off = (after[..., :-1] - before).abs().max()
        assert off < 1e-4, f"the other tokens' logits have changed by {off:.3f}"
    assert model.lm_head.weight is model.model.embed_tokens.weight, "head and embedding are untied"
    row, mean = model.model.embed_tokens.weight[ninth].detach(), old[pieces].mean(0)
    near = torch.cosine_similarity(row, mean, dim=0).item()
    assert 0.5 < near < 0.9999, f"its row and the mean of its pieces' have the cosine {near:.2f}"
    add_lora(model, LoRAConfig(rank=2, token_ids=(*sorted(tokenizer.tag_ids.values()), ninth)))
    shapes = [tuple(p.shape) for n, p in trainable_parameters(model).items() if "lora" not in n]
    assert shapes == [(9, old.shape[1])]
