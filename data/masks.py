"""One example printed with its mask in two colours: look at it once before every long run."""

from itertools import groupby

from rich.text import Text

from data.chat import Example
from data.tokenizer import Tokenizer

# Legible on light and on dark terminals
TRAINED_STYLE, GIVEN_STYLE = "bold green", "dim"


def mask_text(example: Example, tokenizer: Tokenizer) -> Text:
    """Return the example as text: bold green what the model learns to write, dim what is given.

    Runs of equal flags are decoded as wholes, since one character may take several byte pieces.
    """
    text = Text()
    # Not styled token by token: half of a character would be decoded as U+FFFD
    pairs = zip(example.tokens, example.trainable, strict=True)
    for is_trained, run in groupby(pairs, key=lambda pair: pair[1]):
        text.append(
            tokenizer.decode(id for id, _ in run),
            style=TRAINED_STYLE if is_trained else GIVEN_STYLE,
        )
    return text
