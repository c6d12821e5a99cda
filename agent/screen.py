"""How the events of a question are shown: as lines of JSON for programs, or as text for people."""

import json

from rich.console import Console

from agent.limits import Event
from common.cli import CONTROL, printable

STYLES = {
    "think": "dim italic",
    "text": "bold",
    "answer": "bold",
    "tool_call": "cyan",
    "tool_response": "green",
}
# The events that --json prints without --deltas
WHOLE = ("think", "tool_call", "tool_response", "answer")

# Without markup: to rich "[bold]" in an answer would be a command.
console = Console(highlight=False, markup=False, emoji=False)
errors = Console(highlight=False, markup=False, emoji=False, stderr=True)


class Screen:
    """Shows events as they happen; errors go to standard error."""

    def __init__(self, as_json: bool, with_deltas: bool = False) -> None:
        self.as_json, self.with_deltas = as_json, with_deltas
        self.writing = ""  # the kind of the text whose line has begun

    def show(self, event: Event) -> None:
        """Prints an event: an object of JSON on one line, or text."""
        if self.as_json and event.kind != "error":
            self._show_json(event)
        elif event.kind.endswith("_delta"):
            self._write(event.kind.removesuffix("_delta"), event.content)
        elif event.kind in ("think", "text", "answer") and self.writing:
            self._end_line()  # its text stands there already
        elif event.kind == "error":
            self._end_line()
            errors.print(printable(f"infer.py: {event.content}"), style="red", soft_wrap=True)
        elif event.kind != "done":
            self._end_line()
            text = event.content
            text = text if isinstance(text, str) else json.dumps(text, ensure_ascii=False)
            label = "" if event.kind in ("text", "answer") else f"{event.kind}: "
            # soft_wrap: rich would break long lines at the terminal's width, in pipes too.
            console.print(printable(label + text), style=STYLES[event.kind], soft_wrap=True)

    def _show_json(self, event: Event) -> None:
        if event.kind not in WHOLE and not self.with_deltas:
            return
        fields = {"type": event.kind, "content": event.content}
        # Flushed, so that a program at the other end of a pipe reads each event as it happens.
        line = json.dumps(fields, ensure_ascii=False)
        # JSON leaves DEL and the codes above it as they are; a terminal may obey them.
        print(CONTROL.sub(lambda code: f"\\u{ord(code[0]):04x}", line), flush=True)

    def _write(self, kind: str, text: str) -> None:
        """The next characters of a text, on the line that it has begun."""
        if self.writing != kind:
            self._end_line()
            self.writing = kind
            text = text if kind == "text" else f"{kind}: {text}"
        console.print(printable(text), style=STYLES[kind], soft_wrap=True, end="")
        console.file.flush()

    def _end_line(self) -> None:
        if self.writing:
            console.print()
        self.writing = ""
