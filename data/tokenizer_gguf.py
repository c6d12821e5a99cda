"""A GGUF file's SentencePiece vocabulary as the text of a `tokenizer.json`.

Separate from `tokenizer.py`, which reads the result like any other. GGUF holds pieces and scores;
the merges follow from them: a piece comes of every two pieces that it consists of, those of the
highest score first. For Gemma 3 the list is the published file's, entry for entry.
Source: the rule is that of Transformers' converter of SentencePiece models, `generate_merges`.
"""

import json
from typing import Any

from common.gguf_file import GGUFFile
from common.json_file import show

META = "\u2581"  # what SentencePiece-style vocabularies write for a space
# Types of pieces in GGUF; the others are unused and byte pieces.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4
BYTE = 6
KINDS = (NORMAL, UNKNOWN, CONTROL, USER_DEFINED, 5, BYTE)


def tokenizer_source(file: GGUFFile) -> str:
    """The text of a `tokenizer.json`. Raises: ValueError for a vocabulary that is none of Gemma's.

    It has what Gemma's own has: a space is U+2581, unknown characters are byte pieces, and control
    and user-defined pieces are added tokens.
    """
    model = file.require("tokenizer.ggml.model", str)
    if model != "llama":
        raise ValueError(
            f"{file.path}: expected tokenizer.ggml.model llama, SentencePiece's kind as Gemma has "
            f"it, got {show(model)}; give the folder that the file was made from"
        )
    pieces, scores, kinds = (
        file.require(f"tokenizer.ggml.{name}", list) for name in ("tokens", "scores", "token_type")
    )
    is_right = len(pieces) == len(scores) == len(kinds) and set(kinds) <= set(KINDS)
    if not is_right or not all(isinstance(piece, str) for piece in pieces):
        raise ValueError(
            f"{file.path}: expected a text, a score and a type for each piece of the vocabulary, "
            f"got {len(pieces)}, {len(scores)} and {len(kinds)}; download it again"
        )
    # A run of spaces is given as such, but is met after each space became the mark.
    vocab = {
        piece.replace(" ", META) if kind == USER_DEFINED else piece: id
        for id, (piece, kind) in enumerate(zip(pieces, kinds, strict=True))
    }
    if len(vocab) != len(pieces):
        raise ValueError(
            f"{file.path}: expected pieces that differ, got some twice; download again"
        )
    names = list(vocab)
    added = [
        _added_token(id, names[id], is_special=kind in (CONTROL, UNKNOWN))
        for id, kind in enumerate(kinds)
        if kind in (CONTROL, UNKNOWN, USER_DEFINED)
    ]
    # A user-defined piece has no score of its own; 0 is above all.
    order = [
        0.0 if kind == USER_DEFINED else score for kind, score in zip(kinds, scores, strict=True)
    ]
    # Text that spells a byte piece or a control token must not be joined into it
    merged = [kind in (NORMAL, USER_DEFINED) for kind in kinds]
    return json.dumps(_file(vocab, _merges(vocab, order, merged), added), ensure_ascii=False)


def _merges(vocab: dict[str, int], scores: list[float], is_merged: list[bool]) -> list[list[str]]:
    """Every pair of pieces that makes a piece, in the order in which they are joined."""
    found = []
    for piece, id in vocab.items():
        for cut in range(1, len(piece)) if is_merged[id] else ():
            if piece[:cut] in vocab and piece[cut:] in vocab:
                found.append((scores[id], cut, len(piece) - cut, piece))
    # Of one piece's pairs the one with the longer left half comes first.
    found.sort(key=lambda merge: merge[:3], reverse=True)
    return [[piece[:cut], piece[cut:]] for _, cut, _, piece in found]


def _added_token(id: int, content: str, *, is_special: bool) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": id, "content": content, **flags, "special": is_special}


def _file(
    vocab: dict[str, int], merges: list[list[str]], added: list[dict[str, Any]]
) -> dict[str, Any]:
    spaces = {"type": "Replace", "pattern": {"String": META}, "content": " "}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": META},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            # Spaces before bytes: a U+2581 that three byte pieces spell must stay what it is
            "decoders": [spaces, {"type": "ByteFallback"}, {"type": "Fuse"}],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>" if "<unk>" in vocab else None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": merges,
        },
    }
