"""`python -m data.show`: what it says, the page, the image, and what it refuses."""

import json
import re
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from builders import time_row, time_rows
from matplotlib.image import imread

from common.constants import EMBEDDED_MODEL
from data.conversation import Conversation
from data.masks import MARKS
from data.schema import parse_row
from data.show import MAX_LINES, as_html, draw, main, show_rows
from data.tokenizer import Tokenizer

EXAMPLES = Path(__file__).parents[1] / "data" / "examples"


def conversation(question: str) -> Conversation:
    row = time_row("Oslo")
    row["conversations"][1]["content"] = question
    return parse_row(row, "rows.jsonl:1")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_pretrained(EMBEDDED_MODEL)


def test_the_terminal_shows_places_counts_and_what_is_learned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = time_rows(tmp_path)
    with rows.open("a", encoding="utf-8") as file:
        file.write('{"conversations": []}\n')
    assert main([str(rows), "--first", "2"]) == 0
    said = capsys.readouterr().out
    places = re.findall(r"^(rows\.jsonl:\d+): (\d+) of (\d+) tokens are learned$", said, re.M)
    assert [place for place, *_ in places] == ["rows.jsonl:1", "rows.jsonl:2"]
    assert all(0 < int(learned) < int(count) for _, learned, count in places)
    learned = said.partition("rows.jsonl:1")[2].partition(MARKS[0])[2].partition(MARKS[1])[0]
    assert learned.startswith("<think>I need the time.") and learned.endswith("<end_of_turn>")
    assert "1 of 13 rows cannot be read; first: rows.jsonl:13" in said
    assert main([str(rows), "--row", "3"]) == 0
    said = capsys.readouterr().out
    assert "rows.jsonl:3: " in said and "rows.jsonl:2: " not in said


def test_less_is_learned_with_train_on_tool_calls(capsys: pytest.CaptureFixture[str]) -> None:
    counts = []
    for what in ("assistant", "tool-calls"):
        assert main([str(EXAMPLES / "course.jsonl"), "--train-on", what]) == 0
        counts.append(int(re.findall(r": (\d+) of", capsys.readouterr().out)[0]))
    assert counts[0] > counts[1] > 0


def test_the_page_has_the_text_in_its_colours_and_no_markup_of_the_rows(
    tokenizer: Tokenizer,
) -> None:
    text = "<script>alert(1)</script> [red]$x_1$[/red] \x1b[2J &amp;"
    page = as_html(show_rows([conversation(text)], tokenizer, "assistant", marked=False))
    assert "<script" not in page and "\x1b" not in page
    plain = unescape(re.sub(r"<[^>]+>", "", page)).replace("\n", " ")
    assert "<script>alert(1)</script> [red]$x_1$[/red]" in plain and "&amp;" in plain
    learned = "".join(re.findall(r"color: #008000[^>]*>([^<]*)<", page))
    assert "I need the time." in learned and "alert" not in learned


def test_the_image_has_green_text_and_grey_text(tokenizer: Tokenizer, tmp_path: Path) -> None:
    draw(
        show_rows(
            [conversation("A formula: $\\frac{1}$.")],
            tokenizer,
            "assistant",
            marked=False,
        ),
        tmp_path / "a.png",
    )
    pixels = imread(tmp_path / "a.png")[..., :3]
    red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    ink = pixels.mean(-1) < 0.6
    is_green = ink & (green > red + 0.2) & (green > blue + 0.1)
    is_grey = ink & (np.abs(green - red) < 0.1)
    assert is_green.sum() > 500 and is_grey.sum() > 500
    assert not ink[:, -5:].any()  # nothing runs over the edge


def test_files_are_written_and_wrong_inputs_are_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, page, image = time_rows(tmp_path), tmp_path / "out.html", tmp_path / "out.png"
    assert main([str(rows), "--row", "1", "--html", str(page), "--png", str(image)]) == 0
    assert page.read_text().startswith("<!DOCTYPE html>") and imread(image).ndim == 3
    capsys.readouterr()
    long = tmp_path / "long.jsonl"
    long.write_text(json.dumps(time_row("word " * 20 * MAX_LINES)) + "\n")
    wrong = {
        (str(tmp_path / "none.jsonl"),): "none.jsonl",
        (str(rows), "--row", "13"): "has 12 rows, got 13",
        (str(rows), "--html", str(tmp_path / "no" / "out.html")): "out.html",
        (str(rows), "--model", str(tmp_path / "none")): "none",
        (str(long), "--png", str(tmp_path / "long.png")): f"at most {MAX_LINES} lines",
    }
    for flags, says in wrong.items():
        assert main(list(flags)) == 2
        said = capsys.readouterr().err
        assert says in said and said.count("\n") == 1 and said.startswith("data.show: ")
    assert not (tmp_path / "long.png").exists()
