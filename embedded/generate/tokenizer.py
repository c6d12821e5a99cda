"""Trains the small tokenizer: byte-level BPE in which a word has the same pieces everywhere.

Letters never share a piece with a space or a mark, and digits and capitals are single: `Oslo`
splits alike after a space, a quote or an underscore, so that copying a value from a question into
JSON is the copying of ids. Runs of marks and spaces such as `": "` do merge: JSON takes a third
fewer pieces that way. All 256 bytes are pieces, so every string survives.
Source: "Neural Machine Translation of Rare Words with Subword Units" (arXiv:1508.07909).
"""

import json
import random
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from embedded.generate.documents import new_document
from embedded.generate.values import Source

TRAINING_SEED, TRAINING_DOCUMENTS = 0, 20_000
SPECIALS = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")
NUM_PIECES = 2048
# Runs of lower-case letters; single capitals, digits, underscores and line ends; runs of anything
# else.
PIECES = r"[a-z]+|[A-Z]|[0-9]|_|\n|[^a-zA-Z0-9_\n]+"


def training_text(seed: int, documents: int) -> Iterator[str]:
    """Freshly generated documents without the marks of turns, which are pieces anyway.

    They have few invented words, so that the pieces follow real words first.
    """
    source = Source(random.Random(seed), made_up=0.05)
    for _ in range(documents):
        document = "".join(text for text, _ in new_document(source, vary=False))
        yield document.replace("<start_of_turn>", "").replace("<end_of_turn>", "")


def train_tokenizer(texts: Iterator[str], num_pieces: int = NUM_PIECES) -> Tokenizer:
    """A tokenizer of exactly `num_pieces` ids, the specials first; deterministic."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    split = pre_tokenizers.Split(Regex(PIECES), behavior="isolated")
    # use_regex would split again, at GPT-2's pattern, which puts a space and a word into one piece.
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=num_pieces,
        special_tokens=[AddedToken(text, special=True, normalized=False) for text in SPECIALS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),  # also the bytes that no text has
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    assert tokenizer.get_vocab_size() == num_pieces, tokenizer.get_vocab_size()
    return tokenizer


def write_tokenizer(folder: str | Path) -> None:
    """Trains the base's tokenizer and writes it."""
    save_tokenizer(train_tokenizer(training_text(TRAINING_SEED, TRAINING_DOCUMENTS)), folder)


def save_tokenizer(tokenizer: Tokenizer, folder: str | Path) -> None:
    """Writes a tokenizer's two files, as Transformers reads them."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "<pad>",
        "eos_token": "<eos>",
        "bos_token": "<bos>",
        "unk_token": "<unk>",
        "additional_special_tokens": list(SPECIALS[4:]),
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 2048,
    }
    text = json.dumps(config, indent=2) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
