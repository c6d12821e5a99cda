"""Sixteen clients at a server for a minute, some of which hang up or are killed in between.

    python -m benchmarks.soak [--adapter runs/NAME] [--seconds 60] [--clients 16] [--out FILE.jsonl]

Starts `infer.py --serve` in float32 and asks every question once, alone; then all clients ask at
once, whole and streamed. A client that hangs up closes its connection in the middle of a reply; one
that is killed leaves it reset. Right is the text of the question asked alone, or an error of the
API; returns 0 if no answer was wrong and the server's memory stayed flat.
"""

import argparse
import contextlib
import http.client
import json
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from agent.loading import EMBEDDED_MODEL
from benchmarks.timing import write_rows
from data.dataset import load_conversations

ROOT = Path(__file__).parents[1]
QUESTIONS = EMBEDDED_MODEL.parent / "rows" / "questions.jsonl"
KINDS = ("whole", "stream", "hang-up", "kill")
SHARES = (4, 3, 2, 2)  # of a client's requests
FLAT = 1.05  # of the memory at a quarter of the time, at the end at most
TIMEOUT = 120  # seconds of one request


@contextlib.contextmanager
def server(adapter: Path | None, name: str = "own") -> Iterator[tuple[int, int]]:
    """The port and the process id of a server, which is interrupted at the end."""
    command = [sys.executable, "infer.py", "--serve", "0", "--device", "cpu", "--dtype", "fp32"]
    command += ["--adapter", f"{name}={adapter.resolve()}"] if adapter else []
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            found = None
            while found is None:
                line = process.stderr.readline()
                if not line:
                    raise RuntimeError("the server did not start")
                found = re.search(r"http://127.0.0.1:(\d+)/", line)
            yield int(found[1]), process.pid
        finally:
            process.send_signal(signal.SIGINT)


def resident(pid: int) -> int:
    """Bytes of memory that a process holds."""
    fields = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    return int(fields["VmRSS"].split()[0]) * 1024


def post(port: int, body: dict[str, Any]) -> http.client.HTTPConnection:
    """A connection on which a request has been sent."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
    headers = {"content-type": "application/json"}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    return connection


def text_of(port: int, body: dict[str, Any]) -> str | None:
    """What the model wrote, its calls included; None for an error of the API."""
    with contextlib.closing(post(port, body)) as connection:
        response = connection.getresponse()
        data = response.read().decode()
    if response.status != 200:
        json.loads(data)["error"]["message"]  # an error of the API's own form, or this raises
        return None
    if not body.get("stream"):
        return _said(json.loads(data)["choices"][0]["message"])
    parts: dict[str, Any] = {}
    for line in data.splitlines():
        if not line.startswith("data: {"):
            continue
        event = json.loads(line[6:])
        if "error" in event:
            return None
        _join(parts, event["choices"][0]["delta"])
    return _said(parts) if data.endswith("data: [DONE]\n\n") else "cut without an error"


def _join(parts: dict[str, Any], delta: dict[str, Any]) -> None:
    for name in ("content", "reasoning_content"):
        parts[name] = parts.get(name, "") + (delta.get(name) or "")
    for call in delta.get("tool_calls", ()):
        calls = parts.setdefault("tool_calls", [])
        if call["index"] == len(calls):
            calls.append({"function": {"name": "", "arguments": ""}})
        for name, value in call["function"].items():
            calls[call["index"]]["function"][name] += value


def _said(message: dict[str, Any]) -> str:
    calls = [call["function"] for call in message.get("tool_calls") or ()]
    shown = [message.get("reasoning_content") or "", message.get("content") or ""]
    return json.dumps([*shown, *([call["name"], call["arguments"]] for call in calls)])


def leave(port: int, body: dict[str, Any], drawn: random.Random, *, is_killed: bool) -> None:
    """Leaves in the middle of a streamed reply, at some byte of it."""
    connection = post(port, {**body, "stream": True})
    response = connection.getresponse()
    response.read(drawn.randrange(1, 2000))
    if is_killed and connection.sock is not None:
        # As the system does for a process that dies with a reply unread: reset, not closed.
        linger = struct.pack("ii", 1, 0)
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    response.close()
    connection.close()


def ask(
    port: int, seed: int, expected: list[tuple[dict[str, Any], str]], end: float
) -> Counter[str]:
    """One client: what came of its requests, by kind; "wrong" are answers of another question."""
    drawn, counts = random.Random(seed), Counter[str]()
    while time.monotonic() < end:
        body, right = drawn.choice(expected)
        (kind,) = drawn.choices(KINDS, SHARES)
        counts[kind] += 1
        if kind in ("hang-up", "kill"):
            leave(port, body, drawn, is_killed=kind == "kill")
            continue
        text = text_of(port, {**body, "stream": kind == "stream"})
        counts["error" if text is None else "right" if text == right else "wrong"] += 1
    return counts


def questions(model: str, count: int) -> list[dict[str, Any]]:
    """Requests, each of another length."""
    rows = load_conversations(QUESTIONS)[0][:count]
    texts = [next(one.content for one in row.messages if one.role == "user") for row in rows]
    return [
        {"model": model, "max_tokens": 12 + 8 * n, "messages": [{"role": "user", "content": text}]}
        for n, text in enumerate(texts)
    ]


def run(args: argparse.Namespace) -> dict[str, Any]:
    """The counts of all clients, and the server's memory."""
    counts, memory = Counter[str](), []
    with server(args.adapter) as (port, pid):
        asked = questions("own" if args.adapter else "embedded", 12)
        expected = [(body, text_of(port, body) or "") for body in asked]
        start = time.monotonic()
        end = start + args.seconds

        def client(seed: int) -> None:
            try:
                counts.update(ask(port, seed, expected, end))
            except Exception as error:  # a client must not die unnoticed
                counts.update({"wrong": 1, f"{type(error).__name__}: {error}": 1})

        threads = [threading.Thread(target=client, args=(n,)) for n in range(args.clients)]
        for thread in threads:
            thread.start()
        time.sleep(args.seconds / 4)
        memory.append(resident(pid))
        for thread in threads:
            thread.join()
        # Whoever has left must have freed its row: a last question is answered as the first time.
        counts["right" if text_of(port, asked[0]) == expected[0][1] else "wrong"] += 1
        memory.append(resident(pid))
    what = {"name": "soak", "clients": args.clients, "seconds": args.seconds}
    return what | dict(counts) | {"quarter_bytes": memory[0], "end_bytes": memory[1]}


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0 if no answer was wrong and memory was flat."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--adapter", type=Path, help="of the embedded base; by default none")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--out", type=Path, help="append a JSON line to this file")
    args = parser.parse_args(argv)
    row = run(args)
    print(json.dumps(row))
    if args.out:
        write_rows(args.out, [row], torch.device("cpu"))
    is_flat = row["end_bytes"] <= FLAT * row["quarter_bytes"]
    return 0 if is_flat and row.get("right") and not row.get("wrong") else 1


if __name__ == "__main__":
    sys.exit(main())
