"""Exercise 1, solved: a switch that the header turns on and the end of the turn turns off."""

from data.tokenizer import Tokenizer


def mask(tokens: list[int], tokenizer: Tokenizer) -> list[bool]:
    """For each token, whether the model learns to write it."""
    header = [tokenizer.start_of_turn_id, *tokenizer.encode("model\n")]
    flags: list[bool] = []
    is_reply = False
    for place, token in enumerate(tokens):
        # Before the switch moves: the header is given, and the end of the turn is learned.
        flags.append(is_reply)
        if token == tokenizer.end_of_turn_id:
            is_reply = False
        if tokens[: place + 1][-len(header) :] == header:
            is_reply = True
    return flags
