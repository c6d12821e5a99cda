"""What a user types: the hand-written requests with values in them, framed, joined, shortened and
mistyped.

A message is kept as pieces, values apart from words, so that nothing here can change a value
without its record.
"""

import re
from dataclasses import dataclass
from functools import cache
from random import Random

from embedded.english.generate.corpus import Said, Tool, pool, share, wordings
from embedded.english.generate.recipe import Recipe
from embedded.english.generate.values import new_value

SLOT = re.compile(r"\{(\w+)\}")
POLITE = re.compile(
    r"^(?:(?:hey|hi|hello|ok|okay|so)[,!]? )?(?:please |pls |kindly |just )?"
    r"(?:(?:can|could|would|will) (?:you|u) (?:please |kindly |maybe |just )?|"
    r"i(?:'d| would) like you to |i need you to |i want you to |"
    r"would you mind |please |pls |kindly )?",
    re.IGNORECASE,
)
# First words that lose their capital within a sentence; names keep theirs.
LOWERED = frozenset(wordings("lowered"))
TRIES = 100  # for two wishes that differ
AGAIN = "_2"  # a slot's ending for the second of two wishes
Pieces = list[tuple[str, bool]]  # text, and whether it is a value


@dataclass(frozen=True)
class Wish:
    """One request for a tool: its pieces, the values by argument, and the argument that is missing,
    if one is.
    """

    tool: Tool
    pieces: Pieces
    values: dict[str, Said]
    missing: str = ""

    @property
    def text(self) -> str:
        return "".join(text for text, _ in self.pieces)


def fill(template: str, values: dict[str, Said]) -> Pieces:
    """A template cut at its slots, with what is said in them."""
    parts = SLOT.split(template)
    return [
        (values[part].said, True) if i % 2 else (part, False)
        for i, part in enumerate(parts)
        if part
    ]


def _values(rng: Random, tool: Tool, template: str, recipe: Recipe) -> dict[str, Said]:
    """Fresh values for a template's slots, different from one another, fit to stand within
    quotation marks.
    """
    slots = SLOT.findall(template)
    while True:
        values = {a.name: new_value(rng, a, recipe) for a in tool.arguments if a.name in slots}
        said = [v.said.lower() for v in values.values()]
        quoted = any(
            f"{q}{{{n}}}{q}" in template and q in v.said for n, v in values.items() for q in "\"'`"
        )
        if len(set(said)) == len(said) and not quoted:
            return values


def new_wish(
    rng: Random, tool: Tool, recipe: Recipe, clause: bool = False, asking: bool = False
) -> Wish:
    """A request for the tool; a clause in the imperative where one is wanted and there is one."""
    assert not (clause and asking)
    templates = [t for t in tool.requests if core(t)] if clause else list(tool.requests)
    if asking:
        templates = [t for t in tool.requests if is_question(t)]
    template = rng.choice(templates or tool.requests)
    if clause:
        template = core(template) or template
    values = _values(rng, tool, template, recipe)
    return Wish(tool, fill(template, values), values)


def twice(rng: Random, tool: Tool, template: str, recipe: Recipe) -> tuple[Wish, Wish] | None:
    """Two wishes, from a template that says only what differs twice: {city} and {city_2}; None
    where no two values were found that differ.
    """
    head, tail = template.split("|")
    first = _values(rng, tool, template, recipe)
    known = {v.said.lower() for v in first.values()}
    again = [name for name in first if f"{{{name}{AGAIN}}}" in tail]
    for _ in range(TRIES):
        others = _values(rng, tool, "".join(f"{{{name}}}" for name in again), recipe)
        if known.isdisjoint(v.said.lower() for v in others.values()):
            break
    else:
        return None
    told = first | {f"{name}{AGAIN}": value for name, value in others.items()}
    return (
        Wish(tool, fill(head, first), first),
        Wish(tool, fill(tail, told), first | others),
    )


def lacking_wish(rng: Random, tool: Tool, recipe: Recipe) -> Wish:
    """A request without one of the values that the tool needs."""
    asks = tool.asks + tool.more.asks if recipe.more else tool.asks
    template, missing = rng.choice(asks)
    values = _values(rng, tool, template, recipe)
    return Wish(tool, fill(template, values), values, missing)


@cache
def core(template: str) -> str:
    """The bare clause of a request in the imperative, without courtesy and full stop; "" for any
    other request.
    """
    text = POLITE.sub("", template)
    text = re.sub(r",? (?:please|pls|thanks|thank you|thx)$", "", re.sub(r"\s*[.?!]+$", "", text))
    word = re.match(r"[A-Za-z]+", text)
    is_clause = (
        word
        and word[0].lower() in pool("imperatives")
        and text[len(word[0]) : len(word[0]) + 1] in (" ", "")
    )
    if not is_clause or re.search(r"[.?!;:]\s|\n", SLOT.sub("x", text)):
        return ""
    return text[0].lower() + text[1:]


@cache
def _frames(recipe: Recipe) -> tuple[tuple[tuple[str, bool], ...], tuple[tuple[str, bool], ...]]:
    """Frames for clauses, and those that any sentence fits into: it stands after a full stop, with
    one after it.
    """
    clausal, whole = [], []
    for line in share(recipe.frames, recipe.held):
        text, distracts = line["text"], bool(line.get("distracts"))
        clausal.append((text, distracts))
        if re.search(
            r"(^|[.!?:)]\s+|\n|[:])\{request\}([.!?]?$|[.!]\s)", text.replace(": {", ":{")
        ):
            whole.append((text, distracts))
    return tuple(clausal), tuple(whole)


def _surround(frame: str, slot: str, pieces: Pieces, tidy: bool = False) -> Pieces:
    """A frame with pieces in its slot: a capital after a full stop, no two full stops in a row.

    `tidy`: nor a full stop where the sentence goes on, nor a capital there on any verb.
    """
    before, _, after = frame.partition(slot)
    head = pieces[0]
    words = LOWERED | set(pool("imperatives")) if tidy else LOWERED
    if not head[1] and re.search(r"(^|[.!?]\s+|\n)$", before):
        head = (head[0][:1].upper() + head[0][1:], False)
    elif (
        not head[1]
        and head[0].split(" ")[0].lower() in words
        and not re.search(r"(^|[.!?:]\s*|\n|[*-] )$", before)
    ):
        head = (head[0][0].lower() + head[0][1:], False)
    last, is_value = pieces[-1]
    if tidy and not is_value and re.match(r"[,;]|( and| plus) ", after):
        pieces = [*pieces[:-1], (last.rstrip(".!?"), False)]
        head = (head[0].rstrip(".!?"), False) if len(pieces) == 1 else head
        last = pieces[-1][0]
    if last[-1:] in ".!?" and after[:1] in (".", "!", "?"):
        after = after[1:]
    return [p for p in [(before, False), head, *pieces[1:], (after, False)] if p[0]]


def frame_message(rng: Random, wish: Wish, is_clause: bool, recipe: Recipe) -> Pieces:
    """The request alone, within one of the frames that suit it, or after a remark on the tool's
    subject.
    """
    if recipe.more and not is_clause and wish.tool.more.remarks and rng.random() < 0.12:
        remark = rng.choice(wish.tool.more.remarks).strip()
        stop = "" if remark[-1] in ".!?" else "."
        return _surround(f"{remark}{stop} {{request}}", "{request}", wish.pieces, recipe.tidy)
    if rng.random() < (0.35 if is_clause else 0.7):
        pieces = wish.pieces
        if is_clause and rng.random() < 0.7:
            pieces = _surround("{x}" + rng.choice(("", ".", ".", " please", "!")), "{x}", pieces)
        return pieces
    frame, _ = rng.choice(_frames(recipe)[0 if is_clause else 1])
    return _surround(frame, "{request}", wish.pieces, recipe.tidy)


def is_question(template: str) -> bool:
    """A question that is no imperative in disguise."""
    return template.endswith("?") and not core(template)


@cache
def join_lines(recipe: Recipe, asking: bool) -> tuple[dict[str, str], ...]:
    """The ways to join two clauses, or those in which one of the two is a question."""
    found = share(recipe.joins, recipe.held)
    return tuple(line for line in found if ("_question}" in line["text"]) == asking)


def join(
    rng: Random, first: Wish, second: Wish, line: dict[str, str], recipe: Recipe
) -> tuple[Pieces, list[Wish]]:
    """Two requests in one message, and the two in the order in which they are to be done."""
    order = [second, first] if line.get("order") == "second_first" else [first, second]
    template = line["text"].replace("_question}", "}")
    pieces = _surround(template, "{first}", first.pieces, recipe.tidy)
    at = next(i for i, (text, is_value) in enumerate(pieces) if not is_value and "{second}" in text)
    tail = _surround(pieces[at][0], "{second}", second.pieces, recipe.tidy)
    return pieces[:at] + tail + pieces[at + 1 :], order


def _typo(rng: Random, text: str) -> str:
    """Two letters swapped, one left out or one doubled, in one longer word."""
    words = list(re.finditer(r"[a-zA-Z]{4,}", text))
    if not words:
        return text
    word = rng.choice(words)
    at = rng.randrange(word.start() + 1, word.end() - 1)
    a, b = text[at], text[at + 1]
    return text[:at] + rng.choice((b + a, a, a + a + b)) + text[at + 2 :]


def roughen(rng: Random, pieces: Pieces, values: bool = True) -> tuple[str, bool]:
    """The message as it is typed: at times without capitals, marks or apostrophes, or with a slip.

    Returns the text and whether the values lost their capitals too, as they then do in the record.
    """
    form = rng.random()
    if form < 0.1:
        pieces = [(text if v else text.lower(), v) for text, v in pieces]
    elif form < 0.15 and values:
        return "".join(text for text, _ in pieces).lower(), True
    elif form < 0.23:
        at = rng.randrange(len(pieces))
        pieces = [
            (text if v or i != at else _typo(rng, text), v) for i, (text, v) in enumerate(pieces)
        ]
    elif form < 0.27:
        pieces = [(text if v else text.replace("'", ""), v) for text, v in pieces]
    text = "".join(text for text, _ in pieces).strip()
    if rng.random() < 0.12 and not pieces[-1][1]:
        text = text.rstrip(".")
    elif rng.random() < 0.06 and text[-1:].isalnum():
        text += rng.choice((".", "!", " please", " thanks", "?"))
    return text, False
