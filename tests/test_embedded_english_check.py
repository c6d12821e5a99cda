"""The check of hand-written tools: the corpus passes, and each kind of mistake is named."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from embedded.english.check import FURTHER, file_problems, main
from embedded.english.generate.corpus import CORPUS, HELD_OUT
from embedded.english.stages import STAGES

STYLES = sorted({style for stage in STAGES for style in stage.recipe.styles} | set(HELD_OUT))


def new_tool() -> dict[str, Any]:
    properties = {"city": {"type": "string"}, "days": {"type": "integer"}}
    return {
        "name": "get_forecast",
        "description": "The weather of the next days",
        "parameters": {"type": "object", "properties": properties, "required": ["city"]},
        "values": {"city": [f"Town {n}" for n in range(8)], "days": list(range(1, 9))},
        "requests": [f"weather in {{city}}, {n}" for n in range(16)],
        "asks": [{"text": "weather for {days} days", "missing": "city"}],
        "nofit": ["make it rain"],
    }


def problems(*tools: dict[str, Any]) -> list[str]:
    return list(file_problems([json.dumps(tool) for tool in tools], Counter()))


@pytest.mark.parametrize("style", STYLES)
def test_every_style_of_the_corpus_passes(style: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(CORPUS / f"{style}.jsonl")]) == 0
    assert "0 problems" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("requests", ["in {town} and {city}"] * 16, "no argument is called town"),
        ("requests", ["weather"] * 16, "lacks the required city"),
        ("requests", ["{city} {city}"] * 16, "a slot stands twice"),
        ("requests", ["in {city}"] * 16, "at least 6 different requests, got 1"),
        ("asks", [{"text": "in {city}", "missing": "city"}], "all required arguments but 'city'"),
        ("values", {"city": ["Oslo"] * 8, "days": [True] * 8}, "type integer, got True"),
        ("values", {"city": ["Oslo"] * 4, "days": [1] * 8}, "city: expected at least 5 values"),
        ("values", {"city": [{"said": "x"}] * 8, "days": [1] * 8}, "keys said and value"),
        ("extra", 1, "expected the keys"),
    ],
)
def test_a_mistake_is_named_with_its_line(key: str, value: Any, expected: str) -> None:
    assert problems(new_tool()) == []
    found = problems(new_tool() | {"name": "other"}, new_tool() | {key: value})
    assert found and all(one.startswith("line 2: get_forecast: ") for one in found)
    assert any(expected in one for one in found), found


def test_a_name_used_twice_and_a_broken_line_are_problems(tmp_path: Path) -> None:
    assert problems(new_tool(), new_tool()) == ["line 2: get_forecast: line 1 has this name too"]
    (tmp_path / "tools.jsonl").write_text("{\n", encoding="utf-8")
    assert main([str(tmp_path / "tools.jsonl")]) == 1
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path / "none.jsonl")])


# ------------------------------------------------------------------------------- further lines


@pytest.mark.parametrize("file", sorted(CORPUS.glob(f"*{FURTHER}")), ids=lambda file: file.name)
def test_every_file_of_further_lines_passes(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(file)]) == 0
    assert "0 problems" in capsys.readouterr().out


def new_more() -> dict[str, Any]:
    return {
        "name": "get_forecast",
        "remarks": ["What a summer."],
        "questions": ["Why is the sky blue?"],
        "twice": ["Weather in {city} and |in {city_2}."],
        "asks": [{"text": "weather for {days} days", "missing": "city"}],
    }


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("name", "get_past", "no tool of the file has this name"),
        ("remarks", ["In {city}."], "words without a slot"),
        ("twice", ["{city} and |{town_2}"], "no argument is called town_2"),
        ("twice", ["{days} or |{days_2}"], "lacks the required city"),
        ("twice", ["{city} and {city_2}"], "one | and after it {argument_2}"),
        ("twice", ["{city} and |{days}"], "one | and after it {argument_2}"),
        ("twice", ["{city_2} and |{city}"], "one | and after it {argument_2}"),
        ("asks", [{"text": "in {city}", "missing": "city"}], "all required arguments but 'city'"),
        ("twice", ["in |{city_2} and {city}"], "one | and after it {argument_2}"),
        ("remarks", "What a summer.", "remarks: expected a list of texts"),
        ("asks", ["weather"], "asks: expected a list of objects"),
        ("name", ["get_forecast"], "no tool of the file has this name"),
        ("extra", 1, "expected the keys"),
    ],
)
def test_a_mistake_in_a_further_line_is_named(key: str, value: Any, expected: str) -> None:
    tools = {"get_forecast": new_tool()}
    whole, bad = json.dumps(new_more()), json.dumps(new_more() | {key: value})
    assert list(file_problems([whole], Counter(), tools)) == []
    found = list(file_problems([bad], Counter(), tools))
    assert all(one.startswith("line 1: ") for one in found)
    assert any(expected in one for one in found), found
