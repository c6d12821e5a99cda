"""The word lists: their notation, and that no editor has changed what a list means."""

import tomllib
from pathlib import Path

import pytest

from embedded.generate import lists

GREETINGS = """\
## A remark before the first list.
# greetings
[good |]morning[, {n}|!]
hello and
  [ good| bad] day

[not a choice] \\n end
! ^morning!
! bad

# second
key: value: more
"""


@pytest.fixture
def greetings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """words/greetings.txt is GREETINGS."""
    (tmp_path / "greetings.txt").write_text(GREETINGS)
    monkeypatch.setattr(lists, "FOLDER", tmp_path)
    monkeypatch.setattr(lists, "read", lists.read.__wrapped__)  # without the cache


@pytest.mark.usefixtures("greetings")
def test_choices_expand_in_order_and_other_lines_are_themselves() -> None:
    assert lists.entries("greetings", "greetings") == (
        *("good morning, {n}", "good morning!", "morning, {n}", "morning!"),
        *("hello and good day", "hello and bad day"),
        "[not a choice] \n end",
    )


@pytest.mark.usefixtures("greetings")
def test_an_exclusion_leaves_its_place() -> None:
    shuffled = lists.shuffled("greetings", "greetings")
    kept = {text for text in shuffled if text is not None}
    excluded = {"morning!", "hello and bad day"}
    assert len(shuffled) == 7 and kept == {*lists.entries("greetings", "greetings")} - excluded
    # Without the exclusions the others are in the same places.
    lines = GREETINGS.replace("! ^morning!\n! bad\n", "")
    (lists.FOLDER / "greetings.txt").write_text(lines)
    every = lists.shuffled("greetings", "greetings")
    assert None not in every
    assert [text if text in kept else None for text in every] == [*shuffled]


@pytest.mark.usefixtures("greetings")
def test_a_table_divides_at_the_first_colon() -> None:
    assert lists.table("greetings", "second") == {"key": "value: more"}


@pytest.mark.usefixtures("greetings")
def test_a_name_used_twice_is_refused() -> None:
    (lists.FOLDER / "greetings.txt").write_text("# a\nx\n\n# a\ny\n")
    with pytest.raises(ValueError, match=r"words/greetings\.txt: two lists are called 'a'"):
        lists.read("greetings")


def test_an_installed_package_has_the_lists() -> None:
    pyproject = Path(__file__).parents[1] / "pyproject.toml"
    with pyproject.open("rb") as file:
        setuptools = tomllib.load(file)["tool"]["setuptools"]
    assert lists.FOLDER.name == "words" and any(lists.FOLDER.glob("*.txt"))
    assert setuptools["package-data"]["embedded.generate"] == ["words/*.txt"]


@pytest.mark.parametrize("file", sorted(path.stem for path in lists.FOLDER.glob("*.txt")))
def test_a_list_has_no_meaning_that_an_editor_would_remove(file: str) -> None:
    for line in (lists.FOLDER / f"{file}.txt").read_text(encoding="utf-8").splitlines():
        assert line == line.rstrip() and "\t" not in line
    for name, lines in lists.read(file).items():
        assert lines, name
        for line in lines:
            assert line.count("[") == line.count("]"), line
