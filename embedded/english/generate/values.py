"""Fresh values for an argument, of the form of the listed ones: what is learned is to copy, not
eight strings by heart.

A listed value is mostly replaced by another of its own form: other digits in a code, another date
where a date stands, a name for a name. It is passed exactly as it is said, unless the corpus says
otherwise.
"""

import re
from functools import cache
from random import Random

from embedded.english.generate.corpus import Argument, Said, Scalar, pool, tools, wordings
from embedded.english.generate.recipe import Recipe

MONTHS = (
    "January February March April May June July August September October November December".split()
)
WEEKDAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
UNITS = "zero one two three four five six seven eight nine ten eleven twelve".split()
UNITS += "thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
PEOPLE = re.compile(
    r"person|contact|guest|recipient|sender|client|customer|author|attendee|employee|assignee|reviewer|pupil|tenant|"
    r"friend|patient|manager|owner|doctor|artist|candidate|driver|colleague|member|teacher|student|host_name|(^|_)who$|"
    r"first_name|last_name|full_name|(^|_)by$"
)
PLACES = re.compile(
    r"city|place|location|origin|destination|country|region|area|address|town|stop|station|(^|_)(from|to|near|where|via)$|"
    r"start$|^end$|pickup|dropoff|airport|port$|branch_office|venue"
)
# What these hold has a grammar of its own, or belongs together with other values.
KEPT = re.compile(
    r"sql|expression|equation|reaction|pattern|schedule|timezone|zone|currency|unit|scale|variable|lang|"
    r"base$|symbol|coin|ticker|element|calendar|format|verb|term|translation|extension|^(front|back)$"
)
# Free text: a whole sentence may stand there.
FREE = re.compile(
    r"message|text|note|reason|comment|body|content|description|summary|details|review|caption|remark|"
    r"question|answer|feedback|thoughts|cause|issue|symptom|incident|instruction|announcement|memo"
)
# Not that of a measure or of a day: "an hour", "the next day".
MEASURES = (
    "second minute hour day night week weekend month quarter year decade while few couple lot bit "
    "pair half third hundred thousand million dozen first last next following rest whole other"
).split()
ARTICLE = re.compile(rf"^(the|an?) (?!({'|'.join(MEASURES)})s?\b|\d)")
SENTENCE = re.compile(r"(\S+ ){5}|\b(is|are|was|were|has|have)\b")
EMAIL = re.compile(r"[\w.+-]+@[\w-]+(\.[\w-]+)+$")
URL = re.compile(r"(https?://|www\.)\S+$")
ISO = re.compile(r"\d{4}-\d\d-\d\d")
TIME = re.compile(r"\b(\d{1,2}):(\d\d)\b")
MONTH = re.compile(rf"\b({'|'.join(MONTHS)})\b( \d{{1,2}}\b)?")
# Names of days and hours; what stands there in other words ("tonight", "the day after") is left as
# it is.
WHEN = re.compile(
    r"date|time|day|(^|_)(at|on|when|since|until|due|deadline|before|after|by|month|year)($|_)|start$|^end$|"
    r"check_?(in|out)|period|arriv|depart|duration|move_in|colou?r|status|team|namespace"
)
WEEKDAY = re.compile(rf"\b({'|'.join(WEEKDAYS)})\b")


def words_of(number: int) -> str:
    """A number from 0 to 99 in words."""
    if number < 20:
        return UNITS[number]
    tens, rest = TENS[number // 10 - 2], number % 10
    return f"{tens}-{UNITS[rest]}" if rest else tens


@cache
def mates(name: str, styles: tuple[str, ...]) -> tuple[str, ...]:
    """What the styles list for arguments whose names end in the same word, as far as it is free."""
    found: dict[str, None] = {}
    for style in styles:
        for argument in (a for tool in tools(style) for a in tool.arguments):
            if argument.type == "string" and not argument.enum and last_word(argument.name) == name:
                found.update({v.said: None for v in argument.values if v.said == v.value})
    return tuple(found)


def last_word(name: str) -> str:
    """city of fromCity, from_city and city."""
    return re.split(r"_|(?<=[a-z])(?=[A-Z])", name)[-1].lower()


def new_value(rng: Random, argument: Argument, recipe: Recipe) -> Said:
    """A value as it is said and as it is passed."""
    given = _new_value(rng, argument, recipe)
    if not recipe.bare or argument.enum or given.value != given.said:
        return given
    # Whether an article belongs to a value cannot be known; to a sentence it does.
    is_text = FREE.search(argument.name.lower()) or SENTENCE.search(given.said)
    return given if is_text else Said(given.said, ARTICLE.sub("", given.said))


def _new_value(rng: Random, argument: Argument, recipe: Recipe) -> Said:
    """A listed value or, mostly, a fresh one of the same form."""
    listed = rng.choice(argument.values)
    if recipe.listed and rng.random() < recipe.listed:
        return listed
    if argument.enum or argument.type == "boolean" or rng.random() < 0.35:
        return listed
    if argument.type in ("integer", "number"):
        return _number(rng, argument, listed)
    if str(listed.value) != listed.said or KEPT.search(argument.name.lower()):
        return listed
    if recipe.mates and rng.random() < recipe.mates:
        fresh = rng.choice(mates(last_word(argument.name), recipe.styles) or (listed.said,))
    else:
        fresh = vary(rng, listed.said, argument.name)
    return Said(fresh, fresh)


def _number(rng: Random, argument: Argument, listed: Said) -> Said:
    """Another number of the listed ones' range, with as many decimals, in digits or in words as the
    listed one was.
    """
    known = [float(v.value) for v in argument.values]
    low, high = min(known), max(known)
    if not re.fullmatch(r"[-\d.,]+|[a-z]+(-[a-z]+)?", listed.said):
        return listed  # "half an hour", "$20"
    decimals = len(str(listed.value).partition(".")[2]) if isinstance(listed.value, float) else 0
    if low > 0 and high / low > 50:  # as many small ones as large ones
        number = low * (high / low) ** rng.random()
    else:
        number = rng.uniform(low, high + (high - low) / 2 if high > 12 else high)
    value: Scalar = round(number, decimals) if decimals else round(number)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    in_words = listed.said[0].isalpha() or rng.random() < 0.06
    if in_words and isinstance(value, int) and 0 <= value < 100:
        return Said(words_of(value), value)
    if "," in listed.said and isinstance(value, int):
        return Said(f"{value:,}", value)
    return Said(str(value), value)


def like(rng: Random, sample: Scalar, name: str) -> Scalar:
    """Another value of a sample's type and form, or the sample itself."""
    if isinstance(sample, bool) or rng.random() < 0.4:
        return sample
    if isinstance(sample, str):
        return vary(rng, sample, name)
    number = sample * rng.uniform(0.4, 2.5)
    return (
        round(number)
        if isinstance(sample, int)
        else round(number, len(str(sample).partition(".")[2]))
    )


def vary(rng: Random, text: str, name: str = "") -> str:
    """Another text of the same form."""
    if EMAIL.match(text):
        return _email(rng)
    if URL.match(text) or re.search(r"[a-z][/_@#.\\][a-z]|[a-z]-[a-z]\S*[/_\d]", text):
        return _code(
            rng, re.sub(r"[a-z]{4,}", lambda _: rng.choice(pool("nouns")).partition(" ")[0], text)
        )
    if re.search(r"\d[/.]\d+[/.]\d", text) and not re.search("[a-zA-Z]", text):
        return text  # a date in digits
    ordinal = rng.choice(wordings("ordinals"))
    text = re.sub(r"\b\d{1,2}(st|nd|rd|th)\b", ordinal, text)
    if ISO.search(text) or MONTH.search(text) or WEEKDAY.search(text) or TIME.search(text):
        return _when(rng, text)
    clock = re.compile(r"\b\d{1,2}(?= ?([ap]\.?m|o.clock)\b)")
    if clock.search(text):
        return clock.sub(lambda _: str(rng.randint(1, 12)), text)
    lowered, is_title = name.lower(), text[:1].isupper() and not re.search(r"\d", text)
    if PLACES.search(lowered) and not WHEN.search(lowered):
        return place(rng) if is_title or rng.random() < 0.6 else text
    if PEOPLE.search(lowered) and not re.search(r"\d", text):
        return person(rng) if is_title or rng.random() < 0.6 else text
    if WHEN.search(lowered):
        return place(rng) if is_title and PLACES.search(lowered) else text
    if re.search(r"\d", text):
        return _code(rng, text)
    return _phrase(rng, text, is_title, bool(FREE.search(lowered)))


def person(rng: Random) -> str:
    """A name: mostly first and last, at times one of them, with a title or hyphenated."""
    first, last = rng.choice(pool("first_names")), rng.choice(pool("last_names"))
    form = rng.random()
    if form < 0.45:
        return f"{first} {last}"
    if form < 0.7:
        return first
    if form < 0.8:
        return rng.choice(wordings("titles")) + last
    if form < 0.9:
        return f"{first}-{rng.choice(pool('first_names'))}"
    return f"{first} {last[0]}." if form < 0.95 else last


def place(rng: Random) -> str:
    """A town, a country or a street with its number."""
    form = rng.random()
    if form < 0.65:
        return rng.choice(pool("cities"))
    if form < 0.75:
        return rng.choice(pool("countries"))
    street, kind = rng.choice(pool("nouns")).title(), rng.choice(wordings("roads"))
    return f"{rng.randint(1, 240)} {street} {kind}" if form < 0.9 else f"{street} {kind}"


def _email(rng: Random) -> str:
    first, last = (rng.choice(pool(p)).lower() for p in ("first_names", "last_names"))
    user = rng.choice(
        (first, f"{first}.{last}", f"{first[0]}{last}", f"{last}{rng.randint(1, 99)}")
    )
    user = re.sub(r"[^a-z0-9._]", "", user) or "info"
    host = re.sub(r"[^a-z]", "", rng.choice(pool("nouns")))
    return f"{user}@{rng.choice((host, 'example'))}.{rng.choice(wordings('hosts'))}"


def _code(rng: Random, text: str) -> str:
    """Other digits everywhere, and other letters in what is all capitals beside digits."""
    text = re.sub(r"\d", lambda m: str(rng.randint(1 if m[0] != "0" else 0, 9)), text)
    is_code = " " not in text or re.fullmatch(r"[A-Z0-9 -]+", text)
    return re.sub(r"[A-Z]", lambda _: chr(rng.randint(65, 90)), text) if is_code else text


def _when(rng: Random, text: str) -> str:
    """The same wording with another date, day or time."""
    year, month, day = rng.randint(2023, 2028), rng.randint(1, 12), rng.randint(1, 28)
    text = ISO.sub(f"{year}-{month:02}-{day:02}", text)
    text = MONTH.sub(lambda m: rng.choice(MONTHS) + (f" {day}" if m[2] else ""), text)
    text = WEEKDAY.sub(lambda _: rng.choice(WEEKDAYS), text)
    minutes = rng.choice(("00", "15", "30", "45", f"{rng.randint(1, 59):02}"))

    def other(found: re.Match[str]) -> str:
        is_half_day = "m" in text[found.end() : found.end() + 3]  # 4:30 pm
        return f"{rng.randint(1, 12 if is_half_day else 23):0{len(found[1])}}:{minutes}"

    return TIME.sub(other, text)


def _phrase(rng: Random, text: str, is_title: bool, is_free: bool) -> str:
    """Words for words: a sentence for a long text, a noun with or without more for a short one."""
    count = len(text.split())
    if count >= 4 and is_free:
        sentence = rng.choice(pool("sentences"))
        return sentence[0].upper() + sentence[1:] if is_title else sentence
    lead = re.match(r"(the|my|a|an|our|some) ", text)
    noun, other = rng.choice(pool("nouns")), rng.choice(pool("nouns"))
    adjective, last = rng.choice(pool("adjectives")), rng.choice(pool("last_names"))
    if is_title:
        titled = (
            f"{adjective} {noun}",
            f"{noun} of {other}",
            f"the {noun}",
            f"{noun} & {other}",
            f"{noun}-{other}",
        )
        made = rng.choice(titled).title().replace(" Of ", " of ")
        names = (
            f"{last}'s {noun.title()}",
            f"{last} & Sons",
            f"{rng.choice(pool('cities'))} {noun.title()}",
            noun.title(),
        )
        return made if rng.random() < 0.6 else rng.choice(names)
    if count >= 4:
        return f"{adjective} {noun} {rng.choice(wordings('linkers'))} {other}"
    if count == 1 and not lead:
        return rng.choice((noun, noun, f"{noun.partition(' ')[0]}-{other.partition(' ')[0]}"))
    made = rng.choice(
        (
            f"{adjective} {noun}",
            f"{noun} {other}",
            f"{adjective} {noun}",
            f"{noun} and {other}",
            noun,
        )
    )
    if not lead:
        return made
    article = lead[1]
    if article in ("a", "an"):
        article = "an" if made[0] in "aeiou" else "a"
    return f"{article} {made}"
