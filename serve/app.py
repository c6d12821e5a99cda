"""The routes: OpenAI's two, and those of the page."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request as HttpRequest
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from serve.completions import Served, complete, model_object, tokenizer_of
from serve.errors import ApiError
from serve.http import OwnPagesOnly
from serve.page import PageTools

PAGE = Path(__file__).with_name("static")
FILES = {"/": "index.html", "/page.css": "page.css", "/page.js": "page.js", "/icon.svg": "icon.svg"}
# Nothing of another site runs in the page, and no other site shows it in a frame
HEADERS = {
    "content-security-policy": "default-src 'self'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "cache-control": "no-cache",
}


def make_app(served: Served, tools: PageTools) -> Starlette:
    """The ASGI application. Raises nothing that a client can cause: it is answered."""

    async def models(http: HttpRequest) -> Response:
        data = [model_object(served, name) for name in served.tokenizers]
        return JSONResponse({"object": "list", "data": data})

    async def model(http: HttpRequest) -> Response:
        name = http.path_params["name"]
        tokenizer_of(served, name)
        return JSONResponse(model_object(served, name))

    async def completions(http: HttpRequest) -> Response:
        return await complete(served, http)

    def of_page(answer: Callable[[HttpRequest], Awaitable[Any]]) -> Any:
        async def respond(http: HttpRequest) -> Response:
            return JSONResponse(await answer(http))

        return respond

    def file(name: str) -> Callable[[HttpRequest], Awaitable[Response]]:
        async def respond(http: HttpRequest) -> Response:
            return FileResponse(PAGE / name, headers=HEADERS)

        return respond

    routes = [
        Route("/v1/models", models),
        # A hub id has a slash: it gets the error that lists the names, not that of a missing route
        Route("/v1/models/{name:path}", model),
        Route("/v1/chat/completions", completions, methods=["POST"]),
        Route("/page/tools", of_page(tools.offered)),
        Route("/page/call", of_page(tools.call), methods=["POST"]),
        Route("/page/tokens", of_page(tools.tokens), methods=["POST"]),
        *(Route(path, file(name)) for path, name in FILES.items()),
    ]
    return Starlette(
        routes=routes,
        middleware=[Middleware(OwnPagesOnly)],
        exception_handlers={ApiError: _refuse, HTTPException: _no_route, Exception: _fault},
    )


async def _refuse(http: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    headers = {"retry-after": "1"} if error.status == 503 else None
    return JSONResponse(error.as_object(), error.status, headers=headers)


async def _no_route(http: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    told = f"{http.method} {http.url.path[:100]}: {error.detail}; see /v1/models and /"
    return await _refuse(http, ApiError(told, "not_found", error.status_code))


async def _fault(http: HttpRequest, error: Exception) -> Response:
    # Starlette raises the error again behind this answer, which is how it gets into the log
    return await _refuse(http, ApiError("a fault of the server; see its log", "internal", 500))
