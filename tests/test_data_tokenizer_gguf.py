"""GGUF's pieces and scores as a `tokenizer.json`: ids as SentencePiece itself would give them."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.gguf_file import GGUFFile
from data.tokenizer import Tokenizer
from data.tokenizer_gguf import META, tokenizer_source

pytest.importorskip("gguf")
from gguf_files import write  # noqa: E402

GEMMA = Path(__file__).resolve().parents[2] / "shared" / "gemma-3-tokenizer" / "tokenizer.json"
CONTROL = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>", "<unused0>"]
ADDED = ["\n", "\n\n", "  ", "   ", "\t\t", "<h1>", "<ul>"]
TEXT = "the cat and the hat: a call of the tool, then another call; therefore the hat is theirs. é"


def vocabulary() -> tuple[list[str], list[float], list[int]]:
    """Control, user-defined and byte pieces, characters, and pieces joined by frequency."""
    pieces = [*CONTROL, *ADDED, *(f"<0x{byte:02X}>" for byte in range(256))]
    kinds = [3] * 3 + [2] + [3] * (len(CONTROL) - 4) + [4] * len(ADDED) + [6] * 256
    words = [list(META + word) for word in TEXT.split(" ")]
    joined: list[str] = []
    while pairs := Counter(pair for word in words for pair in zip(word, word[1:], strict=False)):
        left, right = max(pairs, key=lambda pair: (pairs[pair], pair))
        joined.append(left + right)
        for word in words:
            for place in range(len(word) - 2, -1, -1):
                if word[place : place + 2] == [left, right]:
                    word[place : place + 2] = [left + right]
    letters = sorted(set(TEXT.replace(" ", META)) | set(map(chr, range(33, 127))))
    # Scores fall from the first joined piece on; characters follow, as in Gemma's vocabulary.
    scores = [-1000.0] * len(pieces) + [-float(rank) for rank in range(len(joined) + len(letters))]
    return pieces + joined + letters, scores, kinds + [1] * (len(joined) + len(letters))


def gguf_file(folder: Path, vocab: tuple[list[str], list[float], list[int]], **more: Any) -> Path:
    names = ("tokens", "scores", "token_type")
    fields = {f"tokenizer.ggml.{n}": part for n, part in zip(names, vocab, strict=True)}
    fields = {"tokenizer.ggml.model": "llama", **fields}
    fields |= {f"tokenizer.ggml.{name}": value for name, value in more.items()}
    return write(folder / "tokens.gguf", "gemma3", fields, {})


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_pretrained(gguf_file(tmp_path_factory.mktemp("gguf"), vocabulary()))


def test_the_file_is_as_gemmas_own(tmp_path: Path) -> None:
    """Entry for entry: what a mistake in it changes may not show in the ids of any text."""
    entries: list[tuple[str, int, float]] = [  # piece, its type, its score
        *(("<pad>", 3, 0.0), ("<unk>", 2, 0.0), ("<x y>", 3, 0.0), ("  ", 4, -1000.0)),
        *(("<0x61>", 6, 0.0), ("<", 1, -9.0), ("0x61>", 1, -9.0), (META, 1, -9.0)),
        *(("a", 1, -9.0), ("b", 1, -9.0), ("ab", 1, -2.0), ("ba", 1, -1.0), ("aba", 1, -3.0)),
        *(("bb", 5, -1.0), ("bab", 1, -3.0)),
    ]
    pieces, kinds, scores = (list(part) for part in zip(*entries, strict=True))
    built = json.loads(tokenizer_source(GGUFFile(gguf_file(tmp_path, (pieces, scores, kinds)))))
    names = [META * 2 if piece == "  " else piece for piece in pieces]
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    assert built["added_tokens"] == [
        {"id": id, "content": names[id], **plain, "special": id < 3} for id in range(4)
    ]
    # User-defined pieces are above all, whatever their score. Of equal scores the piece, and of one
    # piece the pair, whose left half is longer. A byte's name and an unused piece join nothing.
    pairs = [META * 2, "ba", "ab", "aba", "bab", "aba", "bab"]
    cuts = (1, 1, 1, 2, 2, 1, 1)
    merges = [[pair[:cut], pair[cut:]] for pair, cut in zip(pairs, cuts, strict=True)]
    assert built["model"] == {
        "type": "BPE",
        "dropout": None,
        "unk_token": "<unk>",
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": True,
        "ignore_merges": False,
        "vocab": {name: id for id, name in enumerate(names)},
        "merges": merges,
    }
    spaces = {"type": "Replace", "pattern": {"String": META}, "content": " "}
    decoders = [spaces, {"type": "ByteFallback"}, {"type": "Fuse"}]
    assert built["decoder"] == {"type": "Sequence", "decoders": decoders}
    own = {"type": "Replace", "pattern": {"String": " "}, "content": META}
    rest = {"normalizer": own, "pre_tokenizer": None, "post_processor": None, "version": "1.0"}
    assert {name: built[name] for name in rest} == rest
    assert built["truncation"] is built["padding"] is None
    others = gguf_file(tmp_path, (pieces[3:], scores[3:], kinds[3:]))
    assert json.loads(tokenizer_source(GGUFFile(others)))["model"]["unk_token"] is None


def sentencepiece_ids(text: str) -> list[int]:
    """SentencePiece's rule, written out: join the two neighbours whose piece scores highest."""
    pieces, scores, _ = vocabulary()
    ids = {piece: id for id, piece in enumerate(pieces) if id >= len(CONTROL) + len(ADDED)}
    parts = list(text.replace(" ", META))
    while True:
        found = [
            (scores[ids[a + b]], -place)
            for place, (a, b) in enumerate(zip(parts, parts[1:], strict=False))
            if a + b in ids
        ]
        if not found:
            break
        place = -max(found)[1]
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    bytes_of = [[ids[f"<0x{byte:02X}>"] for byte in part.encode()] for part in parts]
    known = [[ids[part]] if part in ids else None for part in parts]
    return [id for one, raw in zip(known, bytes_of, strict=True) for id in one or raw]


# Without the added tokens, which are met before any piece: newlines, tabs, runs of spaces.
words = st.lists(st.text(st.sampled_from("theacllofr:;.,é日_"), max_size=12), max_size=8).map(
    " ".join
)


@settings(deadline=None, max_examples=150)
@given(words)
def test_ids_are_those_of_sentencepiece(tokenizer: Tokenizer, text: str) -> None:
    text = " ".join(text.split())
    assert tokenizer.encode(text) == sentencepiece_ids(text)


@settings(deadline=None, max_examples=150)
@given(st.text(max_size=30) | words)
def test_every_text_comes_back_without_control_ids(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text and not tokenizer.control_ids & set(ids)


def test_control_ids_tags_and_runs(tokenizer: Tokenizer, tmp_path: Path) -> None:
    assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.bos_id) == (0, 1, 2)
    assert tokenizer.stop_ids == (1, 5)
    assert tokenizer.base_size == len(vocabulary()[0]) and len(tokenizer) == tokenizer.base_size + 8
    place = len(CONTROL)
    for offset, run in enumerate(ADDED):  # a run is one id, HTML tags of Gemma 3 among them
        assert tokenizer.encode(run) == [place + offset]
    assert len(tokenizer.encode("<unused0>")) > 1 and len(tokenizer.encode("<bos>")) > 1
    tokenizer.save(tmp_path)
    again = Tokenizer.from_pretrained(tmp_path)
    assert again.encode(TEXT) == tokenizer.encode(TEXT) and len(again) == len(tokenizer)


def test_what_is_no_vocabulary_of_gemmas_is_one_sentence(tmp_path: Path) -> None:
    pieces, scores, kinds = vocabulary()
    cases: list[tuple[Any, dict[str, Any], str]] = [
        ((pieces, scores, kinds), {"model": "gpt2"}, "expected tokenizer.ggml.model llama"),
        ((pieces, scores[1:], kinds), {}, "a text, a score and a type for each"),
        ((pieces, scores, kinds[1:]), {}, "a text, a score and a type for each"),
        ((pieces, scores, [9] * len(kinds)), {}, "a text, a score and a type for each"),
        ((scores, scores, kinds), {}, "a text, a score and a type for each"),
        (([*pieces[:-1], pieces[-2]], scores, kinds), {}, "pieces that differ"),
        ((["<x>", *pieces[1:]], scores, kinds), {}, "control tokens, got none named <pad>"),
    ]
    for vocab, more, part in cases:
        with pytest.raises(ValueError, match=part) as caught:
            Tokenizer.from_pretrained(gguf_file(tmp_path, vocab, **more))
        assert str(caught.value).startswith(str(tmp_path / "tokens.gguf"))


@pytest.mark.skipif(not GEMMA.is_file(), reason="needs ../shared/gemma-3-tokenizer")
def test_gemma3s_own_merges_come_back_entry_for_entry(tmp_path: Path) -> None:
    """Scores are the ranks of the pieces; the merges follow from them, in the file's order."""
    data = json.loads(GEMMA.read_text(encoding="utf-8"))
    model = data["model"]
    added = {entry["content"] for entry in data["added_tokens"]}
    # The first pieces, which are joined first, and the characters, which come last in the file.
    vocab = [piece for piece, id in model["vocab"].items() if id < 30_000 or len(piece) == 1]
    vocab.sort(key=lambda piece: model["vocab"][piece])
    known = set(vocab)
    merges = [m for m in model["merges"] if {*m, "".join(m)} <= known]
    is_run = {piece for piece in added if set(piece) <= set("\n\t" + META)}
    ranks: dict[str, int] = {}
    for left, right in merges:
        if left + right not in is_run:
            ranks.setdefault(left + right, len(ranks))
    kinds = [4 if p in is_run else 3 if p in added else 6 if p[:3] == "<0x" else 1 for p in vocab]
    scores = [-float(ranks.get(piece, 10**6)) for piece in vocab]
    file = GGUFFile(gguf_file(tmp_path, (vocab, scores, kinds)))
    built = json.loads(tokenizer_source(file))
    assert built["model"]["merges"] == merges and len(merges) > 40_000
    assert list(built["model"]["vocab"]) == vocab
    assert built["decoder"] == data["decoder"] and built["normalizer"] == data["normalizer"]
