"""The rows in plain English: valid, reproducible, clean, and held out in fact."""

import re
from collections import Counter
from pathlib import Path

import pytest
from row_checks import CALL, calls_of, check_call, faults, prose, tools_of

from embedded.english.generate.corpus import CORPUS, HELD_OUT, tools
from embedded.english.rows import (
    HELDOUT_ROWS,
    Row,
    called_in,
    heldout_rows,
    is_odd,
    main,
    training_rows,
)

FOLDER = Path(__file__).parents[1] / "embedded" / "rows"


@pytest.fixture(scope="module")
def splits() -> tuple[list[Row], list[Row]]:
    rows = training_rows(0, 500)
    return rows, heldout_rows(0, rows)


def said_otherwise() -> set[str]:
    """The values of the corpus that people say in other words than they are passed."""
    names = {path.stem for path in CORPUS.glob("*.jsonl")}
    styles = [name for name in names if not re.search(r"talk|joins|frames|results|more", name)]
    arguments = [a for style in styles for tool in tools(style) for a in tool.arguments]
    return {str(v.value) for a in arguments for v in a.values if v.said != str(v.value)}


def test_calls_fit_their_tools_and_copy_their_values(splits: tuple[list[Row], list[Row]]) -> None:
    known, copied = said_otherwise(), 0
    for row in splits[0] + splits[1]:
        tools = tools_of(row)
        said = " ".join(m["content"] for m in row["conversations"] if m["role"] == "human").lower()
        for call in calls_of(row):
            check_call(call, tools)
            for value in call["arguments"].values():
                copied += str(value).lower() in said
                if isinstance(value, str) and value.lower() not in said:
                    assert value in known, (row["id"], value)
    assert copied > 1000


def test_each_kind_has_its_number_of_calls(splits: tuple[list[Row], list[Row]]) -> None:
    counts = {"one": 1, "two": 2, "none": 0, "missing": 0}
    for row in splits[0] + splits[1]:
        first = next(m["content"] for m in row["conversations"] if m["role"] == "model")
        assert len(CALL.findall(first)) == counts[row["kind"]]
        assert first.startswith("<think>") and "</think>" in first


def test_the_first_heldout_rows_hold_every_kind_in_its_share(
    splits: tuple[list[Row], list[Row]],
) -> None:
    for count in (50, 64, 128):
        drawn = Counter("-".join(row["id"].split("-")[1:3]) for row in splits[1][:count])
        for (seen, kind), total in HELDOUT_ROWS.items():
            share = total / sum(HELDOUT_ROWS.values())
            assert abs(drawn[f"{'seen' if seen else 'unseen'}-{kind}"] - share * count) <= 1


def test_unseen_rows_offer_no_tool_of_training_and_seen_ones_call_one(
    splits: tuple[list[Row], list[Row]],
) -> None:
    train, heldout = splits
    names = {name for row in train for name in tools_of(row)}
    for row in heldout:
        if "-unseen-" in row["id"]:
            assert not names & set(tools_of(row))
        else:
            assert called_in(row) and called_in(row) <= names


def test_no_request_of_a_held_out_tool_is_trained_on(splits: tuple[list[Row], list[Row]]) -> None:
    """Nor is its description: names may change, what a tool does stays."""
    held = {tool.description for style in HELD_OUT for tool in tools(style)}
    for row in splits[0]:
        assert not held & {tool.get("description") for tool in tools_of(row).values()}


def test_heldout_is_balanced(splits: tuple[list[Row], list[Row]]) -> None:
    for (seen, kind), count in HELDOUT_ROWS.items():
        prefix = f"heldout-{'seen' if seen else 'unseen'}-{kind}-"
        assert sum(row["id"].startswith(prefix) for row in splits[1]) == count


def test_the_command_writes_the_committed_bytes(tmp_path: Path) -> None:
    main(["--out", str(tmp_path), "--seed", "0"])
    for name in ("train.jsonl", "heldout.jsonl"):
        is_same = (tmp_path / name).read_bytes() == (FOLDER / name).read_bytes()
        assert is_same, f"run python -m embedded.english.rows for {name}"
    assert sum(path.stat().st_size for path in FOLDER.glob("*.jsonl")) < 4_500_000


def test_no_message_holds_what_nobody_writes(splits: tuple[list[Row], list[Row]]) -> None:
    for row in splits[0] + splits[1]:
        for where, text in prose(row):
            assert not faults(text), (where, text)
    for text in ("order a orchid", "the the moon", "two  spaces", "what , then", 'say "yes'):
        assert is_odd({"content": text})
