"""Further lines about tools: talk on their subjects, one tool wanted twice, values left out."""

import re
from dataclasses import replace
from random import Random

import pytest

from embedded.english.gate import HELD
from embedded.english.generate.corpus import Argument, More, Said, Tool, wordings
from embedded.english.generate.entries import Entry
from embedded.english.generate.messages import frame_message, lacking_wish, new_wish, twice
from embedded.english.generate.pairs import ask_twice
from embedded.english.generate.sheets import new_layout
from embedded.english.generate.thoughts import Page, calls, lacking_thought
from embedded.english.generate.turns import missing_turn, talk_turn, topical

RECIPE = replace(HELD, more=True, marked=True, listed=1.0, bare=False)


def text_argument(name: str, *said: str, required: bool = True) -> Argument:
    return Argument(name, "string", "", (), None, required, tuple(Said(s, s) for s in said))


CITY = text_argument("city", "Oslo", "Rome", "Lima", "Bern", "Riga")
PLANT = text_argument("plant", "birch", "oak", "hazel", "alder", "elm")
DAY = text_argument("day", "today", "Sunday", "Monday", "Friday", "tonight", required=False)
MORE = More(
    ("My nose has been running since March.",),
    ("Why does pollen make people sneeze?",),
    ("How bad is {plant} pollen in {city}? And |in {city_2}?",),
    (("Is the {plant} bad out here?", "city"),),
)
POLLEN = Tool(
    "x", "get_pollen", "", (PLANT, CITY, DAY), ("{plant} pollen in {city}.",), (), (), more=MORE
)


def page_of(*tools: Tool, seed: int = 1, marked: bool = True) -> Page:
    rng, recipe = Random(seed), replace(RECIPE, marked=marked)
    entries = [
        Entry(t, t.name, t.description, {a.name: a.name for a in t.arguments}) for t in tools
    ]
    return Page(rng, entries, new_layout(rng, recipe), recipe)


def test_one_tool_wanted_twice_differs_in_what_is_said_twice() -> None:
    for seed in range(20):
        pair = twice(Random(seed), POLLEN, MORE.twice[0], RECIPE)
        assert pair is not None
        first, second = pair
        assert first.values["plant"] == second.values["plant"]
        assert first.values["city"] != second.values["city"]
        city, other = first.values["city"].said, second.values["city"].said
        plant = first.values["plant"].said
        assert first.text + second.text == f"How bad is {plant} pollen in {city}? And in {other}?"


def test_a_value_that_cannot_differ_is_not_wanted_twice() -> None:
    only = replace(POLLEN, arguments=(PLANT, text_argument("city", "Oslo")))
    assert twice(Random(1), only, MORE.twice[0], RECIPE) is None
    assert ask_twice(page_of(only)) is None


def test_both_records_and_both_openings_are_written() -> None:
    page = page_of(POLLEN)
    asked = ask_twice(page)
    assert asked is not None
    written = "".join(text for text, tag in calls(page, asked) if tag == "fill")
    assert all(wish.values["city"].said in written for _, wish, _ in asked.wishes)
    assert asked.wishes[1][2].startswith("in ") and asked.wishes[0][2].lower().startswith("how bad")
    assert ask_twice(page_of(replace(POLLEN, more=More()))) is None


def test_talk_on_a_subject_makes_no_call() -> None:
    seen = set()
    for seed in range(40):
        branch = topical(page_of(POLLEN, seed=seed))
        (asked, _), (thought, _), (answer, tag), _ = branch
        assert thought == "None fits." and tag == "say"
        is_question = "pollen" in asked.lower() or "peopl" in asked.lower()
        texts = wordings("unknown" if is_question else "remarked")
        assert answer.strip().removesuffix("<end_of_turn>") in texts, branch
        seen.add(is_question)
    assert seen == {True, False}
    assert topical(page_of(replace(POLLEN, more=More()))) == []


def test_no_talk_that_a_tool_of_another_style_seems_to_be_about() -> None:
    other = replace(POLLEN, style="y", name="explain_pollen", more=More())
    for seed in range(40):
        branch = topical(page_of(POLLEN, other, seed=seed))
        assert not branch or "March" in branch[0][0] or "march" in branch[0][0], branch


def test_half_of_the_talk_is_on_a_subject() -> None:
    own = 0
    for seed in range(200):
        message = talk_turn(page_of(POLLEN, seed=seed))[0][0].lower()
        own += "sneez" in message or "march" in message
    assert 60 < own < 140
    plain = replace(page_of(POLLEN), recipe=replace(RECIPE, more=False))
    assert not any("sneeze" in talk_turn(plain)[0][0] for _ in range(100))


@pytest.mark.parametrize(
    ("missing", "needs"),
    [
        ("city", " It needs plant, city (missing)."),
        ("plant", " It needs plant (missing), city."),
    ],
)
def test_a_value_that_is_missing_is_marked_where_its_argument_is_listed(
    missing: str, needs: str
) -> None:
    page = page_of(POLLEN)
    wish = replace(new_wish(Random(1), POLLEN, RECIPE), missing=missing)
    segments = lacking_thought(page.entries[0], wish, "How bad", marked=True)
    assert "".join(text for text, tag in segments if tag in ("args", "lack")) == needs
    assert [text for text, tag in segments if tag == "lack"] == [" (missing)"]
    after = lacking_thought(page.entries[0], wish, "How bad", marked=False)
    assert after[-1] == (f" {missing} is missing.", "lack")


def test_further_requests_that_lack_a_value_are_asked() -> None:
    page = page_of(replace(POLLEN, asks=(("pollen in {city}", "plant"),)))
    wishes = [lacking_wish(Random(n), page.entries[0].tool, RECIPE).missing for n in range(30)]
    assert {*wishes} == {"city", "plant"}
    text = "".join(text for text, _ in missing_turn(page))
    assert re.search(r"(city|plant) \(missing\)", text)


def test_a_remark_before_a_request_does_not_take_the_call_away() -> None:
    wish = new_wish(Random(1), POLLEN, RECIPE)
    texts = [
        "".join(text for text, _ in frame_message(Random(n), wish, False, RECIPE))
        for n in range(200)
    ]
    after = [text for text in texts if text.startswith(MORE.remarks[0])]
    assert 8 < len(after) < 50 and all(wish.text[1:] in text for text in after)
