"""A server in this process, for the tests of what talks to it; its model may follow a script."""

import contextlib
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import uvicorn

from agent.guides import CallRule
from agent.toolbox import ToolBox
from data.tokenizer import Tokenizer
from model.generate import Sampling
from serve.app import make_app
from serve.batch import Batch, Request, Written
from serve.completions import Served
from serve.engine import Engine
from serve.page import PageTools

ROOT = Path(__file__).parents[1]
TOKENIZER = Tokenizer.from_pretrained(ROOT / "tests" / "grammar")


def spell(text: str) -> list[int]:
    """Text to ids, with the turns and tags in it as control ids."""
    control = {"<end_of_turn>": TOKENIZER.end_of_turn_id} | TOKENIZER.tag_ids
    ids: list[int] = []
    for part in re.split(f"({'|'.join(map(re.escape, control))})", text):
        ids += [control[part]] if part in control else TOKENIZER.encode(part)
    return ids


class Script(Batch):
    """A batch whose rows write what `reply` makes of their prompt's text, an id a step.

    seconds: of a step, for tests of what happens in between.
    """

    def __init__(
        self, reply: Callable[[str], str], *, seconds: float = 0.0, positions: int = 4096
    ) -> None:
        self.reply, self.seconds = reply, seconds
        self.model: Any = SimpleNamespace(config=SimpleNamespace(max_position_embeddings=positions))
        self.engine: Engine | None = None
        self.prompts: list[str] = []
        self.seen: list[Request] = []
        self.clear()

    def clear(self) -> None:
        self.requests: list[Request] = []
        self.left: dict[Request, list[int]] = {}

    def join(self, request: Request) -> Written:
        prompt = TOKENIZER.decode(request.prompt)
        self.prompts.append(prompt)
        self.seen.append(request)
        self.left[request] = [*spell(self.reply(prompt)), TOKENIZER.end_of_turn_id]
        self.requests.append(request)
        return self._write([request])[0]

    def step(self) -> list[Written]:
        time.sleep(self.seconds)
        return self._write(self.requests)

    def leave(self, request: Request) -> None:
        if request in self.requests:
            self.requests.remove(request)

    def _write(self, requests: Sequence[Request]) -> list[Written]:
        news = []
        for request in list(requests):
            id = self.left[request].pop(0)
            request.written.append(id)
            is_full = len(request.written) >= request.max_new_tokens
            news.append(Written(request, id, is_full or id in request.stop_ids))
        for one in news:
            if one.is_last:
                self.leave(one.request)
        return news


@contextlib.contextmanager
def serving(
    batch: Batch,
    *,
    adapters: Sequence[str] = ("first",),
    toolbox: ToolBox | None = None,
    rule: CallRule | None = None,
    **limits: int,
) -> Iterator[str]:
    """The address of a server with this batch, which ends with the block."""
    with Engine(batch, **limits) as engine:
        if isinstance(batch, Script):
            batch.engine = engine
        tokenizers = dict.fromkeys(["base", *adapters], TOKENIZER)
        served = Served(engine, tokenizers, Sampling(), 512, int(time.time()), rule or CallRule())
        app = make_app(served, PageTools(served, toolbox))
        config = uvicorn.Config(app, port=0, log_level="error", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            engine.close()
            server.should_exit = True
            thread.join()
