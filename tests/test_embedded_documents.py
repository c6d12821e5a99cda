"""Pretraining documents and the tokenizer: reproducible, free of the course's tags, lossless."""

import hashlib
import random
from collections.abc import Iterator

import numpy as np
import pytest
from builders import TOKENIZER
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from embedded.generate import phrases, words
from embedded.generate.batches import batches, encode, pack
from embedded.generate.documents import (
    FORBIDDEN,
    NOTES,
    Segment,
    entries_document,
    gate_document,
    new_document,
)
from embedded.generate.entries import Entry, everyday_entry, new_entries, new_request
from embedded.generate.everyday import ITEMS
from embedded.generate.layouts import JSON_LAYOUTS, OTHER_LAYOUTS
from embedded.generate.tokenizer import NUM_PIECES, SPECIALS, train_tokenizer, training_text
from embedded.generate.values import KINDS, Source, new_field, new_value
from embedded.generate.words import NOUNS, mine, side, templates


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(TOKENIZER / "tokenizer.json"))


def texts(seed: int, count: int, held: bool = False) -> list[str]:
    source = Source(random.Random(seed), held)
    return ["".join(text for text, _ in new_document(source)) for _ in range(count)]


def test_documents_are_those_that_the_weights_have_read() -> None:
    """A word moved in a list, or one draw more, changes all documents after it."""
    source = Source(
        random.Random(5), fluent=True, everyday=0.35, verbless=0.35, shared=0.4, natural=0.3
    )
    digest = hashlib.sha256()
    for _ in range(500):
        digest.update(repr(new_document(source)).encode())
    digest.update("".join(training_text(0, 200)).encode())
    assert digest.hexdigest()[:16] == "78b83ac3dbabeebf"


def test_documents_are_a_function_of_the_seed() -> None:
    assert texts(3, 50) == texts(3, 50)
    assert texts(3, 50) != texts(4, 50)


def test_no_document_holds_a_tag_or_the_words_of_a_call() -> None:
    for text in texts(0, 1500) + texts(0, 300, held=True):
        assert not any(tag in text for tag in FORBIDDEN)
        assert '"arguments"' not in text and '"parameters"' not in text


def test_documents_do_not_repeat() -> None:
    made = [text for text in texts(1, 2000) if len(text) > 300]
    assert len(set(made)) == len(made)


def test_turns_alternate_and_only_the_model_is_weighted_fully() -> None:
    source = Source(random.Random(5))
    for _ in range(200):
        document = new_document(source)
        text = "".join(text for text, _ in document)
        assert text.startswith("<start_of_turn>user\n") and text.endswith("<end_of_turn>\n")
        marks = text.count("<start_of_turn>"), text.count("<end_of_turn>")
        assert marks[0] == marks[1] == 2 * text.count("<start_of_turn>model\n")
        assert {tag for _, tag in document} <= {"user", "pick", "list", "fill", "say"}
        assert all("<start_of_turn>" not in text for text, tag in document if tag != "user")


def test_messages_go_through_the_entries_in_turn() -> None:
    """No entry comes again before all others did: its fields could be copied from the answer."""
    met: list[tuple[str, int]] = []

    def probe(
        _: Source, entries: list[Entry], turn: Iterator[Entry], __: object
    ) -> tuple[str, list[Segment]]:
        met.append((next(turn).name, len(entries)))
        return "text", [("answer", "pick")]

    for seed in range(100):
        met.clear()
        entries_document(Source(random.Random(seed)), ((probe, 1),))
        assert len({name for name, _ in met}) == min(len(met), met[0][1])


@pytest.mark.parametrize("shared", [0.0, 0.9])
def test_entries_share_fields_where_asked(shared: float) -> None:
    source = Source(random.Random(0), made_up=1.0, everyday=0.0, shared=shared)
    for _ in range(50):
        fields = [{field.name for field in entry.fields} for entry in new_entries(source, 4)]
        common = sum(len(a & b) for i, a in enumerate(fields) for b in fields[:i])
        assert common > 0 if shared else common == 0


def test_a_third_of_the_lists_is_followed_by_a_sentence() -> None:
    source = Source(random.Random(0))
    pages = [entries_document(source)[0][0].split("\n\n")[0] for _ in range(600)]
    nouns = {layout.noun for layout in (*JSON_LAYOUTS, *OTHER_LAYOUTS)}
    ends = tuple(note.format(e=noun) for note in templates(NOTES, False) for noun in nouns)
    assert 0.28 < sum(page.endswith(ends) for page in pages) / len(pages) < 0.42


def test_every_list_has_two_disjoint_sides() -> None:
    assert not {*mine(NOUNS, True)} & {*mine(NOUNS, False)}
    lists = [value for value in vars(phrases).values() if isinstance(value, tuple)]
    lists += [kind.phrases for kind in KINDS.values() if kind.phrases]
    for texts_ in lists:
        assert not {t for t in templates(texts_, True) if t.strip()} & {*templates(texts_, False)}


@pytest.mark.parametrize("held", [False, True])
def test_values_lie_on_their_side(held: bool) -> None:
    source = Source(random.Random(0), held)
    lists = [value for value in vars(words).values() if isinstance(value, tuple)]
    listed = {word.lower(): word for texts_ in lists for word in texts_}
    checked = 0
    for _ in range(500):
        field = new_field(source)
        value = new_value(source, field)
        if field.type == "boolean" or " " in str(value):
            continue  # several words, each on its side
        word = listed.get(str(value).lower())
        assert (word in mine((word,), held)) if word else (side(str(value)) == held), value
        checked += 1
    assert checked > 300


def test_a_fluent_stream_knows_every_word_but_only_its_values() -> None:
    source = Source(random.Random(0), made_up=0.0, fluent=True)
    assert {source.word(NOUNS) for _ in range(5000)} == {*NOUNS}
    assert not any(side(source.digits(1, 4)) for _ in range(500))


@pytest.mark.parametrize("held", [False, True])
def test_every_idiom_names_the_value_of_every_field(held: bool) -> None:
    source = Source(random.Random(0), held)
    for _ in range(1500):
        entry = everyday_entry(source)
        request = new_request(source, entry, [entry])
        assert all(str(value) in request.text for value in request.values.values()), request


def test_everyday_tools_and_idioms_are_different() -> None:
    idioms = [idiom for item in ITEMS for idiom in item.idioms]
    names = [name for item in ITEMS for name in item.names]
    assert len({*names}) == len(names) and len(ITEMS) > 35
    assert len(idioms) > 380 and all("{" in idiom for idiom in idioms)
    for item in ITEMS:
        assert all(f"{{{len(item.fields) - 1}}}" in idiom for idiom in item.idioms), item.names
        assert templates(item.idioms, True) and len({*item.idioms}) == len(item.idioms)


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_tokenizer_is_lossless(text: str) -> None:
    reader = Tokenizer.from_file(str(TOKENIZER / "tokenizer.json")) if not _READER else _READER[0]
    _READER[:] = [reader]
    assert reader.decode(reader.encode(text).ids, skip_special_tokens=False) == text


_READER: list[Tokenizer] = []


def test_tokenizer_layout(tokenizer: Tokenizer) -> None:
    assert tokenizer.get_vocab_size() == NUM_PIECES
    assert [tokenizer.token_to_id(text) for text in SPECIALS] == list(range(len(SPECIALS)))


@pytest.mark.parametrize("word", ["Oslo", "table", "tumiplo", "anna.berg7@mail.com", "A7-4421"])
def test_a_word_has_the_same_pieces_everywhere(tokenizer: Tokenizer, word: str) -> None:
    pieces = tokenizer.encode(word).tokens
    for text in (f"in {word}", f'"{word}"', f"x_{word}", f'": "{word}", "'):
        found = tokenizer.encode(text).tokens
        assert any(found[i : i + len(pieces)] == pieces for i in range(len(found)))


def test_tokenizer_training_is_deterministic() -> None:
    first, second = (train_tokenizer(training_text(0, 600), 600).to_str() for _ in range(2))
    assert first == second


def test_tags_follow_the_pieces(tokenizer: Tokenizer) -> None:
    document = gate_document(Source(random.Random(2)), "fill")
    ((ids, tags),) = encode(tokenizer, [document])
    assert len(ids) == len(tags)
    for tags_ in (("pick", "list"), ("fill",)):
        own = [i for i, t in zip(ids, tags, strict=True) if t in tags_]
        said = tokenizer.decode(own, skip_special_tokens=False)
        assert said == "".join(text for text, tag in document if tag in tags_)


def test_packs_restart_positions_and_weigh_no_first_token(tokenizer: Tokenizer) -> None:
    stream = batches(tokenizer, 0, rows=2, length=512, weights={"user": 0.12})
    for _ in range(10):
        batch = next(stream)
        assert batch.tokens.shape == batch.weights.shape == (2, 512)
        assert ((batch.tokens == 2) == ((batch.positions == 0) & (batch.documents > 0))).all()
        assert (batch.weights[batch.tokens == 2] == 0).all()
        assert (batch.weights[batch.documents == 0] == 0).all()
        assert set(np.unique(batch.weights).tolist()) <= {0.0, np.float32(0.12).item(), 1.0}


def test_packs_hold_every_short_example_once(tokenizer: Tokenizer) -> None:
    source = Source(random.Random(0))
    examples = encode(tokenizer, [new_document(source) for _ in range(60)])
    packs = pack(examples, 300)
    kept = [example for example in examples if len(example[0]) <= 300]
    assert sorted(ids for group in packs for ids, _ in group) == sorted(ids for ids, _ in kept)
    assert all(sum(len(ids) for ids, _ in group) <= 300 for group in packs)
