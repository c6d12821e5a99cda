"""`infer.py --serve`: loads base and adapters once and answers until it is stopped."""

import argparse
import socket
import sys
import time
from types import FrameType

from agent.guides import CallRule
from agent.loading import load_many
from agent.toolbox import ToolBox
from common.cli import printable
from model.generate import Sampling

HOST = "127.0.0.1"  # this machine alone: there is neither a password nor a limit on who asks
MAX_CONNECTIONS = 256  # one over it is told so, with status 503
GRACE_SECONDS = 5  # for replies that are being written when the server is stopped


def serve(
    args: argparse.Namespace, toolbox: ToolBox | None, sampling: Sampling, rule: CallRule
) -> None:
    """Answers on `args.serve`, 0 for any free port, until Ctrl-C.

    Raises: ValueError without the extra, or for a port that is taken; as `load_many`.
    """
    try:
        import uvicorn

        from serve.app import make_app
    except ImportError as error:
        name = error.name or "a package"
        raise ValueError(
            f"--serve needs {name}, which is not installed; pip install -e '.[serve]'"
        ) from None
    from serve.batch import Batch
    from serve.completions import Served
    from serve.engine import Engine
    from serve.page import PageTools

    # Before minutes are spent on loading a model; nobody is answered until `listen`
    with _bound(args.serve) as listener:
        model, adapters, tokenizers = load_many(
            args.model, args.adapters, device=args.device, dtype=args.dtype
        )
        with Engine(Batch(model, adapters)) as engine:
            most, now = args.max_new_tokens, int(time.time())
            served = Served(engine, tokenizers, sampling, most, now, rule)
            app = make_app(served, PageTools(served, toolbox, asks_first=not args.yes))
            config = uvicorn.Config(
                app,
                log_level="warning",
                limit_concurrency=MAX_CONNECTIONS,
                timeout_graceful_shutdown=GRACE_SECONDS,
                server_header=False,
                ws="none",
            )
            listener.listen(MAX_CONNECTIONS)  # whoever has read the line below can connect
            port = listener.getsockname()[1]
            names = ", ".join(tokenizers)
            text = f"serving {names} on http://{HOST}:{port}/ (API: /v1); Ctrl-C ends it"
            print(printable(text), file=sys.stderr, flush=True)
            server = uvicorn.Server(config)
            leave = server.handle_exit

            def close(number: int, frame: FrameType | None) -> None:
                engine.close()  # first, so that streams end by themselves and nobody is cut off
                leave(number, frame)

            server.handle_exit = close  # type: ignore[method-assign, assignment]
            server.run(sockets=[listener])


def _bound(port: int) -> socket.socket:
    """A socket that has the port. Raises: ValueError for one that is taken."""
    listener = socket.socket(socket.AF_INET)
    # As servers do: or the port would stay taken for a minute after the last one has ended
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
    except OSError as error:
        listener.close()
        raise ValueError(
            f"--serve {port}: expected a free port, got {error.strerror}; give another one, or 0"
        ) from None
    return listener
