"""The clients that people have, against the server: openai, smolagents, langchain-openai.

Each runs in the interpreter that the variable CLIENTS_PYTHON names, by default this one, and is
skipped where that does not have it (pip install openai smolagents langchain-openai langgraph).
Where CLIENTS_ADAPTER names the folder of a default `python train.py`, they ask its adapter too.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from serving import Script, serving  # noqa: E402

from benchmarks.soak import server  # noqa: E402

PYTHON = os.environ.get("CLIENTS_PYTHON", sys.executable)
SCRIPT = Path(__file__).with_name("chat_clients.py")


def call(name: str, **arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def script(prompt: str) -> str:
    """Two calls, the second with the first one's result, and an answer."""
    if "forced<end_of_turn>" in prompt:
        return call("double", number=1)
    if "both<end_of_turn>" in prompt:
        return call("double", number=1) + call("double", number=2)
    results = prompt.count("<tool_response>")
    if results == 0:
        return "<think>Multiply first.</think>" + call("multiply_numbers", first=17.5, second=23)
    if results == 1:
        assert "402.5" in prompt
        return call("double", number=402.5)
    assert "805" in prompt.rpartition("<tool_response>")[2]
    answer = "It is 402.5, and 805."
    return call("final_answer", answer=answer) if '"final_answer"' in prompt else answer


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Script, str]]:
    batch = Script(script, positions=16_384)
    with serving(batch) as url:
        yield batch, url


def run(package: str, client: str, *more: str) -> Any:
    there = subprocess.run([PYTHON, "-c", f"import {package}"], capture_output=True)
    if there.returncode:
        pytest.skip(f"{PYTHON} has no {package}")
    # Without the folder of the tests on its path, whose names are no packages of that interpreter
    done = subprocess.run(
        [PYTHON, "-P", str(SCRIPT), client, *more], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


CALLS = [["multiply_numbers", {"first": 17.5, "second": 23}], ["double", {"number": 402.5}]]


@pytest.mark.parametrize("client", ["openai", "openai-stream"])
def test_the_openai_client_calls_twice_and_has_an_answer(
    served: tuple[Script, str], client: str
) -> None:
    assert run("openai", client, served[1]) == [*CALLS, "It is 402.5, and 805."]
    assert "<think>Multiply first.</think>" in served[0].prompts[-1]  # it sends thoughts back


def test_the_openai_client_forces_and_limits_calls_and_reads_errors(
    served: tuple[Script, str],
) -> None:
    pytest.importorskip("llguidance")  # it requires a call, as smolagents always does
    found = run("openai", "openai-odds", served[1])
    assert found == {
        "models": ["base", "first"],
        "forced": ["double"],
        "both": [2, "tool_calls"],
        "one": [1, "tool_calls"],
        "n": ["BadRequestError", "invalid_value"],
        "model": ["NotFoundError", "model_not_found"],
    }


def test_an_agent_of_smolagents_finishes(served: tuple[Script, str]) -> None:
    pytest.importorskip("llguidance")
    assert run("smolagents", "smolagents", served[1]) == "It is 402.5, and 805."
    # What smolagents says of calls in words has reached the model as calls and results
    assert served[0].prompts[-1].count("<tool_response>") == 2
    assert "Calling tools:" not in served[0].prompts[-1].rpartition("New task")[2]
    assert served[0].seen[-1].guide is not None


def test_an_agent_of_langchain_finishes(served: tuple[Script, str]) -> None:
    answer, kinds = run("langchain_openai", "langchain", served[1])
    assert answer == "It is 402.5, and 805."
    assert kinds == ["human", "ai", "tool", "ai", "tool", "ai"]


@pytest.fixture(scope="module")
def trained() -> Iterator[str]:
    if "CLIENTS_ADAPTER" not in os.environ:
        pytest.skip("CLIENTS_ADAPTER names no folder of a run")
    with server(Path(os.environ["CLIENTS_ADAPTER"]), name="first") as (port, _):
        yield f"http://127.0.0.1:{port}"


@pytest.mark.parametrize(
    ("package", "client"),
    [
        ("openai", "openai"),
        ("openai", "openai-stream"),
        ("smolagents", "smolagents"),
        ("langchain_openai", "langchain"),
    ],
)
def test_a_trained_adapter_finishes_two_steps(trained: str, package: str, client: str) -> None:
    """The second call's argument is the first one's result, and the answer tells the second's."""
    found = run(package, client, trained, "double")
    if package == "openai":
        assert found[:2] == CALLS
    answer = {"openai": -1, "langchain_openai": 0}.get(package)
    assert "805" in (found if answer is None else found[answer])
