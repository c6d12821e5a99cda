"""Data sets from strangers: bounded time and memory, one sentence, and a bad row costs no other."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data import files
from data.dataset import load_conversations
from data.files import read_rows
from data.forms.spellings import find_tools
from data.lenient_json import MAX_ROW
from data.schema import MAX_MESSAGES, parse_row
from data.tool_calls import MAX_TOOLS

ROOT = Path(__file__).parents[1]
MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
GOOD = {"messages": MESSAGES}
# A call that leaves an argument null makes the reader look into the argument's schema
NULL_CALL = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"x": None}}]},
]


def with_schema(schema: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {"x": schema}}
    return {"messages": NULL_CALL, "tools": [{"name": "f", "parameters": parameters}]}


def said(role: str, text: str) -> dict[str, Any]:
    """A row in the course's form in which one message is `text`."""
    call = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    turns = {"system": "s", "human": "q", "model": call, "tool": "r"} | {role: text}
    messages = [{"role": name, "content": content} for name, content in turns.items()]
    return {"conversations": [*messages, {"role": "model", "content": "a"}]}


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


BAD_ROWS: dict[str, Any] = {
    "anyOf": (with_schema({"anyOf": 5}), "expected a list under 'anyOf', got '5'"),
    "enum": (with_schema({"enum": 5}), "expected a list under 'enum'"),
    "type": (with_schema({"type": 5}), "expected a list under 'type'"),
    "compact": (
        {"messages": NULL_CALL, "tools": [{"name": "f", "parameters": {"x": {"enum": 5}}}]},
        "expected a list under 'enum'",
    ),
    "properties": (
        {
            "messages": MESSAGES,
            "tools": [{"name": "f", "parameters": {"type": "object", "properties": []}}],
        },
        "expected properties as an object",
    ),
    "depth of 100": ({**GOOD, "extra": nested(100)}, "at most 64 nested levels"),
    "depth of 900": ({**GOOD, "extra": nested(900)}, "at most 64 nested levels"),
    "schema of depth": (
        {"messages": MESSAGES, "tools": [{"name": "f", "parameters": '{"items":' * 990}]},
        "tools: tool 1",
    ),
    "size": ({**GOOD, "extra": "x" * (MAX_ROW + 1)}, f"at most {MAX_ROW} characters"),
    "values": ({**GOOD, "extra": [0] * (MAX_ROW + 1)}, f"at most {MAX_ROW} characters"),
    "messages": ({"messages": MESSAGES * MAX_MESSAGES}, f"at most {MAX_MESSAGES} messages"),
    "tools": ({**GOOD, "tools": [{"name": "f"}] * (MAX_TOOLS + 1)}, f"at most {MAX_TOOLS} tools"),
    "half an open block": (said("system", "<tools>[" * 100_000), "complete list of tools"),
    "broken calls": (said("model", "<tool_call>[</tool_call>" * 4000), "3995 more broken calls"),
}
# Texts that a scan from each tag to the end of the text would take minutes for, each of which is a
# row like any other, or a bad one
LONG = {
    "blocks": ("system", "<tools>["),
    "blocks in strings": ("system", '<tools>["'),
    "blocks and escapes": ("system", '<tools>[\\"'),
    "lists in one block": ("system", "[]"),
    "calls": ("model", "<tool_call>[</tool_call>"),
    "calls in strings": ("model", '<tool_call>["</tool_call>'),
    "calls and escapes": ("model", '<tool_call>[\\"</tool_call>'),
    "thoughts": ("model", "<think></think>"),
    "results": ("tool", "<tool_response></tool_response>"),
    "results in strings": ("tool", '<tool_response>["</tool_response>'),
    "results and escapes": ("tool", '<tool_response>[\\"</tool_response>'),
}
ENDS = {"system": ("<tools>", "</tools>"), "model": ("", ""), "tool": ("", "")}


def write_lines(path: Path, *rows: Any) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_row_is_dropped_and_named_and_costs_no_other(tmp_path: Path, name: str) -> None:
    row, message = BAD_ROWS[name]
    path = write_lines(tmp_path / "a.jsonl", *[GOOD] * 5, row, *[GOOD] * 5)
    conversations, report = load_conversations(path)
    assert len(conversations) == 10 and report.rows == 11
    (reason,) = report.dropped
    assert reason.startswith("a.jsonl:6: ") and message in reason and len(reason) < 2000
    with pytest.raises(ValueError):  # as a line, as it comes from a hand-written loop
        parse_row(json.dumps(row), "here")


@pytest.mark.parametrize(
    ("extra", "message"),
    [("[" * 5000 + "]" * 5000, "nested levels"), ("9" * 5000, "got 5000")],
    ids=["depth", "digits"],
)
def test_json_that_no_parser_takes_is_a_bad_row_too(
    tmp_path: Path, extra: str, message: str
) -> None:
    line = json.dumps(GOOD).replace("{", '{"extra": ' + extra + ", ", 1)
    conversations, report = load_conversations(write_lines(tmp_path / "a.jsonl", GOOD, line))
    assert len(conversations) == 1
    assert report.dropped[0].startswith("a.jsonl:2: ") and message in report.dropped[0]
    (tmp_path / "a.json").write_text(f"[{line}]")
    with pytest.raises(ValueError, match="a.json: expected JSON without numbers of thousands"):
        list(read_rows(tmp_path / "a.json"))


def test_reading_takes_time_in_proportion_to_the_text() -> None:
    """In a child, which ends by force: a hang is a failure and not a stuck run."""
    rows = []
    for role, unit in LONG.values():
        before, after = ENDS[role]
        rows.append(said(role, before + unit * (200_000 // len(unit)) + after))
    done = subprocess.run(
        [sys.executable, "-c", READ_ALL],
        input=json.dumps(rows),
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        timeout=120,  # three seconds of work on an idle machine; minutes for each without a bound
    )
    assert done.returncode == 0 and done.stdout.split() == ["read"] * len(rows)


READ_ALL = """
import json, sys
from data.schema import parse_row
for row in json.load(sys.stdin):
    try:
        parse_row(row)
    except ValueError:
        pass
    print("read")
"""


def bombs(folder: Path) -> dict[str, Path]:
    """Parquet files that unpack to far more than they are, by what does it."""
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 400_000, pa.int32()), ["x" * 2000])
    zeros = pa.array([0] * 400_000, pa.int32())
    inner = pa.DictionaryArray.from_arrays(zeros, ["x" * 2000])
    offsets = pa.array([0, len(zeros)], pa.int32())
    columns = {
        "text": text,  # 800 MB
        "list": pa.ListArray.from_arrays(offsets, inner),  # the same in a single row
        "rows": pa.nulls(5_000_000, pa.string()),
        "values": pa.ListArray.from_arrays(pa.array([0, 20_000_000]), pa.nulls(20_000_000)),
        "wide": pa.array([b"\0" * 100_000] * 5000, pa.binary(100_000)),  # 500 MB in one chunk
    }
    paths = {}
    for name, column in columns.items():
        paths[name] = folder / f"{name}.parquet"
        pq.write_table(pa.table({"conversations": column}), paths[name], compression="zstd")
        assert paths[name].stat().st_size < 200_000
    return paths


def test_parquet_files_that_unpack_to_gigabytes(tmp_path: Path) -> None:
    paths = bombs(tmp_path).values()
    usual = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(usual)  # counts from here on
    pa.set_memory_pool(pool)
    for path in paths:
        with pytest.raises(ValueError) as caught:
            load_conversations(path)
        sentence = f"{path}: expected rows that unpack to at most 64 MB and 100"
        assert str(caught.value).startswith(sentence)
    pa.set_memory_pool(usual)
    assert 0 < pool.max_memory() < 100e6


def test_rows_that_repeat_are_read_all_the_same(tmp_path: Path) -> None:
    """A data set may weight its rows by repeating them, and these pack well too."""
    table = pa.Table.from_pylist([{**GOOD, "source": "x" * 500, "n": 3}] * 3000)
    pq.write_table(table, tmp_path / "a.parquet")
    assert (tmp_path / "a.parquet").stat().st_size < 10_000
    rows = list(read_rows(tmp_path / "a.parquet"))
    assert len(rows) == 3000 and rows[-1] == (
        "a.parquet:3000",
        {**GOOD, "source": "x" * 500, "n": 3},
    )


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "json"])
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, suffix: str) -> None:
    os.mkfifo(tmp_path / f"pipe.{suffix}")
    (tmp_path / f"zero.{suffix}").symlink_to("/dev/zero")
    for name in ("pipe", "zero"):
        with pytest.raises(ValueError, match=f"{name}.{suffix}: expected a file, got a pipe"):
            load_conversations(tmp_path / f"{name}.{suffix}")
    with pytest.raises(ValueError, match="expected a file, got a pipe"):
        load_conversations(tmp_path)  # a folder that holds one


def test_files_and_lines_have_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_lines(tmp_path / "a.jsonl", GOOD, {**GOOD, "extra": "x" * 500}, GOOD)
    with monkeypatch.context() as patch:
        patch.setattr(files, "MAX_LINE", 400)
        with pytest.raises(ValueError, match="a.jsonl:2: expected a line of at most 400 char"):
            load_conversations(path)
    monkeypatch.setattr(files, "MAX_BYTES", 100)
    with pytest.raises(ValueError, match="a.jsonl: expected at most 100 bytes, got"):
        load_conversations(path)


@pytest.mark.parametrize("keep", [0, 3, 100, -4])
def test_a_cut_parquet_file_is_one_sentence(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist([GOOD]), path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match="a.parquet: expected a Parquet file, got ") as caught:
        list(read_rows(path))
    assert "\n" not in str(caught.value)


def test_text_that_is_not_utf8_in_a_parquet_file(tmp_path: Path) -> None:
    column = pa.array([b"\xff\xfe"]).view(pa.string())
    pq.write_table(pa.table({"messages": column}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="a.parquet: expected a Parquet file, got 'utf-8' codec"):
        list(read_rows(tmp_path / "a.parquet"))


def test_a_footer_that_ends_pyarrow_is_one_sentence(tmp_path: Path) -> None:
    """One bit of the schema's nesting makes the statistics of a column not fit: pyarrow aborts."""
    table = pa.Table.from_pylist([{"messages": MESSAGES, "tools": [["a"]]}])
    pq.write_table(table, tmp_path / "good.parquet")
    assert len(list(read_rows(tmp_path / "good.parquet"))) == 1
    content = (tmp_path / "good.parquet").read_bytes()
    # In the footer, a group's repetition: field 3 of a schema element, then its value
    begin = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    refused = 0
    for at in [m.start() + 1 for m in re.finditer(rb"\x25\x02", content[begin:])][:3]:
        broken = bytearray(content)
        broken[begin + at] ^= 2
        (tmp_path / "bad.parquet").write_bytes(broken)
        with pytest.raises(ValueError, match="bad.parquet: expected a Parquet file, got a footer"):
            list(read_rows(tmp_path / "bad.parquet"))
        refused += 1
    assert refused


def test_looking_for_tools_without_a_tag_takes_time_in_proportion_too() -> None:
    begin = time.process_time()
    for unit in ("{} ", "{", "[ ", "[{}] "):
        assert find_tools(unit * 20_000) == []
    assert time.process_time() - begin < 20  # a second here; hours where a run is read again
    assert find_tools('Use [1] or {"name": "f"}, {"name": "g"}.') == [{"name": "f"}, {"name": "g"}]
