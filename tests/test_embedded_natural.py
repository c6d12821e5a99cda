"""Requests in the forms that people type: every value is there, and every form comes up."""

import random
import re
from typing import Any

import pytest

from embedded.generate import words
from embedded.generate.entries import Entry, new_entries, new_request
from embedded.generate.everyday import LISTS
from embedded.generate.values import Source, new_field

ENTRIES = 400


def requests(
    natural: float, everyday: float = 0.0, lacking: bool = False
) -> list[tuple[Entry, str, dict[str, Any]]]:
    source = Source(random.Random(5), natural=natural, everyday=everyday, made_up=0.1, verbless=0.0)
    made = []
    for _ in range(ENTRIES):
        entries = new_entries(source, 2)
        request = new_request(source, entries[0], entries, lacking)
        made.append((request.entry, request.text, dict(request.values)))
    return made


@pytest.mark.parametrize("lacking", [False, True])
def test_every_value_is_in_the_request(lacking: bool) -> None:
    for entry, text, values in requests(1.0, everyday=0.3, lacking=lacking):
        assert len(values) == len(entry.fields) - lacking
        for name, value in values.items():
            expected = name.replace("_", " ") if isinstance(value, bool) else str(value)
            word = rf"(?<!\w){re.escape(expected)}(?!\w)"
            assert re.search(word, text, re.IGNORECASE), (text, values)


def test_a_preposition_agrees_with_a_name_that_tells_the_direction() -> None:
    seen = 0
    for entry, text, values in requests(1.0) + requests(0.9):
        for field in entry.fields:
            if field.name in ("recipient", "send_to", "destination", "delivery_address"):
                seen += 1
                assert f"from {values[field.name]}" not in text, text
            if field.name in ("sender", "pickup_address"):
                seen += 1
                assert f"to {values[field.name]}" not in text, text
    assert seen > 20


def test_no_unit_or_currency_has_two_words() -> None:
    source = Source(random.Random(0), natural=1.0, made_up=0.0)
    for name in ("currency", "unit", "room", "genre"):
        assert all(" " not in str(LISTS[name].draw(source)) for _ in range(50))
    assert any(" " in str(LISTS["dish"].draw(source)) for _ in range(50))


def test_the_forms_come_up() -> None:
    made = requests(1.0)
    options = [
        f"{v} {e.bare_noun}" in text
        for e, text, values in made
        for f in e.fields
        if isinstance(f.type, tuple)
        for v in [values[f.name]]
    ]
    assert 0.4 < sum(options) / len(options) < 0.8  # "a large pizza"
    codes = [
        f"{e.bare_noun} {values[f.name]}" in text
        for e, text, values in made
        for f in e.fields
        if f.kind.names[0] == "order_id"
    ]
    assert 0.15 < sum(codes) / len(codes) < 0.7  # "my order KX-4471"
    phrasal = [(e, text) for e, text, _ in made if " " in e.verb]
    assert len(phrasal) > 0.1 * ENTRIES
    split = [e.verb.partition(" ")[0] in text and e.verb not in text for e, text in phrasal]
    assert 0.2 < sum(split) / len(split) < 0.8  # "turn the light off"


def test_a_stream_without_them_has_none_of_their_values() -> None:
    new = {verb.replace("_", " ") for verb in words.PHRASAL if verb not in words.VERBS}
    for entry, _, _ in requests(0.0):
        assert entry.verb not in new
        assert all(field.kind.names[0] != "address" for field in entry.fields)
    source = Source(random.Random(0), natural=1.0)
    assert any(new_field(source).kind.names[0] == "address" for _ in range(60))
