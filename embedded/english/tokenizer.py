"""Trains the tokenizer of 4,096 pieces on the text of this pretraining.

`embedded.generate.tokenizer` says what its pieces may be.
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from random import Random

from embedded.english.generate.general import paragraphs
from embedded.english.stages import STAGES, documents
from embedded.generate.tokenizer import save_tokenizer, train_tokenizer

NUM_PIECES = 4096
DOCUMENTS, PARAGRAPHS = 6000, 20_000
SEED = 123


def texts() -> Iterator[str]:
    """Documents of the first stage without the turns' marks, and paragraphs of general English."""
    for document in islice(documents(STAGES[0], seed=SEED), DOCUMENTS):
        text = "".join(text for part in (document.shared, *document.branches) for text, _ in part)
        yield text.replace("<start_of_turn>", "").replace("<end_of_turn>", "")
    yield from Random(SEED).sample(paragraphs(), PARAGRAPHS)


def write_tokenizer(folder: Path) -> None:
    """Trains the tokenizer and writes its two files."""
    save_tokenizer(train_tokenizer(texts(), NUM_PIECES), folder)
