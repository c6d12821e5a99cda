"""Rows, replies, adapters, tokenizers and configs with anything anywhere: only declared errors.

Good files are changed at random places to values that have broken readers before. A reader may
refuse with one of `REFUSED`, and must do so soon; what it accepts must work. pytest runs it for
some seconds; for longer:

    python tests/test_fuzz.py --minutes 60
"""

import argparse
import copy
import faulthandler
import itertools
import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the run without pytest

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from builders import TOKENIZER
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from agent.loading import load_base
from data.chat import parse_reply, parse_tool_calls, render
from data.dataset import load_conversations, split
from data.schema import parse_row
from data.tokenizer import Tokenizer
from data.wire import HERMES, MISTRAL
from lora.adapter import load_adapter, merge_adapter, save_adapter
from lora.config import LoRAConfig
from lora.inject import add_lora
from model.config import Gemma2Config
from model.loader import load_gemma2, save_gemma2
from model.transformer import Gemma2

REFUSED = (ValueError, FileNotFoundError)
MAX_SECONDS = 10  # of this process's own time for one example: a loaded machine is no hang
TINY = Gemma2Config(
    vocab_size=2048,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
    sliding_window=4,
    max_position_embeddings=32,
    eos_token_id=(1, 5),
)
TAGS = (*HERMES.tags, *MISTRAL.tags, "<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>")
CALL = '{"name": "f", "arguments": {"x": 1}}'
SCHEMA = {
    "type": "object",
    "properties": {"x": {"type": ["integer", "null"], "anyOf": [{"type": "null"}], "enum": [1]}},
    "required": ["x"],
}
ROWS: list[Any] = [
    {
        "conversations": [
            {"role": "system", "content": 'Use <tools>[{"name": "f"}]</tools> please'},
            {"role": "human", "content": "q"},
            {"role": "model", "content": f"<think>t</think><tool_call>{CALL}</tool_call>"},
            {"role": "tool", "content": "<tool_response>[1]</tool_response>"},
            {"role": "model", "content": "a"},
        ]
    },
    {
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": [{"type": "text", "text": "q"}]},
            {
                "role": "assistant",
                "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": '{"x": null}'}}],
            },
            {"role": "tool", "tool_call_id": "1", "name": "f", "content": {"r": 1}},
            {"role": "assistant", "content": "a", "reasoning_content": "r", "weight": 0},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": SCHEMA}}],
    },
    {
        "conversations": [
            {"from": "human", "value": "q"},
            {"from": "function_call", "value": CALL},
            {"from": "observation", "value": "r"},
            {"from": "gpt", "value": "a"},
        ],
        "system": "s",
        "tools": '[{"name": "f", "parameters": {"x": "integer?", "y": ["a", "b"]}}]',
    },
    {
        "messages": [
            {"role": "user", "content": "q"},
            {"role": "assistant", "function_call": {"name": "f", "arguments": {"x": None}}},
        ],
        "functions": [{"name": "f", "parameters": {"x": {"enum": ["a"], "default": "a"}}}],
    },
]


def nested(depth: int, is_list: bool) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value] if is_list else {"items": value}
    return value


ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, -1, 5, 1.5, 10**30, 10**400, -(10**30), 1e308, float("inf"), float("nan")]),
    st.sampled_from(
        ["", "x", "\0", "\ud800", "../x", "a" * 5000, "(a+)+b", "(?i)x", "[", "9" * 99]
    ),
    # Made anew each time: a later change may go into it
    st.sampled_from(["[]", "{}", "[[]]", "[null]", "[5]", '{"": null}', '{"anyOf": 5}']).map(
        json.loads
    ),
    st.builds(nested, st.sampled_from([40, 63, 64, 65, 300, 900]), st.booleans()),
    st.sampled_from([*TAGS, CALL, "null", "object", "string", "integer?", "function", "assistant"]),
    st.text(max_size=8),
)


@st.composite
def changed(draw: st.DrawFn, value: Any) -> Any:
    """`value` with one to three of its parts replaced, removed, doubled or renamed."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        value = _change(draw, value)
    return value


def _change(draw: st.DrawFn, value: Any) -> Any:
    if not isinstance(value, dict | list) or not value or draw(st.integers(0, 9)) == 0:
        return draw(ODD)
    keys: Any = list(value) if isinstance(value, dict) else range(len(value))
    key = draw(st.sampled_from(keys))
    action = draw(st.sampled_from(["deeper"] * 6 + ["remove", "rename"]))
    if action == "deeper":
        value[key] = _change(draw, value[key])
    elif action == "remove":
        del value[key]
    elif isinstance(value, dict):
        value[draw(st.one_of(st.sampled_from(keys), st.text(max_size=4)))] = value.pop(key)
    else:
        value.append(value[key])
    return value


@st.composite
def scarred(draw: st.DrawFn, content: bytes) -> bytes:
    """`content` with bytes replaced, and perhaps cut."""
    data = bytearray(content)
    for _ in range(draw(st.integers(0, 4))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data[: draw(st.sampled_from([len(data)] * 3 + [draw(st.integers(0, len(data)))]))])


PARTS = [*TAGS, CALL, "[", "]", "{", "}", '"', "'", "\\", ",", "```", "\n"]
TEXTS = st.lists(st.one_of(st.sampled_from(PARTS), st.text(max_size=4)), max_size=30).map("".join)


class Fuzz:
    """One folder of good files, and an example of each kind that is made of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tokenizer = Tokenizer.from_pretrained(TOKENIZER)
        self.base, self.adapter = folder / "base", folder / "adapter"
        torch.manual_seed(0)
        model = Gemma2(TINY)
        save_gemma2(model, self.base)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(TOKENIZER / name, self.base / name)
        config = LoRAConfig(rank=2, token_ids=(3, 4), rank_pattern={"q_proj": 1, "v.*": 3})
        save_adapter(add_lora(model, config), self.adapter, config)
        self.good = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        rows = pa.Table.from_pylist([ROWS[2]] * 3)
        pq.write_table(rows, folder / "rows.parquet")
        self.parquet = (folder / "rows.parquet").read_bytes()
        self.outcomes: Counter[str] = Counter()

    def row(self, data: st.DataObject) -> None:
        row = data.draw(changed(data.draw(st.sampled_from(ROWS))))
        try:
            line = json.dumps(row)
            conversation = parse_row(line if data.draw(st.booleans()) else row, "rows:1")
        except RecursionError:
            return  # of json.dumps here: such a line cannot be written
        self._use(conversation)

    def _use(self, conversation: Any) -> None:
        example = render(conversation, self.tokenizer)
        assert len(example.tokens) == len(example.trainable)
        split([conversation, conversation], 0.0, 0)

    def reply(self, data: st.DataObject) -> None:
        text = data.draw(TEXTS)
        ids = self.tokenizer.encode(text) if text.isascii() else []
        control = st.sampled_from(sorted(self.tokenizer.control_ids))
        ids += data.draw(st.lists(st.one_of(control, st.integers(0, 2047)), max_size=30))
        try:
            for tokenizer in (None, self.tokenizer):
                parse_tool_calls(text, tokenizer)
            parse_tool_calls(ids, self.tokenizer)
            parse_reply(ids, self.tokenizer, lenient=True)
        except REFUSED as error:  # nothing that a model writes may raise at all
            raise AssertionError(text) from error

    def rows_file(self, data: st.DataObject) -> None:
        kind = data.draw(st.sampled_from(["jsonl", "json", "parquet"]))
        content = self.parquet
        if kind != "parquet":
            rows = [data.draw(changed(row)) for row in ROWS[:2]] + ROWS[2:]
            text = json.dumps(rows) if kind == "json" else "\n".join(map(json.dumps, rows))
            content = text.encode()
        path = self.folder / f"fuzz.{kind}"
        path.write_bytes(data.draw(scarred(content)))
        for conversation in load_conversations(path)[0]:
            self._use(conversation)

    def _change_file(self, data: st.DataObject, path: Path) -> None:
        content = self.good[path]
        if path.suffix == ".json" and data.draw(st.integers(0, 9)):
            content = json.dumps(data.draw(changed(json.loads(content)))).encode()
        else:
            content = data.draw(scarred(content))
        path.write_bytes(content)

    def adapter_files(self, data: st.DataObject) -> None:
        names = ["adapter_config.json"] * 3 + ["adapter_model.safetensors"]
        self._change_file(data, self.adapter / data.draw(st.sampled_from(names)))
        model = load_gemma2(self.base)
        load_adapter(model, self.adapter)
        merge_adapter(model)(torch.zeros(1, 2, dtype=torch.long))

    def tokenizer_files(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(["tokenizer.json", "tokenizer_config.json"]))
        self._change_file(data, self.base / name)
        tokenizer = Tokenizer.from_pretrained(self.base)
        text = "".join(TAGS) + data.draw(TEXTS)
        ids = tokenizer.encode(text)
        assert tokenizer.control_ids.isdisjoint(ids), "text became control"
        tokenizer.save(self.folder / "saved")
        again = Tokenizer.from_pretrained(self.folder / "saved")
        assert again.tag_ids == tokenizer.tag_ids and again.encode(text) == ids

    def config_files(self, data: st.DataObject) -> None:
        names = ["config.json"] * 4 + ["model.safetensors", "model.safetensors.index.json"]
        name = data.draw(st.sampled_from(names))
        if name.endswith("index.json"):
            (self.base / "model.safetensors").unlink()
            weights = dict.fromkeys(["model.norm.weight"], "model-1.safetensors")
            self.good[self.base / name] = json.dumps({"weight_map": weights}).encode()
        self._change_file(data, self.base / name)
        model = load_base(self.base, self.tokenizer, torch.device("cpu"), None)
        model(torch.zeros(1, 2, dtype=torch.long))

    def restore(self) -> None:
        """Puts the good files back, and removes what an example left."""
        for path, content in self.good.items():
            if not path.is_file() or path.read_bytes() != content:
                path.write_bytes(content)
        (self.base / "model.safetensors.index.json").unlink(missing_ok=True)


KINDS: dict[str, Callable[[Fuzz, st.DataObject], None]] = {
    "rows": Fuzz.row,
    "replies": Fuzz.reply,
    "files of rows": Fuzz.rows_file,
    "adapters": Fuzz.adapter_files,
    "tokenizers": Fuzz.tokenizer_files,
    "configs": Fuzz.config_files,
}


def run(fuzz: Fuzz, kind: str, examples: int, number: int) -> None:
    """Tries `examples` examples; raises the first failure, made small by hypothesis."""

    @seed(number)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def one(data: st.DataObject) -> None:
        started = time.process_time()
        # Ends the process with a traceback if an example never ends
        faulthandler.dump_traceback_later(300, exit=True)
        try:
            KINDS[kind](fuzz, data)
            fuzz.outcomes[f"{kind}: accepted"] += 1
        except REFUSED as error:
            fuzz.outcomes[f"{kind}: refused"] += 1
            assert str(error), "an error without a word"
        finally:
            faulthandler.cancel_dump_traceback_later()
            fuzz.restore()
        assert time.process_time() - started < MAX_SECONDS, "a hang"

    one()


@pytest.fixture(scope="module")
def fuzz(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fuzz]:
    yield Fuzz(tmp_path_factory.mktemp("fuzz"))


@pytest.mark.parametrize("kind", KINDS)
def test_only_declared_errors_come_out(fuzz: Fuzz, kind: str) -> None:
    run(fuzz, kind, 40, 0)
    assert fuzz.outcomes[f"{kind}: accepted"] > 0  # or nothing behind the readers was tried


def main() -> int:
    """Runs all kinds in turn until the time is over; 1 after a failure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the first round")
    parser.add_argument("--kind", choices=KINDS, action="append", help="by default all")
    args = parser.parse_args()
    end = time.monotonic() + 60 * args.minutes
    failures = 0
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        fuzz = Fuzz(Path(folder))
        for number in itertools.count(args.seed):
            for kind in args.kind or KINDS:
                if time.monotonic() > end:
                    print(dict(fuzz.outcomes), f"{failures} failures")
                    return 1 if failures else 0
                try:
                    run(fuzz, kind, 100, number)
                except BaseException as error:
                    if isinstance(error, KeyboardInterrupt):
                        raise
                    failures += 1
                    faulthandler.cancel_dump_traceback_later()
                    print(f"--- {kind}, seed {number}")
                    sys.excepthook(type(error), error, error.__traceback__)
    return 0


if __name__ == "__main__":
    sys.exit(main())
