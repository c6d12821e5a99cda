"""A Python file's public functions as tools: the check of a call's arguments, and the call itself.

This is the program's side. The functions run in a worker process, `agent/tool_worker.py`, whose
docstring describes the protocol; a keeper, `agent/tool_keeper.py`, ends it with all that it has
started, however the program ends. A worker that takes too long is killed, and another one started.
"""

import contextlib
import json
import math
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from agent.tool_keeper import descendants, kill
from agent.tool_worker import MAX_RESULT
from data.call_check import check_argument, check_arguments
from data.conversation import Tool
from data.tool_calls import CallError

KEEPER = Path(__file__).with_name("tool_keeper.py")
START_SECONDS = 60.0  # to run the user's file: its imports may be large
CLOSE_SECONDS = 6.0  # the keeper's own sweep may take 5
CALL_SECONDS = 30.0
MEMORY = 2048  # MiB; importing torch maps 640, numpy 140 on two cores, and more with more cores
# All that a tool sees of the environment. A key or a token in it could reach the model.
PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TMPDIR", "TZ")
MAX_LINE = MAX_RESULT + 1000  # bytes of an answer: the result and the words around it


class ToolBox:
    """The tools of one file. Use as a context manager: leaving it ends the child process."""

    def __init__(
        self,
        path: str | Path,
        timeout: float = CALL_SECONDS,
        *,
        memory: int = MEMORY,
        environment: Sequence[str] = (),
        ask: Callable[[str, dict[str, Any]], bool] = lambda name, arguments: False,
    ) -> None:
        """timeout: seconds that one call may take; memory: MiB of address space, 0 for any.

        environment: names of variables that the tools see besides PASSED_ON. ask: gets name and
        arguments of a call to a tool that asks first; True lets it run.
        Raises: FileNotFoundError; ValueError if the file fails to run or has no usable function,
        or for a variable that is not set.
        """
        self.path, self.timeout, self.memory, self.ask = Path(path), timeout, memory, ask
        if not self.path.is_file():
            raise FileNotFoundError(
                f"--tools {path}: no such file; "
                "give a Python file whose public functions are the tools"
            )
        for name in environment:
            if name not in os.environ:
                raise ValueError(f"--tool-env {name}: no such variable is set; set it, or leave it")
        names = (*PASSED_ON, *environment)
        self.environment = {name: os.environ[name] for name in names if name in os.environ}
        specs = self._start()
        self.tools = [Tool(spec["name"], spec["description"], spec["parameters"]) for spec in specs]
        self.asks_first = {spec["name"] for spec in specs if spec["asks_first"]}
        self.by_name = {tool.name: tool for tool in self.tools}

    def __enter__(self) -> "ToolBox":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def approves(self, name: str, arguments: dict[str, Any]) -> bool:
        """True if this call may be run: it does nothing that asks first, or the user says yes."""
        return name not in self.asks_first or self.ask(name, arguments)

    def call(self, name: str, arguments: dict[str, Any], seconds: float = math.inf) -> Any:
        """The tool's result, or a `CallError` as one; a bad call never raises.

        seconds: what this call may take, where that is less than `timeout`.
        """
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
        limit = min(self.timeout, seconds)
        try:
            answer = self._exchange({"name": name, "arguments": given}, limit)
        except TimeoutError:  # an OSError too, so it comes first
            slow = f"the tool took longer than {limit:.3g} s"
            return self._restart(CallError("timeout", slow, "try again or answer without it"))
        # The worker ended in the call, or an earlier restart failed and closed the socket.
        except OSError as error:
            ended = "the tool's process ended" if error.errno else str(error)
            return self._restart(CallError("tool_failed", ended, "answer without it"))
        return answer["result"] if "result" in answer else {"error": answer.get("error")}

    def close(self) -> None:
        """Ends the keeper, the worker, and what the tools have started."""
        self.channel.close()
        assert self.process.stdin is not None
        self.process.stdin.close()
        # The signal as well: another child of this program may hold a copy of the pipe.
        self.process.terminate()
        try:
            self.process.wait(CLOSE_SECONDS)
        except subprocess.TimeoutExpired:  # a tool has stopped it
            for number in [*descendants(self.process.pid), self.process.pid]:
                kill(number)
            self.process.wait()

    def _start(self) -> list[dict[str, Any]]:
        """Starts keeper and worker; returns the tools. Raises: ValueError without any, OSError."""
        self.channel, theirs = socket.socketpair()
        self.received = bytearray()
        command = [sys.executable, str(KEEPER), str(self.path), str(self.memory << 20)]
        with theirs:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,  # nothing is written; its end is this program's end
                stdout=theirs.fileno(),
                env=self.environment,
                start_new_session=True,  # Ctrl-C is for this program alone
            )
        try:
            return self._receive_tools()
        except BaseException:  # Ctrl-C too: no way out of here leaves a process behind
            self.close()
            raise

    def _restart(self, problem: CallError) -> dict[str, Any]:
        """Starts the worker anew: the tools' state is lost. Returns what the model reads."""
        self.close()
        try:
            self._start()
        except (ValueError, OSError) as error:  # the next call tries again
            message = f"the tools could not be started again: {error}"
            problem = CallError("tool_failed", message, "answer without them")
        return problem.as_result()

    def _receive_tools(self) -> list[dict[str, Any]]:
        try:
            greeting = self._exchange({}, START_SECONDS)
        except TimeoutError:
            raise ValueError(
                f"{self.path}: running it took over {START_SECONDS:.0f} s; "
                "make it define functions only"
            ) from None
        except OSError:
            raise ValueError(
                f"{self.path}: the process that runs it ended; if it needs more memory than "
                f"{self.memory} MiB or more of the environment, see --tool-memory and --tool-env"
            ) from None
        if "tools" not in greeting:
            raise ValueError(str(greeting.get("error")))
        tools: list[dict[str, Any]] = greeting["tools"]
        return tools

    def _exchange(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Sends a request; returns the answer to this one.

        Raises: TimeoutError; OSError if the worker has ended, or writes without end.
        """
        nonce = secrets.token_hex(16)
        deadline = time.monotonic() + seconds
        self.channel.settimeout(max(seconds, 0.001))  # 0 would mean: do not wait at all
        self.channel.sendall(json.dumps({"nonce": nonce, **request}).encode() + b"\n")
        while True:
            line = self._read_line(deadline)
            # Without the number it is a tool's own writing, and not even parsed.
            if nonce.encode() not in line:
                continue
            with contextlib.suppress(ValueError, RecursionError):
                answer = json.loads(line)
                if isinstance(answer, dict) and answer.get("nonce") == nonce:
                    return answer

    def _read_line(self, deadline: float) -> bytes:
        """The next line from the worker, of MAX_LINE bytes at most."""
        searched = 0
        while (end := self.received.find(b"\n", searched)) < 0:
            searched = len(self.received)
            if searched > MAX_LINE:
                raise OSError(f"the tool wrote {MAX_LINE} bytes that are no answer")
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self.channel.settimeout(left)
            data = self.channel.recv(1 << 16)
            if not data:
                raise OSError("the tool's process ended")
            self.received += data
        line = bytes(self.received[:end])
        del self.received[: end + 1]
        return line


def _takes_null(tool: Tool, argument: str) -> bool:
    """False for an optional argument whose schema has no null."""
    schema = tool.parameters.get("properties", {}).get(argument)
    if argument in tool.required or schema is None:
        return True  # the check of the arguments has a sentence for it
    return not check_argument(schema, None, argument)
