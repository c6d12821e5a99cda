"""Calls that cannot be malformed: from the opening tag on, only JSON for the schema of a tool.

The grammar is llguidance's, which says in some microseconds which ids may follow. Around it stands
what no grammar can say: no key twice in an object without named keys, and above all an end in time.
For that a guide has at every moment a plan, the ids that would end the call from here; an id is
taken only if there is room for the plan that follows it. Source: `LLMatcher` of
github.com/guidance-ai/llguidance.
"""

import json
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from agent.call_schema import grammar
from agent.vocabulary import vocabulary_of
from data.tokenizer import Tokenizer

MAX_PLAN = 2000  # ids; a pattern may keep the search for an end from ever ending
# What ends a value soonest, in this order, outside of strings and inside of them
ENDINGS = [b"}", b"]", b",", b":", b" ", b"0", b'"', b"f", b"n", b"[", b"{", b"."]
# The last ones are the further bytes of a character that has begun
OTHERS = [bytes((byte,)) for byte in (*range(0x20, 0x7F), *range(0x80, 0xC0))]
_ESCAPE = re.compile(rb"\\.", re.DOTALL)


def check_library(asked: str = "--constrain") -> None:
    """Raises: ValueError if the library is not installed; `asked` is what needs it."""
    try:
        import llguidance  # noqa: F401
    except ImportError:
        raise ValueError(
            f"{asked} needs llguidance, which is not installed; pip install '.[constrain]'"
        ) from None


class _Words:
    """The vocabulary as llguidance takes it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        vocabulary = vocabulary_of(tokenizer)
        spelled = [vocabulary.spelling(id) for id in range(len(tokenizer))]
        self.tokenizer = tokenizer
        self.bos_token_id, self.eos_token_id = tokenizer.bos_id, tokenizer.end_of_turn_id
        self.special_token_ids = [id for id, data in enumerate(spelled) if data is None]
        # A control id has no text; its number, in a spelling that no text has, tells it apart
        self.tokens = [data or b"\xff%d" % id for id, data in enumerate(spelled)]

    def __call__(self, text: str | bytes) -> list[int]:
        return self.tokenizer.encode(text if isinstance(text, str) else text.decode())


@lru_cache(maxsize=4)
def _library_tokenizer(tokenizer: Tokenizer) -> Any:
    from llguidance import LLTokenizer, TokenizerWrapper

    return LLTokenizer(TokenizerWrapper(_Words(tokenizer)))


class CallGrammar:
    """The calls to some tools, in ids: a matcher at the start of one, and the plan of its end."""

    def __init__(self, tokenizer: Tokenizer, shown: str) -> None:
        """shown: the parameters of the tools by their names, as JSON.

        Raises: ValueError for tools whose schemas no call fits, or that make no grammar.
        """
        tools = json.loads(shown)
        self.tokenizer, self.vocabulary = tokenizer, vocabulary_of(tokenizer)
        wire = tokenizer.wire
        self.opening = tokenizer.tag_ids[wire.call.tags[0]]
        close = wire.call.tags[1:]
        self.ending = tokenizer.tag_ids[close[0]] if close else tokenizer.end_of_turn_id
        orders = {False: [*ENDINGS, *OTHERS], True: [b'"', *OTHERS]}
        self.endings = {
            is_open: [pair for ending in order for pair in self.vocabulary.beginnings(ending)]
            for is_open, order in orders.items()
        }
        problem = ""
        for plain in (False, True):
            lark = grammar(tools, wire, plain=plain)
            self.start = self._matcher(lark)
            self.has_open_objects = '"additionalProperties": {' in lark
            problem = str(self.start.get_error())
            plan = None if problem else self.plan(self.start, b"")
            if plan:
                self.start_plan = plan
                return
        why = problem or "a required argument has no value that ends"
        raise ValueError(f"--constrain: no call fits the schemas of {', '.join(tools)}: {why}")

    def _matcher(self, lark: str) -> Any:
        from llguidance import LLMatcher

        library = _library_tokenizer(self.tokenizer)
        return LLMatcher(library, LLMatcher.grammar_from_lark(lark), log_level=0)

    def plan(self, matcher: Any, text: bytes) -> list[int] | None:
        """The ids that end the call from here soon, its end included; None if none are found."""
        matcher, ids = matcher.deep_copy(), list[int]()
        while not matcher.is_accepting():
            data, id = self._next_of_plan(matcher, text)
            if id < 0 or len(ids) > MAX_PLAN:
                return None
            matcher.consume_token(id)
            text += data
            ids.append(id)
        return [*ids, self.ending]

    def _next_of_plan(self, matcher: Any, text: bytes) -> tuple[bytes, int]:
        forced = matcher.compute_ff_bytes()
        # The longest id of what has to come, or else the first byte that leads out
        likely = (
            self.vocabulary.beginnings(forced)[::-1] if forced else self.endings[is_in_string(text)]
        )
        for data, id in likely:
            if matcher.validate_tokens([id]) and not self.repeats_key(text, data):
                return data, id
        return b"", -1

    def repeats_key(self, text: bytes, data: bytes) -> bool:
        """True if `data` ends a key that its object has already."""
        # No grammar tells the keys of an object that has no named ones apart
        return self.has_open_objects and b'"' in data and repeats_key(text + data)


def is_in_string(text: bytes) -> bool:
    """True if a string is open at the end of JSON."""
    return _ESCAPE.sub(b"", text).count(b'"') % 2 == 1


def repeats_key(text: bytes) -> bool:
    """True if an object in a beginning of JSON has one key twice."""
    seen: list[set[bytes] | None] = []
    place, before = 0, b""
    while place < len(text):
        byte = text[place : place + 1]
        if byte == b'"':
            end = place + 1
            while end < len(text) and text[end] != ord('"'):
                end += 2 if text[end] == ord("\\") else 1
            keys = seen[-1] if seen else None
            if end < len(text) and keys is not None and before in (b"{", b","):
                if text[place:end] in keys:
                    return True
                keys.add(text[place:end])
            place = end
        elif byte in (b"{", b"["):
            seen.append(set() if byte == b"{" else None)
        elif byte in (b"}", b"]") and seen:
            seen.pop()
        before = byte if byte.strip() else before
        place += 1
    return False


class CallGuide:
    """Holds the calls of one reply to a grammar, and to the ids that are left for it."""

    def __init__(self, grammar: CallGrammar, room: int, *, may_call: bool = True) -> None:
        self.grammar, self.vocabulary, self.left = grammar, grammar.vocabulary, room
        self.may_call = may_call
        self.matcher: Any = None  # None outside of calls
        self.text, self.plan = b"", list[int]()
        self._tried: tuple[int, list[int] | None] = (-1, None)  # an id and the plan after it
        self.refusals, self.is_thinking = 0, False
        self.thinking = [
            grammar.tokenizer.tag_ids[tag] for tag in grammar.tokenizer.wire.thinking.tags
        ]

    def accepts(self, id: int) -> bool:
        """True if this id may come next."""
        is_good = self._outside(id) if self.matcher is None else self._inside(id) is not None
        self.refusals += not is_good
        return is_good

    def _outside(self, id: int) -> bool:
        if id != self.grammar.opening:
            return True
        has_room = self.left > len(self.grammar.start_plan)  # for this id and the shortest call
        return self.may_call and not self.is_thinking and has_room

    def _inside(self, id: int) -> list[int] | None:
        """The plan after this id; None if it may not come."""
        # `accepts` and then `advance` ask about one id: the search for its plan is done once
        if self._tried[0] != id:
            self._tried = id, self._plan_after(id)
        return self._tried[1]

    def _plan_after(self, id: int) -> list[int] | None:
        data = self.vocabulary.spelling(id)
        if data is None:
            return [] if id == self.grammar.ending and self.matcher.is_accepting() else None
        if not self.matcher.validate_tokens([id]) or self.grammar.repeats_key(self.text, data):
            return None
        if id == self.plan[0]:
            return self.plan[1:]
        after = self.matcher.deep_copy()
        after.consume_token(id)
        plan = self.grammar.plan(after, self.text + data)
        # Less than what is left, because the id itself takes one place
        return plan if plan and len(plan) < self.left else None

    def allowed(self) -> Sequence[int]:
        """The ids that may come; after a second refusal only the one that leads to the end."""
        if self.matcher is None:
            return [id for id in range(len(self.grammar.tokenizer)) if self._outside(id)]
        if self.refusals > 1:
            return self.plan[:1]
        mask = np.frombuffer(self.matcher.compute_bitmask(), np.uint8)
        ids = np.flatnonzero(np.unpackbits(mask, bitorder="little")).tolist()
        # Where a call may end, the library allows an end of text; what ends a call is added below
        ids = [id for id in ids if id not in self.vocabulary.control_ids]
        return [*ids, self.grammar.ending] if self.matcher.is_accepting() else ids

    def advance(self, id: int) -> None:
        """Takes note of the id that was chosen."""
        data = self.vocabulary.spelling(id)
        if self.matcher is not None and data is not None:
            self.plan = self._inside(id) or []
            self.matcher.consume_token(id)
            self.text += data
        elif self.matcher is not None:
            self.matcher = None
        elif id == self.grammar.opening:
            self.matcher, self.text = self.grammar.start.deep_copy(), b""
            self.plan = self.grammar.start_plan
        elif id in self.thinking:
            self.is_thinking = id == self.thinking[0]
        self.left, self.refusals, self._tried = self.left - 1, 0, (-1, None)
