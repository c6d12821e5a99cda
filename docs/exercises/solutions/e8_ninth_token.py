"""Exercise 8, solved: a row that starts near the name's pieces, and a resize that stays tied."""

from model.embedding import new_rows, resize_embedding
from model.transformer import Gemma2


def add_token(model: Gemma2, pieces: list[int]) -> int:
    """Gives the model one more token, whose name the ids `pieces` spell; returns its id."""
    resize_embedding(model, new_rows(model, [pieces], seed=0))
    return model.config.vocab_size - 1
