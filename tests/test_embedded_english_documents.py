"""The documents of the embedded pretraining: what a stage was trained on stays, and records hold
what messages say.
"""

import hashlib
import json
import re
from dataclasses import replace
from itertools import islice
from random import Random

import pytest

from embedded.english.gate import HELD
from embedded.english.generate import lookups, pairs
from embedded.english.generate.bound import bound_document, bound_tool
from embedded.english.generate.corpus import HELD_OUT, Argument, Said, Scalar, Tool, tools, wordings
from embedded.english.generate.defined import defined_document
from embedded.english.generate.entries import Entry, choose_tools
from embedded.english.generate.general import GCIDE
from embedded.english.generate.lookups import (
    content_words,
    near_words,
    nearest_cosine,
)
from embedded.english.generate.messages import core, new_wish
from embedded.english.generate.results import made_up_result, say, telling_result
from embedded.english.generate.sheets import new_layout
from embedded.english.generate.thoughts import Page, record
from embedded.english.generate.tool_documents import new_page, show, tools_document
from embedded.english.generate.values import new_value
from embedded.english.generate.wordnet import WORDNET
from embedded.english.stages import STAGES, documents

WORDING = (*wordings("about a word"), *wordings("about two words"))
TAGS = ("<tools>", "<think>", "<tool_call>", "<tool_response>")
needs_english = pytest.mark.skipif(
    not (WORDNET.is_dir() and GCIDE.is_file()), reason="needs wordnet-base and dict-gcide"
)


@pytest.mark.parametrize(
    ("number", "digest"),
    [
        (0, "3692cb2ff316603c"),
        (1, "efc1840a6478025d"),
        (2, "c1dee4085464a660"),
        (3, "bcaff383913baf7e"),
        (4, "3ba3cefb78e8a9cc"),
        (5, "b7fcb7b73649ec1c"),
        (6, "29b7e476cd8b2138"),
        (7, "79bafb963c855c00"),
        (8, "bc5e52ee4f999cd7"),
        (9, "b84e49d5860cc50f"),
        (10, "e36fefb951634534"),
    ],
)
def test_the_tool_documents_of_a_stage_never_change(number: int, digest: str) -> None:
    stage = STAGES[number]
    rng = Random(stage.seed)
    text = "".join(show(tools_document(rng, stage.recipe)) for _ in range(20))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == digest


@pytest.mark.parametrize(
    ("number", "digest"),
    [
        (5, "93942d03fefdbca7"),
        (6, "bb5580ad5d07124f"),
        (7, "509f0dfb6a59d73d"),
        (9, "6f5cd43a7190e44a"),
    ],
)
def test_the_bound_documents_of_a_stage_never_change(number: int, digest: str) -> None:
    text = "".join(show(bound_document(Random(k), STAGES[number].recipe)) for k in range(8))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == digest


def test_no_stage_is_trained_on_a_held_out_style_and_no_document_has_a_tag() -> None:
    for stage in STAGES:
        assert not set(stage.recipe.styles) & set(HELD_OUT)
        rng = Random(5)
        assert not any(
            tag in show(tools_document(rng, stage.recipe)) for _ in range(30) for tag in TAGS
        )


def test_every_filled_string_stands_in_the_message() -> None:
    rng = Random(3)
    said = {
        v.value
        for s in STAGES[0].recipe.styles
        for t in tools(s)
        for a in t.arguments
        for v in a.values
        if v.said != v.value
    }
    for _ in range(60):
        document = tools_document(rng, STAGES[0].recipe)
        page = document.shared[0][0]
        for branch in document.branches:
            message = branch[0][0].lower()
            filled = [text for text, tag in branch if tag == "fill"]
            for value in re.findall(r'": ("(?:[^"\\]|\\.)*")', "".join(filled)):
                text = json.loads(value)
                assert text.lower() in message or text in said or text in page, (branch, text)


def test_two_wishes_that_cannot_differ_become_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tool with one question without values, drawn twice, kept a stage waiting for ever."""
    page, _ = new_page(Random(2), STAGES[0].recipe, 3)
    same = new_wish(Random(1), page.entries[0].tool, page.recipe)
    monkeypatch.setattr(pairs, "new_wish", lambda *_: same)
    assert len(pairs.ask_two(page).wishes) == 1


def test_core_is_the_bare_clause_of_an_imperative() -> None:
    assert (
        core("Could you please book {hotel} for {nights} nights?")
        == "book {hotel} for {nights} nights"
    )
    assert core("how full is {host}") == ""


@needs_english
def test_a_list_of_definitions_is_mostly_asked_by_other_words_than_its_names() -> None:
    rng, chosen = Random(1), []
    for _ in range(12):
        document = defined_document(rng, STAGES[1].recipe)
        page = document.shared[0][0]
        for branch in document.branches:
            message = branch[0][0].split("<end_of_turn>")[0]
            picked = next(text for text, tag in branch if tag == "pick").split("<end_of_turn>")[0]
            if picked != " none fits.":
                name = picked.removesuffix(" fits.").strip()
                assert re.search(rf"(?<!\w){re.escape(name)}(?!\w)", page), (name, page)
                chosen.append(name.lower() in message.lower())
    # An example sentence holds the word itself
    assert len(chosen) > 150 and sum(chosen) < len(chosen) / 3


def test_near_words_are_near_and_begin_otherwise() -> None:
    assert {"pasta", "bread"} & set(near_words("soup")), near_words("soup")
    assert near_words("zzyzx") == ()
    for word in ("weather", "train", "doctor", "soup", "guitar"):
        near = near_words(word)
        assert near and not any(other[:4] == word[:4] for other in near)
        assert all(nearest_cosine(other, [word]) > 0.55 for other in near)
    assert (
        nearest_cosine("weather", ["zzyzx", "rain"]) > 0.5 > nearest_cosine("weather", ["invoice"])
    )


def test_the_words_of_a_lookup_are_those_of_one_entry_alone() -> None:
    """A message has words of its entry, or near ones, and none that another entry has."""
    rng, found = Random(8), {"same": 0, "near": 0, "none": 0}
    wording = set(re.findall(r"[a-z]+", " ".join(WORDING).lower()))
    for _ in range(10):
        page, _ = new_page(rng, STAGES[4].recipe, 5)
        listed = [content_words(entry) for entry in page.entries]
        names = [entry.name for entry in page.entries]
        for branch in filter(None, (lookups._turn(rng, page.entries, listed) for _ in range(30))):
            message = branch[0][0].split("<end_of_turn>")[0].lower()
            said = set(re.findall(r"[a-z]{4,}", message)) - wording
            picked = next(text for text, tag in branch if tag == "pick").split(" fits.")[0].strip()
            own = listed[names.index(picked)] if picked != "none" else []
            others = {w for words in listed if words is not own for w in words}
            assert not said & others, (message, picked)
            found["none" if picked == "none" else "same" if said & {*own} else "near"] += 1
    assert all(count > 15 for count in found.values()), found


def test_the_lookups_of_a_stage_never_change() -> None:
    rng, text = Random(3), ""
    for _ in range(8):
        page, _ = new_page(rng, STAGES[4].recipe, 4)
        listed = [content_words(entry) for entry in page.entries]
        text += repr([lookups._turn(rng, page.entries, listed) for _ in range(20)])
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "f5efba4b12260e42"


def test_a_bound_value_stands_beside_a_word_of_its_argument() -> None:
    rng = Random(6)
    for number in range(40):
        tool = bound_tool(rng, near=0.5 * (number % 2))
        for request in tool.requests:
            clauses = re.split(r", | and |; |: (?!\{)|\. | - | with ", request)
            for argument in tool.arguments:
                if f"{{{argument.name}}}" in request:
                    clause = next(c for c in clauses if f"{{{argument.name}}}" in c)
                    words = re.findall(r"(?<!\{)\b[a-z]{2,}\b(?!\})", clause)
                    best = max(nearest_cosine(word, [argument.name]) for word in words)
                    assert best > 0.55, (argument.name, clause)
        assert {missing for _, missing in tool.asks} <= {a.name for a in tool.arguments}
        for text, missing in tool.asks:
            assert f"{{{missing}}}" not in text


def test_bound_documents_hold_records_of_what_is_said() -> None:
    rng, filled = Random(2), 0
    for _ in range(16):
        document = bound_document(rng, STAGES[6].recipe)
        page = document.shared[0][0]
        for branch in document.branches:
            message, record = branch[0][0].lower(), "".join(t for t, tag in branch if tag == "fill")
            texts = [one for one in re.findall(r'": "([^"]*)"', record) if f'"{one}"' not in page]
            assert all(text.lower() in message for text in texts), (message, record)
            filled += len(texts)
    assert filled > 100


def test_content_words_tell_what_an_entry_is_about() -> None:
    page, _ = new_page(Random(4), STAGES[4].recipe, 4)
    for entry in page.entries:
        words = content_words(entry)
        assert len(words) == len(set(words)) and not {"with", "from", "this", "get"} & set(words)


@pytest.mark.parametrize(
    ("said", "passed"),
    [
        ("the folding table", "folding table"),
        ("an oak", "oak"),
        ("The Coral", "The Coral"),
        ("an hour", "an hour"),
        ("the 3rd", "the 3rd"),
        ("the keys are there", "the keys are there"),
    ],
)
def test_a_bare_value_is_passed_without_its_article(said: str, passed: str) -> None:
    argument = Argument("item", "string", "", (), None, True, (Said(said, said),))
    bare = replace(HELD, listed=1.0, bare=True)
    assert new_value(Random(1), argument, bare) == Said(said, passed)
    assert new_value(Random(1), argument, replace(bare, bare=False)).value == said
    message = replace(argument, name="message")
    assert new_value(Random(1), message, bare).value == said


def test_a_bare_value_of_a_message_in_lower_case_is_in_lower_case() -> None:
    argument = Argument("item", "string", "", (), None, True, (Said("the Eiffel", "the Eiffel"),))
    tool = Tool("x", "see_item", "", (argument,), ("See {item}.",), (), ())
    recipe = replace(HELD, listed=1.0, bare=True)
    entry = Entry(tool, "see_item", "", {"item": "item"})
    page = Page(Random(1), [entry], new_layout(Random(1), recipe), recipe)
    wish = new_wish(Random(1), tool, recipe)
    assert "eiffel" in record(page, entry, wish, lowered=True)[0]
    assert "Eiffel" in record(page, entry, wish, lowered=False)[0]


@pytest.mark.parametrize(
    ("result", "said"),
    [
        ({"share": 31.5}, "The share is 31.5."),
        ({"openGuests": 4, "bus": "Line 7"}, "The open guests are 4, and the bus is Line 7."),
    ],
)
def test_a_result_is_said_by_rule(result: dict[str, Scalar], said: str) -> None:
    assert say(result) == said


def test_a_made_up_result_is_said_whole() -> None:
    rng = Random(4)
    page, _ = new_page(rng, STAGES[9].recipe, 4)
    for entry in page.entries * 10:
        result, answer = made_up_result(rng, entry)
        assert result and all(str(value) in answer for value in result.values())


@pytest.mark.parametrize(
    ("name", "key", "kind"),
    [
        ("bookTable", "status", str),
        ("get_gas_price", "price", float),
        ("find_shop", "shop", str),
        ("count_words", "count", int),
        ("describe_word", None, None),
    ],
)
def test_a_tools_name_tells_what_it_gives_back(
    name: str, key: str | None, kind: type | None
) -> None:
    tool = Tool("x", name, "", (), (), (), ())
    for seed in range(10):
        result = telling_result(Random(seed), tool)
        if key is None:
            assert result is None
        else:
            assert result and kind and next(iter(result)) == key and type(result[key]) is kind


def test_a_close_list_holds_one_style() -> None:
    close = replace(STAGES[9].recipe, close=1.0)
    rng = Random(7)
    styles = [{t.style for t in choose_tools(rng, close, 4)} for _ in range(20)]
    assert all(len(found) == 1 for found in styles)
    loose = [{t.style for t in choose_tools(rng, replace(close, close=0.0), 4)} for _ in range(20)]
    assert any(len(found) > 1 for found in loose)


def test_keys_of_a_list_tell_those_of_its_records() -> None:
    keys = [line.split() for line in wordings("telling keys")]
    assert len({tuple(line[:3]) for line in keys}) == len(keys)


@needs_english
@pytest.mark.parametrize("number", range(len(STAGES)))
def test_a_stage_gives_the_same_documents_each_time(number: int) -> None:
    first, again = (list(islice(documents(STAGES[number]), 40)) for _ in range(2))
    assert first == again
