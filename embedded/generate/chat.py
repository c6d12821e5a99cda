"""Small talk, small facts and short texts to read: messages that no entry fits, with an answer."""

from embedded.generate import words
from embedded.generate.lists import entries, read, shuffled
from embedded.generate.values import Source
from embedded.generate.words import templates


def _columns(name: str) -> tuple[tuple[str, ...], ...]:
    """The lines of a list of words/chat.txt, each divided at its bars."""
    return tuple(tuple(line.split(" | ")) for line in read("chat")[name])


# Question and answer; every fifth pair is held out.
PAIRS = _columns("pairs")
# {x} and {y} are things, {n} a name, {c} a city. The answer repeats one, so it takes no knowledge.
MADE_PAIRS = _columns("made pairs")
# Questions and remarks about something, and answers that fit all of them.
FRAMES = shuffled("chat", "frames")
FRAME_ANSWERS = entries("chat", "frame answers")
# A statement of four facts (name, place, thing, number) and the question about each.
STORIES = _columns("stories")


def _thing(source: Source) -> str:
    return source.word(source.pick((words.NOUNS, words.TOPICS, words.PRODUCTS))).replace("_", " ")


def small_talk(source: Source) -> tuple[str, str]:
    """A remark or question that asks for no action, and a short answer."""
    style = source.rng.random()
    if style < 0.25:
        question, answer = source.pick(templates(PAIRS, source.held))
        return question, answer
    # All four slots are drawn whatever the template uses: its wording then moves no later draw.
    slots = {
        "x": _thing(source),
        "y": _thing(source),
        "n": source.word(words.NAMES).capitalize(),
        "c": source.word(words.CITIES).capitalize(),
    }
    if style < 0.6:
        ask = source.wording(FRAMES).format(**slots)
        return ask[:1].upper() + ask[1:], source.template(FRAME_ANSWERS).format(**slots)
    question, answer = source.pick(templates(MADE_PAIRS, source.held))
    return question.format(**slots), answer.format(**slots)


def story(source: Source) -> tuple[str, list[tuple[str, str]]]:
    """A short text and the questions about it, each with its answer."""
    text, *asks = source.pick(templates(STORIES, source.held))
    name, place = source.word(words.NAMES).capitalize(), source.word(words.CITIES).capitalize()
    facts = (name, place, _thing(source), source.digits(1, 3))
    questions = [(ask, f"{fact}.") for ask, fact in zip(asks, facts, strict=True)]
    source.rng.shuffle(questions)
    return text.format(*facts), questions[: source.rng.randint(1, 3)]
