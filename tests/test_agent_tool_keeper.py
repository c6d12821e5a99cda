"""What a tool can do to the program: nothing that it takes, writes or starts does harm."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent import toolbox
from agent.tool_keeper import descendants
from agent.tool_worker import MAX_RESULT
from agent.toolbox import PASSED_ON, ToolBox

ROOT = Path(toolbox.__file__).parents[1]
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="needs prctl and /proc")

TOOLS = '''
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time

def environment() -> list:
    return sorted(os.environ)

def allocate(mib: int) -> int:
    return len(bytearray(mib << 20)) >> 20

def limits() -> list:
    return [resource.getrlimit(kind) for kind in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE)]

def write_file(mib: int) -> None:
    with tempfile.TemporaryFile() as file:
        file.truncate(mib << 20)

def long_text(characters: int) -> str:
    return "x" * characters

def long_error(characters: int) -> str:
    raise ValueError("two\\nlines " + "x" * characters)

def nest(levels: int) -> list:
    value = []
    for _ in range(levels):
        value = [value]
    return value

class Silent(BaseException):
    def __str__(self):
        raise RuntimeError

def fail(kind: str) -> None:
    raise {"silent": Silent, "interrupt": KeyboardInterrupt, "exit": SystemExit}[kind]

def everywhere(text: str) -> str:
    """Writes to whatever may be the channel."""
    for descriptor in range(3, 32):
        try:
            os.write(descriptor, text.encode("latin-1"))
        except OSError:
            pass
    return "right"

def flood(text: str) -> None:
    while True:
        everywhere(text)

def later(text: str) -> str:
    """Writes after its own answer, so that the next call may read it."""
    threading.Timer(0.05, everywhere, [text]).start()
    return "right"

def fork() -> str:
    os.fork()
    return "right"

def numbers() -> list:
    return [os.getpid(), os.getppid()]

def wait(seconds: float) -> None:
    time.sleep(seconds)

def signal_keeper(name: str) -> None:
    os.kill(os.getppid(), getattr(signal, name))
    time.sleep(0.2)

def signal_group(name: str) -> None:
    os.killpg(0, getattr(signal, name))

def start(way: str) -> int:
    """Starts a process that ignores polite signals; its number."""
    if way in ("child", "session"):
        code = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)"
        command = [sys.executable, "-c", code]
        return subprocess.Popen(command, start_new_session=way == "session").pid
    reading, writing = os.pipe()
    if os.fork() == 0:  # as a daemon does: two forks with a new session between them
        os.setsid()
        if os.fork() == 0:
            os.write(writing, str(os.getpid()).encode())
            for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)
            time.sleep(0 if way == "short" else 60)
        os._exit(0)
    os.wait()
    return int(os.read(reading, 20))

def flee(path: str) -> None:
    """Starts processes that replace themselves by new ones, and mark each, for some seconds."""
    end = time.monotonic() + 3
    for _ in range(12):
        if os.fork() == 0:
            os.setsid()
            while time.monotonic() < end:
                with open(path, "a") as file:
                    file.write("x")
                if os.fork():
                    break
            os._exit(0)
'''


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tools") / "tools.py"
    path.write_text(TOOLS)
    return path


@pytest.fixture(scope="module")
def shared(file: Path) -> Iterator[ToolBox]:
    with ToolBox(file, timeout=20) as toolbox:
        yield toolbox


def message(result: Any) -> str:
    assert set(result) == {"error"} and set(result["error"]) == {"code", "message", "hint"}, result
    assert "\n" not in result["error"]["message"]
    return f"{result['error']['code']}: {result['error']['message']}"


def is_running(number: int) -> bool:
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def all_ended(numbers: list[int]) -> bool:
    for _ in range(250):
        if not any(map(is_running, numbers)):
            return True
        time.sleep(0.02)
    return False


def test_a_tool_sees_the_short_list_and_what_is_passed_on(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("WANTED", "1")
    monkeypatch.setenv("ALSO", "2")
    with ToolBox(file, environment=["WANTED", "ALSO"]) as box:
        seen = set(box.call("environment", {}))
    assert {"PATH", "HOME", "WANTED", "ALSO"} <= seen <= {*PASSED_ON, "WANTED", "ALSO"}
    with pytest.raises(ValueError, match="--tool-env ABSENT: no such variable"):
        ToolBox(file, environment=["ABSENT"])


@pytest.mark.parametrize(
    ("memory", "mib", "fits"),
    [(2048, 4000, False), (2048, 100, True), (300, 400, False), (0, 400, True)],
)
@on_linux
def test_memory_is_bounded_and_the_tools_go_on(
    file: Path, memory: int, mib: int, fits: bool
) -> None:
    with ToolBox(file, memory=memory) as box:
        worker = box.call("numbers", {})
        result = box.call("allocate", {"mib": mib})
        assert result == mib if fits else message(result) == "tool_failed: MemoryError: "
        assert box.call("numbers", {}) == worker


def test_a_limit_beyond_all_numbers_is_none(file: Path) -> None:
    with ToolBox(file, memory=10**400) as box:
        assert box.call("allocate", {"mib": 1}) == 1


def test_no_core_and_no_huge_file(shared: ToolBox) -> None:
    assert shared.call("limits", {}) == [[0, 0], [1 << 30, 1 << 30]]
    assert "File too large" in message(shared.call("write_file", {"mib": 1100}))
    assert shared.call("write_file", {"mib": 900}) is None


JUNK = {
    "a forged result": '{"result": "forged"}\n',
    "a guessed number": '{"nonce": "0", "result": "forged"}\n',
    "a list for a number": '{"nonce": [], "result": "forged"}\n',
    "no object": '[1]\n"text"\n17\nnull\nNaN\n',
    "deep lists": "[" * 100_000 + "\n",
    "deep objects": '{"nonce":' * 50_000 + "\n",
    "no UTF-8": "\xff\xfe\x80\n",
    "a long number": "1" * 5000 + "\n",
    "a line that is only begun": '{"result": "forged',
    "empty lines": "\n\r\n\x00\n",
}


@pytest.mark.parametrize("text", JUNK.values(), ids=JUNK)
def test_what_a_tool_writes_to_the_channel_is_no_answer(shared: ToolBox, text: str) -> None:
    worker = shared.call("numbers", {})
    assert shared.call("everywhere", {"text": text}) == "right"
    assert shared.call("later", {"text": text}) == "right"
    time.sleep(0.1)
    assert shared.call("numbers", {}) == worker


@pytest.mark.parametrize(
    ("text", "expected"),
    [("x" * 100_000, "tool_failed: the tool wrote"), ("x\n" * 50_000, "timeout: ")],
)
def test_a_flood_ends_the_tool(file: Path, text: str, expected: str) -> None:
    with ToolBox(file, timeout=2) as box:
        assert expected in message(box.call("flood", {"text": text}))
        assert box.call("everywhere", {"text": ""}) == "right"


def test_large_results_and_errors_are_refused_and_deep_ones_text(shared: ToolBox) -> None:
    worker = shared.call("numbers", {})
    fits = shared.call("long_text", {"characters": MAX_RESULT - 2})
    assert len(fits) == MAX_RESULT - 2
    refused = message(shared.call("long_text", {"characters": MAX_RESULT}))
    assert f"the result has {MAX_RESULT + 2} characters" in refused
    failed = message(shared.call("long_error", {"characters": MAX_RESULT * 2}))
    assert failed.startswith("tool_failed: ValueError: two lines xxx") and len(failed) < 3000
    assert shared.call("nest", {"levels": 63}) != "[" * 64 + "]" * 64
    assert shared.call("nest", {"levels": 64}) == "[" * 65 + "]" * 65
    # Python itself gives up at some depth, in the worker; what the model reads is text either way.
    deep = [shared.call("nest", {"levels": levels}) for levels in (900, 960, 990, 5000)]
    assert all(isinstance(result, str) or "Recursion" in message(result) for result in deep)
    assert shared.call("numbers", {}) == worker


@pytest.mark.parametrize("kind", ["silent", "interrupt", "exit"])
def test_whatever_a_tool_raises_is_an_error_for_the_model(shared: ToolBox, kind: str) -> None:
    worker = shared.call("numbers", {})
    assert message(shared.call("fail", {"kind": kind})).startswith("tool_failed: ")
    assert shared.call("numbers", {}) == worker


def test_a_tool_that_forks_answers_once(shared: ToolBox) -> None:
    worker = shared.call("numbers", {})
    assert shared.call("fork", {}) == "right"
    assert [shared.call("numbers", {}) for _ in range(3)] == [worker] * 3


def test_a_request_that_nobody_reads_ends_in_time(file: Path) -> None:
    with ToolBox(file, timeout=1) as box:
        os.kill(box.call("numbers", {})[0], signal.SIGSTOP)
        begin = time.monotonic()
        assert message(box.call("everywhere", {"text": "x" * 5_000_000})).startswith("timeout: ")
        assert time.monotonic() - begin < 5


def test_the_seconds_of_a_call_can_be_fewer(file: Path) -> None:
    with ToolBox(file, timeout=20) as box:
        slow = message(box.call("wait", {"seconds": 20}, 0.25))
        assert slow == "timeout: the tool took longer than 0.25 s"


# Runs tools, prints the numbers of all processes below it, and ends as its argument says.
PROGRAM = """
import os, signal, sys, time
from agent.tool_keeper import descendants
from agent.toolbox import ToolBox
def main(box, end):
    started = [box.call("start", {"way": way}) for way in ("child", "session", "daemon")]
    below = descendants(os.getpid())
    assert set(started) < set(below)
    if "copy" in end and os.fork() == 0:  # it holds a copy of the pipe, and lives on
        os.close(1)
        time.sleep(8)  # longer than the test waits for the others to end
        os._exit(0)
    print(*below, flush=True)
    if "call" in end:
        box.call("wait", {"seconds": 60})
    if end == "exception":
        sys.exit("an exception")
    if end == "exit":
        os._exit(3)
    if "SIG" in end:
        os.kill(os.getpid(), getattr(signal, end.split()[0]))
with ToolBox(sys.argv[1]) as box:
    main(box, sys.argv[2])
"""


@pytest.mark.parametrize(
    "end",
    "end,exception,exit,SIGTERM,SIGHUP,SIGKILL,SIGINT,SIGKILL copy,SIGTERM copy,call".split(","),
)
@on_linux
def test_nothing_outlives_the_program(file: Path, end: str) -> None:
    command = [sys.executable, "-c", PROGRAM, str(file), end]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, text=True) as program:
        assert program.stdout
        numbers = [int(word) for word in program.stdout.readline().split()]
        assert len(numbers) == 5  # keeper, worker, and the three that the tools started
        if end == "call":
            time.sleep(0.1)
            program.kill()
        program.wait(10)
    assert all_ended(numbers)


@pytest.mark.parametrize(
    ("tool", "arguments", "expected"),
    [
        ("wait", {"seconds": 20}, "timeout"),
        ("signal_group", {"name": "SIGKILL"}, "tool_failed"),
        ("signal_keeper", {"name": "SIGTERM"}, "tool_failed"),
        ("fail_to_exist", {}, None),
    ],
)
@on_linux
def test_a_new_worker_has_no_old_company(
    file: Path, tool: str, arguments: dict[str, Any], expected: str | None
) -> None:
    with ToolBox(file, timeout=1) as box:
        old = [box.call("start", {"way": way}) for way in ("child", "session", "daemon")]
        old += box.call("numbers", {})
        result = message(box.call(tool, arguments))
        if expected is None:  # a wrong call alone ends nothing
            assert all(map(is_running, old))
        else:
            assert result.startswith(expected) and all_ended(old)
        assert len(descendants(box.process.pid)) == (4 if expected is None else 1)


@on_linux
def test_a_killed_keeper_takes_the_worker_along(file: Path) -> None:
    with ToolBox(file) as box:
        old = box.call("numbers", {})
        assert "ended" in message(box.call("signal_keeper", {"name": "SIGKILL"}))
        assert all_ended(old) and not set(box.call("numbers", {})) & set(old)


@on_linux
def test_a_stopped_keeper_does_not_keep_the_program(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toolbox, "CLOSE_SECONDS", 0.3)
    box = ToolBox(file)
    numbers = [box.call("start", {"way": "daemon"}), *box.call("numbers", {})]
    box.call("signal_keeper", {"name": "SIGSTOP"})
    box.close()
    assert all_ended(numbers)


def test_a_copy_of_the_pipe_in_another_child_delays_nothing(file: Path) -> None:
    box = ToolBox(file)
    numbers = box.call("numbers", {})
    if (copy := os.fork()) == 0:
        time.sleep(20)
        os._exit(0)
    begin = time.monotonic()
    box.close()
    took = time.monotonic() - begin
    os.kill(copy, signal.SIGKILL)
    os.waitpid(copy, 0)
    assert took < toolbox.CLOSE_SECONDS / 2 and all_ended(numbers)


@on_linux
def test_processes_that_run_away_are_caught(file: Path, tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    with ToolBox(file) as box:
        box.call("flee", {"path": str(marks)})
        time.sleep(0.2)
    size = marks.stat().st_size
    time.sleep(0.2)
    assert size > 10 and marks.stat().st_size == size


@on_linux
def test_the_end_of_a_thread_is_not_the_end_of_the_program(file: Path) -> None:
    boxes: list[ToolBox] = []
    thread = threading.Thread(target=lambda: boxes.append(ToolBox(file)))
    thread.start()
    thread.join()
    time.sleep(0.2)  # the system sends the keeper the parent-death signal now
    with boxes[0] as box:
        worker, keeper = box.call("numbers", {})
        assert keeper == box.process.pid and descendants(keeper) == [worker]


@on_linux
def test_short_daemons_leave_no_zombies(file: Path) -> None:
    with ToolBox(file) as box:
        short = [box.call("start", {"way": "short"}) for _ in range(5)]
        worker, keeper = box.call("numbers", {})
        assert all_ended(short)
        time.sleep(0.1)
        assert descendants(keeper) == [worker]


@pytest.fixture
def plain_keeper(tmp_path: Path) -> Path:
    """The keeper without what only Linux has, as on macOS."""
    source = (ROOT / "agent" / "tool_keeper.py").read_text()
    assert "/proc/" in source and '"linux"' in source
    path = tmp_path / "tool_keeper.py"
    path.write_text(source.replace("/proc/", "/none/").replace('"linux"', '"none"'))
    (tmp_path / "tool_worker.py").write_text((ROOT / "agent" / "tool_worker.py").read_text())
    return path


def test_without_prctl_and_proc_the_group_is_killed(
    file: Path, plain_keeper: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toolbox, "KEEPER", plain_keeper)
    with ToolBox(file) as box:
        numbers = [box.call("start", {"way": "child"}), *box.call("numbers", {})]
    assert all_ended(numbers)


def test_without_prctl_and_proc_the_pipe_tells_the_end(file: Path, plain_keeper: Path) -> None:
    code = """
import pathlib, sys, time
from agent import toolbox
toolbox.KEEPER = pathlib.Path(sys.argv[2])
box = toolbox.ToolBox(sys.argv[1])
print(box.call("start", {"way": "child"}), *box.call("numbers", {}), flush=True)
box.call("wait", {"seconds": 60})  # an idle worker would see the end itself
"""
    command = [sys.executable, "-c", code, str(file), str(plain_keeper)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, text=True) as program:
        assert program.stdout
        numbers = [int(word) for word in program.stdout.readline().split()]
        time.sleep(0.2)
        program.kill()
    assert len(numbers) == 3 and all_ended(numbers)
