"""A Python file's public functions as tools: the check of a call's arguments, and the call itself.

This is the parent's side. The functions run in a child process, `agent/tool_worker.py`, whose
docstring describes the protocol between the two. A child that takes too long is killed, and another
one is started.
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
from typing import IO, Any

from data.call_check import check_argument, check_arguments
from data.conversation import Tool
from data.tool_calls import CallError

WORKER = Path(__file__).with_name("tool_worker.py")
START_SECONDS = 60.0  # to run the user's file: its imports may be large


class ToolBox:
    """The tools of one file. Use as a context manager: leaving it ends the child process."""

    def __init__(self, path: str | Path, timeout: float = 30.0) -> None:
        """timeout: seconds that one call may take.

        Raises: FileNotFoundError; ValueError if the file fails to run or has no usable function.
        """
        self.path, self.timeout = Path(path), timeout
        if not self.path.is_file():
            raise FileNotFoundError(
                f"--tools {path}: no such file; "
                "give a Python file whose public functions are the tools"
            )
        specs = self._start()
        self.tools = [Tool(spec["name"], spec["description"], spec["parameters"]) for spec in specs]
        self.by_name = {tool.name: tool for tool in self.tools}

    def __enter__(self) -> "ToolBox":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def call(self, name: str, arguments: dict[str, Any]) -> Any:
        """The tool's result, or a `CallError` as one; a bad call never raises."""
        tool = self.by_name.get(name)
        if tool is None:
            known = f"use one of: {', '.join(self.by_name)}"
            return CallError("unknown_tool", f"there is no tool {name!r}", known).as_result()
        # Models write null for an argument that they leave out; the function has its default.
        given = {
            argument: value
            for argument, value in arguments.items()
            if value is not None or _takes_null(tool, argument)
        }
        problems = check_arguments(tool.parameters, given)
        if problems:
            hint = "correct the arguments and call again"
            return CallError("invalid_arguments", "; ".join(problems), hint).as_result()
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps({"name": name, "arguments": given}) + "\n")
            self.process.stdin.flush()
            reply = self._receive(self.timeout)
        except TimeoutError:  # an OSError too, so it comes first
            slow = f"the tool took longer than {self.timeout:g} s"
            return self._restart(CallError("timeout", slow, "try again or answer without it"))
        # The pipe broke, an earlier restart failed and closed it, or the child ended in the call.
        except (OSError, ValueError, EOFError):
            ended = CallError("tool_failed", "the tool's process ended", "answer without it")
            return self._restart(ended)
        return reply["result"] if "result" in reply else reply

    def close(self) -> None:
        """Ends the child process, and what its tools have started."""
        if self.process.returncode is None:  # once waited for, its number may be another's
            # macOS answers PermissionError for a group whose processes have all ended.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):  # closing writes what is buffered, to nobody now
            self.process.stdin.close()

    def _start(self) -> list[dict[str, Any]]:
        """Starts the child; returns the tools it describes. Raises: ValueError without any."""
        self.process = subprocess.Popen(
            [sys.executable, str(WORKER), str(self.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
            # Its own process group: Ctrl-C is for the parent alone, and killing the group reaches
            # the programs that a tool has started.
            start_new_session=True,
        )
        # A pipe cannot be read with a time limit on every system; a queue can.
        self.lines: queue.Queue[str] = queue.Queue()
        streams = (self.process.stdout, self.lines)
        threading.Thread(target=_read_lines, args=streams, daemon=True).start()
        try:
            return self._receive_tools()
        except BaseException:  # Ctrl-C too: no way out of here leaves a process behind
            self.close()
            raise

    def _restart(self, problem: CallError) -> dict[str, Any]:
        """Starts the child anew, so that the tools' state is lost; returns what the model reads."""
        self.close()
        try:
            self._start()
        except ValueError as error:  # the next call tries again
            message = f"the tools could not be started again: {error}"
            problem = CallError("tool_failed", message, "answer without them")
        return problem.as_result()

    def _receive_tools(self) -> list[dict[str, Any]]:
        try:
            greeting = self._receive(START_SECONDS)
        except TimeoutError:
            raise ValueError(
                f"{self.path}: running it took over {START_SECONDS:.0f} s; "
                "make it define functions only"
            ) from None
        except EOFError:
            raise ValueError(f"{self.path}: the process that runs it ended") from None
        if "error" in greeting:
            raise ValueError(greeting["error"])
        tools: list[dict[str, Any]] = greeting["tools"]
        return tools

    def _receive(self, seconds: float) -> dict[str, Any]:
        """The child's next message. Raises: TimeoutError; EOFError if the child has ended."""
        try:
            message: dict[str, Any] = json.loads(self.lines.get(timeout=seconds))
        except queue.Empty:
            raise TimeoutError from None
        except json.JSONDecodeError:  # the empty line after the last one, or one that was cut
            raise EOFError from None
        return message


def _read_lines(stream: IO[str], lines: "queue.Queue[str]") -> None:
    """Moves lines from a pipe to a queue until the pipe closes; an empty one marks the end."""
    with stream:
        for line in stream:
            lines.put(line)
    lines.put("")


def _takes_null(tool: Tool, argument: str) -> bool:
    """False for an optional argument whose schema has no null."""
    schema = tool.parameters.get("properties", {}).get(argument)
    if argument in tool.required or schema is None:
        return True  # the check of the arguments has a sentence for it
    return not check_argument(schema, None, argument)
