"""A reply that must call a tool: the guide behind `tool_choice` required, and a named tool."""

from collections.abc import Sequence

from data.tokenizer import Tokenizer
from model.generate import Guide


class MustCall:
    """Thinks or calls, and after its thoughts calls; inside of a call `inner` decides.

    thoughts: ids that thinking may take before it is closed. Which of the two begins is the
    model's choice, because one that has learned to think first calls worse without.
    """

    def __init__(self, tokenizer: Tokenizer, inner: Guide | None, thoughts: int) -> None:
        self.inner, self.left = inner, thoughts
        self.size, self.ends = len(tokenizer), tokenizer.turn_ends
        call, thinking = tokenizer.wire.call.tags, tokenizer.wire.thinking.tags
        self.call = tokenizer.tag_ids[call[0]]
        # A format without tags for thinking calls at once
        self.think = tokenizer.tag_ids[thinking[0]] if thinking else None
        self.close = tokenizer.tag_ids[thinking[1]] if thinking else None
        self.state = "begin"  # begin, thinking, thought, called

    def accepts(self, id: int) -> bool:
        """True if this id may come next."""
        if self.state == "begin":
            return id in (self.call, self.think)
        if self.state == "thinking":
            return id == self.close if self.left <= 0 else id not in (self.call, *self.ends)
        if self.state == "thought":
            return id == self.call
        return self.inner is None or self.inner.accepts(id)

    def allowed(self) -> Sequence[int]:
        """Every id that `accepts` takes."""
        if self.state == "called" and self.inner is not None:
            return self.inner.allowed()
        return [id for id in range(self.size) if self.accepts(id)]

    def advance(self, id: int) -> None:
        """Takes note of the id that was chosen."""
        if id == self.call:
            self.state = "called"
        elif self.state == "begin":
            self.state = "thinking"
        elif self.state == "thinking":
            self.left -= 1
            self.state = "thought" if id == self.close else "thinking"
        if self.inner is not None:
            self.inner.advance(id)
