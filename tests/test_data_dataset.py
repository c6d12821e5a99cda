"""Files are read whole or refused with their place; dropped and cut rows are counted."""

import json
import re
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from test_data_tokenizer import small_tokenizer

from data.conversation import Conversation, Message, Tool, ToolCall
from data.dataset import build_examples, load_conversations, split
from data.files import read_rows
from data.schema import parse_row


def row(user: str = "q", answer: str = "a") -> dict[str, Any]:
    return {
        "conversations": [{"role": "human", "content": user}, {"role": "model", "content": answer}]
    }


ROWS = [row("one"), row("two\u2028lines"), row("three")]
LINES = "\n".join(json.dumps(item, ensure_ascii=False) for item in ROWS)


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def users(path: Path | str) -> list[str]:
    return [conversation.messages[0].content for conversation in load_conversations(path)[0]]


def write_parquet(path: Path) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    return path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", LINES + "\n\n"),
        ("a.jsonl", "\ufeff" + LINES),
        ("a.json", json.dumps(ROWS)),
        ("a.json", LINES),
        ("a.json", json.dumps({"version": 1, "data": ROWS})),
        ("a.ndjson", LINES.replace("\n", "\r\n")),
    ],
)
def test_every_kind_of_file_gives_the_rows(tmp_path: Path, name: str, text: str) -> None:
    assert users(write(tmp_path, name, text)) == ["one", "two\u2028lines", "three"]


def test_parquet_files_give_the_rows(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet")
    assert users(path) == ["one", "two\u2028lines", "three"]
    assert [place for place, _ in read_rows(path)] == ["a.parquet:1", "a.parquet:2", "a.parquet:3"]
    with pytest.raises(ValueError, match="b.parquet: expected a Parquet file"):
        list(read_rows(write(tmp_path, "b.parquet", LINES)))


def test_one_row_alone_is_a_file_too(tmp_path: Path) -> None:
    assert users(write(tmp_path, "a.json", json.dumps(ROWS[0]))) == ["one"]


def test_a_folder_gives_its_training_files(tmp_path: Path) -> None:
    write(tmp_path, "test-0.jsonl", json.dumps(row("test")))
    (tmp_path / "data").mkdir()
    write(tmp_path / "data", "train-1.jsonl", json.dumps(row("b")))
    write(tmp_path / "data", "train-0.jsonl", json.dumps(row("a")))
    assert users(tmp_path) == ["a", "b"]
    write_parquet(tmp_path / "train.parquet")
    assert users(tmp_path) == ["one", "two\u2028lines", "three"]
    (tmp_path / "none").mkdir()
    with pytest.raises(
        FileNotFoundError, match="expected Parquet, JSONL or JSON files in the folder, got none"
    ):
        list(read_rows(tmp_path / "none"))


def test_a_hub_id_is_downloaded_as_a_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def download(name: str, **options: Any) -> str:
        asked.update(name=name, **options)
        return str(tmp_path)

    write(tmp_path, "train.jsonl", LINES)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert len(users("owner/set")) == 3
    assert (
        asked["name"] == "owner/set"
        and asked["repo_type"] == "dataset"
        and "*.parquet" in asked["allow_patterns"]
    )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "a.jsonl: expected at least one row, got an empty file"),
        ("a.json", b" ", "a.json: expected at least one row, got an empty file"),
        ("a.json", b"[]", "a.json: expected at least one row, got an empty file"),
        ("a.jsonl", b'{"a": "\xff"}', "a.jsonl: expected UTF-8"),
        ("a.jsonl", b"x\n" * 9, "and 4 more"),
        ("a.jsonl", b"[]\n", "a.jsonl:1: expected a JSON object, got '[]'"),
        ("a.json", b"[1,\n2", "a.json:2: expected JSON"),
        ("a.json", b"[{}, 5]", "a.json:2: expected a JSON object, got '5'"),
        ("a.json", b'{"a": [], "b": []}', "expected an object with one list of rows, got 2 lists"),
    ],
)
def test_broken_files_are_refused_with_their_place(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError) as caught:
        load_conversations(tmp_path / name)
    assert message in str(caught.value)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_a_broken_line_costs_its_own_row_and_has_one_place(tmp_path: Path, name: str) -> None:
    lines = [*LINES.split("\n"), '{"conv', "[]", '{"messages": [] "id": 1}']
    path = write(tmp_path, name, "\n".join(lines) + "\n")
    rows, report = load_conversations(path)
    assert len(rows) == 3 and report.rows == 6
    expected = "expected one JSON object on the line, got"
    end = "); repair or remove the line"
    assert report.dropped == [
        f"{name}:4: {expected} '{{\"conv' (Unterminated string starting at, column 2{end}",
        f"{name}:5: expected a JSON object, got '[]'; wrap it in {{...}}",
        f'{name}:6: {expected} \'{{"messages": [] "id": 1}}\' '
        f"(Expecting ',' delimiter, column 17{end}",
    ]
    with pytest.raises(ValueError, match="expected at most 40% unreadable rows, got 3 of 6"):
        load_conversations(path, max_dropped=0.4)


@pytest.mark.parametrize(("bad", "count"), [(7, 19), (29, 100), (1, 3), (3, 6)])
def test_the_share_that_an_error_names_is_enough(tmp_path: Path, bad: int, count: int) -> None:
    lines = ["{}"] * bad + [json.dumps(row("q"))] * (count - bad)
    path = write(tmp_path, "a.jsonl", "\n".join(lines))
    with pytest.raises(ValueError) as caught:
        load_conversations(path, max_dropped=0.05)
    named = re.findall(r"allow them with --max-dropped (\S+),", str(caught.value))
    enough = float(named[0])
    assert len(load_conversations(path, max_dropped=enough)[1].dropped) == bad
    with pytest.raises(ValueError):
        load_conversations(path, max_dropped=enough - 0.001)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent.jsonl: no such file or folder"):
        load_conversations(tmp_path / "absent.jsonl")


def test_bad_rows_are_dropped_and_named_unless_all_are(tmp_path: Path) -> None:
    call = row(answer="<tool_call>{'name': 'f', 'arguments': {}}</tool_call>")
    lines = [row("ok"), {"conversations": []}, call, row(answer="<think>")]
    conversations, report = load_conversations(
        write(tmp_path, "a.jsonl", "\n".join(map(json.dumps, lines)))
    )
    assert len(conversations) == 2 and report.rows == 4
    assert [reason.split(": ")[0] for reason in report.dropped] == ["a.jsonl:2", "a.jsonl:4"]
    assert report.as_dict()["repairs"] == {"python_literal": 1} and report.repaired_rows == 1
    with pytest.raises(
        ValueError, match="got 1 unreadable rows:\nb.jsonl:1: expected a list of messages"
    ):
        load_conversations(write(tmp_path, "b.jsonl", '{"conversations": []}'))


def conversation(
    user: str, answer: str = "a", where: str = "", tools: str = "", trained: bool = True
) -> Conversation:
    calls = tuple(ToolCall(name, {}) for name in tools)
    turns = (Message("user", user), Message("model", answer, calls=calls, trained=trained))
    return Conversation(turns, tuple(Tool(name) for name in tools), where=where)


def test_overlong_examples_are_dropped_cut_or_refused() -> None:
    tokenizer = small_tokenizer()
    rows = [
        conversation("q", "a", "f:1"),
        conversation("q", "a" * 90, "f:2"),
        conversation("q" * 90, "a", "f:3"),
    ]
    examples, report = build_examples(rows, tokenizer, 60)
    assert [example.where for example in examples] == ["f:1"] and report.dropped_overlong == [
        "f:2",
        "f:3",
    ]
    examples, report = build_examples(rows, tokenizer, 60, "truncate")
    assert [len(example.tokens) for example in examples][1:] == [60] and report.truncated == ["f:2"]
    assert report.dropped_overlong == ["f:3"] and all(
        example.num_supervised for example in examples
    )
    whole = build_examples(rows, tokenizer, 500)[0][1]
    assert examples[1].tokens == whole.tokens[:60] and examples[1].trainable == whole.trainable[:60]
    with pytest.raises(ValueError, match="f:2: expected at most 60 tokens, got"):
        build_examples(rows, tokenizer, 60, "error")
    with pytest.raises(ValueError, match="expected overlong out of drop, truncate, error"):
        build_examples(rows, tokenizer, 60, "cut")


def test_examples_without_a_target_are_dropped_and_none_at_all_is_an_error() -> None:
    tokenizer = small_tokenizer()
    untrained = conversation("q", where="f:1", trained=False)
    examples, report = build_examples([untrained, conversation("q", "b", "f:2")], tokenizer, 99)
    assert len(examples) == 1 and report.dropped_unsupervised == ["f:1"]
    assert report.supervised_tokens == sum(examples[0].trainable) and report.tokens == len(
        examples[0].tokens
    )
    with pytest.raises(
        ValueError,
        match="expected supervised tokens, got none: 0 rows are longer than 99 tokens, 1 have",
    ):
        build_examples([untrained], tokenizer, 99)
    with pytest.raises(ValueError, match="1 rows are longer than 5 tokens"):
        build_examples([conversation("q")], tokenizer, 5)
    with pytest.raises(ValueError, match="got none"):
        build_examples([conversation("q")], tokenizer, 99, train_on="tool-calls")


def test_equal_rows_are_named_and_kept() -> None:
    rows = [
        conversation("q", where="f:1"),
        conversation("r", where="f:2"),
        conversation("q", where="f:3"),
    ]
    examples, report = build_examples(rows, small_tokenizer(), 99)
    assert len(examples) == 3 and report.duplicates == [("f:3", "f:1")]
    assert report.as_dict()["duplicates"] == 1


def test_a_split_holds_out_tools_and_keeps_equal_rows_together() -> None:
    rows = [
        conversation(
            f"q{n}", where=f"f:{n}", tools="abcdefghij"[n % 10] + ("z" if n % 10 < 4 else "")
        )
        for n in range(100)
    ]
    rows += [conversation("twin", where=f"t:{n}") for n in range(20)]
    for seed in range(4):
        train, held = split(rows, 0.3, seed)
        assert len(train) + len(held) == 120 and 36 <= len(held) <= 36 + 20
        seen = {name for row in train for name in row.tool_names}
        unseen = [row for row in held if row.tool_names and row.tool_names.isdisjoint(seen)]
        assert 10 <= len(unseen) <= 20
        assert not {repr(row.messages) for row in train} & {repr(row.messages) for row in held}
        assert [row.where for row in train] == [row.where for row in rows if row in train]
        assert (train, held) == split(rows, 0.3, seed)
    assert split(rows, 0.3, 0) != split(rows, 0.3, 1)


def test_a_split_of_few_rows() -> None:
    rows = [conversation("q"), conversation("r")]
    assert split(rows, 0, 0) == (rows, [])
    train, held = split(rows, 0.01, 0)
    assert len(train) == len(held) == 1
    shared = [conversation(f"q{n}", tools="a") for n in range(10)]
    assert [len(side) for side in split(shared, 0.2, 0)] == [8, 2]
    with pytest.raises(ValueError, match="expected two different rows to hold one out, got 2"):
        split([rows[0], rows[0]], 0.5, 0)
    with pytest.raises(
        ValueError, match="eval fraction: expected at least 0 and less than 1, got 1.5"
    ):
        split(rows, 1.5, 0)


def test_a_row_read_twice_is_on_one_side() -> None:
    first, second = parse_row(row(), "a:1"), parse_row(row(), "a:9")
    assert first == second
    train, held = split([first, second, parse_row(row("other"))], 0.4, 3)
    assert (first in train) != (first in held)
