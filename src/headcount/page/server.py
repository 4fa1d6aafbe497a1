"""Serve the page: the only part that knows of addresses, and of what may be requested.

Gradio has many more addresses than this page needs; some read other servers for the visitor. What is not listed here
does not exist. The headers forbid the browser to load anything from elsewhere.
"""

import asyncio
import contextlib
import json
import os
import re
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from headcount.config import ConfigError
from headcount.page.counting import PageCounter, find_examples
from headcount.page.session import Sessions
from headcount.wording import one_line

# Of Gradio and of this page. A file is one of this computer: no address with a scheme.
_READ = re.compile(
    r"/|/config/?|/theme\.css|/favicon\.ico|/robots\.txt|/manifest\.json|/(assets|static|svelte)/.+|/results/[\w-]+/[\w.]+"
    r"|/gradio_api/(info|app_id|startup-events|upload_progress|queue/data|heartbeat/\w+|call/\w+/\w+|file=(?!/?\w+:/).+)/?"
)
_WRITTEN = re.compile(r"/gradio_api/(queue/join|upload|cancel|reset|(run|call|api)/\w+)/?")
_MAX_REQUEST = 1_000_000  # bytes of a request that is no upload
_URL = re.compile(r"\s*[A-Za-z][A-Za-z0-9+.-]*:/")
_HEADERS = [
    (
        b"content-security-policy",
        b"default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
        b"img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; "
        b"object-src 'none'; base-uri 'self'; form-action 'self'",
    ),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
]
_CLEAN_UP_SECONDS = 60
CSS = Path(__file__).with_name("page.css")


@contextlib.contextmanager
def page_app(counter: PageCounter, examples: Path | None = None) -> Iterator[Any]:
    """The page as an ASGI application, with its temporary files, which are deleted at the end of the ``with`` block.

    Args:
        examples: a folder of pictures to begin with; None draws crowds.

    Raises:
        ConfigError: if Gradio is missing.
        DataError: if the folder has no picture.
    """
    with tempfile.TemporaryDirectory(prefix="headcount_page_", ignore_cleanup_errors=True) as storage:
        gr = import_gradio(storage)
        from fastapi import FastAPI
        from fastapi.responses import PlainTextResponse, Response

        from headcount.page.downloads import FILES
        from headcount.page.layout import Page, theme

        sessions = Sessions()
        page = Page(counter, sessions, find_examples(examples, counter.limits, Path(storage)))

        @contextlib.asynccontextmanager
        async def lifespan(app: Any) -> AsyncIterator[None]:
            task = asyncio.create_task(_forget_unused(sessions))
            yield
            task.cancel()

        app = FastAPI(openapi_url=None, lifespan=lifespan)

        @app.get("/results/{token}/{name}")
        def download(token: str, name: str) -> Response:
            session = sessions.of_token(token)
            content = FILES[name][1](session) if session is not None and name in FILES else None
            if content is None:
                return PlainTextResponse("These results were deleted.", status_code=404)
            return Response(content, media_type=FILES[name][0], headers={"Cache-Control": "no-store"})

        gr.mount_gradio_app(
            app,
            page.blocks,
            path="/",
            theme=theme(),
            css_paths=[CSS],
            footer_links=[],
            run_history=False,
            show_error=False,
            ssr_mode=False,
            mcp_server=False,
            pwa=False,
            enable_monitoring=False,
            max_file_size=counter.limits.file_bytes,
            allowed_paths=[],
        )
        yield Guard(app)


def import_gradio(storage: str) -> Any:
    """Gradio, set up to store its files in a folder and to send nothing anywhere.

    Raises:
        ConfigError: if it is missing.
    """
    os.environ["GRADIO_TEMP_DIR"] = storage
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio
    except ImportError as error:
        what = "is not installed" if isinstance(error, ModuleNotFoundError) else f"cannot be loaded ({one_line(error)})"
        raise ConfigError(f"the page needs Gradio, which {what}: pip install 'headcount[demo]'") from error
    return gradio


async def _forget_unused(sessions: Sessions) -> None:
    while True:
        await asyncio.sleep(_CLEAN_UP_SECONDS)
        sessions.forget_unused()


class Guard:
    """Lets through only what the page needs, and adds the headers that keep the browser on this server."""

    def __init__(self, app: Any) -> None:
        """Guard an ASGI application."""
        self._app = app

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if status := _refused(scope):
            await _answer(send, status, "There is nothing at this address.")
            return
        if scope["method"] == "POST" and not scope["path"].startswith("/gradio_api/upload"):
            body = await _body(receive)
            if body is None or _names_other_server(body):
                await _answer(send, 400, "The request is too long, or names a file of another server.")
                return
            receive = _Replay(body, receive)

        async def with_headers(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *_HEADERS]
            await send(message)

        await self._app(scope, receive, with_headers)


def _refused(scope: dict[str, Any]) -> int:
    """The HTTP status of a request that the page does not need; 0 for others."""
    method, path = scope["method"], scope["path"]
    if method in ("GET", "HEAD"):
        return 0 if _READ.fullmatch(path) and b"deep_link" not in scope["query_string"] else 404
    return 0 if method == "POST" and _WRITTEN.fullmatch(path) else 404


async def _body(receive: Any) -> bytes | None:
    """The whole content of a request; None if it is too long."""
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > _MAX_REQUEST:
            return None
    return body


class _Replay:
    """Gives out a content that was already read, then whatever follows."""

    def __init__(self, body: bytes, receive: Any) -> None:
        self._body: bytes | None = body
        self._receive = receive

    async def __call__(self) -> dict[str, Any]:
        if self._body is None:
            return await self._receive()
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}


def _names_other_server(body: bytes) -> bool:
    """Whether a request names a file by an address, which Gradio would download."""
    try:
        waiting = [json.loads(body)] if body else []
    except (ValueError, RecursionError):
        return True
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if isinstance(value.get("path"), str) and _URL.match(value["path"]):
                return True
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
    return False


async def _answer(send: Any, status: int, text: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), *_HEADERS]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})


def open_port(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 is any free one.

    Raises:
        ConfigError: if the address is not one of this computer, or the port is taken.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except (OSError, UnicodeError) as error:
        raise ConfigError(
            f"--host {host} --port {port}: cannot be opened ({one_line(error)}); choose an address of this computer "
            "and a free port, or --port 0 for any"
        ) from error


def web_server(app: Any) -> Any:
    """A server of Uvicorn; ``run(sockets=[...])`` serves until Ctrl-C, SIGTERM, or until ``should_exit`` is set."""
    import uvicorn

    # Open windows hold a connection each, which would keep the server waiting at its end.
    return uvicorn.Server(
        uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2, server_header=False, ws="none")
    )
