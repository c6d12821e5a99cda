"""`python -m data.show FILE`: conversations as training sees them, with what is learned in colour.

    python -m data.show rows.jsonl                          # in the terminal
    python -m data.show rows.jsonl --row 7 --html row7.html --png row7.png

Separate from `masks.py`, which styles one example: here files are read and pages are written.
"""

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from common.atomic import replace_file, write_text
from common.cli import USER_ERRORS, Parser, int_at_least, printable
from common.constants import EMBEDDED_MODEL
from common.screen import Screen, has_colour
from data.chat import TRAINED, render
from data.conversation import Conversation
from data.dataset import load_conversations
from data.masks import GIVEN_STYLE, legend, mask_text
from data.tokenizer import Tokenizer
from data.wire import FORMATS

WIDTH = 100  # characters of a line of a page or an image
MAX_LINES = 600  # of an image, which would be taller than any program shows
# A character of DejaVu Sans Mono is 0.602 of the font's size wide. Drawn, it is a whole number of
# pixels: with any other size the pieces of a line would drift away from their columns.
DPI, PIXELS, LEADING = 150, 11, 1.35
FONT_POINTS = PIXELS / 0.60205 * 72 / DPI
TRAINED_INK, GIVEN_INK = "#0a7d32", "#6b7280"  # both legible on white
PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>What the model learns to write</title>
<style>{stylesheet} body {{ color: {foreground}; background: {background}; }}</style></head>
<body><pre style="font-family: ui-monospace, monospace; line-height: 1.35">{code}</pre></body>
</html>
"""


def show_rows(
    rows: Sequence[Conversation], tokenizer: Tokenizer, train_on: str, *, marked: bool
) -> list[Text]:
    """A legend, then each conversation under a line with its place and its numbers of tokens.

    marked: what is learned stands between marks, for a screen without colours.
    """
    shown = [legend(marked)]
    for row in rows:
        example = render(row, tokenizer, train_on)
        count, all_tokens = example.num_supervised, len(example.tokens)
        title = f"\n{row.where}: {count:,} of {all_tokens:,} tokens are learned\n"
        shown.append(Text(title, "bold"))
        text = mask_text(example, tokenizer, marked=marked)
        text.plain = printable(text.plain)  # a page has no screen that would do it
        shown.append(text)
    return shown


def as_html(texts: Sequence[Text]) -> str:
    """The texts as one page, which needs no other file."""
    console = _paper()
    console.print(*texts, sep="\n")
    return console.export_html(code_format=PAGE, inline_styles=True)


def draw(texts: Sequence[Text], path: Path) -> None:
    """Writes the texts as a PNG image.

    Raises: ValueError for more than MAX_LINES lines.
    """
    from matplotlib.figure import Figure  # seconds, which the terminal need not wait for

    console = _paper()
    lines = [line for text in texts for line in console.render_lines(text, pad=False)]
    if len(lines) > MAX_LINES:
        raise ValueError(
            f"--png: expected at most {MAX_LINES} lines, got {len(lines)}; show fewer rows with "
            "--first or --row, or write a page with --html"
        )
    advance, height = PIXELS / DPI, FONT_POINTS * LEADING / 72  # inches
    size = (WIDTH + 4) * advance, (len(lines) + 2) * height
    figure = Figure(figsize=size, facecolor="white")
    for number, line in enumerate(lines, start=1):
        column = 2
        for segment in line:
            style = segment.style
            is_bold = style is not None and bool(style.bold)
            ink = TRAINED_INK if style is not None and style.color else GIVEN_INK
            if is_bold and ink == GIVEN_INK:
                ink = "black"  # a title
            # As text alone: matplotlib would read what stands between dollars as a formula.
            figure.text(
                column * advance / size[0],
                1 - (number + 0.5) * height / size[1],
                segment.text.rstrip("\n"),
                color=ink,
                weight="bold" if is_bold else "normal",
                fontsize=FONT_POINTS,
                family="monospace",
                parse_math=False,
            )
            column += segment.cell_length
    replace_file(path, lambda partial: figure.savefig(partial, dpi=DPI, format="png"))


def _paper() -> Console:
    """A console of WIDTH columns and full colours that keeps what is printed on it."""
    return Console(
        file=io.StringIO(), record=True, width=WIDTH, force_terminal=True, color_system="truecolor"
    )


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser("Draws conversations as training sees them, with what is learned in colour.")
    parser.prog = "python -m data.show"
    parser.add_argument("file", metavar="FILE", help="rows: a file, a folder or a hub id")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--first", type=int_at_least(1), default=3, metavar="N", help="rows shown")
    one = "the N-th row that can be read, and no other; default: the first ones"
    which.add_argument("--row", type=int_at_least(1), metavar="N", help=one)
    model = "folder or hub id whose tokenizer is used; default: the embedded base"
    parser.add_argument("--model", default=str(EMBEDDED_MODEL), help=model)
    parser.add_argument("--format", choices=FORMATS, help="default: the model's own, or hermes")
    parser.add_argument(
        "--train-on", choices=tuple(TRAINED), default="assistant", help="loss on what"
    )
    page, image = "write a page, too; default: none", "write an image, too; default: none"
    parser.add_argument("--html", type=Path, metavar="OUT", help=page)
    parser.add_argument("--png", type=Path, metavar="OUT", help=image)
    return parser.parse_args(argv)


def choose(args: argparse.Namespace, rows: Sequence[Conversation]) -> Sequence[Conversation]:
    """The rows that the flags ask for. Raises: ValueError for one that is not there."""
    if args.row is None:
        return rows[: args.first]
    if args.row > len(rows):
        raise ValueError(f"--row: {args.file} has {len(rows)} rows, got {args.row}; give a smaller")
    return rows[args.row - 1 : args.row]


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 for a wrong input."""
    args, console = parse_args(argv), Screen()
    try:
        tokenizer = Tokenizer.from_pretrained(args.model, args.format)
        rows, report = load_conversations(args.file)
        chosen = choose(args, rows)
        marked = not has_colour(console)
        for text in show_rows(chosen, tokenizer, args.train_on, marked=marked):
            console.print(text, soft_wrap=True)
        if report.dropped:
            first = printable(report.dropped[0])
            left = f"\n{len(report.dropped)} of {report.rows} rows cannot be read; first: {first}"
            console.print(Text(left, GIVEN_STYLE), soft_wrap=True)
        # In colour whatever the terminal has.
        texts = show_rows(chosen, tokenizer, args.train_on, marked=False)
        if args.html:
            write_text(args.html, as_html(texts))
        if args.png:
            draw(texts, args.png)
    except (*USER_ERRORS, OSError) as error:
        print(printable(f"data.show: {error}"), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
