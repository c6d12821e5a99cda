"""`infer.py --serve` and its adapters: what is loaded, what is refused, how it ends."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import ROOT

import infer
from agent.flags import named_folder
from agent.loading import load_base, load_many, load_model
from data.tokenizer import Tokenizer
from lora.adapter import save_adapter
from lora.config import LoRAConfig
from lora.inject import add_lora
from lora.rows import Row
from model.generate import Sampling, generate
from serve.batch import Batch, Request


@pytest.fixture
def write_adapter(small_base: Path, tmp_path: Path) -> Callable[..., Path]:
    """write_adapter(name, format="hermes", **changes of the configuration) -> its folder."""

    def write(name: str, format: str = "hermes", **changes: Any) -> Path:
        tokenizer = Tokenizer.from_pretrained(small_base, format)
        model = load_base(small_base, tokenizer, torch.device("cpu"), torch.float32)
        ids = tuple(tokenizer.tag_ids.values())
        given: dict[str, Any] = {"token_ids": ids, "base_model": str(small_base)}
        config = LoRAConfig(rank=2, alpha=8, **given | changes)
        add_lora(model, config, seed=len(name))
        for key, parameter in model.named_parameters():
            if key.endswith("lora_B"):
                torch.nn.init.normal_(parameter)
        save_adapter(model, tmp_path / name, config)
        tokenizer.save(tmp_path / name)
        return tmp_path / name

    return write


def test_names_of_adapters(tmp_path: Path) -> None:
    assert named_folder("tool=runs/a") == ("tool", Path("runs/a"))
    assert named_folder("runs/a/") == ("a", Path("runs/a/"))
    assert named_folder("./x=y/a") == ("a", Path("./x=y/a"))


def test_several_adapters_are_loaded_as_each_alone(
    write_adapter: Callable[..., Path], small_base: Path
) -> None:
    folders = {name: write_adapter(name) for name in ("one", "second")}
    model, adapters, tokenizers = load_many(None, folders, device="cpu", dtype="fp32")
    assert list(tokenizers) == [small_base.name, "one", "second"]
    batch, prompt = Batch(model, adapters), tokenizers["one"].encode("A question")
    warm = Sampling(temperature=2.0, seed=1)  # greedy, random weights write one word for ever
    requests = [
        Request(prompt, 12, frozenset(), Row(name), warm) for name in (None, "one", "second", "one")
    ]
    for request in requests:
        batch.join(request)
    while len(batch):
        batch.step()
    for request in requests:
        adapter = folders[request.row.adapter] if request.row.adapter else None
        alone, _ = load_model(str(small_base), adapter, device="cpu", dtype="fp32")
        assert request.written == generate(alone, [prompt], 12, [], warm)[0]
    assert len({tuple(request.written) for request in requests}) == 3


def refusal(capsys: pytest.CaptureFixture[str], *flags: object) -> str:
    try:
        code: Any = infer.main([*map(str, flags)])
    except SystemExit as end:
        code = end.code
    assert code == 2
    return capsys.readouterr().err


def test_what_cannot_be_served_is_refused(
    write_adapter: Callable[..., Path],
    small_base: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    one = write_adapter("one")
    both = ("--adapter", f"a={one}", "--adapter", f"b={one}")
    assert "expected one without --serve, got 2" in refusal(capsys, *both, "--prompt", "x")
    twice = ("--adapter", one, "--adapter", one, "--serve", 0)
    assert "got one twice; write NAME=DIR" in refusal(capsys, *twice)
    assert "not allowed with" in refusal(capsys, "--serve", 0, "--prompt", "x")
    assert "at most 65,535" in refusal(capsys, "--serve", 70_000)
    assert "--json does nothing beside --serve" in refusal(capsys, "--serve", 0, "--json")
    assert "nothing beside --serve" in refusal(capsys, "--serve", 0, "--rounds", 2)
    other = write_adapter("mistral", "mistral")
    mixed = ("--adapter", one, "--adapter", other, "--serve", 0)
    assert "--adapter mistral: expected the tags of one" in refusal(capsys, *mixed)
    named = ("--adapter", f"{small_base.name}={one}", "--serve", 0)
    assert "expected another name than the base's" in refusal(capsys, *named)
    moved = tmp_path / "moved"
    shutil.copytree(small_base, moved)
    far = write_adapter("far", base_model=str(moved))
    apart = ("--adapter", one, "--adapter", far, "--serve", 0)
    assert "expected adapters of one base" in refusal(capsys, *apart)
    course = write_adapter("course", adapt="course")
    whole = ("--adapter", course, "--serve", 0)
    assert "adapter course: " in refusal(capsys, *whole)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"--serve {port}: expected a free port" in refusal(capsys, "--serve", port)


def test_a_server_answers_until_it_is_interrupted(write_adapter: Callable[..., Path]) -> None:
    flags = ["--adapter", f"tool={write_adapter('one')}", "--serve", "0", "--device", "cpu"]
    flags += ["--max-new-tokens", "5"]
    process = subprocess.Popen(
        [sys.executable, "infer.py", *flags],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        # Tests that were started in the background would rightly have it ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stderr is not None
    try:
        line = process.stderr.readline()
        url = re.search(r"http://127.0.0.1:\d+/", line)
        assert url is not None, line
        body = {"model": "tool", "messages": [{"role": "user", "content": "Hi"}]}
        asked = urllib.request.Request(
            url[0] + "v1/chat/completions",
            json.dumps(body).encode(),
            {"content-type": "application/json"},
        )
        with urllib.request.urlopen(asked, timeout=30) as answer:
            assert 1 <= json.load(answer)["usage"]["completion_tokens"] <= 5
        long = json.dumps({**body, "stream": True, "max_tokens": 900, "temperature": 2})
        asked.data = long.encode()
        with urllib.request.urlopen(asked, timeout=30) as answer:
            assert answer.readline().startswith(b"data: {")
            process.send_signal(signal.SIGINT)
            assert "is being stopped" in answer.read().decode()
        assert process.wait(20) == 130
        assert process.stderr.read() == ""
    finally:
        process.kill()
