"""What the page needs beside the API: the tools on offer, their calls, the tokens with the mask."""

import json
import threading
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request as HttpRequest

from agent.constrain import CallGuide
from agent.guides import CallRule, guide_for
from agent.limits import cut_result
from agent.toolbox import ToolBox
from data.chat import render
from data.conversation import Tool
from data.tokenizer import Tokenizer
from data.tool_schema import as_shape, write_tool
from serve.completions import Served, tokenizer_of
from serve.errors import ApiError
from serve.http import read_body
from serve.requests import conversation_of, read_chat, read_object

SHOWN = 12  # of the tokens that a grammar allowed


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
        # Here and not in the page alone: any program can post; and the text "no" is true in Python
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

        Neighbours that share a character come as one. Where calls are held to a grammar, "allowed"
        says of a token in a call how many might have come, and spells some of them.
        Raises: ApiError as a completion.
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
            ids = [id for id, _ in run]
            # Each run of these is a turn of the model's, and every reply has a guide of its own
            tools = conversation.tools if is_trained else ()
            allowed = self._allowed(ids, tools, tokenizer)
            held: list[int] = []
            for number, id in enumerate(ids):
                held.append(id)
                text = tokenizer.decode(held)
                # Half of a character decodes as U+FFFD; its other half is in the next token
                # Bounded, because a text may hold U+FFFD itself, many in a row
                if text.endswith("\ufffd") and len(held) <= 4 and number + 1 < len(ids):
                    continue
                place = allowed.get(number + 1 - len(held))
                more = {} if place is None else {"allowed": place}
                found.append({"ids": held, "text": text, "trained": is_trained, **more})
                held = []
        return found

    def _allowed(
        self, ids: Sequence[int], tools: Sequence[Tool], tokenizer: Tokenizer
    ) -> dict[int, dict[str, Any]]:
        """By their places, the ids in calls of a reply: how many were allowed there, and some."""
        rule, found = self.served.rule, dict[int, dict[str, Any]]()
        if rule.names != "constrained" or not tools:
            return found
        try:
            guide = guide_for(tokenizer, tools, CallRule("constrained"), room=self.served.positions)
        except ValueError as error:
            raise ApiError(f"tools: {error}") from None
        assert isinstance(guide, CallGuide)
        for place, id in enumerate(ids):
            if guide.matcher is not None:
                could = guide.allowed()
                spelled = [tokenizer.decode([one]) for one in could[:SHOWN]]
                found[place] = {"count": len(could), "some": spelled}
            if not guide.accepts(id):  # what a client sends need not come from this server
                break
            guide.advance(id)
        return found
