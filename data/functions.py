"""A Python file's public functions as tools: their schemas, the check of a call's arguments, and the call itself.

The functions run in a child process (`data/tool_worker.py`), which is killed and started anew when a call takes too long.
"""

import json
import queue
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from data.schema import Tool

WORKER = Path(__file__).with_name("tool_worker.py")
START_SECONDS = 60.0
JSON_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,), "integer": (int,), "number": (int, float), "boolean": (bool,), "array": (list,), "object": (dict,),
    "null": (type(None),),
}  # fmt: skip


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
        """Ends the child process."""
        self.process.kill()
        self.process.wait()

    def _start(self) -> list[dict[str, Any]]:
        command = [sys.executable, str(WORKER), str(self.path)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8")
        self.lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=_read_lines, args=(self.process.stdout, self.lines), daemon=True).start()
        greeting = self._receive(START_SECONDS)
        if greeting is None or "error" in greeting:
            self.close()
            raise ValueError((greeting or {}).get("error", f"{self.path}: loading it took over {START_SECONDS:.0f} s"))
        tools: list[dict[str, Any]] = greeting["tools"]
        return tools

    def _receive(self, seconds: float) -> dict[str, Any] | None:
        """The worker's next line; None if none comes in time or the process has ended."""
        try:
            line = self.lines.get(timeout=seconds)
        except queue.Empty:
            return None
        message: dict[str, Any] = json.loads(line) if line else {"error": f"{self.path}: the tool process ended"}
        return message

    def call(self, name: str, arguments: dict[str, Any]) -> Any:
        """The tool's result, or {"error": {"code", "message", "hint"}} for the model to read; never raises on a bad call."""
        tool = self.by_name.get(name)
        if tool is None:
            return call_error("unknown_tool", f"there is no tool {name!r}", f"use one of: {', '.join(self.by_name)}")
        problems = check_arguments(tool.parameters, arguments)
        if problems:
            return call_error("invalid_arguments", "; ".join(problems), "correct the arguments and call again")
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps({"name": name, "arguments": arguments}) + "\n")
            self.process.stdin.flush()
            reply = self._receive(self.timeout)
        except OSError:
            reply = {"error": "the tool process ended"}
        if reply is None or isinstance(reply.get("error"), str):
            return self._restart(reply)
        return reply["result"] if "result" in reply else {"error": reply["error"]}

    def _restart(self, reply: dict[str, Any] | None) -> dict[str, Any]:
        self.close()
        self._start()
        if reply is None:
            return call_error(
                "timeout", f"the tool took longer than {self.timeout:g} s", "try again or answer without it"
            )
        return call_error("tool_failed", "the tool's process ended", "answer without it")


def _read_lines(stream: Any, lines: "queue.Queue[str]") -> None:
    for line in stream:
        lines.put(line)
    lines.put("")


def call_error(code: str, message: str, hint: str) -> dict[str, Any]:
    """What the model reads instead of a result."""
    return {"error": {"code": code, "message": message, "hint": hint}}


def check_arguments(schema: dict[str, Any], arguments: dict[str, Any]) -> list[str]:
    """Every way in which `arguments` does not fit the JSON schema of a tool's parameters, as sentences."""
    properties: dict[str, Any] = schema.get("properties", {})
    problems = [f"missing argument {name!r}" for name in schema.get("required", ()) if name not in arguments]
    problems += [f"unknown argument {name!r}" for name in arguments if name not in properties]
    for name, value in arguments.items():
        if name in properties:
            problems += _check_value(name, properties[name], value)
    return problems


def _check_value(where: str, schema: dict[str, Any], value: Any) -> list[str]:
    if "anyOf" in schema:
        return min((_check_value(where, option, value) for option in schema["anyOf"]), key=len)
    if "enum" in schema and value not in schema["enum"]:
        return [f"{where} must be one of {', '.join(map(json.dumps, schema['enum']))}, got {json.dumps(value)}"]
    kinds = schema.get("type", list(JSON_TYPES))
    allowed = [kind for name in ([kinds] if isinstance(kinds, str) else kinds) for kind in JSON_TYPES.get(name, ())]
    # type() and not isinstance: to Python a bool is an int.
    if allowed and type(value) not in allowed:
        return [f"{where} must be {kinds if isinstance(kinds, str) else ' or '.join(kinds)}, got {json.dumps(value)}"]
    if isinstance(value, list) and "items" in schema:
        return [p for i, item in enumerate(value) for p in _check_value(f"{where}[{i}]", schema["items"], item)]
    return check_arguments(schema, value) if isinstance(value, dict) and schema.get("properties") else []
