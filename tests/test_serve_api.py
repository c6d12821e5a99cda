"""The server over its socket: answers, streams, refusals, and what clients do that they should not.

The model follows a script, but for the test of real rows at the end.
"""

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from serving import TOKENIZER, Script, serving, spell  # noqa: E402

from agent.guides import CallRule  # noqa: E402
from agent.toolbox import ToolBox  # noqa: E402
from data.reply import parse_reply  # noqa: E402
from lora.rows import Row  # noqa: E402
from model.generate import generate  # noqa: E402
from model.transformer import Gemma2  # noqa: E402
from serve import http as bounds  # noqa: E402
from serve.batch import Batch  # noqa: E402

CALL = '<tool_call>{"name": "f", "arguments": {"a": "x"}}</tool_call>'
TOOL = {
    "type": "function",
    "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {}}}},
}
NAMED = {"type": "function", "function": {"name": "f"}}
LONG = "word " * 400
REPLIES = {
    "think": f"<think>Hm, é.</think>Well, 😀.{CALL}",
    "calls": CALL + CALL,
    "plain": "Yes, of course.",
    "long": LONG,
}


def script(prompt: str) -> str:
    return next(reply for word, reply in REPLIES.items() if f"{word}<end_of_turn>" in prompt)


@pytest.fixture
def slow() -> Iterator[tuple[Script, str]]:
    batch = Script(script, seconds=0.02)
    with serving(batch, max_rows=2, max_waiting=2) as url:
        yield batch, url


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Script, str]]:
    batch = Script(script)
    with serving(batch, adapters=("first", "second")) as url:
        yield batch, url


def body_of(word: str, **fields: Any) -> dict[str, Any]:
    return {"model": "first", "messages": [{"role": "user", "content": word}], **fields}


def ask(
    url: str,
    path: str,
    body: Any = None,
    headers: dict[str, str] | None = None,
    method: str | None = None,
) -> tuple[int, Any]:
    """Status and JSON of an answer; a body that is bytes goes as it is."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
    data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    connection.request(method or ("POST" if body is not None else "GET"), path, data, headers or {})
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, json.loads(text) if text.startswith(("{", "[")) else text


def complete(url: str, word: str, **fields: Any) -> tuple[int, Any]:
    return ask(url, "/v1/chat/completions", body_of(word, **fields))


def streamed(url: str, word: str, **fields: Any) -> list[dict[str, Any]]:
    status, text = complete(url, word, stream=True, **fields)
    assert status == 200 and text.endswith("data: [DONE]\n\n")
    events = text.removesuffix("data: [DONE]\n\n").split("\n\n")[:-1]
    return [json.loads(event.removeprefix("data: ")) for event in events]


def test_base_and_adapters_are_models(served: tuple[Script, str]) -> None:
    _, url = served
    status, listed = ask(url, "/v1/models")
    assert status == 200 and [model["id"] for model in listed["data"]] == [
        "base",
        "first",
        "second",
    ]
    assert ask(url, "/v1/models/second")[1]["object"] == "model"
    for status, answer in (ask(url, "/v1/models/third"), complete(url, "plain", model="third")):
        assert status == 404 and answer["error"]["code"] == "model_not_found"
    complete(url, "plain", model="base")
    assert served[0].seen[-1].row == Row(None)
    complete(url, "plain", model="second", adapter_scale=0.5)
    assert served[0].seen[-1].row == Row("second", 0.5)


def test_a_reply_is_a_completion(served: tuple[Script, str]) -> None:
    status, answer = complete(served[1], "think", tools=[TOOL])
    assert status == 200 and answer["object"] == "chat.completion"
    [choice] = answer["choices"]
    message = choice["message"]
    assert (message["content"], message["reasoning_content"]) == ("Well, 😀.", "Hm, é.")
    assert message["refusal"] is None
    [call] = message["tool_calls"]
    assert call["function"] == {"name": "f", "arguments": '{"a": "x"}'}
    assert choice["finish_reason"] == "tool_calls"
    written = len(spell(REPLIES["think"])) + 1
    prompt = answer["usage"]["prompt_tokens"]
    assert answer["usage"] == {
        "prompt_tokens": prompt,
        "completion_tokens": written,
        "total_tokens": prompt + written,
    }
    assert prompt == len(served[0].seen[-1].prompt)


@pytest.mark.parametrize("word", REPLIES)
@pytest.mark.parametrize("limit", [1, 3, 7, 20, 40, 500])
def test_a_stream_adds_up_to_the_reply(served: tuple[Script, str], word: str, limit: int) -> None:
    chunks = streamed(
        served[1], word, tools=[TOOL], max_tokens=limit, stream_options={"include_usage": True}
    )
    whole = complete(served[1], word, tools=[TOOL], max_tokens=limit)[1]
    *chunks, last = chunks
    assert last["choices"] == [] and last["usage"] == whole["usage"]
    assert all(chunk["usage"] is None for chunk in chunks)
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant"}
    assert chunks[-1]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    message = whole["choices"][0]["message"]
    for key in ("content", "reasoning_content"):
        assert "".join(delta.get(key, "") for delta in deltas) == (message.get(key) or "")
    parts = [part for delta in deltas for part in delta.get("tool_calls", ())]
    for index, call in enumerate(message.get("tool_calls", ())):
        own = [part["function"] for part in parts if part["index"] == index]
        assert "".join(part.get("name", "") for part in own) == call["function"]["name"]
        assert "".join(part["arguments"] for part in own) == call["function"]["arguments"]
    ids = [*spell(REPLIES[word]), TOKENIZER.end_of_turn_id][:limit]
    assert (message["content"] or "") == parse_reply(ids, TOKENIZER).content


def test_tools_and_choices_reach_the_model(served: tuple[Script, str]) -> None:
    batch, url = served
    tags = TOKENIZER.tag_ids
    complete(url, "plain", tools=[TOOL], tool_choice="none")
    assert '"name": "f"' in batch.prompts[-1]
    assert tags["<tool_call>"] in batch.seen[-1].sampling.forbidden
    complete(url, "plain", tools=[TOOL])
    assert tags["<tool_call>"] not in batch.seen[-1].sampling.forbidden
    assert tags["<tool_response>"] in batch.seen[-1].sampling.forbidden
    answer = complete(url, "calls", tools=[TOOL], parallel_tool_calls=False)[1]
    assert len(answer["choices"][0]["message"]["tool_calls"]) == 1
    assert len(complete(url, "calls", tools=[TOOL])[1]["choices"][0]["message"]["tool_calls"]) == 2
    answer = complete(url, "plain", stop=["course", "no"])[1]
    assert answer["choices"][0]["message"]["content"] == "Yes, of "
    assert answer["choices"][0]["finish_reason"] == "stop"
    complete(url, "plain", temperature=0.5, top_p=0.9, seed=4)
    sampling = batch.seen[-1].sampling
    assert (sampling.temperature, sampling.top_p, sampling.seed) == (0.5, 0.9, 4)


@pytest.mark.parametrize(
    "names, choice",
    [
        *(("constrained", "auto"), ("constrained", "required"), ("offered", "required")),
        *((names, NAMED) for names in ("offered", "free")),
    ],
)
def test_a_required_call_and_every_call_under_a_grammar_fits_its_tool(
    make_model: Callable[..., Gemma2], names: Any, choice: Any
) -> None:
    """Random weights, which never write JSON by themselves, also where the reply is cut short."""
    pytest.importorskip("llguidance")
    model = make_model(vocab_size=len(TOKENIZER), max_position_embeddings=2048)
    integer = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    names_on_offer = ("f", "g") if choice is NAMED else ("f",)
    tools = [
        {"type": "function", "function": {"name": name, "parameters": integer}}
        for name in names_on_offer
    ]
    with serving(Batch(model), adapters=(), rule=CallRule(names)) as url:
        for seed in range(3):
            options = {"model": "base", "tools": tools, "tool_choice": choice, "max_tokens": 60}
            answer = complete(url, "x", seed=seed, temperature=1, **options)[1]
            message = answer["choices"][0]["message"]
            calls = message.get("tool_calls", [])
            assert calls or choice == "auto"
            for call in calls:
                assert call["function"]["name"] == "f"
                assert type(json.loads(call["function"]["arguments"])["a"]) is int


def test_a_prompt_that_fills_the_model_is_refused() -> None:
    with serving(Script(script, positions=20)) as url:
        status, answer = complete(url, "plain " * 30)
        assert status == 400 and answer["error"]["code"] == "context_length_exceeded"
        assert answer["error"]["param"] == "messages"


def test_requests_that_are_wrong_are_told_so(served: tuple[Script, str]) -> None:
    status, answer = complete(served[1], "plain", n=3)
    assert status == 400 and answer["error"] == {
        "message": "n: expected 1, got 3",
        "type": "invalid_request_error",
        "param": "n",
        "code": "invalid_value",
    }
    assert ask(served[1], "/nowhere")[1]["error"]["param"] is None
    assert ask(served[1], "/nowhere")[0] == 404
    assert ask(served[1], "/v1/chat/completions")[0] == 405
    assert "see /v1/models" in ask(served[1], "/nowhere")[1]["error"]["message"]


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Host": "evil.example"},
        {"Host": "evil.example:80"},
        {"Origin": "http://127.0.0.1:1"},
    ],
    ids=str,
)
def test_pages_of_others_are_refused(served: tuple[Script, str], headers: dict[str, str]) -> None:
    status, answer = ask(served[1], "/v1/chat/completions", body_of("plain"), headers)
    assert status == 403 and answer["error"]["code"] == "foreign_origin"


def test_the_own_page_is_served(served: tuple[Script, str]) -> None:
    own = {"Origin": served[1], "Content-Type": "application/json"}
    assert ask(served[1], "/v1/chat/completions", body_of("plain"), own)[0] == 200
    for path in ("/", "/page.css", "/page.js"):
        status, text = ask(served[1], path)
        assert status == 200 and len(text) > 500
    assert ask(served[1], "/page/tools") == (200, {"tools": [], "ask_first": []})
    assert ask(served[1], "/page/call", {"name": "f", "arguments": {}})[0] == 400


def test_tools_that_ask_first_run_after_a_yes(tmp_path: Path) -> None:
    file = tmp_path / "tools.py"
    file.write_text(
        'def look() -> dict:\n    """look"""\n    return {"seen": "\\ud83d"}\n\n'
        'def wipe(name: str) -> str:\n    """wipe"""\n    return "wiped " + name\n\n'
        'confirm = ["wipe"]\n'
    )
    wipe: dict[str, Any] = {"name": "wipe", "arguments": {"name": "a"}}
    with ToolBox(file) as toolbox, serving(Script(script), toolbox=toolbox) as url:
        assert ask(url, "/page/tools")[1]["ask_first"] == ["wipe"]
        status, answer = ask(url, "/page/call", wipe)
        assert status == 409 and answer["error"]["code"] == "ask_first"
        for said in (1, "yes", False):
            assert ask(url, "/page/call", {**wipe, "approved": said})[0] == 409
        assert ask(url, "/page/call", {**wipe, "approved": True})[1]["content"] == "wiped a"
        # Half a character that a tool gives can be sent on
        assert ask(url, "/page/call", {"name": "look", "arguments": {}})[1]["content"] == (
            '{"seen": "?"}'
        )
        assert (
            "unknown_tool" in ask(url, "/page/call", {"name": "x", "arguments": {}})[1]["content"]
        )


def test_tokens_come_with_their_mask(served: tuple[Script, str]) -> None:
    messages = [
        {"role": "user", "content": "é 😀"},
        {"role": "assistant", "content": "Yes 日.", "reasoning_content": "Hm"},
    ]
    body = {"model": "first", "messages": messages, "tools": [TOOL]}
    status, tokens = ask(served[1], "/page/tokens", body)
    assert status == 200
    ids = [id for token in tokens for id in token["ids"]]
    text = "".join(token["text"] for token in tokens)
    assert text == TOKENIZER.decode(ids) and text.startswith("<bos><start_of_turn>user\n")
    learned = "".join(token["text"] for token in tokens if token["trained"])
    assert learned == "<think>Hm</think>Yes 日.<end_of_turn>"
    assert ask(served[1], "/page/tokens", {**body, "model": "third"})[0] == 404


def test_bodies_are_bounded(served: tuple[Script, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "MAX_BODY", 1000)
    status, answer = complete(served[1], "x" * 2000)
    assert status == 413 and answer["error"]["code"] == "body_too_large"
    monkeypatch.setattr(bounds, "BODY_SECONDS", 0.2)
    with raw(served[1]) as client:
        client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n")
        client.sendall(b"Content-Length: 99\r\n\r\n{")
        assert b" 408 " in client.recv(1000)


def raw(url: str) -> socket.socket:
    """A connection; with a small buffer for what comes in."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    client.settimeout(20)
    client.connect(("127.0.0.1", urlsplit(url).port))
    return client


def send_raw(client: socket.socket, body: dict[str, Any]) -> None:
    data = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}"
    client.sendall(head.encode() + b"\r\n\r\n" + data)


def until(check: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_row(slow: tuple[Script, str], stream: bool) -> None:
    batch, url = slow
    with raw(url) as client:
        send_raw(client, body_of("long", stream=stream))
        until(lambda: len(batch) == 1 and len(batch.seen[-1].written) > 2)
        with ThreadPoolExecutor(1) as pool:  # the row beside it goes on
            other = pool.submit(complete, url, "think")
            until(lambda: len(batch) == 2)
            client.close()
            assert other.result()[1]["choices"][0]["message"]["content"] == "Well, 😀."
    until(lambda: len(batch) == 0)
    assert len(batch.seen[0].written) < 200


def test_a_full_queue_says_so_and_goes_on(slow: tuple[Script, str]) -> None:
    batch, url = slow
    engine = batch.engine
    assert engine is not None
    clients = [raw(url) for _ in range(4)]
    for number, client in enumerate(clients, start=1):
        send_raw(client, body_of("long", stream=True))
        until(lambda number=number: len(batch) + len(engine.waiting) == number)  # type: ignore[misc]
    # Two rows run and two wait: the next one is told to come back
    status, answer = complete(url, "plain")
    assert status == 503 and answer["error"]["code"] == "server_busy"
    assert answer["error"]["type"] == "server_error"
    for client in clients:
        client.close()
    until(lambda: complete(url, "plain")[0] == 200)


def test_a_client_that_does_not_read_is_left(
    slow: tuple[Script, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    batch, url = slow
    batch.seconds = 0.0
    monkeypatch.setattr(bounds, "SEND_SECONDS", 0.3)
    batch.reply = lambda prompt: "word " * 200_000 if "long" in prompt else "Yes."
    batch.model.config.max_position_embeddings = 10**6
    with raw(url) as client:
        send_raw(client, body_of("long", stream=True, max_tokens=10**6))
        until(lambda: len(batch.seen) == 1)
        until(lambda: len(batch) == 0)
        assert len(batch.seen[0].written) < 150_000
        assert complete(url, "plain")[0] == 200


def test_a_step_that_fails_is_answered_and_the_next_request_is_served(
    slow: tuple[Script, str],
) -> None:
    batch, url = slow
    whole, broken = batch.step, [True]

    def step() -> Any:
        if broken.pop() if broken else False:
            raise RuntimeError("no memory")
        return whole()

    batch.step = step  # type: ignore[method-assign]
    status, answer = complete(url, "plain")
    assert status == 500 and "no memory" in answer["error"]["message"]
    assert complete(url, "plain")[0] == 200
    broken.append(True)
    status, text = complete(url, "plain", stream=True)
    assert status == 200 and "no memory" in text and "[DONE]" not in text


def test_sixteen_clients_at_once_get_their_own_replies(
    make_model: Callable[..., Gemma2],
) -> None:
    """A real model of random weights, whose every reply is what it writes alone."""
    size = {"vocab_size": len(TOKENIZER), "max_position_embeddings": 2048}
    model = make_model(**size)
    answers: dict[int, Any] = {}
    words = ["a", "some longer words", "x " * 40, "é"]

    def one(number: int) -> None:
        word = words[number % 4]
        answers[number] = complete(url, word, model="base", max_tokens=8 + number)[1]

    with serving(Batch(model), adapters=()) as url:
        threads = [threading.Thread(target=one, args=(number,)) for number in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        batch_was = len(answers)
    assert batch_was == 16
    from data.chat import render_prompt
    from model.generate import Sampling
    from serve.requests import conversation_of, read_chat

    wire = TOKENIZER.wire
    allowed = {TOKENIZER.tag_ids[tag] for tag in wire.thinking.tags + wire.call.tags}
    forbidden = TOKENIZER.control_ids - allowed - set(TOKENIZER.stop_ids)
    for number, answer in answers.items():
        chat = read_chat(json.dumps(body_of(words[number % 4])).encode())
        prompt = render_prompt(conversation_of(chat, TOKENIZER), TOKENIZER)
        sampling = Sampling(forbidden=tuple(sorted(forbidden)))
        ids = generate(model, [prompt], 8 + number, TOKENIZER.stop_ids, sampling)[0]
        reply = parse_reply(ids, TOKENIZER)
        assert answer["usage"]["completion_tokens"] == len(ids)
        if not reply.errors:
            assert (answer["choices"][0]["message"]["content"] or "") == reply.content
