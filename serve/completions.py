"""`/v1/models` and `/v1/chat/completions`: from a request's body to its answer."""

import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from agent.constrain import check_library
from agent.guides import CallRule, guide_for
from data.chat import render_prompt
from data.conversation import Tool
from data.tokenizer import Tokenizer
from lora.rows import Row
from model.generate import Guide, Sampling
from serve.batch import Request
from serve.engine import Engine, Ticket
from serve.errors import ApiError
from serve.http import EventStream, read_body
from serve.replies import Answer, joined
from serve.requests import Chat, conversation_of, read_chat


@dataclass(frozen=True)
class Served:
    """What one server has: the engine, a tokenizer for each name, and its defaults."""

    engine: Engine
    # By the name under which it is asked: the base's comes first, then the adapters'
    tokenizers: dict[str, Tokenizer]
    sampling: Sampling
    max_new_tokens: int
    started: int  # seconds since 1970
    rule: CallRule = CallRule()  # what a call may be

    @property
    def base(self) -> str:
        return next(iter(self.tokenizers))

    @property
    def positions(self) -> int:
        return self.engine.batch.model.config.max_position_embeddings


def model_object(served: Served, name: str) -> dict[str, Any]:
    """A model as OpenAI lists it."""
    owner = "base" if name == served.base else "adapter"
    return {"id": name, "object": "model", "created": served.started, "owned_by": owner}


def tokenizer_of(served: Served, name: str) -> Tokenizer:
    """The tokenizer of a model. Raises: ApiError for a name that is none."""
    if name not in served.tokenizers:
        known = ", ".join(served.tokenizers)
        message = f"model: expected one of {known}, got {name[:100]}"
        raise ApiError(message, "model_not_found", 404, param="model")
    return served.tokenizers[name]


async def complete(served: Served, http: HttpRequest) -> Response:
    """Answers one request, at once or as it is written."""
    body = await read_body(http)
    # Rendering takes a second for each megabyte: not in the loop that serves all others
    chat, request, answer = await run_in_threadpool(prepare, served, body)
    ticket = served.engine.submit(request)
    if chat.stream:
        events = stream(served, chat, ticket, answer)
        return EventStream(events, on_end=lambda: served.engine.cancel(ticket))
    return JSONResponse(await whole(served, chat, ticket, answer, http))


def prepare(served: Served, body: bytes) -> tuple[Chat, Request, Answer]:
    """What a body asks for. Raises: ApiError for what cannot be served."""
    chat = read_chat(body)
    tokenizer = tokenizer_of(served, chat.model)
    conversation = conversation_of(chat, tokenizer)
    try:
        prompt = render_prompt(conversation, tokenizer)
    except ValueError as error:
        raise ApiError(str(error), param="messages") from None
    room = served.positions - len(prompt)
    if room < 1:
        raise ApiError(
            f"messages: expected fewer than {served.positions} tokens with the tools, "
            f"got {len(prompt)}; shorten the conversation",
            "context_length_exceeded",
            param="messages",
        )
    room = min(room, chat.max_new_tokens or served.max_new_tokens)
    forbidden = tokenizer.forbidden_ids(may_call=chat.choice != "none")
    sampling = replace(served.sampling, **chat.sampling, forbidden=forbidden)
    adapter = None if chat.model == served.base else chat.model
    request = Request(
        prompt,
        room,
        frozenset(tokenizer.stop_ids),
        Row(adapter, chat.scale),
        sampling,
        _guide(chat, served.rule, conversation.tools, tokenizer, room),
    )
    answer = Answer(tokenizer, conversation.tools, chat.stops, one_call=chat.one_call)
    return chat, request, answer


def _guide(
    chat: Chat, rule: CallRule, tools: Sequence[Tool], tokenizer: Tokenizer, room: int
) -> Guide | None:
    """What may come in the reply, by `tool_choice`.

    Raises: ApiError for tools that no grammar can be made of, and for a call that is required
    where none can be promised.
    """
    offered = [tool for tool in tools if chat.name in (None, tool.name)]
    must_call = chat.choice in ("required", "named")
    choice = "required" if must_call else chat.choice
    try:
        if must_call:
            # First: whether it is installed must not depend on grammars that are cached
            check_library("a call that is required")
        return guide_for(tokenizer, offered, replace(rule, choice=choice), room=room)
    except ValueError as error:
        field = "tool_choice" if must_call else "tools"
        told = str(error).removeprefix("--constrain: ")  # a flag, which no client can give
        raise ApiError(f"{field}: {told}", param=field) from None


async def deltas(ticket: Ticket, answer: Answer) -> AsyncIterator[dict[str, Any]]:
    """The reply's deltas, as they are written."""
    async for news in ticket.ids():
        for delta in answer.feed(news.id):
            yield delta
        if answer.is_over:  # by a stop text or after the only call
            break
    cut = ticket.request.written[-1] not in ticket.request.stop_ids
    for delta in answer.end(is_cut=cut):
        yield delta


def usage(ticket: Ticket, answer: Answer) -> dict[str, int]:
    """Tokens read and written."""
    prompt, reply = len(ticket.request.prompt), answer.num_ids
    return {
        "prompt_tokens": prompt,
        "completion_tokens": reply,
        "total_tokens": prompt + reply,
    }


async def whole(
    served: Served, chat: Chat, ticket: Ticket, answer: Answer, http: HttpRequest
) -> dict[str, Any]:
    """The reply as one object; a client that leaves frees its row."""

    async def collect() -> list[dict[str, Any]]:
        return [delta async for delta in deltas(ticket, answer)]

    collecting = asyncio.ensure_future(collect())
    leaving = asyncio.ensure_future(http.receive())  # after the body only a hang-up comes
    try:
        await asyncio.wait({collecting, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not collecting.done():
            raise ApiError("the client has left", "client_closed", 499)
        found = collecting.result()
    finally:
        # Also after a whole reply: the row of one that a stop text ended would be decoded on
        served.engine.cancel(ticket)
        for task in (collecting, leaving):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task
    choice = {
        "index": 0,
        "message": joined(found),
        "finish_reason": answer.finish_reason,
        "logprobs": None,
    }
    return {**_head(chat, "chat.completion"), "choices": [choice], "usage": usage(ticket, answer)}


async def stream(
    served: Served, chat: Chat, ticket: Ticket, answer: Answer
) -> AsyncIterator[bytes]:
    """The reply as server-sent events."""
    head = _head(chat, "chat.completion.chunk")
    # As OpenAI sends it: the field is in every chunk then, null in all but the last
    none = {"usage": None} if chat.include_usage else {}

    def chunk(delta: dict[str, Any], reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
        return event({**head, "choices": [choice], **none})

    yield chunk({"role": "assistant"})
    try:
        async for delta in deltas(ticket, answer):
            yield chunk(delta)
    except ApiError as error:  # the status has been sent long ago
        yield event(error.as_object())
        return
    yield chunk({}, answer.finish_reason)
    if chat.include_usage:
        yield event({**head, "choices": [], "usage": usage(ticket, answer)})
    yield b"data: [DONE]\n\n"


def event(value: dict[str, Any]) -> bytes:
    """An object as a server-sent event."""
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n".encode()


def _head(chat: Chat, kind: str) -> dict[str, Any]:
    created = int(time.time())
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": kind,
        "created": created,
        "model": chat.model,
    }
