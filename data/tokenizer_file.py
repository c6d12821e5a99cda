"""What a `tokenizer.json` and its `tokenizer_config.json` must be before an id is taken from them.

Separate from `tokenizer.py` because it is all doubt: the files come from strangers, and a control
token that shares its id with a word would let any text write the token.
"""

import re
from collections.abc import Iterator
from typing import Any

from common.json_file import parse_object, show

MAX_ID = 1 << 24
# An expression that takes linear time whatever the text: alternatives of characters and classes, of
# which only the last may be repeated without a bound, so that nothing is ever tried twice.
_ATOM = r"(?:\\[^pPxu0-9bBAzZGkgKR]|\\[pP]\{\^?\w+\}|\[(?:\\.|[^\]\\\[&])+\]|[^\\\[\](){}*+?|^$])"
_LINEAR = re.compile(rf"(?:{_ATOM}\??)*{_ATOM}[*+]?(?:\|(?:{_ATOM}\??)*{_ATOM}[*+]?)*")


def parse_tokenizer(source: str, where: str) -> dict[str, Any]:
    """The object of a `tokenizer.json`: BPE, with every id a whole number of one piece alone.

    Raises: ValueError naming the piece or the entry that is not so.
    """
    data = parse_object(source, where)
    model, added = data.get("model"), data.get("added_tokens")
    kind = model.get("type") if isinstance(model, dict) else None
    if not isinstance(model, dict) or kind != "BPE" or not isinstance(added, list):
        got = f"got the model type {show(kind)}"
        raise ValueError(f"{where}: expected a BPE tokenizer with added tokens, {got}")
    problem = _vocabulary_problem(model) or _added_problem(model["vocab"], added)
    if problem:
        raise ValueError(f"{where}: {problem}; download the file again")
    parts = (data.get(name) for name in ("normalizer", "pre_tokenizer", "decoder"))
    for expression in _expressions(list(parts)):
        if not (isinstance(expression, str) and _LINEAR.fullmatch(expression)):
            raise ValueError(
                f"{where}: expected regular expressions of alternatives without groups, the last "
                f"part alone repeated, got {show(expression)}, which can take unbounded time"
            )
    return data


def _vocabulary_problem(model: dict[str, Any]) -> str:
    vocab, merges = model.get("vocab"), model.get("merges")
    if not isinstance(vocab, dict) or not vocab:
        return f"expected a vocab of ids by piece, got {show(vocab)}"
    bad = next((piece for piece, id in vocab.items() if not _is_id(id)), None)
    if bad is not None:
        return f"{show(bad)}: expected an id below {MAX_ID}, got {show(vocab[bad])}"
    if len(set(vocab.values())) < len(vocab):
        first: dict[int, str] = {}
        twice = next(p for p, id in vocab.items() if first.setdefault(id, p) != p)
        return f"expected an id of its own for each piece, got {show(twice)} with another's"
    if not isinstance(merges, list):
        return f"expected a list of merges, got {show(merges)}"
    for merge in merges:
        # Two spellings of the file format: "a b" and ["a", "b"]
        pair = merge.split(" ", 1) if isinstance(merge, str) else merge
        is_pair = isinstance(pair, list) and len(pair) == 2
        if not (is_pair and all(isinstance(part, str) for part in pair)):
            return f"expected merges of two pieces, got {show(merge)}"
    for key in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        # The first two make the library panic over a short piece, the last draws at random
        if model.get(key):
            return f"expected no {key}, which Gemma's do not have, got {show(model[key])}"
    unknown = model.get("unk_token")
    return "" if isinstance(unknown, str | None) else f"expected a name, got {show(unknown)}"


def _added_problem(vocab: dict[str, int], added: list[Any]) -> str:
    """Why the added tokens cannot be told from words, or from one another; "" if they can."""
    owner = {id: piece for piece, id in vocab.items()}
    seen: set[str] = set()
    for entry in added:
        content = entry.get("content") if isinstance(entry, dict) else None
        if not isinstance(content, str) or not content or not _is_id(entry.get("id")):
            return f"expected added tokens with content and id, got {show(entry)}"
        id = entry["id"]
        if vocab.get(content, id) != id:
            return f"added token {show(content)}: the vocab says {vocab[content]}, the entry {id}"
        if owner.setdefault(id, content) != content:
            return (
                f"added token {show(content)}: expected an id of its own, got {id}, "
                f"which is {show(owner[id])}"
            )
        if content in seen:
            return f"added token {show(content)}: expected one entry, got two"
        seen.add(content)
    return ""


def _is_id(value: Any) -> bool:
    # Not isinstance: JSON's true is a bool, which Python counts among the ints
    return type(value) is int and 0 <= value < MAX_ID


def _expressions(value: Any) -> Iterator[Any]:
    """Yield every {"Regex": expression} in a part of the file, which `parse_object` has bounded."""
    for child in value.values() if isinstance(value, dict) else value:
        if isinstance(child, dict | list):
            yield from _expressions(child)
    if isinstance(value, dict) and "Regex" in value:
        yield value["Regex"]


def check_config(config: dict[str, Any], added: dict[str, int], where: str) -> None:
    """Checks what is read of a `tokenizer_config.json`; `added` has the ids of added tokens.

    Raises: ValueError for a wrong type, or for another id of a token than `tokenizer.json` has.
    """
    if not isinstance(config.get("tool_format"), str | None):
        raise ValueError(f"{where}: expected a tool_format, got {show(config['tool_format'])}")
    for key in ("additional_special_tokens", "extra_special_tokens"):
        # Newer versions of Transformers write an object of names here
        names = config.get(key) or []
        names = list(names) if isinstance(names, dict) else names
        if not isinstance(names, list) or not all(isinstance(n, str | dict) for n in names):
            raise ValueError(f"{where}: expected a list of tokens as {key}, got {show(names)}")
    decoder = config.get("added_tokens_decoder") or {}
    if not isinstance(decoder, dict):
        raise ValueError(f"{where}: expected an added_tokens_decoder, got {show(decoder)}")
    for id, entry in decoder.items():
        content = entry.get("content") if isinstance(entry, dict) else None
        if not isinstance(content, str) or str(added.get(content, id)) != id:
            raise ValueError(
                f"{where}: added_tokens_decoder: expected the tokens of tokenizer.json, "
                f"got {show(entry)} as {show(id)}; download both files again"
            )
