"""What may come next in a reply, row by row: the objects that `model/generate.py` asks.

`NameGuide` is the default: names are those on offer, the required ones among them, and all else is
the model's own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from agent.call_names import NAMING, CallNames, State
from agent.constrain import CallGrammar, CallGuide
from agent.limits import is_loop
from agent.vocabulary import vocabulary_of
from data.conversation import Tool
from data.tokenizer import Tokenizer
from data.wire import WireFormat, dump
from model.generate import Guide

THOUGHT_LOOP = 16  # ids of a thought that repeat themselves before it is closed


class NameGuide:
    """Holds the names in the calls of one reply to the tools on offer."""

    def __init__(self, tokenizer: Tokenizer, tools: Sequence[Tool]) -> None:
        self.names, self.vocabulary = CallNames(tools), vocabulary_of(tokenizer)
        self.opening = [tokenizer.tag_ids[tag] for tag in tokenizer.wire.call.tags[:1]]
        self.state: State | None = None  # None outside of calls
        self._tried: tuple[int, State | None] = (-1, None)
        # What the id that was refused would have written before it ended arguments too early; None
        # for any other
        self._before_end: bytes | None = None

    def accepts(self, id: int) -> bool:
        """True if this id may come next."""
        if self.state is None:
            return True
        data, self._before_end = self.vocabulary.spelling(id), None
        if data is None:
            if self.names.ends_early(self.state):
                self._before_end = b""
            return self.state.mode not in NAMING and self._before_end is None
        self._tried = id, self.names.feed(self.state, data)
        if self._tried[1] is None:
            self._before_end = self.names.early_end(self.state, data)
        return self._tried[1] is not None

    def advance(self, id: int) -> None:
        """Takes note of the id that was chosen."""
        if id in self.opening:
            self.state = self.names.start
        elif self.vocabulary.spelling(id) is None:
            self.state = None  # every other control id ends the call
        elif self.state is not None:
            if self._tried[0] != id:  # as a rule `accepts` was asked about it just now
                self.accepts(id)
            self.state = self._tried[1]
        self._tried, self._before_end = (-1, None), None

    def allowed(self) -> Sequence[int]:
        """Every id that `accepts` takes; after one that ended the arguments too early, those that
        write the same value and then go on to the next argument.
        """
        state, vocabulary = self.state, self.vocabulary
        if state is None:
            return range(len(vocabulary.tokenizer))
        if self._before_end is not None:
            text = self._before_end + b","
            pairs = vocabulary.beginnings(text) + vocabulary.continuations(text)
            ids = [id for data, id in pairs if self.names.feed(state, data) is not None]
            if ids:
                return ids
        may_end = state.mode not in NAMING and not self.names.ends_early(state)
        ids = list(vocabulary.control_ids) if may_end else []
        if state.mode in ("name", "argument"):
            pairs = []
            for name in self.names.spellings(state):
                if name.startswith(state.text):
                    rest = name[len(state.text) :] + bytes((state.quote,))
                    pairs += vocabulary.beginnings(rest) + vocabulary.continuations(rest)
        elif state.mode in ("outside", "call_key", "open_key", "value", "bare", "string"):
            # Free but for what leads on into a name
            ids += vocabulary.plain
            pairs = vocabulary.special
        else:
            pairs = vocabulary.leading
        return ids + [id for data, id in pairs if self.names.feed(state, data) is not None]


class Speaking:
    """A reply that may not end before it has begun; then as the guide inside says."""

    def __init__(self, tokenizer: Tokenizer, guide: Guide | None) -> None:
        self.tokenizer, self.guide, self.has_begun = tokenizer, guide, False

    def accepts(self, id: int) -> bool:
        """True if this id may come next."""
        if not self.has_begun and id in self.tokenizer.turn_ends:
            return False
        return self.guide is None or self.guide.accepts(id)

    def allowed(self) -> Sequence[int]:
        """Every id that `accepts` takes."""
        every = range(len(self.tokenizer)) if self.guide is None else self.guide.allowed()
        return every if self.has_begun else [i for i in every if self.accepts(i)]

    def advance(self, id: int) -> None:
        """Takes note of the id that was chosen."""
        self.has_begun = True
        if self.guide is not None:
            self.guide.advance(id)


class MustCall:
    """A reply that calls: it thinks or calls, and after its thought calls; then as `inner` says.

    thoughts: ids that thinking may take before it is closed; one that repeats itself is closed at
    once, as it does where the model would rather have answered. Which of the two begins is the
    model's choice, because one that has learned to think first calls worse without.
    """

    def __init__(self, tokenizer: Tokenizer, inner: Guide, thoughts: int) -> None:
        self.inner, self.left, self.vocabulary = inner, thoughts, vocabulary_of(tokenizer)
        call, thinking = tokenizer.wire.call.tags, tokenizer.wire.thinking.tags
        self.call, self.size = tokenizer.tag_ids[call[0]], len(tokenizer)
        # A format without tags for thinking calls at once; so does a reply without room for both
        can_think = bool(thinking) and thoughts >= 0
        self.think = tokenizer.tag_ids[thinking[0]] if can_think else None
        self.close = tokenizer.tag_ids[thinking[1]] if can_think else None
        self.state = "begin"  # begin, thinking, thought, called
        self.thought: list[int] = []

    def accepts(self, id: int) -> bool:
        """True if this id may come next."""
        if self.state == "begin":
            return id in (self.call, self.think)
        if self.state == "thinking":
            is_text = self.left > 0 and self.vocabulary.spelling(id) is not None
            return id == self.close or is_text
        if self.state == "thought":
            return id == self.call
        return self.inner.accepts(id)

    def allowed(self) -> Sequence[int]:
        """Every id that `accepts` takes, or as `inner` says."""
        if self.state == "called":
            return self.inner.allowed()
        return [id for id in range(self.size) if self.accepts(id)]

    def advance(self, id: int) -> None:
        """Takes note of the id that was chosen."""
        if id == self.call:
            self.state = "called"
        elif self.state == "begin":
            self.state = "thinking"
        elif self.state == "thinking":
            self.thought.append(id)
            self.left = 0 if is_loop(self.thought, THOUGHT_LOOP) else self.left - 1
            self.state = "thought" if id == self.close else "thinking"
        self.inner.advance(id)


@dataclass(frozen=True)
class CallRule:
    """What a call may be, and whether there has to be one.

    names: "offered" holds a call's names to the tools on offer, "constrained" all of it to their
    schemas, "free" nothing. choice: "auto", "none", "required", or the name of the tool that is to
    be called; the last two promise a call, so that it is constrained whatever `names` says.
    """

    names: Literal["offered", "constrained", "free"] = "offered"
    choice: str = "auto"


# Compiling takes some milliseconds, and a question's replies have one grammar
_grammar = lru_cache(maxsize=64)(CallGrammar)


def writes_json(wire: WireFormat) -> bool:
    """True for a format whose calls are JSON behind a tag, which is what guides can follow."""
    return wire.read_call is None


def guide_for(
    tokenizer: Tokenizer,
    tools: Sequence[Tool],
    rule: CallRule,
    *,
    room: int,
    must_speak: bool = False,
) -> Guide | None:
    """The guide of one reply of at most `room` ids; None where anything may come.

    Raises: ValueError for a tool to be called that is not on offer, no room for its call, or calls
    that no grammar can be made of. A call that has to come needs the library of `constrain.py`.
    """
    must_call = bool(tools) and rule.choice not in ("auto", "none")
    if must_call and rule.choice != "required":
        named = [tool for tool in tools if tool.name == rule.choice]
        if not named:
            offered = ", ".join(tool.name for tool in tools)
            raise ValueError(f"--call {rule.choice}: no such tool; the tools are {offered}")
        tools = named
    guide: Guide | None = None
    if must_call:
        # Names alone promise nothing: what follows the tag could be prose
        call = _call_guide(tokenizer, tools, room, may_call=True)
        least = len(call.grammar.start_plan) + 1
        if room < least:
            raise ValueError(f"a call takes {least} tokens, but there are {room}; allow for more")
        # At most half for the thought, or a long value would have no room; two are its tags.
        guide = MustCall(tokenizer, call, min(room // 2, room - least - 2))
    elif tools and rule.names == "constrained":
        guide = _call_guide(tokenizer, tools, room, may_call=rule.choice != "none")
    elif tools and rule.names == "offered" and writes_json(tokenizer.wire):
        guide = NameGuide(tokenizer, tools)
    return Speaking(tokenizer, guide) if must_speak else guide


def _call_guide(
    tokenizer: Tokenizer, tools: Sequence[Tool], room: int, *, may_call: bool
) -> CallGuide:
    if not writes_json(tokenizer.wire):
        raise ValueError(
            f"--constrain: calls of the format {tokenizer.format} are no JSON; leave it out"
        )
    shown = dump({tool.name: tool.parameters for tool in tools})
    return CallGuide(_grammar(tokenizer, shown), room, may_call=may_call)
