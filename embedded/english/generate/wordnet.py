"""English from WordNet 3.0 (Debian package wordnet-base): what words mean, which are alike, what is
a kind of what.
"""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random

from embedded.english.generate.corpus import wordings

WORDNET = Path("/usr/share/wordnet")
PARTS = {"noun": "noun", "verb": "verb", "adj": "adjective", "adv": "adverb"}


@dataclass(frozen=True)
class Sense:
    """A meaning: the words that share it, its explanation, examples, and a word for what it is a
    kind of.
    """

    part: str
    words: tuple[str, ...]
    gloss: str
    examples: tuple[str, ...]
    kind: str


@cache
def senses() -> tuple[Sense, ...]:
    """All meanings with a plain explanation, in the order of the files."""
    found: list[Sense] = []
    for file, part in PARTS.items():
        rows: dict[str, tuple[list[str], str, str]] = {}
        for line in (WORDNET / f"data.{file}").read_text(encoding="utf-8").splitlines():
            if line.startswith("  "):
                continue
            head, _, gloss = line.partition(" | ")
            fields = head.split()
            count = int(fields[3], 16)
            words = [
                re.sub(r"\(\w+\)$", "", w).replace("_", " ") for w in fields[4 : 4 + 2 * count : 2]
            ]
            above = re.search(r"@ (\d{8}) n", head)
            rows[fields[0]] = (words, gloss, above[1] if above else "")
        for words, gloss, above_id in rows.values():
            meaning = re.sub(r"\([^)]*\)", "", gloss.split('; "')[0].split(": ")[0]).strip(" ;.")
            examples = tuple(re.findall(r'"([^"]{8,90})"', gloss))
            kind = rows[above_id][0][0] if above_id in rows else ""
            if 8 <= len(meaning) <= 160 and re.fullmatch(r"[\w ,;'-]+", meaning):
                found.append(
                    Sense(part, tuple(words), re.sub(r"\s+", " ", meaning), examples, kind)
                )
    return tuple(found)


@cache
def plain_senses() -> tuple[Sense, ...]:
    """Meanings of common-looking words: lower case, no long expressions."""
    common = _tagged()
    return tuple(s for s in senses() if any(w in common for w in s.words))


@cache
def _tagged() -> frozenset[str]:
    """Words that WordNet's tagged texts hold."""
    found = set()
    for file in PARTS:
        for line in (WORDNET / f"index.{file}").read_text(encoding="utf-8").splitlines():
            fields = line.split()
            if not line.startswith("  ") and int(fields[5 + int(fields[3])]) > 0:
                found.add(fields[0].replace("_", " "))
    return frozenset(w for w in found if re.fullmatch(r"[a-z]{2,14}( [a-z]{2,10})?", w))


def paragraph(sense: Sense) -> str:
    """A dictionary entry with an example."""
    article = f"{', '.join(sense.words[:3])} ({sense.part}): {sense.gloss}."
    example = sense.examples[0] if sense.examples else ""
    if example and example[-1] not in ".!?":
        example += "."
    return f"{article} {example[:1].upper()}{example[1:]}".strip()


def _word(rng: Random, sense: Sense) -> str:
    return rng.choice([w for w in sense.words if w in _tagged()])


def exercise(rng: Random) -> tuple[str, str]:
    """A question about words and its answer."""
    sense = rng.choice(plain_senses())
    word, form = _word(rng, sense), rng.random()
    others = [w for w in sense.words if w != word and re.fullmatch(r"[a-z -]+", w)]
    if form < 0.35:
        choices = [
            word,
            *(_word(rng, rng.choice(plain_senses())) for _ in range(rng.randint(2, 5))),
        ]
        rng.shuffle(choices)
        ask = rng.choice(wordings("which means"))
        return ask.format(g=sense.gloss, c=", ".join(choices)), word
    if form < 0.55 and others:
        distractors = [_word(rng, rng.choice(plain_senses())) for _ in range(rng.randint(1, 4))]
        choices = [*distractors, rng.choice(others)]
        answer = choices[-1]
        rng.shuffle(choices)
        ask = rng.choice(wordings("which is like"))
        return ask.format(w=word, c=", ".join(choices)), answer
    if form < 0.7 and sense.kind:
        return rng.choice(wordings("which kind")).format(w=word), f"{sense.kind}: {sense.gloss}."
    if form < 0.85 and sense.examples:
        choices = [
            word,
            *(_word(rng, rng.choice(plain_senses())) for _ in range(rng.randint(2, 4))),
        ]
        rng.shuffle(choices)
        example = next((e for e in sense.examples if re.search(rf"\b{re.escape(word)}", e)), "")
        if example:
            hidden = re.sub(rf"\b{re.escape(word)}", "___", example, count=1)
            return f"Fill the gap with {', '.join(choices)}: {hidden}", word
    return rng.choice(wordings("what means")).format(w=word), f"{sense.gloss}."
