"""What may come next in a reply, row by row: the objects that `model/generate.py` asks.

`NameGuide` is the default: names are those on offer, all else is the model's own.
"""

from collections.abc import Sequence
from functools import lru_cache

from agent.call_names import NAMING, CallNames, State
from agent.vocabulary import Vocabulary
from data.conversation import Tool
from data.tokenizer import Tokenizer

vocabulary_of = lru_cache(maxsize=4)(Vocabulary)  # one for all rows and replies


class NameGuide:
    """Holds the names in the calls of one reply to the tools on offer."""

    def __init__(self, tokenizer: Tokenizer, tools: Sequence[Tool]) -> None:
        self.names, self.vocabulary = CallNames(tools), vocabulary_of(tokenizer)
        self.opening = [tokenizer.tag_ids[tag] for tag in tokenizer.wire.call.tags[:1]]
        self.state: State | None = None  # None outside of calls
        self._tried: tuple[int, State | None] = (-1, None)

    def accepts(self, id: int) -> bool:
        """True if this id may come next."""
        if self.state is None:
            return True
        data = self.vocabulary.spelling(id)
        if data is None:
            return self.state.mode not in NAMING
        self._tried = id, self.names.feed(self.state, data)
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
        self._tried = (-1, None)

    def allowed(self) -> list[int]:
        """Every id that `accepts` takes; asked inside of calls only."""
        state, vocabulary = self.state, self.vocabulary
        assert state is not None
        ids = [] if state.mode in NAMING else list(vocabulary.control_ids)
        if state.mode in ("name", "argument"):
            pairs = []
            for name in self.names.spellings(state):
                if name.startswith(state.text):
                    rest = name[len(state.text) :] + bytes((state.quote,))
                    pairs += vocabulary.beginnings(rest) + vocabulary.continuations(rest)
        elif state.mode in ("outside", "call_key", "open_key", "value", "string"):
            # Free but for what leads on into a name
            ids += vocabulary.plain
            pairs = vocabulary.special
        else:
            pairs = vocabulary.leading
        return ids + [id for data, id in pairs if self.names.feed(state, data) is not None]


def name_guide(tokenizer: Tokenizer, tools: Sequence[Tool]) -> NameGuide | None:
    """The guide of one reply; None where no tool is on offer, and so no name is better."""
    return NameGuide(tokenizer, tools) if tools else None
