"""Pretraining documents in Gemma's turn format, without tool calls and without the course's tags.

They teach the operations that a call is made of: copying, looking up, choosing the entry that fits
a request, listing its fields, filling them from the request, saying that none fits or that
something is missing. A document is a list of (text, tag): "user" is what the user writes, which
has a small loss weight; "pick", "list", "fill" and "say" are what the model writes.
"""

from collections.abc import Callable, Iterator
from itertools import cycle

from embedded.generate import lists, phrases
from embedded.generate.chat import small_talk, story
from embedded.generate.entries import (
    Entry,
    Request,
    new_double,
    new_entries,
    new_entry,
    new_request,
    new_values,
)
from embedded.generate.layouts import Layout, compact, new_layout
from embedded.generate.values import Source, new_field, new_value

Segment = tuple[str, str]  # text and tag
Turn = tuple[str, list[Segment]]  # a message of the user, and the model's answer
# The course's tags, which the base must not know: the fine-tune has to teach them.
_TAGS = ("tools", "think", "tool_call", "tool_response")
FORBIDDEN = tuple(f"<{slash}{tag}>" for tag in _TAGS for slash in ("", "/"))

# No further message is added to a document of so many characters.
ENOUGH_CHARACTERS = 900

# Slots: {e} the word for an entry, {r} a request or record, {x} a text or an entry's name, {k} a
# key.
INTROS = lists.entries("documents", "intros")
# What may come between a list and the first message, as a prompt's instructions do.
NOTES = lists.shuffled("documents", "notes")
ASK_PICK = lists.entries("documents", "ask pick")
ASK_LIST = lists.entries("documents", "ask list")
ASK_BOTH = lists.entries("documents", "ask both")
RESULTS = lists.entries("documents", "results")
COPY_ASKS = lists.entries("documents", "copy asks")
LOOKUP_ASKS = lists.entries("documents", "lookup asks")
RECORD_ASKS = lists.entries("documents", "record asks")


def pick_text(request: Request) -> str:
    """The wish and the entry for it: the request's own words, repeated, make the choice easier."""
    return phrases.FITS.format(w=request.wish, e=request.entry.name)


def list_text(entry: Entry) -> str:
    return phrases.NEEDS.format(fields=", ".join(f.name for f in entry.fields))


def thought(request: Request) -> str:
    """The plan before a filled record or a call; the fine-tune's rows use the same sentence."""
    return f"{pick_text(request)} {list_text(request.entry)}"


def _planned(request: Request, lead: str = "") -> list[Segment]:
    return [(lead + pick_text(request), "pick"), (" " + list_text(request.entry), "list")]


def _filled(layout: Layout, request: Request) -> Segment:
    return "\n" + layout.record(request.entry, request.values), "fill"


def result_turn(source: Source) -> tuple[object, str]:
    """A result, which is a record or a bare value, and the sentence that answers from it."""
    done = source.template(phrases.DONE)
    bare = new_value(source, new_field(source))
    if not isinstance(bare, bool) and source.chance(0.2):
        return bare, source.template(phrases.REPORTS).format(f="result", v=bare)
    if source.chance(0.15):
        problem = source.template(phrases.PROBLEMS)
        return {"error": problem}, source.template(phrases.FAILED).format(v=problem)
    names = [source.word(tuple(phrases.RESULT_KINDS)) for _ in range(source.pick((1, 1, 2, 3)))]
    kinds = [phrases.RESULT_KINDS.get(name) for name in names]  # none for an invented name
    fields = {
        name: new_value(source, new_field(source, kind))
        for name, kind in zip(names, kinds, strict=True)
    }
    if source.chance(0.15):
        return {"status": "ok"}, done
    # "The parking is True" is no sentence: a flag is never the reported field.
    worth = [(n, v) for n, v in fields.items() if not isinstance(v, bool)] or [("status", "ok")]
    name, value = source.pick(worth)
    fields.setdefault(name, value)
    report = source.template(phrases.REPORTS).format(f=name.replace("_", " "), v=value)
    return dict(fields), f"{done} {report}" if source.chance(0.4) else report


def _fill_turn(source: Source, entries: list[Entry], turn: Iterator[Entry], layout: Layout) -> Turn:
    request = new_request(source, next(turn), entries)
    return request.text, [*_planned(request), _filled(layout, request)]


def _double_turn(
    source: Source, entries: list[Entry], turn: Iterator[Entry], layout: Layout
) -> Turn:
    first = next(turn)
    second = next(turn) if source.chance(0.9) else first
    pair = new_double(source, first, second, entries)
    plans = [*_planned(pair[0]), *_planned(pair[1], " ")]
    return pair[0].text, [*plans, *(_filled(layout, request) for request in pair)]


def unfit_request(source: Source, entries: list[Entry]) -> tuple[str, str, str]:
    """A message that no entry fits, what to think and what to answer.

    The message is small talk, or a request for something else, often near to one of the entries.
    """
    if source.chance(0.6):
        text, answer = small_talk(source)
        return text, phrases.NONE_FITS, answer
    while True:
        other = new_entry(source, source.pick(entries) if source.chance(0.5) else None)
        if other.idioms and any(e.idioms for e in entries):
            continue  # tools of daily life overlap: a tip is a percentage
        if not any(other.resembles(entry) for entry in entries):
            request = new_request(source, other, [other, *entries])
            return (
                request.text,
                phrases.UNFIT.format(w=request.wish),
                source.template(phrases.SORRY),
            )


def _none_turn(source: Source, entries: list[Entry], turn: Iterator[Entry], layout: Layout) -> Turn:
    text, plan, answer = unfit_request(source, entries)
    return text, [(plan, "pick"), (" " + answer, "say")]


def missing_text(source: Source, request: Request) -> tuple[str, str]:
    """What the model thinks and asks where a field's value was not given."""
    assert request.missing is not None
    ask = source.template(phrases.ASKS).format(f=request.missing.replace("_", " "))
    return phrases.LACKS.format(f=request.missing), ask


def _missing_turn(
    source: Source, entries: list[Entry], turn: Iterator[Entry], layout: Layout
) -> Turn:
    request = new_request(source, next(turn), entries, lacking=True)
    lack, ask = missing_text(source, request)
    return request.text, [*_planned(request), (f" {lack} {ask}", "say")]


def _ask_turn(source: Source, entries: list[Entry], turn: Iterator[Entry], layout: Layout) -> Turn:
    """Selection alone, listing alone, or both, without a record."""
    entry = next(turn)
    if source.chance(0.3):
        return source.template(ASK_LIST).format(x=entry.name), [(list_text(entry), "list")]
    request = new_request(source, entry, entries)
    if source.chance(0.5):
        ask = source.template(ASK_PICK).format(e=layout.noun, r=request.text)
        return ask, [(pick_text(request), "pick")]
    return source.template(ASK_BOTH).format(e=layout.noun, r=request.text), _planned(request)


# What may follow a list, and how often. `turn` gives the entry that comes next.
TurnBuilder = Callable[[Source, list[Entry], Iterator[Entry], Layout], Turn]
Turns = tuple[tuple[TurnBuilder, int], ...]
TURNS: Turns = (
    (_fill_turn, 40),
    (_double_turn, 32),
    (_none_turn, 12),
    (_missing_turn, 7),
    (_ask_turn, 9),
)


def _length(turns: list[Turn]) -> int:
    return sum(len(ask) + sum(len(text) for text, _ in answer) for ask, answer in turns)


def entries_document(source: Source, turns_: Turns = TURNS, max_turns: int = 6) -> list[Turn]:
    """A list of entries and one to six messages about it, some followed by a result to report.

    One list serves many messages because it costs tokens and only what the model writes is learned.
    """
    entries = new_entries(source, source.pick((1, 2, 2, 3, 3, 4, 5, 6)))
    layout = new_layout(source)
    builders: list[TurnBuilder] = []
    for build, weight in turns_:
        if build is not _double_turn or len(entries) > 1:
            builders += [build] * weight
    builders = builders or [_fill_turn]
    note = source.pick((" ", "\n", "")) + source.wording(NOTES) if source.chance(0.35) else ""
    intro, note = (text.format(e=layout.noun) for text in (source.wording(INTROS), note))
    listing = f"{intro} {layout.listing(entries)}{note}\n\n"
    # Every entry in turn: one asked for a second time could be copied from the answer before.
    turn = cycle(source.rng.sample(entries, len(entries)))
    turns: list[Turn] = []
    for _ in range(min(max_turns, source.rng.randint(1, 6))):
        if turns and len(listing) + _length(turns) > ENOUGH_CHARACTERS:
            break
        message, segments = source.pick(builders)(source, entries, turn, layout)
        turns.append((message, segments))
        ends_in_record = segments[-1][1] == "fill"
        if max_turns > 1 and ends_in_record and source.chance(0.12):
            record, answer = result_turn(source)
            turns.append((source.template(RESULTS).format(r=compact(record)), [(answer, "say")]))
    return [(listing + turns[0][0], turns[0][1]), *turns[1:]]


def _any_text(source: Source) -> str:
    field = new_field(source)
    value = new_value(source, field)
    if source.chance(0.6):
        return str(value)
    return " ".join(source.invent() for _ in range(source.rng.randint(1, 4)))


def copy_document(source: Source) -> list[Turn]:
    """Repeating strings exactly."""
    texts = [_any_text(source) for _ in range(source.rng.randint(1, 3))]
    return [(source.template(COPY_ASKS).format(x=text), [(text, "say")]) for text in texts]


def lookup_document(source: Source) -> list[Turn]:
    """Names with values, then questions for some of them."""
    fields = {new_field(source).name: _any_text(source) for _ in range(source.rng.randint(2, 6))}
    if source.chance(0.5):
        page = compact(fields)
    else:
        page = source.pick(("; ", "\n", ", ")).join(f"{k}: {v}" for k, v in fields.items())
    asked = source.rng.sample(list(fields), min(len(fields), source.rng.randint(1, 3)))
    turns: list[Turn] = [
        (source.template(LOOKUP_ASKS).format(k=key), [(fields[key], "say")]) for key in asked
    ]
    return [(page + "\n\n" + turns[0][0], turns[0][1]), *turns[1:]]


def record_document(source: Source) -> list[Turn]:
    """A sentence of labelled values, written down as a JSON record."""
    entry = new_entry(source)
    values = new_values(source, entry)
    parts = [
        source.template(phrases.LABELLED).format(f=field.spoken, v=values[field.name])
        for field in entry.fields
    ]
    ask = source.template(RECORD_ASKS).format(x=", ".join(parts))
    return [(ask, [(compact(values), "fill")])]


def story_document(source: Source) -> list[Turn]:
    """A short text and questions about it."""
    text, questions = story(source)
    turns: list[Turn] = [(ask, [(answer, "say")]) for ask, answer in questions]
    return [(f"{text} {turns[0][0]}", turns[0][1]), *turns[1:]]


def chat_document(source: Source) -> list[Turn]:
    """Small talk."""
    pairs = [small_talk(source) for _ in range(source.rng.randint(1, 3))]
    return [(ask, [(answer, "say")]) for ask, answer in pairs]


# By number of documents; the entries documents are three times as long as the others.
BUILDERS = (
    (entries_document, 70),
    (copy_document, 6),
    (lookup_document, 8),
    (record_document, 8),
    (story_document, 4),
    (chat_document, 4),
)


def render(turns: list[Turn]) -> list[Segment]:
    """Turns -> segments in Gemma's format."""
    segments: list[Segment] = []
    for ask, answer in turns:
        opening = f"<start_of_turn>user\n{ask}<end_of_turn>\n<start_of_turn>model\n"
        segments.append((opening, "user"))
        segments += answer[:-1]
        # The model has to learn to stop: its closing mark has the tag of what it ends.
        text, tag = answer[-1]
        segments += [(text + "<end_of_turn>", tag), ("\n", "user")]
    return segments


def new_document(source: Source, vary: bool = True) -> list[Segment]:
    """A fresh pretraining document.

    With `vary` each has its own shares of invented words and blurred wordings: some documents are
    nearly plain English, some can only be solved by copying.
    """
    if vary:
        source.made_up = source.pick((0.05, 0.1, 0.35, 0.35, 0.6))
        source.blur = source.pick((0.0, 0.0, 0.0, 0.4))
    build = source.rng.choices([b for b, _ in BUILDERS], [w for _, w in BUILDERS])[0]
    return render(build(source))


def gate_document(source: Source, kind: str) -> list[Segment]:
    """A document of one message, to measure with; `kind` is "double", "none" or anything else."""
    build = {"double": _double_turn, "none": _none_turn}.get(kind, _fill_turn)
    return render(entries_document(source, ((build, 1),), max_turns=1))
