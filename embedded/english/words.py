"""A base is widened: whole English words as pieces of its tokenizer, and a far sight.

With 2,048 pieces a third of a text's words are spelt from parts, and a model of this size has to
find out what the parts mean together. Each frequent word becomes a piece of its own. Its first
embedding is a sum of its parts' mean, which the layers can read already, and the word's GloVe
vector, turned so that words that were pieces before come nearest to their own embeddings:
`restaurant` begins near `cafe`.

A list of eight tools has some 400 tokens, and a request at its end has to be held against all of
them. With a window of 256 half of the layers cannot; and with Gemma's rotary base of 10,000 only 10
of a head's 32 pairs of numbers turn by less than a radian over 500 tokens, too few to tell words
apart at that distance. Shapes: N words, D model width, d = 100 numbers of a GloVe vector.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

POOL = Path(__file__).parent / "pools"
LISTED, VECTORS = POOL / "words.txt", POOL / "word_vectors.npy"
NUM_PIECES = 8192
# As `embedded.generate.tokenizer.PIECES`, but a capital stays with its word: `Book` can be a piece.
PIECES = r"[A-Z]?[a-z]+|[A-Z]|[0-9]|_|\n|[^a-zA-Z0-9_\n]+"
# Weights of the parts' mean and of the vector in a new embedding, and of the vector in an old one.
PARTS, MEANING, ADDED = 0.6, 0.8, 0.3
FAR = {"sliding_window": 1024, "rope_theta": 1e6}
EMBEDDING = "model.embed_tokens.weight"
Floats = NDArray[np.float32]


def read_words() -> tuple[list[str], Floats]:
    """New pieces first, then words that are pieces already; unit vectors (N, d)."""
    words = LISTED.read_text(encoding="utf-8").split()
    return words, np.load(VECTORS, allow_pickle=False).astype(np.float32) / 127


def widen_tokenizer(content: dict[str, Any], words: list[str]) -> None:
    """Adds words to the content of a tokenizer.json: one that is a whole piece is never split."""
    pieces = content["model"]["vocab"]
    for word in words:
        pieces[word] = len(pieces)
    content["model"]["ignore_merges"] = True
    assert content["pre_tokenizer"]["pretokenizers"][0]["type"] == "Split"
    content["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": PIECES}


def nearest_turn(vectors: Floats, embeddings: Floats) -> Floats:
    """The (d, D) matrix with orthonormal rows that brings vectors (N, d) nearest to embeddings
    (N, D) (Schönemann, "A generalized solution of the orthogonal Procrustes problem", 1966).
    """
    left, _, right = np.linalg.svd(vectors.T @ embeddings, full_matrices=False)
    return np.asarray(left @ right, np.float32)


def widen_embedding(old: Floats, tokenizer: Tokenizer, new: list[str]) -> Floats:
    """Embeddings (len(old) + len(new), D); `tokenizer` is the one that splits the new words."""
    words, vectors = read_words()
    row = {word: vector for word, vector in zip(words, vectors, strict=True)}
    pieces = tokenizer.get_vocab()
    centre = old.mean(0)
    kept = [word for word in words if word in pieces]
    ids = [pieces[word] for word in kept]
    known = np.stack([row[word] for word in kept])
    turn = nearest_turn(known, old[ids] - centre)
    size = np.median(np.linalg.norm(old[ids] - centre, axis=1))

    first = old.copy()
    first[ids] += ADDED * size * (known @ turn)
    parts = np.stack([(old[tokenizer.encode(w).ids] - centre).mean(0) for w in new])
    parts /= np.linalg.norm(parts, axis=1, keepdims=True) + 1e-6
    meaning = np.stack([row[word] for word in new]) @ turn
    return np.concatenate([first, centre + size * (PARTS * parts + MEANING * meaning)])


def widen(before: Path, out: Path) -> Path:
    """Writes the exported base `before` with more pieces and a far sight; returns `out`.

    One that has all the words already is returned as it is.
    """
    tokenizer = Tokenizer.from_file(str(before / "tokenizer.json"))
    pieces = tokenizer.get_vocab()
    new = [word for word in read_words()[0] if word not in pieces]
    if not new:
        return before
    out.mkdir(parents=True, exist_ok=True)
    content = json.loads((before / "tokenizer.json").read_text(encoding="utf-8"))
    widen_tokenizer(content, new)
    (out / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    for name in ("tokenizer_config.json", "pretrain.json"):
        if (before / name).is_file():
            shutil.copyfile(before / name, out / name)
    config = json.loads((before / "config.json").read_text(encoding="utf-8"))
    config |= FAR | {"vocab_size": len(pieces) + len(new)}
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    weights = load_file(before / "model.safetensors")
    wide = widen_embedding(weights[EMBEDDING].float().numpy(), tokenizer, new)
    weights[EMBEDDING] = torch.from_numpy(wide).to(torch.bfloat16)
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    return out
