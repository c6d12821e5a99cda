"""Tools made up of nouns, and requests whose values stand beside the words of their arguments.

Which number is the wage and which the hours is told by the words around them. Here that is all that
there is to learn: any noun can be an argument, said by itself or by a near word, in any order.
"""

from functools import cache
from random import Random

from embedded.english.generate.corpus import Argument, Said, Tool, pool, wordings
from embedded.english.generate.entries import new_entry, styled
from embedded.english.generate.lookups import near_words, nearest_cosine
from embedded.english.generate.pairs import two_turn
from embedded.english.generate.recipe import Recipe
from embedded.english.generate.sheets import list_text, new_layout
from embedded.english.generate.thoughts import USER, Document, Page
from embedded.english.generate.turns import missing_turn, one_turn

TURNS = (one_turn, two_turn, missing_turn)
SHARES = (60, 25, 15)
SIZES, NEAR_SIZES = (1, 2, 2, 3, 4), (2, 3, 3, 4, 5)  # tools on a list
REQUESTS, ASKS, BRANCHES = 8, 3, 24
MARGIN = 0.1  # by how much a word is nearer to its own argument than to the others


@cache
def _nouns() -> tuple[str, ...]:
    """Nouns that have near nouns."""
    listed = {word for word in pool("nouns") if word.isalpha()}
    return tuple(word for word in sorted(listed) if set(near_words(word)) & listed)


@cache
def _near(word: str, of: str = "nouns") -> tuple[str, ...]:
    listed = set(pool(of))
    return tuple(near for near in near_words(word) if near in listed)


def bound_document(rng: Random, recipe: Recipe) -> Document:
    """A short list of such tools, and messages about them."""
    made: dict[str, Tool] = {}
    for _ in range(rng.choice(NEAR_SIZES if recipe.near else SIZES)):
        tool = bound_tool(rng, recipe.near)
        made[tool.name] = tool
    entries = [new_entry(rng, tool) for tool in made.values()]
    if len({entry.name for entry in entries}) < len(entries):
        entries = entries[:1]
    layout = new_layout(rng, recipe)
    page = Page(rng, entries, layout, recipe)
    document = Document([(USER + list_text(rng, layout, entries), "page")])
    document.branches = [rng.choices(TURNS, SHARES)[0](page) for _ in range(BRANCHES)]
    return document


def bound_tool(rng: Random, near: float = 0.0) -> Tool:
    """A tool named by a verb and a noun; the share `near` of its requests names it by near ones."""
    verb, (subject, *nouns) = rng.choice(pool("imperatives")), _unlike(rng, rng.randint(2, 5))
    arguments = tuple(_argument(rng, noun, near, optional=i > 0) for i, noun in enumerate(nouns))
    needed = [a.name for a in arguments if a.required]
    requests, asks = [], []
    for number in range(REQUESTS):
        said = [a.name for a in arguments if a.required or rng.random() < 0.6]
        words = verb, subject
        if near and rng.random() < near:
            words = rng.choice((verb, *_near(verb, "imperatives"))), rng.choice(_near(subject))
        if number < ASKS:
            lacks = rng.choice(needed)
            asks.append((_request(rng, words, nouns, [n for n in said if n != lacks]), lacks))
        requests.append(_request(rng, words, nouns, said))
    about = f"{verb.capitalize()} a {subject}" if rng.random() < 0.7 else ""
    name = styled(rng, [verb, subject], 0.4)
    return Tool("bound", name, about, arguments, tuple(requests), tuple(asks), ())


def _unlike(rng: Random, count: int) -> list[str]:
    """Nouns that are not near to one another."""
    found: list[str] = []
    while len(found) < count:
        noun = rng.choice(_nouns())
        if nearest_cosine(noun, found) < 0.4:
            found.append(noun)
    return found


def _argument(rng: Random, noun: str, near: float, *, optional: bool) -> Argument:
    """An argument of any type: only the words say which value is meant."""
    kind = rng.choices(("integer", "number", "string"), (35, 15, 50))[0]
    values = [_value(rng, kind) for _ in range(4)]
    if near and kind == "string":
        values = [_phrase(rng) if rng.random() < near else value for value in values]
    required = not optional or rng.random() < 0.7
    return Argument(noun, kind, "", (), None, required, tuple(values))


def _value(rng: Random, kind: str) -> Said:
    if kind == "integer":
        number = round(10 ** rng.uniform(0, 3.3))
        return Said(str(number), number)
    if kind == "number":
        decimal = round(10 ** rng.uniform(0, 2.5), 1)
        return Said(str(decimal), decimal)
    form = rng.random()
    text = rng.choice(pool("nouns"))
    if form < 0.25:
        text = rng.choice(pool("first_names"))
        text += " " + rng.choice(pool("last_names")) if rng.random() < 0.5 else ""
    elif form < 0.45:
        text = rng.choice(pool("cities"))
    elif form < 0.75:
        text = f"{rng.choice(pool('adjectives'))} {text}"
    return Said(text, text)


def _phrase(rng: Random) -> Said:
    """A text of several words: "camera, flour and salt", "her uncle Ken"."""
    a, b, c = (rng.choice(_nouns()) for _ in range(3))
    name = rng.choice(pool("first_names"))
    forms = [f"{a} {b}", f"{a} {b}", f"{a} and {b}", f"{a}, {b} and {c}", f"{a} of {b}"]
    forms += [f"{rng.choice(('my', 'his', 'her', 'our'))} {a} {name}", f"the {a} of {name}"]
    text = rng.choice(forms)
    return Said(text, text)


def _request(rng: Random, words: tuple[str, str], nouns: list[str], said: list[str]) -> str:
    """The wish, and the values in any order, each beside a word for its argument."""
    clauses, (verb, subject) = [], words
    for noun in rng.sample(said, len(said)):
        others = [other for other in (subject, *nouns) if other != noun]
        fitting = [
            near
            for near in _near(noun)
            if nearest_cosine(near, others) + MARGIN < nearest_cosine(near, [noun])
        ]
        label = rng.choice(fitting) if fitting and rng.random() < 0.5 else noun
        form = rng.choice(wordings("bound values"))
        clauses.append(form.format(label=label, slot=f"{{{noun}}}"))
    article = rng.choice(("a", "the", "my"))
    article = "an" if article == "a" and subject[0] in "aeiou" else article
    wish = f"{verb} {article} {subject}"
    joined = rng.choice((", ", ", ", " and ", "; ")).join(clauses)
    if not clauses:
        return wish
    if rng.random() < 0.75:
        return f"{wish}{rng.choice((', ', ': ', ' with ', '. '))}{joined}"
    return f"{joined}{rng.choice((', ', ': ', ' - '))}{wish}"
