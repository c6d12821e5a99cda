"""One example printed with its mask, in colours or between marks: look at it before a long run."""

from itertools import groupby

from rich.text import Text

from data.chat import Example
from data.tokenizer import Tokenizer

# Legible on light and on dark terminals
TRAINED_STYLE, GIVEN_STYLE = "bold green", "dim"
MARKS = ("[+", "+]")  # around what is trained, where there is no colour


def legend(marked: bool) -> Text:
    """What the two styles of `mask_text` mean, in one sentence."""
    learned = f"between {MARKS[0]} and {MARKS[1]}" if marked else "green"
    return Text.assemble(
        "The model learns to write what is ",
        (learned, TRAINED_STYLE),
        "; the rest is ",
        ("given to it" if marked else "given", GIVEN_STYLE),
        ": the tools on offer, the question, and what a tool has returned.",
    )


def mask_text(example: Example, tokenizer: Tokenizer, *, marked: bool = False) -> Text:
    """Return the example as text: bold green what the model learns to write, dim what is given.

    `marked` puts MARKS around what is learned, for a screen without colours. Runs of equal flags
    are decoded as wholes, since one character may take several byte pieces.
    """
    opening, closing = MARKS if marked else ("", "")
    text = Text()
    # Not styled token by token: half of a character would be decoded as U+FFFD
    pairs = zip(example.tokens, example.trainable, strict=True)
    for is_trained, run in groupby(pairs, key=lambda pair: pair[1]):
        part = tokenizer.decode(id for id, _ in run)
        if is_trained:
            text.append(f"{opening}{part}{closing}", style=TRAINED_STYLE)
        else:
            text.append(part, style=GIVEN_STYLE)
    return text
