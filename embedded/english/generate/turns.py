"""A user's message about a list of tools and the model's answer: one wish, small talk, a request
that nothing serves, one that lacks a value, a choice alone.
"""

import json
import re
from random import Random
from typing import Any

from embedded.english.generate.corpus import Scalar, Tool, share, tools, wordings
from embedded.english.generate.entries import LITTLE, Entry, overlaps, spoken, subject
from embedded.english.generate.messages import SLOT, Wish, core, lacking_wish, new_wish, roughen
from embedded.english.generate.results import made_up_result
from embedded.english.generate.thoughts import (
    FITS,
    NEEDS,
    NONE_FITS,
    NOTHING,
    UNFIT,
    WISH,
    Asked,
    Page,
    Segment,
    calls,
    find_opening,
    lacking_thought,
    pick,
    turn,
    typed,
)
from embedded.english.generate.values import like
from embedded.generate.layouts import compact


def one_turn(page: Page) -> list[Segment]:
    """One wish and its record, and at times what came back."""
    asked = ask_one(page)
    entry, wish, _ = asked.wishes[0]
    segments = turn(asked.text, calls(page, asked))
    if (entry.tool.outcomes or page.recipe.results) and page.rng.random() < 0.25:
        segments += result_turn(page, entry, wish, asked.lowered)
    return segments


def ask_one(page: Page) -> Asked:
    """One wish, as a bare clause or as it was written."""
    entry = pick(page)
    clause = page.rng.random() < 0.4 and any(core(t) for t in entry.tool.requests)
    wish = new_wish(page.rng, entry.tool, page.recipe, clause)
    text, lowered, opened = typed(page, wish, clause)
    return Asked(text, lowered, [(entry, wish, opened)])


def result_turn(page: Page, entry: Entry, wish: Wish, lowered: bool) -> list[Segment]:
    """What came back and a sentence that says it; nothing where a slot stays open."""
    if entry.tool.outcomes:
        observed = observe(page.rng, entry, wish, lowered)
    else:
        observed = made_up_result(page.rng, entry)
    if not observed:
        return []
    result, answer = observed
    shown = page.rng.choice(wordings("results")).format(r=compact(result))
    return turn(shown, [(answer, "say")], started=False)


def observe(rng: Random, entry: Entry, wish: Wish, lowered: bool) -> tuple[Any, str] | None:
    """What a tool with outcomes gave back, and a sentence that says it."""
    outcome = rng.choice(entry.tool.outcomes)
    made = {slot: like(rng, rng.choice(samples), slot) for slot, samples in outcome.samples.items()}
    result = _filled(outcome.result, made)
    told = {
        k: v
        for k, v in result.items()
        if isinstance(v, (str, int, float)) and not isinstance(v, bool)
    }
    said = {n: v.said.lower() if lowered else v.said for n, v in wish.values.items()}
    known = {**told, **made, **said}
    usable = [a for a in outcome.answers if set(SLOT.findall(a)) <= set(known)]
    if not usable or SLOT.search(json.dumps(result)):
        return None  # a slot that nothing is known for
    answer = SLOT.sub(lambda m: str(known[m[1]]), rng.choice(usable))
    return result, answer[:1].upper() + answer[1:]


def _filled(result: Any, made: dict[str, Scalar]) -> Any:
    """A result with its slots filled: a string that is one slot becomes the value with its type."""
    if isinstance(result, dict):
        return {key: _filled(value, made) for key, value in result.items()}
    if isinstance(result, list):
        return [_filled(value, made) for value in result]
    if not isinstance(result, str):
        return result
    alone = SLOT.fullmatch(result)
    if alone and alone[1] in made:
        return made[alone[1]]
    return SLOT.sub(lambda m: str(made.get(m[1], m[0])), result)


def talk_turn(page: Page) -> list[Segment]:
    """Small talk and general questions, half of them on the subject of a tool of the list."""
    if page.recipe.more and page.rng.random() < 0.5:
        near = topical(page)
        if near:
            return near
    line = page.rng.choice(share(page.recipe.talk, page.recipe.held))
    text, _ = roughen(page.rng, [(line["user"], False)], values=False)
    return turn(text, [(NONE_FITS, "pick"), (" " + line["model"], "say")])


def topical(page: Page) -> list[Segment]:
    """A remark or a question on the subject of a tool that no tool of the list serves, [] where
    there is none.
    """
    rng = page.rng
    entry = pick(page)
    of, texts = rng.choice(
        (("remarked", entry.tool.more.remarks), ("unknown", entry.tool.more.questions))
    )
    if not texts:
        return []
    text = rng.choice(texts)
    if any(_is_about(text, tool) for tool in page.tools if tool.style != entry.tool.style):
        return []
    text, _ = roughen(rng, [(text, False)], values=False)
    return turn(text, [(NONE_FITS, "pick"), (" " + rng.choice(wordings(of)), "say")])


def unfit_turn(page: Page) -> list[Segment]:
    """A request that only a tool that is not there would serve: another tool's, or one near to a
    tool that is there.
    """
    rng = page.rng
    if rng.random() < 0.5:
        near = _near_miss(page)
        if near:  # any tool: a text without values is all that counts of this wish
            wish = Wish(page.entries[0].tool, [(near, False)], {})
            return _refused(page, wish, False)
    for _ in range(20):
        style = (
            rng.choice(page.recipe.styles)
            if rng.random() < 0.4
            else rng.choice(page.entries).tool.style
        )
        other = rng.choice(tools(style))
        if not overlaps(other, page.tools, page.recipe.apart) and all(
            subject(other) != subject(t) for t in page.tools
        ):
            if other.name not in {t.name for t in page.tools}:
                clause = rng.random() < 0.4 and any(core(t) for t in other.requests)
                return _refused(page, new_wish(rng, other, page.recipe, clause), clause)
    return talk_turn(page)


def _refused(page: Page, wish: Wish, clause: bool) -> list[Segment]:
    text, _, opened = typed(page, wish, clause)
    return turn(
        text,
        [
            (WISH.format(w=opened), "wish"),
            (UNFIT, "pick"),
            (" " + page.rng.choice(wordings("sorry")), "say"),
        ],
    )


def _near_miss(page: Page) -> str:
    """A hand-written near miss of a tool on the list that no other one on the list seems to be
    about.
    """
    entry = pick(page)
    if not entry.tool.nofit:
        return ""
    text = page.rng.choice(entry.tool.nofit)
    others = [t for t in page.tools if t is not entry.tool and t.style == entry.tool.style]
    return "" if any(_is_about(text, tool) for tool in others) else text


def _is_about(text: str, tool: Tool) -> bool:
    """Whether a text and a tool share the beginning of a word."""
    stems, words = (
        {w[:5] for w in re.findall(r"[a-z]{4,}", part.lower())}
        for part in (text, f"{spoken(tool.name)} {tool.description}")
    )
    return bool(stems & words)


def missing_turn(page: Page) -> list[Segment]:
    """A request that lacks a value: the model asks for it."""
    asking = [e for e in page.entries if e.tool.asks]
    if not asking:
        return one_turn(page)
    entry = page.rng.choice(asking)
    wish = lacking_wish(page.rng, entry.tool, page.recipe)
    text, _, opened = typed(page, wish, False)
    shown = entry.names[wish.missing]
    is_word = len(shown) > 2 and shown not in LITTLE if page.recipe.marked else len(shown) > 4
    ask = page.rng.choice(wordings("asks")).format(f=spoken(shown) if is_word else f'"{shown}"')
    answer = lacking_thought(entry, wish, opened, page.recipe.marked)
    return turn(text, [*answer, (" " + ask, "say")])


def only_turn(page: Page) -> list[Segment]:
    """The choice alone, or the fields of an entry."""
    entry = pick(page)
    if page.rng.random() < 0.35:
        names = [entry.names[a.name] for a in entry.arguments if a.required] or [
            entry.names[a.name] for a in entry.arguments
        ]
        needs = NEEDS.format(fields=", ".join(names)) if names else NOTHING
        return turn(
            page.rng.choice(wordings("only arguments")).format(x=entry.name), [(needs, "args")]
        )
    wish = new_wish(page.rng, entry.tool, page.recipe)
    ask = page.rng.choice(wordings("only pick"))
    before, _, after = ask.format(e=page.layout.noun, m="{request}").partition("{request}")
    text, _ = roughen(
        page.rng, [p for p in [(before, False), *wish.pieces, (after, False)] if p[0]]
    )
    opened = find_opening(text, wish, page.recipe.tidy)
    return turn(text, [(WISH.format(w=opened), "wish"), (FITS.format(e=entry.name), "pick")])
