"""Weights that cannot be downloaded are reported within seconds."""

import http.server
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from headcount.config import ClipResNetConfig, ConfigError, RegressionHeadConfig, TimmConfig
from headcount.models import hub
from headcount.models.build import build_model
from headcount.types import BlockGrid


@pytest.mark.parametrize(
    "config", [ClipResNetConfig(head=RegressionHeadConfig()), TimmConfig(name="resnet18", head=RegressionHeadConfig())]
)
@pytest.mark.slow
def test_offline_no_request_is_repeated(
    config: ClipResNetConfig | TimmConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*arguments: object, **options: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", offline)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("repeats a request"))
    with pytest.raises(ConfigError, match=r"weights .*could not be downloaded .*Without a network connection"):
        build_model(config, BlockGrid(8), None)
    assert not constants.HF_HUB_OFFLINE, "the next run may be online"


@pytest.fixture
def server() -> Iterator[Callable[[int], str]]:
    """A server that answers with a status; its address."""
    servers = []

    def start(status: int) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.send_response(status)
                self.end_headers()

            def log_message(self, *arguments: object) -> None:
                pass

        servers.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield start
    for each in servers:
        each.shutdown()
        each.server_close()


@pytest.mark.parametrize("status", [200, 403, 503])
def test_a_hub_that_answers_is_asked(
    status: int, server: Callable[[int], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", server(status))
    with hub.quick_hub():
        assert not constants.HF_HUB_OFFLINE


def test_a_hub_that_keeps_silent_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_TIMEOUT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with hub.quick_hub():
            assert constants.HF_HUB_OFFLINE
    assert not constants.HF_HUB_OFFLINE
