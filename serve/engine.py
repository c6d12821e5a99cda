"""The thread that decodes: requests wait in a bounded queue, join the batch, and get their ids.

The event loop never waits for the model, and the model never for a client: ids go into a queue of
the request's own, which `max_new_tokens` bounds.
"""

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import AsyncIterator

from serve.batch import Batch, Request, Written
from serve.errors import ApiError, too_busy

MAX_ROWS, MAX_WAITING = 16, 64
STOPPED = ApiError("the server is being stopped; try again later", "server_stopped", 503)


class Ticket:
    """A request on its way through the engine; made and read in the event loop."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.loop = asyncio.get_running_loop()
        self.news: asyncio.Queue[Written | BaseException] = asyncio.Queue()
        self.is_cancelled = False

    def tell(self, news: Written | BaseException) -> None:
        """Passes on what happened; called in the engine's thread."""
        try:
            self.loop.call_soon_threadsafe(self.news.put_nowait, news)
        except RuntimeError:  # the loop has ended, and nobody reads
            self.is_cancelled = True

    async def ids(self) -> AsyncIterator[Written]:
        """The ids as they are written. Raises: ApiError where decoding failed."""
        while True:
            news = await self.news.get()
            if isinstance(news, ApiError):
                raise news
            if isinstance(news, BaseException):
                raise ApiError(f"decoding failed: {news}; try again", "internal_error", 500)
            yield news
            if news.is_last:
                return


class Engine:
    """One batch and the thread that decodes it. Use as a context manager."""

    def __init__(
        self, batch: Batch, *, max_rows: int = MAX_ROWS, max_waiting: int = MAX_WAITING
    ) -> None:
        self.batch, self.max_rows, self.max_waiting = batch, max_rows, max_waiting
        self.waiting: deque[Ticket] = deque()
        self.running: dict[Request, Ticket] = {}
        self.changed = threading.Condition()
        self.is_closed = False
        self.thread = threading.Thread(target=self._run, name="decoding", daemon=True)

    def __enter__(self) -> "Engine":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self.thread.join()

    def close(self) -> None:
        """Ends the thread after its step; what runs or waits is told so."""
        with self.changed:
            self.is_closed = True
            self.changed.notify()

    def submit(self, request: Request) -> Ticket:
        """Puts a request into the queue. Raises: ApiError where it is full or has ended."""
        ticket = Ticket(request)
        with self.changed:
            if self.is_closed:
                raise STOPPED
            if len(self.waiting) >= self.max_waiting:
                raise too_busy(len(self.waiting))
            self.waiting.append(ticket)
            self.changed.notify()
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Frees what a request holds; one that is done already is no error."""
        with self.changed:
            ticket.is_cancelled = True
            with contextlib.suppress(ValueError):  # it runs, or has ended
                self.waiting.remove(ticket)
            self.changed.notify()

    def _run(self) -> None:
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.waiting or len(self.batch) or self.is_closed)
                if self.is_closed:
                    self._fail([*self.running.values(), *self.waiting], STOPPED)
                    return
            # Here and not in `cancel`, because only this thread may touch the batch
            for ticket in [one for one in self.running.values() if one.is_cancelled]:
                self.batch.leave(ticket.request)
                del self.running[ticket.request]
            try:
                self._advance()
            # Bare Exception: memory that runs out, or a fault of ours, must not end the thread
            except Exception as error:
                self._fail(list(self.running.values()), error)
                self.running.clear()
                self.batch.clear()

    def _advance(self) -> None:
        """A new row, if one waits and there is room, and a step for those that are there."""
        news = []
        ticket = self._next()
        if ticket is not None:
            # Before `join`, which may run out of memory: `_run` tells only those in here of it
            self.running[ticket.request] = ticket
            news.append(self.batch.join(ticket.request))
        # The new row's first id came of its prompt; it steps with the others from now on
        if len(self.batch):
            news += self.batch.step()
        for one in news:
            self.running[one.request].tell(one)
        for one in news:
            if one.is_last:
                self.running.pop(one.request, None)

    def _next(self) -> Ticket | None:
        with self.changed:
            # In order: a long request that others overtook would wait for ever
            is_free = len(self.batch) < self.max_rows
            if self.waiting and is_free and self.batch.has_room(self.waiting[0].request):
                return self.waiting.popleft()
            return None

    def _fail(self, tickets: list[Ticket], error: BaseException) -> None:
        for ticket in tickets:
            ticket.tell(error)
