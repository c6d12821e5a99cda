"""Exercise 1: the loss mask.

A conversation is one row of tokens, but the model is to learn only what it will have to write: its
own turns, from the first token behind their header to the <end_of_turn> that ends them. As it is
here, every token is learned, the user's questions and the tools' results too.
"""

from common.constants import EMBEDDED_MODEL
from data.chat import render
from data.dataset import load_conversations
from data.tokenizer import Tokenizer

ROWS = EMBEDDED_MODEL.parent / "rows" / "heldout.jsonl"


def mask(tokens: list[int], tokenizer: Tokenizer) -> list[bool]:
    """For each token, whether the model learns to write it.

    `tokenizer.start_of_turn_id` and `tokenizer.end_of_turn_id` are single ids; the text of a header
    is `tokenizer.encode("model\\n")`.
    """
    return [True] * len(tokens)


def test_the_mask_is_on_the_models_turns_alone() -> None:
    tokenizer = Tokenizer.from_pretrained(EMBEDDED_MODEL)
    for row in load_conversations(ROWS)[0][:30]:
        example = render(row, tokenizer)
        found = mask(example.tokens, tokenizer)
        pairs = zip(example.tokens, found, strict=True)
        learned = tokenizer.decode(token for token, is_learned in pairs if is_learned)
        assert found == example.trainable, f"this would be learned: {learned}"
