"""Writes the word lists in `embedded/english/pools` from free packages.

    python -m embedded.english.make_pools

It needs the Python package faker (MIT licence) and WordNet 3.0 (Debian's wordnet-base, Princeton's
permissive licence). The lists are committed, so that the documents of a finished stage do not
change with a package's next version. synonyms.jsonl, wordings.jsonl and imperatives.txt are written
by hand.
"""

import importlib
import random
import re
from functools import cache

from embedded.english.generate.corpus import POOLS
from embedded.english.generate.wordnet import WORDNET

LOCALES = (
    "en_US en_GB en_IN en_NZ en_IE de_DE fr_FR es_ES es_MX it_IT pt_BR pt_PT nl_NL pl_PL sv_SE "
    "no_NO da_DK fi_FI cs_CZ hu_HU ro_RO tr_TR hr_HR sl_SI et_EE lt_LT lv_LV id_ID vi_VN en_PH "
    "fr_CH de_AT nl_BE es_AR"
).split()
SIZE = 2500
# Words of such senses are left out of a model that talks to strangers.
UNWANTED = re.compile(
    r"slur|offensive|obscen|vulgar|disparag|sexual|genital|prostitut|slave|\brap(e|ist)|murder|suicid|penis|vagina|"
    r"breast|anus|testi|excre|feces|urin|narcotic|cocaine|heroin|nazi|torture|derogat|intercourse|lust|nude|naked|bosom|"
    r"\bkill|\brac(e|ist|ial)\b|negro|\bjews?\b|homosexual|lesbian|\bgay\b|whore|bitch|bastard|damn|\bhell\b|shit|corpse"
)
LATIN = re.compile(r"[A-ZÀ-ÖØ-Þ][A-Za-zÀ-ÖØ-öø-ſ'’ -]{1,22}$")


def faker_words(kind: str, *attributes: str) -> set[str]:
    """Every entry of a provider's lists, of all locales, in Latin letters."""
    found: set[str] = set()
    for locale in LOCALES:
        try:
            provider = importlib.import_module(f"faker.providers.{kind}.{locale}").Provider
        except ModuleNotFoundError:
            continue
        for name in dir(provider):
            if any(name.startswith(attribute) for attribute in attributes):
                value = getattr(provider, name)
                items = list(value) if isinstance(value, (list, tuple, dict, set)) else []
                found |= {item for item in items if isinstance(item, str) and LATIN.match(item)}
    return found


@cache
def unwanted_words() -> set[str]:
    """Words that have an unwanted sense, or whose explanation needs an unwanted word."""
    found: set[str] = set()
    for file in ("data.noun", "data.adj"):
        for line in (WORDNET / file).read_text(encoding="utf-8").splitlines():
            head, _, gloss = line.partition(" | ")
            if not line.startswith("  ") and UNWANTED.search(f"{head} {gloss}".lower()):
                parts = head.split()
                found |= {
                    word.replace("_", " ").lower()
                    for word in parts[4 : 4 + 2 * int(parts[3], 16) : 2]
                }
    return found


def wordnet_nouns(file: str, senses: int) -> set[str]:
    """Words and expressions with at least so many tagged senses, or of two plain words."""
    found, unwanted = set(), unwanted_words()
    for line in (WORDNET / file).read_text(encoding="utf-8").splitlines():
        if line.startswith("  "):
            continue
        parts = line.split()
        word, tagged = parts[0].replace("_", " "), int(parts[5 + int(parts[3])])
        if (
            re.fullmatch(r"[a-z]{3,12}( [a-z]{3,10})?", word)
            and tagged >= senses
            and word not in unwanted
        ):
            found.add(word)
    return found


def wordnet_sentences() -> set[str]:
    """The quoted examples in the glosses, of three to nine words."""
    found = set()
    for file in ("data.noun", "data.verb", "data.adj"):
        for line in (WORDNET / file).read_text(encoding="utf-8").splitlines():
            for example in re.findall(r'"([^"]+)"', line.partition(" | ")[2]):
                is_plain = re.fullmatch(r"[A-Za-z][a-z A-Z',0-9-]{8,60}", example)
                if (
                    is_plain
                    and not UNWANTED.search(line.lower())
                    and 3 <= len(example.split()) <= 9
                ):
                    found.add(example.strip())
    return found


def write(name: str, words: set[str], size: int = SIZE) -> None:
    """A sample of the words, sorted, one a line."""
    chosen = sorted(words)
    if len(chosen) > size:
        chosen = sorted(random.Random(name).sample(chosen, size))
    (POOLS / f"{name}.txt").write_text("\n".join(chosen) + "\n", encoding="utf-8")
    print(name, len(words), len(chosen), chosen[:3])


def main() -> None:
    POOLS.mkdir(exist_ok=True)
    write("first_names", faker_words("person", "first_names"), 4000)
    write("last_names", faker_words("person", "last_names"), 4000)
    write(
        "cities",
        faker_words(
            "address",
            "cities",
            "city_names",
            "cities_",
            "towns",
            "municipalities",
            "states",
            "provinces",
            "regions",
            "counties",
            "departments",
            "prefectures",
        ),
    )
    write(
        "countries", set(importlib.import_module("faker.providers.address").Provider.countries), 300
    )
    write("nouns", wordnet_nouns("index.noun", 1), 4000)
    write("adjectives", wordnet_nouns("index.adj", 2), 800)
    write("sentences", wordnet_sentences(), 4000)


if __name__ == "__main__":
    main()
