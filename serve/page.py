"""What the page needs beside the API: the tools on offer, their calls, the tokens with the mask."""

import json
import threading
from itertools import groupby
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request as HttpRequest

from agent.limits import cut_result
from agent.toolbox import ToolBox
from data.chat import render
from data.tool_schema import as_shape, write_tool
from serve.completions import Served, tokenizer_of
from serve.errors import ApiError
from serve.http import read_body
from serve.requests import conversation_of, read_chat, read_object


class PageTools:
    """The routes of the page; the tools are those of `--tools`, run in their child process."""

    def __init__(self, served: Served, toolbox: ToolBox | None, *, asks_first: bool = True) -> None:
        """asks_first: whether tools that say so run only once the user has been asked."""
        self.served, self.toolbox = served, toolbox
        self.asking = toolbox.asks_first if toolbox and asks_first else set()
        self.lock = threading.Lock()  # the child process takes one call at a time

    async def offered(self, http: HttpRequest) -> dict[str, Any]:
        """The tools in OpenAI's form, and the names of those that ask first."""
        tools = self.toolbox.tools if self.toolbox else []
        written = [write_tool(as_shape(tool, "openai")) for tool in tools]
        return {"tools": written, "ask_first": sorted(self.asking)}

    async def call(self, http: HttpRequest) -> dict[str, Any]:
        """Runs {"name", "arguments"}; its result as the text that a model reads.

        Raises: ApiError for a body that is no call, and for a tool that asks first without the
        word "approved".
        """
        call = read_object(await read_body(http))
        name, arguments = call.get("name"), call.get("arguments")
        if self.toolbox is None or not isinstance(name, str) or not isinstance(arguments, dict):
            raise ApiError("expected a name and arguments of a tool on offer, got another body")
        if name in self.asking and call.get("approved") is not True:
            raise ApiError(f"{name}: expected a yes of the user first, got none", "ask_first", 409)
        result = await run_in_threadpool(self._run, name, arguments)
        return {"name": name, "content": result}

    def _run(self, name: str, arguments: dict[str, Any]) -> str:
        assert self.toolbox is not None
        with self.lock:
            result = self.toolbox.call(name, arguments)
        text = result if isinstance(result, str) else json.dumps(result, ensure_ascii=False)
        return cut_result(text)

    async def tokens(self, http: HttpRequest) -> list[dict[str, Any]]:
        """A conversation's tokens and whether training would learn to write them.

        Neighbours that share a character come as one. Raises: ApiError as a completion.
        """
        return await run_in_threadpool(self._tokens, await read_body(http))

    def _tokens(self, body: bytes) -> list[dict[str, Any]]:
        chat = read_chat(body)
        tokenizer = tokenizer_of(self.served, chat.model)
        conversation = conversation_of(chat, tokenizer, is_whole=True)
        example = render(conversation, tokenizer)
        found: list[dict[str, Any]] = []
        pairs = zip(example.tokens, example.trainable, strict=True)
        for is_trained, run in groupby(pairs, key=lambda pair: pair[1]):
            held: list[int] = []
            for id, _ in run:
                held.append(id)
                text = tokenizer.decode(held)
                # Half of a character decodes as U+FFFD; its other half is in the next token
                if not text.endswith("\ufffd") or len(held) > 4:
                    found.append({"ids": held, "text": text, "trained": is_trained})
                    held = []
            if held:
                found.append({"ids": held, "text": tokenizer.decode(held), "trained": is_trained})
        return found
