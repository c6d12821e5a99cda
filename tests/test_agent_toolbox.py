"""Functions as tools: their schemas, the check of arguments, a child process that may misbehave."""

import gc
import os
import time
from pathlib import Path
from typing import Any

import pytest

from agent import toolbox as functions
from agent.toolbox import ToolBox, check_arguments
from data.schema import conversation_from
from data.tool_schema import write_tool

SOURCE = '''
import asyncio
import enum
import functools
import os
import subprocess
import sys
import time
from typing import Any, Dict, List, Literal, Optional

import messages  # lies beside this file; a module of data/ has the same name

class Unit(enum.Enum):
    CELSIUS = "C"
    FAHRENHEIT = "F"

class Size(enum.IntEnum):
    SMALL = 1
    LARGE = 2

def google(city: str, unit: Literal["C", "F"] = "C", days: Optional[int] = None) -> dict:
    """Weather of
    a city.

    More words.

    Args:
        city: name of the city,
            in English: as spoken
        unit (Literal["C", "F"]): the unit
        days: how many
    Returns:
        city: not an argument
    """
    return {"city": city, "unit": unit, "days": days}

def sphinx(a: int, b: float, flag: bool = False):
    """Adds.
    :param a: first
    :param float b: second,
        the other one
    :returns: the sum
    """
    return a + b

def numpy(a: int, b: float = 0.0):
    """Adds
    both.

    Parameters
    ----------
    a : int
        first,
        or left
    b : float, optional
        second

    Returns
    -------
    int
        a: no argument
    """
    return a + b

def kinds(names: list[int], table: dict[str, float], pair: tuple[int, int], odd: tuple[int, str],
          bag: set[str], unit: Unit, size: Size, either: int | str, maybe: int | None,
          mixed: Literal["a", 1], free: Any,
          old: List[str] = [], plain: list = [], obj: dict = {}, any_map: Dict[str, Any] = {}):
    """Tells the types that came."""
    came = names, table, pair, odd, bag, unit, size, either, maybe, mixed, free
    return [type(x).__name__ for x in came]

def units(unit: Unit | None = None, more: list[Unit] = [], by: dict[str, Unit] = {},
          any: str | list[Unit] = "") -> str:
    return f"{unit} {more} {by} {any}"

def beside() -> str:
    return messages.HELLO

def where() -> list:
    return [os.getcwd(), __file__, os.environ.get("HOME")]

def speak(text: str) -> str:
    print(text)
    print(text, file=sys.stderr)
    os.write(1, b'{"result": "forged"}\\n')
    subprocess.run(["echo", '{"result": "forged"}'])
    return text

def listen() -> str:
    """A program that reads must not eat the requests."""
    return subprocess.run(["cat"], capture_output=True, text=True).stdout

def ask() -> str:
    return input("?")

def sleep(seconds: float) -> str:
    time.sleep(seconds)
    return "awake"

def spawn() -> None:
    """Leaves a program running and hangs."""
    child = subprocess.Popen(["sleep", "60"])
    open("child.pid", "w").write(str(child.pid))
    time.sleep(60)

def leave(code: int) -> None:
    os._exit(code)

def polite_exit() -> None:
    sys.exit("bye")

async def later() -> str:
    await asyncio.sleep(0)
    return "later"

@functools.cache
def cached(x: int) -> int:
    """Cached."""
    return x

@functools.wraps(cached)
def wrapped(*args, **kwargs):
    return cached(*args, **kwargs)

def value(kind: str):
    circle = []
    circle.append(circle)
    return {"nan": {"x": float("nan")}, "keys": {(1, 2): 3}, "set": {5}, "circle": circle,
            "none": None, "text": "\\u2028\\r\\n\\ud83d", "big": "x" * 3_000_000}[kind]

number = 0

def count() -> int:
    global number
    number += 1
    return number

class NoTool:
    pass

def _hidden(x: int) -> int:
    return x
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tools")
    (path / "messages.py").write_text('HELLO = "from beside"\n')
    (path / "tools.py").write_text(SOURCE)
    return path


@pytest.fixture(scope="module")
def box(folder: Path) -> Any:
    with ToolBox(folder / "tools.py", timeout=5) as toolbox:
        yield toolbox


def parameters(box: ToolBox, name: str) -> dict[str, Any]:
    return box.by_name[name].parameters


def error(result: Any) -> dict[str, str]:
    assert set(result) == {"error"} and set(result["error"]) == {"code", "message", "hint"}, result
    return result["error"]


def test_public_functions_in_their_order(box: ToolBox) -> None:
    names = [tool.name for tool in box.tools]
    assert names[:5] == ["google", "sphinx", "numpy", "kinds", "units"] and {
        "cached",
        "wrapped",
        "later",
    } <= set(names)
    assert not {"_hidden", "NoTool", "Unit", "asyncio"} & set(names)


def test_google_docstring(box: ToolBox) -> None:
    assert box.by_name["google"].description == "Weather of a city."
    assert parameters(box, "google") == {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "name of the city, in English: as spoken"},
            "unit": {"type": "string", "enum": ["C", "F"], "description": "the unit"},
            "days": {"type": "integer", "description": "how many"},
        },
        "required": ["city"],
    }


def test_sphinx_docstring_without_a_blank_line(box: ToolBox) -> None:
    assert box.by_name["sphinx"].description == "Adds."
    assert parameters(box, "sphinx")["properties"] == {
        "a": {"type": "integer", "description": "first"},
        "b": {"type": "number", "description": "second, the other one"},
        "flag": {"type": "boolean"},
    }


def test_numpy_docstring(box: ToolBox) -> None:
    assert box.by_name["numpy"].description == "Adds both."
    properties = parameters(box, "numpy")["properties"]
    assert properties["a"] == {"type": "integer", "description": "first, or left"}
    assert properties["b"] == {"type": "number", "description": "second"}


@pytest.mark.parametrize(
    ("line", "asking"),
    [
        ('confirm = ["erase"]', {"erase"}),
        ("confirm = [erase, look]", {"erase", "look"}),
        ("from agent.confirm import confirm\nconfirm(look)", {"look"}),
        ("", set()),
    ],
)
def test_tools_that_ask_first(tmp_path: Path, line: str, asking: set[str]) -> None:
    path = tmp_path / "tools.py"
    path.write_text(f"def erase() -> int:\n    return 1\ndef look() -> int:\n    return 2\n{line}")
    with ToolBox(path) as box:
        assert box.asks_first == asking and set(box.by_name) == {"erase", "look"}
        assert [box.approves(name, {}) for name in ("erase", "look")] == [
            name not in asking for name in ("erase", "look")
        ]


def test_a_name_that_asks_first_has_to_be_a_tool(tmp_path: Path) -> None:
    path = tmp_path / "tools.py"
    path.write_text('def look() -> int:\n    return 2\nconfirm = ["lok"]')
    with pytest.raises(ValueError, match="confirm lists 'lok', which is no tool"):
        ToolBox(path)


def test_schemas_of_type_hints(box: ToolBox) -> None:
    assert parameters(box, "kinds")["properties"] == {
        "names": {"type": "array", "items": {"type": "integer"}},
        "table": {"type": "object", "additionalProperties": {"type": "number"}},
        "pair": {"type": "array", "items": {"type": "integer"}},
        "odd": {"type": "array"},
        "bag": {"type": "array", "items": {"type": "string"}},
        "unit": {"type": "string", "enum": ["C", "F"]},
        "size": {"type": "integer", "enum": [1, 2]},
        "either": {"anyOf": [{"type": "integer"}, {"type": "string"}]},
        "maybe": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
        "mixed": {"enum": ["a", 1]},
        "free": {},
        "old": {"type": "array", "items": {"type": "string"}},
        "plain": {"type": "array"},
        "obj": {"type": "object"},
        "any_map": {"type": "object"},
    }
    assert parameters(box, "kinds")["required"][-1] == "free" and parameters(box, "cached")[
        "required"
    ] == ["x"]


def test_every_schema_can_stand_in_a_prompt(box: ToolBox) -> None:
    conversation = conversation_from(box.tools, [{"role": "user", "content": "Hi"}])
    assert [write_tool(tool)["function"]["name"] for tool in conversation.tools] == list(
        box.by_name
    )


KINDS = {
    "names": [1],
    "table": {"a": 1.5},
    "pair": [1, 2],
    "odd": [1, "x"],
    "bag": ["a", "a"],
    "unit": "C",
    "size": 2,
    "either": "x",
    "maybe": None,
    "mixed": 1,
    "free": [{}],
}


def test_arguments_arrive_as_their_hints_promise(box: ToolBox) -> None:
    assert box.call("kinds", KINDS) == [
        "list",
        "dict",
        "tuple",
        "tuple",
        "set",
        "Unit",
        "Size",
        "str",
        "NoneType",
        "int",
        "list",
    ]
    result = box.call("units", {"unit": "F", "more": ["C"], "by": {"x": "F"}})
    assert result == "Unit.FAHRENHEIT [<Unit.CELSIUS: 'C'>] {'x': <Unit.FAHRENHEIT: 'F'>} "
    assert box.call("units", {"any": ["C"]}) == "None [] {} [<Unit.CELSIUS: 'C'>]"
    assert box.call("units", {"any": "C"}) == "None [] {} C"


def test_null_for_an_argument_that_may_be_left_out_leaves_it_out(box: ToolBox) -> None:
    assert box.call("google", {"city": "Rome", "unit": None, "days": None}) == {
        "city": "Rome",
        "unit": "C",
        "days": None,
    }
    assert "city must be string, got null" in error(box.call("google", {"city": None}))["message"]
    assert (
        "unknown argument 'x'" in error(box.call("google", {"city": "Rome", "x": None}))["message"]
    )


def test_calls_and_their_results(box: ToolBox) -> None:
    assert box.call("sphinx", {"a": 1, "b": 2.5}) == 3.5 and box.call("cached", {"x": 4}) == 4
    assert box.call("wrapped", {"x": 4}) == 4 and box.call("later", {}) == "later"
    assert [box.call("count", {}) for _ in range(3)] == [1, 2, 3]
    assert box.call("beside", {}) == "from beside"


def test_a_tool_runs_where_the_program_runs(box: ToolBox, folder: Path) -> None:
    assert box.call("where", {}) == [
        os.getcwd(),
        str(folder.resolve() / "tools.py"),
        os.environ.get("HOME"),
    ]


@pytest.mark.parametrize("text", ["hello", "{}\n", '{"result": 1}\n', ""])
def test_what_a_tool_prints_corrupts_nothing(box: ToolBox, text: str) -> None:
    assert box.call("speak", {"text": text}) == text
    assert box.call("cached", {"x": 9}) == 9


def test_a_tool_has_no_input(box: ToolBox) -> None:
    assert box.call("listen", {}) == ""
    assert "EOFError" in error(box.call("ask", {}))["message"] and box.call("cached", {"x": 9}) == 9


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("nan", "{'x': nan}"),
        ("keys", "{(1, 2): 3}"),
        ("set", [5]),
        ("circle", "[[...]]"),
        ("none", None),
        ("text", "\u2028\r\n\ud83d"),
        ("big", "x" * 3_000_000),
    ],
)
def test_results_that_json_cannot_hold_come_as_text(box: ToolBox, kind: str, expected: Any) -> None:
    assert box.call("value", {"kind": kind}) == expected


def test_errors_for_the_model(box: ToolBox) -> None:
    unknown = error(box.call("fly", {}))
    assert unknown["code"] == "unknown_tool" and "google, sphinx" in unknown["hint"]
    assert error(box.call("_hidden", {"x": 1}))["code"] == "unknown_tool"
    assert error(box.call("cached", {}))["code"] == "invalid_arguments"
    failed = error(box.call("value", {"kind": "absent"}))
    assert failed["code"] == "tool_failed" and "KeyError" in failed["message"]
    assert "SystemExit: bye" in error(box.call("polite_exit", {}))["message"]
    assert "message" in error(box.call("kinds", {**KINDS, "pair": [1, 2, 3]}))


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def wait_for_end(pid: int) -> bool:
    for _ in range(100):
        if not is_running(pid):
            return True
        time.sleep(0.02)
    return False


def test_a_process_that_ends_is_started_again(folder: Path) -> None:
    with ToolBox(folder / "tools.py") as box:
        assert box.call("count", {}) == 1
        first = box.process.pid
        for code in (0, 1):
            assert error(box.call("leave", {"code": code}))["code"] == "tool_failed"
        assert box.call("count", {}) == 1 and box.process.pid != first
        box.process.kill()
        box.process.wait()
        assert error(box.call("count", {}))["code"] == "tool_failed" and box.call("count", {}) == 1


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks processes up in /proc")
def test_a_tool_that_takes_too_long_is_killed_with_what_it_started(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    box = ToolBox(folder / "tools.py", timeout=1)
    first, start = box.process.pid, time.monotonic()
    assert (
        error(box.call("sleep", {"seconds": 30}))["code"] == "timeout"
        and time.monotonic() - start < 10
    )
    assert wait_for_end(first) and box.call("sleep", {"seconds": 0}) == "awake"
    assert error(box.call("spawn", {}))["code"] == "timeout"
    assert wait_for_end(int((folder / "child.pid").read_text()))
    last = box.process.pid
    box.close()
    assert not is_running(last)
    box.close()  # a second time harms nothing


def test_a_file_that_no_longer_loads_is_an_error_for_the_model(
    folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "once.py"
    file.write_text(
        "import os\nopen('flag.txt').close()\ndef leave() -> None:\n    os._exit(1)\n".replace(
            "flag.txt", str(tmp_path / "flag")
        )
    )
    (tmp_path / "flag").touch()
    with ToolBox(file) as box:
        (tmp_path / "flag").unlink()
        failed = error(box.call("leave", {}))
        assert failed["code"] == "tool_failed" and "started again" in failed["message"]
        assert "started again" in error(box.call("leave", {}))["message"]
        (tmp_path / "flag").touch()
        assert "process ended" in error(box.call("leave", {}))["message"]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def f(x: 'os.nothing'): ...", "f: a type hint cannot be read: NameError"),
        ("import os\ndef f(x: 'os.nothing'): ...", "AttributeError: module 'os'"),
        ("def f(x: '1/0'): ...", "f: a type hint cannot be read: ZeroDivisionError"),
        ("def f(x: 'exit()'): ...", "f: a type hint cannot be read: SystemExit"),
        ("def f(x: '['): ...", "f: a type hint cannot be read: SyntaxError"),
        ("def f(x: '1' + '+1' * 9999): ...", "f: a type hint cannot be read: Recursion"),
        ("def f(x: 'int(1j)'): ...", "f: a type hint cannot be read: TypeError"),
        ("def f(x: [int]): ...\ndef g(x: {}): ...", "; g: "),
        ("J = dict[str, 'J']\ndef f(x: J): ...", "f: "),
        ("def f(x: 5): ...", "f: "),
        ("raise KeyboardInterrupt", "running it failed: KeyboardInterrupt"),
        (
            "raise ValueError('two\\nlines' + 'x' * 10**8)",
            "running it failed: ValueError: two lines",
        ),
        ("class E(BaseException):\n __str__ = None\nraise E", "its text cannot be read"),
        ("def f(): ...\nf.__doc__ = 'x' * 2**25", "the process that runs it ended"),
        ("bytearray(2**40)", "running it failed: MemoryError"),
        ("import os\nos.closerange(3, 64)", "see --tool-memory and --tool-env"),
        ("x = '\\x00", "SyntaxError"),
    ],
)
def test_a_file_with_odd_hints_or_errors_is_one_sentence(
    tmp_path: Path, source: str, expected: str, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "odd.py"
    file.write_text(source)
    with pytest.raises(ValueError) as refused:
        ToolBox(file)
    text = str(refused.value)
    assert expected in text and text.startswith(str(file)), text
    assert "\n" not in text and len(text) < 3000 and "Traceback" not in capfd.readouterr().err


def test_a_file_that_loads_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functions, "START_SECONDS", 0.3)
    (tmp_path / "slow.py").write_text("while True: pass\n")
    with pytest.raises(ValueError, match=r"slow\.py: running it took over"):
        ToolBox(tmp_path / "slow.py")


@pytest.mark.filterwarnings("error")
def test_closing_leaves_no_open_pipe(folder: Path) -> None:
    box = ToolBox(folder / "tools.py")
    process, channel = box.process, box.channel
    assert process.stdin
    box.close()
    assert channel.fileno() == -1 and process.stdin.closed and process.returncode is not None
    del box, process, channel
    gc.collect()


SCHEMA = {
    "type": "object",
    "properties": {
        "n": {"type": "integer"},
        "x": {"type": "number"},
        "s": {"type": "string", "enum": ["a", "ö"]},
        "flag": {"type": "boolean"},
        "choice": {"enum": [1, "1"]},
        "list": {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}},
        "object": {
            "type": "object",
            "properties": {"in": {"type": "integer"}, "deep": {"type": "object"}},
            "required": ["in"],
        },
        "map": {"type": "object", "additionalProperties": {"type": "integer"}},
        "any": {
            "anyOf": [
                {"type": "integer"},
                {"type": "array", "items": {"type": "string"}},
                {"type": "null"},
            ]
        },
        "types": {"type": ["integer", "null"]},
        "free": {},
    },
    "required": ["n"],
}


@pytest.mark.parametrize(
    "arguments",
    [
        {"x": 1},
        {"x": 1.5},
        {"s": "ö"},
        {"flag": False},
        {"choice": 1},
        {"choice": "1"},
        {"list": [[1], []]},
        {"object": {"in": 1, "deep": {"x": [None]}}},
        {"map": {"k": 1}},
        {"map": {}},
        {"any": 1},
        {"any": ["x"]},
        {"any": None},
        {"types": None},
        {"free": None},
        {"free": True},
        {"x": -(10**30)},
    ],
)
def test_arguments_that_fit(arguments: dict[str, Any]) -> None:
    assert check_arguments(SCHEMA, {"n": 0, **arguments}) == []


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"n": True}, "n must be integer, got true"),
        ({"n": 1.0}, "n must be integer, got 1.0"),
        ({"n": "1"}, 'n must be integer, got "1"'),
        ({"n": None}, "n must be integer, got null"),
        ({"x": False}, "x must be number"),
        ({"s": 0}, 's must be one of "a", "ö", got 0'),
        ({"s": "A"}, "s must be one of"),
        ({"flag": 1}, "flag must be boolean"),
        ({"choice": True}, "choice must be one of"),
        ({"choice": 1.0}, "choice must be one of"),
        ({"list": [[1], [2, "3"]]}, "list[1][1] must be integer"),
        ({"list": {}}, "list must be array"),
        ({"object": {}}, "missing argument object.'in'"),
        ({"object": {"in": "1"}}, "object.in must be integer"),
        ({"object": {"in": 1, "out": 1}}, "unknown argument object.'out'"),
        ({"object": []}, "object must be object"),
        ({"map": {"k": True}}, "map.k must be integer"),
        ({"any": [1]}, "any[0] must be string"),
        ({"any": True}, "any must be integer"),
        ({"types": "x"}, "types must be integer or null"),
        ({"other": 1}, "unknown argument 'other'"),
    ],
)
def test_arguments_that_do_not_fit(arguments: dict[str, Any], problem: str) -> None:
    problems = check_arguments(SCHEMA, {"n": 0, **arguments})
    assert len(problems) == 1 and problem in problems[0]


def test_every_problem_is_told_and_none_is_endless() -> None:
    problems = check_arguments(SCHEMA, {"x": "y" * 10_000, "s": "z", "other": 1})
    assert (
        len(problems) == 4 and "missing argument 'n'" in problems and max(map(len, problems)) < 120
    )
