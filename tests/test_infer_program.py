"""The program around the agent: chats, streams, flags, exit codes, signals."""

import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from scripted import LIMIT, TOOLS, Ask, Say, call

import infer
from agent import agent as loop

ROOT = Path(infer.__file__).parent


def run_chat(base: Path, text: str, monkeypatch: pytest.MonkeyPatch, *flags: str) -> int:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    return infer.main(["--model", str(base), *flags])


def test_chat_keeps_forgets_and_survives_what_does_not_fit(
    say: Say, base: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    script = say("one", "two", "three", "four")
    long = "word " * 9000
    lines = ["first", "", "second", long, "third", "/new", "fourth", "/quit", "never"]
    assert run_chat(base, "\n".join(lines), monkeypatch, "--json") == 0
    out, err = capsys.readouterr()
    assert [json.loads(line)["content"] for line in out.splitlines()] == [
        "one",
        "two",
        "three",
        "four",
    ]
    assert err.count("\n") == 1 and f"the model has {LIMIT} positions" in err
    assert (
        "first" in script.prompt(1) and "one" in script.prompt(1) and "word" not in script.prompt(2)
    )
    assert "second" in script.prompt(2) and "first" not in script.prompt(3)
    assert script.prompt(3).startswith("<bos><start_of_turn>user\nfourth")


def test_chat_forgets_a_question_without_an_answer(
    say: Say, base: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    script = say("", "", "yes")  # an empty turn is tried once more
    assert run_chat(base, "lost\nfound\n", monkeypatch) == 0
    assert "lost" not in script.prompt(2) and "found" in script.prompt(2)
    assert "yes" in capsys.readouterr().out


class Endless:
    """Zeros without a line's end, as /dev/zero has."""

    def isatty(self) -> bool:
        return False

    def readline(self, size: int = -1) -> str:
        assert 0 < size < 10_000_000, "it would fill the memory"
        return "\0" * size


class Unreadable(Endless):
    def readline(self, size: int = -1) -> str:
        raise OSError(9, "Bad file descriptor")


@pytest.mark.parametrize(
    ("stdin", "expected"),
    [
        (None, "standard input is closed"),
        (Endless(), "standard input: a line of over 1000000 characters"),
        (Unreadable(), "standard input cannot be read: Bad file descriptor"),
    ],
)
def test_a_standard_input_that_cannot_be_read(
    base: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    stdin: Any,
    expected: str,
) -> None:
    monkeypatch.setattr(sys, "stdin", stdin)
    assert infer.main(["--model", str(base)]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"infer.py: {expected}") and err.count("\n") == 1


def test_a_line_of_another_encoding_is_refused_and_the_chat_goes_on(
    say: Say, base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    say("yes")
    lines = io.TextIOWrapper(io.BytesIO(b"caf\xe9\n\xff\xfe\ncaf\xc3\xa9\n"), encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", lines)
    assert infer.main(["--model", str(base)]) == 0
    out, err = capsys.readouterr()
    assert out == "yes\n" and err.count("\n") == 2 and "caf\\udce9" in err


@pytest.mark.parametrize(
    ("redirection", "flags", "code", "expected"),
    [
        ("<&-", [], 2, "standard input is closed"),
        ("<&- >&- 2>&-", ["--prompt", "x", "--tools", "agent/example_tools.py"], 0, ""),
        (">/dev/full", ["--prompt", "x"], 1, "No space left"),
        ("| true", ["--prompt", "x"], 0, ""),
    ],
)
def test_streams_that_a_shell_has_closed(
    redirection: str, flags: list[str], code: int, expected: str
) -> None:
    line = f'"$@" {redirection}'
    program = [sys.executable, "infer.py", *flags, "--max-new-tokens", "2"]
    done = subprocess.run(
        ["sh", "-c", line, "sh", *program], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert done.returncode == code and expected in done.stderr
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr


def test_codes_of_a_terminal_stay_escaped_in_json(say: Say, base: Path, tools: Path) -> None:
    tools.write_text('def code() -> str:\n    return "\\x9b2J\\x7f\\x1b[2J"\n')
    say(call("code"), "a \x9b2J b")
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        flags = ["--model", str(base), "--tools", str(tools)]
        assert infer.main(["--prompt", "x", "--json", *flags]) == 0
    assert not re.search(r"[\x1b\x7f-\x9f]", out.getvalue())
    lines = [json.loads(line)["content"] for line in out.getvalue().splitlines()]
    assert lines[1]["content"] == "\x9b2J\x7f\x1b[2J" and lines[2] == "a \x9b2J b"


def test_an_error_moves_no_cursor_either(
    say: Say, base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    say("yes")
    events = iter([loop.Event("error", "no \x1b[2J luck")])
    monkeypatch.setattr(loop.Agent, "ask", lambda *_, **__: events)
    assert infer.main(["--model", str(base), "--prompt", "x"]) == 1
    assert "no \ufffd[2J luck" in capsys.readouterr().err


def test_text_for_people_is_printed_as_it_is_but_moves_no_cursor(
    say: Say, ask: Ask, base: Path, tools: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = "[bold]:smile: " + " ".join(map(str, range(100))) + "\nend"
    say("<think>[/x]\x1b[2J</think>" + call("broken"), answer)
    assert infer.main(["--model", str(base), "--prompt", "Hi", "--tools", str(tools)]) == 0
    out = capsys.readouterr().out
    assert "think: [/x]\ufffd[2J\n" in out and answer in out and "\x1b" not in out


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--prompt", ""], "--prompt"),
        (["--prompt", " \n"], "--prompt"),
        (["--prompt", "word " * 9000], "positions"),
        (["--prompt", "\udcff"], "surrogate"),
        (["--prompt", "x", "--adapter", "nowhere"], "nowhere"),
        (["--prompt", "x", "--model", "./nowhere"], "nowhere"),
        (["--prompt", "x", "--device", "tpu"], "--device"),
        (["--prompt", "x", "--device", "cpu:x"], "--device"),
        (["--prompt", "x", "--device", "cpu:1"], "--device cpu:1"),
        (["--prompt", "x", "--device", f"cpu:{'9' * 50}"], "--device"),
        (["--prompt", "x", "--device", f"cpu:{'9' * 5000}"], "--device"),
        (["--prompt", "x", "--temperature", "1e39"], "temperature must lie in"),
        (["--prompt", "x", "--tool-env", "NONE_SUCH", "--tools", __file__], "--tool-env NONE_SUCH"),
        (["--prompt", "x", "--model", "~nouser/x"], "~nouser/x"),
        (["--prompt", "x", "--adapter", "a" * 5000], "aaa"),
        (["--prompt", "x", "--tools", "a" * 5000], "aaa"),
        (["--prompt", "x", "--model", "./no\x1b[2J\x9bwhere"], "./no\ufffd[2J\ufffdwhere"),
        (["--prompt", "x", "--adapter", "no\x1b[2J"], "no\ufffd[2J"),
        (["--prompt", "x", "--dtype", "int3"], "--dtype"),
        (["--prompt", "x", "--top-p", "0"], "top_p"),
        (["--prompt", "x", "--top-p", "1.5"], "top_p"),
        (["--prompt", "x", "--seed", "9" * 30], "--seed"),
        (["--prompt", "x", "--tools", "nowhere.py"], "no such file"),
        (["--prompt", "x", "--tools", "."], "no such file"),
        (["--merge", "out"], "--adapter"),
        (["--evaluate", "nowhere.jsonl"], "nowhere.jsonl"),
    ],
)
def test_a_wrong_input_gives_one_sentence_and_code_2(
    base: Path, flags: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = [] if "--model" in flags else ["--model", str(base)]
    assert infer.main([*model, *flags]) == 2
    out, err = capsys.readouterr()
    assert out == "" and expected in err and err.count("\n") == 1 and err.startswith("infer.py: ")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import nowhere_at_all", "ModuleNotFoundError"),
        ("def f(", "SyntaxError"),
        ("raise SystemExit(0)", "SystemExit"),
        ("import os\nos._exit(0)", "ended"),
        ("_hidden = 1\ndef _private(): ...\nfrom json import dumps", "defines no public function"),
        (
            "def f(x): ...\ndef g(y: bytes): ...",
            "parameter x has no type hint; the model needs one; g: type hint",
        ),
        ("def f(*xs: int): ...", "called by keyword"),
        ("def f(x: 'Missing'): ...", "Missing"),
        ("import os\ndef f(x: 'os.nothing'): ...", "AttributeError"),
        ("def f(x: '1/0'): ...", "ZeroDivisionError"),
        ("raise ValueError('\\x1b[2J')", "\ufffd[2J"),
        (
            "import sys\nprint('noise')\nsys.stdout.flush()\nraise ValueError('two\\nlines')",
            "ValueError",
        ),
    ],
)
def test_a_tools_file_that_cannot_be_used(
    base: Path, tools: Path, source: str, expected: str, capfd: pytest.CaptureFixture[str]
) -> None:
    tools.write_text(source)
    assert infer.main(["--model", str(base), "--prompt", "x", "--tools", str(tools)]) == 2
    out, err = capfd.readouterr()
    assert out == "" and expected in err and str(tools) in err and "Traceback" not in err


def test_help_has_titled_groups_and_every_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        infer.main(["--help"])
    raw = capsys.readouterr().out
    out = " ".join(raw.split())
    assert stop.value.code == 0
    places = [
        out.index(title)
        for title in ("what to do; default", " model:", "tools and output:", " generation:")
    ]
    assert places == sorted(places)
    flags = re.findall(r"^  (--[a-z-]+)", raw, re.MULTILINE)
    assert flags == [
        *(
            "--prompt",
            "--evaluate",
            "--merge",
            "--serve",
            "--model",
            "--adapter",
            "--device",
            "--dtype",
        ),
        *("--tools", "--tool-env", "--tool-memory", "--tool-seconds", "--question-seconds"),
        *("--yes", "--out", "--json", "--deltas", "--free", "--constrain", "--call"),
        *(
            "--max-new-tokens",
            "--question-tokens",
            "--reply-seconds",
            "--rounds",
            "--loop",
            "--temperature",
        ),
        *("--top-p", "--top-k", "--min-p", "--seed"),
    ]
    # One for the group of the three jobs, one for each of the other flags.
    assert out.count("default: ") == 23
    for value in ("auto", "2048", "30.0", "120.0", "512", "0.0", "1.0", "0"):
        assert f"(default: {value})" in out


@pytest.mark.parametrize(
    "flags",
    [
        ["--merge", "a", "--evaluate", "b"],
        ["--max-new-tokens", "0"],
        ["--temperature", "-1"],
        ["--temperature", "nan"],
        ["--temperature", "1e400"],
        ["--max-new-tokens", "9" * 5000],
        ["--tool-memory", "-1"],
        ["--tool-seconds", "0"],
        ["--question-seconds", "inf"],
        ["--nonsense"],
        ["--nonsense\x1b[2J"],
        ["--max-new-tokens", "1" + "0" * 400],
        ["--tool-memory", "1" + "0" * 400],
    ],
)
def test_flags_that_argparse_refuses(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        infer.main(flags)
    err = capsys.readouterr().err
    assert stop.value.code == 2 and "see --help" in err and err.count("\n") == 1
    assert flags[0].split("\x1b")[0] in err and "\x1b" not in err


@pytest.mark.parametrize(
    "flags",
    [
        ["--top-p", "1e-50", "--temperature", "1"],
        ["--temperature", "1e6"],
        ["--temperature", "1e-300"],
        ["--device", "cpu:0"],
        ["--device", "cpu:00"],
        ["--device", "cpu:"],
        ["--temperature", "1e-5"],
        ["--seed", str(2**63 - 1), "--temperature", "1"],
        ["--seed", str(-(2**63)), "--temperature", "1"],
        ["--tool-memory", "1000000000"],
    ],
)
def test_odd_flags_that_have_a_meaning(
    adapter: Path, tools: Path, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    short = ["--max-new-tokens", "3", "--tools", str(tools), "--json"]
    assert infer.main(["--adapter", str(adapter), "--prompt", "Go", *short, *flags]) in (0, 1)
    assert "Traceback" not in capsys.readouterr().err


def test_an_adapter_that_does_not_fit_the_base(
    base: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = shutil.copytree(adapter, tmp_path / "broken")
    config = json.loads((broken / "adapter_config.json").read_text())
    (broken / "adapter_config.json").write_text(json.dumps(config | {"r": 2}))
    assert infer.main(["--adapter", str(broken), "--prompt", "x"]) == 2
    err = capsys.readouterr().err
    assert (
        "does not fit this model" in err
        and "(4, 32), expected (2, 32)" in err
        and "Traceback" not in err
    )
    (broken / "adapter_model.safetensors").write_bytes(b"no")
    assert infer.main(["--adapter", str(broken), "--prompt", "x"]) == 2
    assert "adapter_model.safetensors" in capsys.readouterr().err


def test_ctrl_c_gives_130(
    base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "decode", interrupt)
    assert infer.main(["--model", str(base), "--prompt", "x"]) == 130
    assert "Traceback" not in capsys.readouterr().err


@pytest.fixture
def in_a_terminal() -> Iterator[None]:
    """Ctrl-C arrives, as in a terminal; a background job of a shell script would ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_in_a_terminal_reaches_only_the_program_and_ends_the_tools(
    base: Path, tools: Path, in_a_terminal: None
) -> None:
    tools.write_text(TOOLS + "\nimport os\nprint(os.getpid(), flush=True)\n")
    command = [sys.executable, str(ROOT / "infer.py"), "--model", str(base), "--tools", str(tools)]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    ) as process:
        assert process.stderr
        worker = int(process.stderr.readline())
        os.killpg(process.pid, signal.SIGINT)  # as a terminal sends it: to the whole group
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and out == "" and "Traceback" not in err
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)


def test_a_terminal_without_unicode(say: Say, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    say("R\u00f6m \U0001f600")
    assert infer.main(["--model", str(base), "--prompt", "Hi", "--json"]) == 0
    out.seek(0)
    assert json.loads(out.read())["content"] == "R?m ?"


def test_memory_that_runs_out_gives_code_1(
    base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(loop, "decode", fail)
    assert infer.main(["--model", str(base), "--prompt", "x"]) == 1
    assert "out of memory" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags",
    [
        ["--merge", "m", "--adapter", "a", "--tools", "t.py"],
        ["--evaluate", "rows.jsonl", "--tools", "t.py"],
        ["--prompt", "x", "--out", "rows.jsonl"],
        ["--adapter", "a", "--free", "--merge", "m"],
        ["--prompt", "x", "--deltas", "--free"],
        ["--prompt", "x", "--yes", "--free"],
        ["--prompt", "x", "--constrain", "--json"],
        ["--prompt", "x", "--call", "required"],
        ["--constrain", "--evaluate", "x", "--call", "f"],
        ["--constrain", "--serve", "0", "--call", "f"],
    ],
)
def test_a_flag_that_would_do_nothing_is_refused(
    flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert infer.main(flags) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and flags[-2] in error


def test_the_script_itself_returns_the_code() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "infer.py"), "--prompt", ""],
        capture_output=True,
        text=True,
        cwd="/",
        timeout=120,
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and done.stdout == ""


def test_a_swallowed_interrupt_is_still_reported(
    monkeypatch: pytest.MonkeyPatch, in_a_terminal: None
) -> None:
    def run(_: Any) -> bool:
        with contextlib.suppress(
            KeyboardInterrupt
        ):  # as a destructor or a callback of a library does
            signal.raise_signal(signal.SIGINT)
        return True

    monkeypatch.setattr(infer, "run", run)
    assert infer.main(["--prompt", "x"]) == 130
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
