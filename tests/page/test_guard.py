"""Only what the page needs can be requested: no other file, and nothing of another server."""

import asyncio
import json
from typing import Any

import pytest

from headcount.page import server
from headcount.page.server import Guard

JOIN = "/gradio_api/queue/join"


def ask(method: str, path: str, body: bytes = b"", query: bytes = b"") -> tuple[int, dict[str, str], bytes]:
    """Status, headers, and what the page behind the guard received."""
    received = b""
    sent: list[dict[str, Any]] = []

    async def page(scope: dict[str, Any], receive: Any, send: Any) -> None:
        nonlocal received
        message = await receive()
        received = message["body"]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    chunks = [body[:10], body[10:]]

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": chunks.pop(0), "more_body": bool(chunks)}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "query_string": query}
    asyncio.run(Guard(page)(scope, receive, send))
    return sent[0]["status"], {k.decode(): v.decode() for k, v in sent[0]["headers"]}, received


@pytest.mark.parametrize(
    "path",
    [
        *("/", "/config", "/theme.css", "/assets/index-1.js", "/static/img/logo.svg", "/results/a_b-c/counts.csv"),
        *("/gradio_api/queue/data", "/gradio_api/heartbeat/abc", "/gradio_api/file=/tmp/a/b.webp", "/gradio_api/info"),
        "/gradio_api/file=C:\\a.webp",
    ],
)
def test_the_page_reads(path: str) -> None:
    status, headers, _ = ask("GET", path)
    assert status == 200
    assert "default-src 'self'" in headers["content-security-policy"]
    assert "http" not in headers["content-security-policy"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *(
            ("GET", f"/gradio_api/file={url}")
            for url in ("https://a.org/x", "http:/a.org/x", "ftp://a.org", "/http://a")
        ),
        *(("GET", path) for path in ("/gradio_api/proxy=https://a.org", "/monitoring", "/gradio_api/vibe-code")),
        *(("GET", path) for path in ("/gradio_api/deep_link", "/docs", "/openapi.json", "/results/a/../../b")),
        *(("POST", path) for path in ("/", "/gradio_api/vibe-edit", "/gradio_api/process_recording", "/login")),
        *((method, "/") for method in ("PUT", "DELETE", "OPTIONS")),
    ],
)
def test_all_else_does_not_exist(method: str, path: str) -> None:
    status, headers, received = ask(method, path)
    assert (status, received) == (404, b"")
    assert headers["content-type"].startswith("text/plain")


def test_a_link_to_a_saved_state_does_not_exist() -> None:
    assert ask("GET", "/", query=b"deep_link=../../x")[0] == 404


def test_a_request_reaches_the_page_as_it_was_sent() -> None:
    file = {"path": "/tmp/a b.png", "url": "http://127.0.0.1:7860/gradio_api/file=/tmp/a b.png", "meta": {}}
    body = json.dumps({"data": [[file], 80], "session_hash": "abc"}).encode()
    assert ask("POST", JOIN, body) == (200, ask("GET", "/")[1], body)


@pytest.mark.parametrize("path", ["https://a.org/x.png", " HTTP://a.org", "file:///etc/passwd", "data:/x"])
@pytest.mark.parametrize("route", [JOIN, "/gradio_api/run/count", "/gradio_api/call/count"])
def test_a_file_of_another_server_is_refused(path: str, route: str) -> None:
    body = json.dumps({"data": [None, [{"a": [{"path": path}]}]]}).encode()
    assert ask("POST", route, body)[0] == 400


def test_requests_that_cannot_be_checked_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ask("POST", JOIN, b"{")[0] == 400
    assert ask("POST", JOIN, b"[" * 200_000)[0] == 400
    monkeypatch.setattr(server, "_MAX_REQUEST", 20)
    assert ask("POST", JOIN, json.dumps("x" * 30).encode())[0] == 400
    assert ask("POST", "/gradio_api/upload", b"x" * 30)[2] == b"x" * 10  # a stream, whose size Gradio limits
