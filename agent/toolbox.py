"""A Python file's public functions as tools: their schemas, the check of a call's arguments, and the call itself.

The functions run in a child process (`agent/tool_worker.py`), which is killed and started anew when a call takes too long.
"""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from data.conversation import Tool
from data.lenient_json import shorten

WORKER = Path(__file__).with_name("tool_worker.py")
START_SECONDS = 60.0
JSON_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
    "null": (type(None),),
}


class ToolBox:
    """The tools of one file. Use as a context manager: leaving it ends the child process."""

    def __init__(self, path: str | Path, timeout: float = 30.0) -> None:
        """Raises: FileNotFoundError; ValueError if the file fails to run or describes no usable function."""
        self.path, self.timeout = Path(path), timeout
        if not self.path.is_file():
            raise FileNotFoundError(
                f"--tools {path}: no such file; give a Python file whose public functions are the tools"
            )
        specs = self._start()
        self.tools = [Tool(spec["name"], spec["description"], spec["parameters"]) for spec in specs]
        self.by_name = {tool.name: tool for tool in self.tools}

    def __enter__(self) -> "ToolBox":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the child process, and what its tools have started."""
        if self.process.returncode is None:  # once waited for, its number may be another's
            with contextlib.suppress(
                ProcessLookupError, PermissionError
            ):  # macOS says the second of a dead group
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        with contextlib.suppress(OSError):  # what was not yet written has no reader any more
            self.process.stdin.close()  # type: ignore[union-attr]  # it is a pipe

    def _start(self) -> list[dict[str, Any]]:
        command = [sys.executable, str(WORKER), str(self.path)]
        # A session of its own: Ctrl-C is for the parent, and a kill reaches what a tool has started.
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
            start_new_session=True,
        )
        self.lines: queue.Queue[str] = queue.Queue()
        threading.Thread(
            target=_read_lines, args=(self.process.stdout, self.lines), daemon=True
        ).start()
        try:
            greeting = self._receive(START_SECONDS)
            if greeting is None or "error" in greeting:
                slow = f"{self.path}: running it took over {START_SECONDS:.0f} s; make it define functions only"
                raise ValueError((greeting or {}).get("error", slow))
        except BaseException:  # Ctrl-C too: no way out of here leaves a process behind
            self.close()
            raise
        tools: list[dict[str, Any]] = greeting["tools"]
        return tools

    def _receive(self, seconds: float) -> dict[str, Any] | None:
        """The worker's next line; None if none comes in time, {"error": sentence} if the process has ended."""
        try:
            message: dict[str, Any] = json.loads(self.lines.get(timeout=seconds))
        except queue.Empty:
            return None
        except json.JSONDecodeError:  # the empty line after the last one, or one that was cut
            return {"error": f"{self.path}: the process that runs it ended"}
        return message

    def call(self, name: str, arguments: dict[str, Any]) -> Any:
        """The tool's result, or {"error": {"code", "message", "hint"}} for the model to read; never raises on a bad call."""
        tool = self.by_name.get(name)
        if tool is None:
            return call_error(
                "unknown_tool",
                f"there is no tool {name!r}",
                f"use one of: {', '.join(self.by_name)}",
            )
        # A null for an argument that may be left out says that it is left out.
        arguments = {
            key: value
            for key, value in arguments.items()
            if value is not None or _takes_null(tool, key)
        }
        problems = check_arguments(tool.parameters, arguments)
        if problems:
            return call_error(
                "invalid_arguments", "; ".join(problems), "correct the arguments and call again"
            )
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps({"name": name, "arguments": arguments}) + "\n")
            self.process.stdin.flush()
            reply = self._receive(self.timeout)
        except (
            OSError,
            ValueError,
        ):  # the pipe broke, or an earlier restart failed and it is closed
            reply = {"error": "the tool process ended"}
        if reply is None or isinstance(reply.get("error"), str):
            return self._restart(reply)
        return reply["result"] if "result" in reply else {"error": reply["error"]}

    def _restart(self, reply: dict[str, Any] | None) -> dict[str, Any]:
        self.close()
        try:
            self._start()
        except ValueError as error:  # the next call tries again
            return call_error(
                "tool_failed",
                f"the tools could not be started again: {error}",
                "answer without them",
            )
        if reply is None:
            message = f"the tool took longer than {self.timeout:g} s"
            return call_error("timeout", message, "try again or answer without it")
        return call_error("tool_failed", "the tool's process ended", "answer without it")


def _read_lines(stream: Any, lines: "queue.Queue[str]") -> None:
    with stream:
        for line in stream:
            lines.put(line)
    lines.put("")


def _takes_null(tool: Tool, name: str) -> bool:
    schema = tool.parameters.get("properties", {}).get(name)
    return name in tool.required or schema is None or not _check_value(name, schema, None)


def call_error(code: str, message: str, hint: str) -> dict[str, Any]:
    """What the model reads instead of a result."""
    return {"error": {"code": code, "message": message, "hint": hint}}


def check_arguments(schema: dict[str, Any], arguments: dict[str, Any]) -> list[str]:
    """Every way in which `arguments` does not fit the JSON schema of a tool's parameters, as sentences."""
    return _check_object("", schema, arguments)


def _check_object(where: str, schema: dict[str, Any], value: dict[str, Any]) -> list[str]:
    properties: dict[str, Any] = schema.get("properties", {})
    # An object without listed properties takes any; one with them takes no other, unless the schema describes those.
    others = schema.get("additionalProperties", not properties if where else False)
    problems = [
        f"missing argument {where}{name!r}"
        for name in schema.get("required", ())
        if name not in value
    ]
    for name, item in value.items():
        rule = properties.get(name, others)
        if isinstance(rule, dict):
            problems += _check_value(f"{where}{name}", rule, item)
        elif not rule:
            problems.append(f"unknown argument {where}{name!r}")
    return problems


def _check_value(where: str, schema: dict[str, Any], value: Any) -> list[str]:
    if "anyOf" in schema:
        tries = [_check_value(where, option, value) for option in schema["anyOf"]]
        return ["; or ".join(problems[0] for problems in tries)] if all(tries) else []
    text = json.dumps(value, ensure_ascii=False)
    choices = [json.dumps(choice, ensure_ascii=False) for choice in schema.get("enum", ())]
    # As JSON, because to Python True == 1 == 1.0.
    if choices and text not in choices:
        return [f"{where} must be one of {', '.join(choices)}, got {shorten(text)}"]
    kinds = schema.get("type", list(JSON_TYPES))
    allowed = [
        kind
        for name in ([kinds] if isinstance(kinds, str) else kinds)
        for kind in JSON_TYPES.get(name, ())
    ]
    # type() and not isinstance: to Python a bool is an int.
    if allowed and type(value) not in allowed:
        return [
            f"{where} must be {kinds if isinstance(kinds, str) else ' or '.join(kinds)}, got {shorten(text)}"
        ]
    if isinstance(value, list) and "items" in schema:
        return [
            p
            for i, item in enumerate(value)
            for p in _check_value(f"{where}[{i}]", schema["items"], item)
        ]
    return _check_object(f"{where}.", schema, value) if isinstance(value, dict) else []
