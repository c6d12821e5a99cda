"""What bounds a client: the size of its body, its time to write and to read, whose page it is."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from serve.errors import ApiError

MAX_BODY = 2_000_000  # bytes
BODY_SECONDS = 30.0  # for all of a body to arrive
SEND_SECONDS = 30.0  # for a client to take the next part of its answer


async def read_body(http: HttpRequest) -> bytes:
    """A request's body. Raises: ApiError for one that is too large, too slow or cut off."""
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in http.stream():
                body += part
                if len(body) > MAX_BODY:
                    message = f"the body: expected at most {MAX_BODY} bytes, got more"
                    raise ApiError(message, "body_too_large", 413)
    except TimeoutError:
        message = f"the body: expected within {BODY_SECONDS:g} s, got a part of it"
        raise ApiError(message, "body_too_slow", 408) from None
    except ClientDisconnect:
        raise ApiError("the client has left", "client_closed", 499) from None
    return bytes(body)


class EventStream(Response):
    """Server-sent events, until they end, the client leaves, or it stops to read."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes], on_end: Callable[[], None]) -> None:
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]  # nobody knows it yet
        self.events, self.on_end = events, on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.ensure_future(self._send(send))
        leaving = asyncio.ensure_future(_gone(receive))
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.on_end()
            for task in (sending, leaving):
                task.cancel()
                # Whether it hung up or fell asleep: nobody is there to be told
                with contextlib.suppress(asyncio.CancelledError, OSError):
                    await task

    async def _send(self, send: Send) -> None:
        headers = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(headers)
        async for event in self.events:
            part = {"type": "http.response.body", "body": event, "more_body": True}
            await asyncio.wait_for(send(part), SEND_SECONDS)
        await send({"type": "http.response.body", "body": b""})


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


HOSTS = ("127.0.0.1", "localhost", "[::1]")  # names of this machine


class OwnPagesOnly:
    """Refuses what another page in the same browser sends: by its origin, or by a borrowed name.

    The server listens on this machine alone, but a browser on it shows pages of anybody.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
            host, origin = headers.get(b"host", ""), headers.get(b"origin")
            # Without its port: a name that points here for a moment is no name of ours
            is_ours = host.rpartition(":")[0] in HOSTS or host in HOSTS
            if not is_ours or origin not in (None, f"http://{host}"):
                what = f"expected a request to this machine by its own page, got {origin or host}"
                error = ApiError(what[:300], "foreign_origin", 403)
                await JSONResponse(error.as_object(), error.status)(scope, receive, send)
                return
        await self.app(scope, receive, send)
