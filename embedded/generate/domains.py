"""Fields of life: which verbs go with which nouns, and which kinds of values with both.

Separate from the other word lists so that a generated tool makes sense: one pays an invoice and
feeds a dog.
"""

from dataclasses import dataclass

from embedded.generate.lists import read, table


@dataclass(frozen=True)
class Domain:
    """Verbs and nouns that may be combined, and the usual kinds of values (`values.KINDS`)."""

    verbs: tuple[str, ...]
    nouns: tuple[str, ...]
    kinds: tuple[str, ...]


def _domain(name: str) -> Domain:
    columns = {key: tuple(value.split()) for key, value in table("domains", name).items()}
    return Domain(**columns)


DOMAINS = tuple(_domain(name) for name in read("domains"))
# A verb or noun of several domains counts once.
VERBS = tuple(dict.fromkeys(verb for domain in DOMAINS for verb in domain.verbs))
NOUNS = tuple(dict.fromkeys(noun for domain in DOMAINS for noun in domain.nouns))
