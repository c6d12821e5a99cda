"""General English for the pretraining: dictionaries and documentation from packages under free
licences.

The text is not committed. `apt-get install wordnet-base dict-gcide` brings it, and Python has its
own documentation.
"""

import ast
import gzip
import hashlib
import re
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from random import Random

from embedded.english.generate.thoughts import Document, turn
from embedded.english.generate.wordnet import WORDNET, exercise, paragraph, plain_senses

GCIDE = Path("/usr/share/dictd/gcide.dict.dz")


def missing_packages() -> list[str]:
    """The Debian packages of the general English that are not installed."""
    files = {"wordnet-base": WORDNET / "data.noun", "dict-gcide": GCIDE}
    return [package for package, file in files.items() if not file.is_file()]


def _gcide() -> Iterator[str]:
    """Definitions without pronunciation, etymology and marks."""
    text = gzip.decompress(GCIDE.read_bytes()).decode("utf-8", "replace")
    for entry in re.split(r"\n(?=\S)", text):
        head = re.match(r"([A-Z][\w' -]{1,30}) \\", entry)
        if not head:
            continue
        body = re.sub(r"\s+", " ", re.sub(r"\[[^\]]*\]|\{|\}|\\[^\\]*\\|<[^>]*>", "", entry))
        for meaning in re.split(r" (?:\d+\.|\([a-z]\)) ", body)[1:3]:
            clean = re.split(r" -- | --\w|Syn:|Note:| \w+\. \d", meaning)[0].strip()
            if 30 <= len(clean) <= 300 and re.fullmatch(r"[A-Z][\w ,;.'()\"-]+\.", clean):
                yield f"{head[1].capitalize()}: {clean}"


def _docstrings() -> Iterator[str]:
    """Paragraphs of prose in the docstrings of the standard library."""
    for file in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if re.search(r"site-packages|/test|idlelib|lib2to3", str(file)):
            continue
        try:
            tree = ast.parse(file.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                for part in (ast.get_docstring(node) or "").split("\n\n"):
                    prose = re.sub(r"\s+", " ", part).strip()
                    if (
                        60 <= len(prose) <= 400
                        and prose[0].isupper()
                        and not re.search(r">>>|\.\. |::|__", prose)
                    ):
                        yield prose


@cache
def paragraphs() -> tuple[str, ...]:
    """Every paragraph once, in a fixed order."""
    found = dict.fromkeys([*map(paragraph, plain_senses()), *_gcide(), *_docstrings()])
    return tuple(found)


def fingerprint() -> str:
    """A short hash of the text, recorded with each stage: another version of a package is another
    text.
    """
    return hashlib.sha256("\n".join(paragraphs()).encode()).hexdigest()[:12]


def text_document(rng: Random) -> Document:
    """A few paragraphs to read."""
    texts = rng.sample(paragraphs(), rng.randint(2, 7))
    return Document([], [[("\n".join(texts), "text")]])


def word_document(rng: Random) -> Document:
    """Some questions about words, one after the other."""
    segments = []
    for number in range(rng.randint(1, 6)):
        ask, answer = exercise(rng)
        segments += turn(
            ("" if number else "<start_of_turn>user\n") + ask,
            [(answer, "word")],
            started=not number,
        )
    return Document([], [segments])
