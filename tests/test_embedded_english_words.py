"""Whole words as pieces: what was split stays split, what is near in meaning begins near."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import TOKENIZER
from numpy.typing import NDArray
from tokenizers import Tokenizer

from embedded.english.gate import HELD
from embedded.english.network import start_model
from embedded.english.overlap import chosen_share
from embedded.english.words import NUM_PIECES, nearest_turn, read_words, widen
from embedded.pretrain_model import CONFIG, new_model
from model.loader import save_gemma2
from model.transformer import Gemma2


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    before = tmp_path_factory.mktemp("before")
    save_gemma2(new_model(0, torch.bfloat16), before)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TOKENIZER / name, before / name)
    return widen(before, tmp_path_factory.mktemp("wide"))


@pytest.fixture(scope="module")
def tokenizers(wide: Path) -> tuple[Tokenizer, Tokenizer]:
    old, new = (Tokenizer.from_file(str(folder / "tokenizer.json")) for folder in (TOKENIZER, wide))
    return old, new


def test_a_word_is_one_piece_wherever_it_stands(tokenizers: tuple[Tokenizer, Tokenizer]) -> None:
    old, new = tokenizers
    assert new.get_vocab_size() == NUM_PIECES
    for text in ("find_restaurant", "Find a restaurant!", '{"restaurant": 1}'):
        assert "restaurant" in new.encode(text).tokens
        assert "restaurant" not in old.encode(text).tokens
    assert "Find" in new.encode("Find a restaurant").tokens


def test_what_is_no_word_has_its_old_pieces_and_every_text_survives(
    tokenizers: tuple[Tokenizer, Tokenizer],
) -> None:
    old, new = tokenizers
    for text in ("wetour_team", "Tistapou 4bf92f", "Łódź, 北京 🙂\n\t"):
        assert new.encode(text).ids == old.encode(text).ids
        assert new.decode(new.encode(text).ids) == text
    assert new.decode(new.encode("Book a Café, then call.").ids) == "Book a Café, then call."


def test_a_wide_base_stays_as_it_is(wide: Path, tmp_path: Path) -> None:
    assert widen(wide, tmp_path / "again") == wide and not (tmp_path / "again").exists()


def test_words_of_like_meaning_begin_near(
    wide: Path, tokenizers: tuple[Tokenizer, Tokenizer]
) -> None:
    base = start_model(wide)
    assert isinstance(base, Gemma2) and base.config.vocab_size == NUM_PIECES
    assert base.config.sliding_window == 1024 and base.config.rope_theta == 1e6
    table = base.model.embed_tokens.weight.detach().float()
    table = torch.nn.functional.normalize(table - table.mean(0), dim=1)
    piece = tokenizers[1].get_vocab()

    def near(a: str, b: str) -> float:
        return float(table[piece[a]] @ table[piece[b]])

    for word, like, other in (
        ("restaurant", "cafe", "invoice"),
        ("flight", "airline", "soup"),
        ("rain", "snow", "payment"),
        ("Restaurant", "restaurant", "invoice"),
    ):
        assert near(word, like) > near(word, other) + 0.2


def test_the_vectors_belong_to_the_words() -> None:
    words, vectors = read_words()
    assert len(words) == len(set(words)) == len(vectors)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=0.05)


def test_the_turn_finds_a_rotation() -> None:
    rng = np.random.default_rng(0)
    axes: NDArray[np.float32] = np.linalg.qr(rng.normal(size=(CONFIG.hidden_size, 100)))[0].T
    vectors = rng.normal(size=(400, 100)).astype(np.float32)
    assert np.allclose(nearest_turn(vectors, vectors @ axes), axes, atol=1e-4)


def test_words_alone_choose_most_tools_whose_requests_are_plain() -> None:
    plain, hard = (
        chosen_share(replace(HELD, styles=styles), lists=40)
        for styles in (("apart",), ("leisure", "money"))
    )
    assert plain > 0.7 and 0.25 < hard < plain
