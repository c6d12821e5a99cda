"""A tool as one document shows it: renamed, described shortly or not at all, so that names must be
read from the list.
"""

import re
from dataclasses import dataclass, replace
from functools import cache
from random import Random

from embedded.english.generate.corpus import Argument, Tool, lines, tools, wordings
from embedded.english.generate.recipe import Recipe

LITTLE = frozenset(wordings("little"))


@dataclass(frozen=True)
class Entry:
    """`names` maps the tool's argument names to those shown."""

    tool: Tool
    name: str
    description: str
    names: dict[str, str]

    @property
    def arguments(self) -> tuple[Argument, ...]:
        return self.tool.arguments


def split_name(name: str) -> list[str]:
    """snake_case and camelCase -> lower-case words."""
    return [w for w in re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", name).lower().split("_") if w]


def spoken(name: str) -> str:
    return " ".join(split_name(name))


@cache
def _synonyms(kind: str) -> dict[str, tuple[str, ...]]:
    return {
        line["word"]: tuple(line["also"])
        for line in lines("../pools/synonyms")
        if line["of"] == kind
    }


def invented(rng: Random) -> str:
    return "".join(rng.choice(wordings("syllables")) for _ in range(rng.randint(2, 4)))


def styled(rng: Random, words: list[str], camel: float) -> str:
    """Words as snake_case, camelCase or, rarely, PascalCase and kebab-case."""
    words = [w for word in words for w in word.split("_")]
    style = rng.random()
    if style < camel:
        return words[0] + "".join(w.capitalize() for w in words[1:])
    if style < camel + 0.04:
        return "".join(w.capitalize() for w in words)
    return "_".join(words)


def _new_name(rng: Random, tool: Tool) -> tuple[str, bool]:
    """Another name, and whether it still tells what the tool is for."""
    words = split_name(tool.name)
    verbs, nouns = _synonyms("verb"), _synonyms("noun")
    if words[0] in verbs and rng.random() < 0.6:
        words[0] = rng.choice(verbs[words[0]])
    words = [rng.choice(nouns[w]) if w in nouns and rng.random() < 0.5 else w for w in words]
    tells = True
    form = rng.random()
    if form < 0.12:
        place = rng.randrange(len(words))
        words[place] = invented(rng)
        tells = False
    elif form < 0.2:
        words.append(words.pop(0))
    elif form < 0.28:
        words.insert(0, rng.choice(wordings("prefixes")))
    elif form < 0.36:
        words.append(rng.choice(wordings("suffixes")))
    elif form < 0.42 and len(words) > 2:
        words = [w for w in words if w not in LITTLE][:2]
        tells = False
    return styled(rng, words, 0.4), tells


def _new_argument(rng: Random, argument: Argument) -> str:
    synonyms = _synonyms("argument")
    words = split_name(argument.name)
    form = rng.random()
    if argument.name in synonyms and form < 0.45:
        return rng.choice(synonyms[argument.name])
    if len(words) > 1 and form < 0.3:
        return rng.choice((words[-1], "".join(words), "_".join(reversed(words))))
    if len(words) == 1 and form < 0.1:
        return rng.choice(
            (f"the_{words[0]}", f"{words[0]}_name", f"{words[0]}_value", f"in_{words[0]}")
        )
    if form < 0.06:
        return invented(rng)
    return argument.name


def new_entry(rng: Random, tool: Tool) -> Entry:
    """The tool under its own name or another, with its description or a part of it."""
    name, tells = (tool.name, True) if rng.random() < 0.4 else _new_name(rng, tool)
    names = {a.name: a.name for a in tool.arguments}
    if rng.random() < 0.5:
        names = {a.name: _new_argument(rng, a) for a in tool.arguments}
    if rng.random() < 0.35:
        to_camel = rng.random() < 0.6
        names = {k: styled(rng, split_name(v), 1.0 if to_camel else 0.0) for k, v in names.items()}
    if len(set(names.values())) < len(names):
        names = {a.name: a.name for a in tool.arguments}
    description, form = tool.description, rng.random()
    if form < 0.15 and tells:
        description = ""
    elif form < 0.3:
        description = re.split(r"(?<=[.;!])\s", description)[0].rstrip(".")
    elif form < 0.4:
        description = description[:1].lower() + description[1:].rstrip(".")
    return Entry(tool, name, description, names)


def _stems(text: str) -> set[str]:
    return {w[:5] for w in re.findall(r"[a-z]{3,}", text.lower())} - LITTLE


COMMON = _stems(
    "the for this that with from one user get set add show list current returns return "
    "given name new find search time date"
)


@cache
def subject(tool: Tool) -> frozenset[str]:
    """What the tool's name is about: its words without the verb."""
    words = split_name(tool.name)
    return frozenset(w[:5] for w in (words[1:] or words) if w not in LITTLE)


@cache
def nearness(tool: Tool) -> tuple[Tool, ...]:
    """The other tools of the style, nearest first by shared words of name and description."""
    own = _stems(" ".join(split_name(tool.name)) + " " + tool.description)
    others = [t for t in tools(tool.style) if t.name != tool.name]
    return tuple(
        sorted(
            others, key=lambda t: (-len(own & _stems(spoken(t.name) + " " + t.description)), t.name)
        )
    )


@cache
def _own_words(tool: Tool) -> frozenset[str]:
    """Stems of name and description that tell something about the tool."""
    return frozenset(_stems(f"{spoken(tool.name)} {tool.description}")) - COMMON


def likeness(tool: Tool, other: Tool) -> float:
    """The share of the shorter one's own words that the other has too, if there are several."""
    shared = _own_words(tool) & _own_words(other)
    return (
        len(shared) / min(len(_own_words(tool)), len(_own_words(other))) if len(shared) > 1 else 0
    )


def overlaps(tool: Tool, others: list[Tool], apart: float = 2.0) -> bool:
    """True where a tool of another style might serve the same requests."""
    strange = [t for t in others if t.style != tool.style]
    if any(t.name == tool.name for t in others) or any(subject(t) & subject(tool) for t in strange):
        return True
    return apart < 2.0 and any(likeness(tool, t) >= apart for t in strange)


def choose_tools(rng: Random, recipe: Recipe, count: int) -> list[Tool]:
    """Some tools for a list: near-duplicates of one another beside ones of other styles."""
    chosen: list[Tool] = []
    near = 1.0 if recipe.close and rng.random() < recipe.close else rng.random()
    while len(chosen) < count:
        if chosen and rng.random() < near:
            tool = rng.choice(nearness(rng.choice(chosen))[:6])
        else:
            tool = rng.choice(tools(rng.choice(recipe.styles)))
        if not overlaps(tool, chosen, recipe.apart):
            chosen.append(tool)
    rng.shuffle(chosen)
    return chosen


def new_entries(rng: Random, chosen: list[Tool], own: float = 0.0) -> list[Entry]:
    """The tools under names that differ; the share `own` of them exactly as they were written."""
    entries: list[Entry] = []
    for tool in chosen:
        if own and rng.random() < own:
            names = {a.name: a.name for a in tool.arguments}
            entry = Entry(tool, tool.name, tool.description, names)
        else:
            entry = new_entry(rng, tool)
        while any(e.name == entry.name for e in entries):
            entry = replace(
                entry,
                name=tool.name if all(e.name != tool.name for e in entries) else invented(rng),
            )
        entries.append(entry)
    return entries
