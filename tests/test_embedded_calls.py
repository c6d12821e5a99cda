"""The generated rows: valid, reproducible, and held-out in fact."""

import itertools
import json
import re
from collections import Counter
from pathlib import Path

import pytest
from row_checks import CALL, calls_of, check_call, tools_of

from embedded.generate.__main__ import main
from embedded.generate.calls import HELDOUT_ROWS, Row, heldout_rows, training_rows

FOLDER = Path(__file__).parents[1] / "embedded" / "rows"
WISH = re.compile(r"(?:<think>|\. )([^.:<>]+): (\w+) fits\.")


@pytest.fixture(scope="module")
def splits() -> tuple[list[Row], list[Row]]:
    rows, tools = training_rows(0)
    return rows, heldout_rows(0, tools)


def test_calls_fit_their_tools_and_copy_their_values(splits: tuple[list[Row], list[Row]]) -> None:
    for row in splits[0] + splits[1]:
        tools = tools_of(row)
        said = " ".join(m["content"] for m in row["conversations"] if m["role"] == "human")
        for call in calls_of(row):
            check_call(call, tools)
            values = [v for v in call["arguments"].values() if not isinstance(v, bool)]
            assert all(str(value) in said for value in values), row["id"]


def test_each_kind_has_its_number_of_calls(splits: tuple[list[Row], list[Row]]) -> None:
    counts = {"one": 1, "two": 2, "none": 0, "missing": 0}
    for row in splits[0] + splits[1]:
        first = next(m["content"] for m in row["conversations"] if m["role"] == "model")
        assert len(CALL.findall(first)) == counts[row["kind"]]
        assert first.startswith("<think>") and "</think>" in first


def test_a_thought_repeats_the_request_in_words_of_the_user_or_of_the_tool(
    splits: tuple[list[Row], list[Row]],
) -> None:
    for row in splits[0] + splits[1]:
        tools = tools_of(row)
        for asked, said in itertools.pairwise(row["conversations"]):
            for wish, name in WISH.findall(said["content"] if said["role"] == "model" else ""):
                if name != "none":  # what no tool does may have been asked for in an idiom
                    known = asked["content"].lower() + tools[name]["description"]
                    assert all(word in known for word in wish.split()), (row["id"], wish)


def test_the_first_heldout_rows_hold_every_kind_in_its_share(
    splits: tuple[list[Row], list[Row]],
) -> None:
    for count in (50, 64, 128):
        drawn = Counter("-".join(row["id"].split("-")[1:3]) for row in splits[1][:count])
        for (seen, kind), total in HELDOUT_ROWS.items():
            share = total / sum(HELDOUT_ROWS.values())
            assert abs(drawn[f"{'seen' if seen else 'unseen'}-{kind}"] - share * count) <= 1


def test_other_training_tools_leave_the_unseen_rows_alone(
    splits: tuple[list[Row], list[Row]],
) -> None:
    """What a change of the training rows does to the accuracy is then no matter of other rows."""
    others = heldout_rows(0, training_rows(1, 40)[1])
    before = {row["id"]: row for row in splits[1] if "-unseen-one-" in row["id"]}
    assert sum(row == before.get(row["id"]) for row in others) > 0.5 * len(before)


def test_heldout_shares_no_value_and_unseen_no_name(splits: tuple[list[Row], list[Row]]) -> None:
    train, heldout = splits

    def values(rows: list[Row]) -> set[str]:
        given = [v for row in rows for call in calls_of(row) for v in call["arguments"].values()]
        return {str(v).lower() for v in given if not isinstance(v, bool)}

    assert not values(train) & values(heldout)
    names = {name for row in train for name in tools_of(row)}
    for row in heldout:
        called = {call["name"] for call in calls_of(row)}
        if "-unseen-" in row["id"]:
            assert not names & set(tools_of(row))
        else:
            assert called <= names


def test_heldout_shares_no_question_words_in_a_row(splits: tuple[list[Row], list[Row]]) -> None:
    """The first three words of a held-out system sentence never open a training row's."""
    openings = []
    for rows in splits:
        systems = [row["conversations"][0]["content"] for row in rows]
        openings.append({system.split(" <tools>")[0] for system in systems})
    assert not openings[0] & openings[1]


def test_heldout_is_balanced(splits: tuple[list[Row], list[Row]]) -> None:
    for (seen, kind), count in HELDOUT_ROWS.items():
        prefix = f"heldout-{'seen' if seen else 'unseen'}-{kind}-"
        assert sum(row["id"].startswith(prefix) for row in splits[1]) == count


def test_the_command_writes_the_committed_bytes(tmp_path: Path) -> None:
    main(["--out", str(tmp_path), "--seed", "0"])
    for name in ("train.jsonl", "heldout.jsonl"):
        is_same = (tmp_path / name).read_bytes() == (FOLDER / name).read_bytes()
        assert is_same, f"run python -m embedded.generate for {name}"
    assert sum(path.stat().st_size for path in FOLDER.glob("*.jsonl")) < 4_000_000


def test_questions_written_by_hand_fit_their_tools() -> None:
    lines = (FOLDER / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    counts = Counter(row["kind"] for row in rows)
    assert counts == {"one": 30, "two": 10, "none": 12, "missing": 8}
    for row in rows:
        tools = tools_of(row)
        for call in calls_of(row):
            check_call(call, tools)
