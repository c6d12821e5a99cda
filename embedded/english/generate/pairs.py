"""Two wishes in one message, joined in one of the ways that people have for it."""

from embedded.english.generate.corpus import wordings
from embedded.english.generate.entries import Entry
from embedded.english.generate.messages import (
    TRIES,
    core,
    is_question,
    join,
    join_lines,
    new_wish,
    roughen,
    twice,
)
from embedded.english.generate.thoughts import (
    Asked,
    Page,
    Segment,
    calls,
    find_opening,
    pick,
    turn,
)
from embedded.english.generate.turns import ask_one, one_turn


def two_turn(page: Page) -> list[Segment]:
    """A message with two wishes, and both records."""
    if len(page.entries) < 2:
        return one_turn(page)
    asked = ask_two(page)
    return turn(asked.text, calls(page, asked))


def ask_two(page: Page) -> Asked:
    """Two wishes in one message, of two entries or, now and then, of the same one."""
    rng = page.rng
    if page.recipe.more and rng.random() < 0.3:
        asked = ask_twice(page)
        if asked:
            return asked
    pair = rng.sample(page.entries, 2) if rng.random() < 0.85 else [pick(page)] * 2
    clauses = rng.random() < 0.75 and all(any(core(t) for t in e.tool.requests) for e in pair)
    line, asking = _question_line(page, pair) if clauses else ({}, (False, False))
    for _ in range(TRIES):
        first, second = (
            new_wish(rng, e.tool, page.recipe, clauses and not asks, asks)
            for e, asks in zip(pair, asking, strict=True)
        )
        said = {v.said.lower() for v in first.values.values()} & {
            v.said.lower() for v in second.values.values()
        }
        if first.text != second.text and not (said and rng.random() < 0.9):
            break
    else:
        # One tool with one question that has no values: it cannot be asked in two ways
        return ask_one(page)
    if not line and clauses:
        line = rng.choice(join_lines(page.recipe, asking=False))
    line = line or {"text": rng.choice(wordings("loose joins"))}
    pieces, order = join(rng, first, second, line, page.recipe)
    text, lowered = roughen(rng, pieces)
    entries = {id(first): pair[0], id(second): pair[1]}
    tidy = page.recipe.tidy
    wishes = [(entries[id(wish)], wish, find_opening(text, wish, tidy)) for wish in order]
    return Asked(text, lowered, wishes)


def ask_twice(page: Page) -> Asked | None:
    """One message that wants the same tool twice and says little twice: "and in {city_2}?"."""
    entry = pick(page)
    if not entry.tool.more.twice:
        return None
    template = page.rng.choice(entry.tool.more.twice)
    pair = twice(page.rng, entry.tool, template, page.recipe)
    if not pair:
        return None
    text, lowered = roughen(page.rng, [piece for wish in pair for piece in wish.pieces])
    tidy = page.recipe.tidy
    wishes = [(entry, wish, find_opening(text, wish, tidy)) for wish in pair]
    return Asked(text, lowered, wishes)


def _question_line(page: Page, pair: list[Entry]) -> tuple[dict[str, str], tuple[bool, bool]]:
    """Now and then a join of a clause and a question, and which of the two is the question."""
    lines = join_lines(page.recipe, asking=True)
    if not lines or page.rng.random() > 0.15:
        return {}, (False, False)
    line = page.rng.choice(lines)
    asking = ("{first_question}" in line["text"], "{second_question}" in line["text"])
    has = [any(is_question(t) for t in e.tool.requests) for e in pair]
    if any(asks and not h for asks, h in zip(asking, has, strict=True)):
        return {}, (False, False)
    return line, asking
