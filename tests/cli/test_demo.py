"""The page's command: what is refused before anything is loaded, and what it serves."""

import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from headcount import published
from headcount.cli import demo as command
from headcount.errors import CheckpointError
from headcount.page import server

Demo = Callable[..., tuple[int, str]]


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Demo:
    """Run the command, which must refuse: its exit status and message."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["demo.py", *arguments])
        with pytest.raises(SystemExit) as end:
            command.main()
        return int(end.value.code or 0), capsys.readouterr().err

    return run


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["ckpt=gone.pt"], "ckpt=gone.pt: no such file"),
        (["ckpt=a.pt", "dataset=sha"], "dataset=sha: there is no setting dataset; allowed are ckpt"),
        (["ckpt=a.pt", "--port", "70000"], "--port: 70000: must be a whole number, at most 65535"),
        (["ckpt=a.pt", "--max-megabytes", "0"], "must be a whole number, at least 1"),
        (["ckpt=a.pt", "--examples", "gone"], "--examples gone: is no folder"),
        (["ckpt=a.pt", "--host", "192.0.2.1"], "--host 192.0.2.1 --port 7860: cannot be opened"),
        (["ckpt=a.pt", "--port", "0"], "not a checkpoint of headcount"),
        (["--share"], "--share"),
    ],
)
def test_refused(arguments: list[str], words: str, demo: Demo, tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(b"no checkpoint")
    status, err = demo(*arguments)
    assert status == 2
    assert words in err


def test_without_a_checkpoint_the_default_counter_counts(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise CheckpointError("no default counter here")

    monkeypatch.setattr(published, "default_counter", missing)
    assert demo() == (2, "demo.py: no default counter here\n")


def test_a_port_that_is_taken(demo: Demo, tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(b"no checkpoint")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, err = demo("ckpt=a.pt", "--port", str(port))
    assert status == 2
    assert f"--host 127.0.0.1 --port {port}: cannot be opened" in err
    assert "--port 0 for any" in err


def test_a_missing_gradio_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")  # put back afterwards
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "")
    with pytest.raises(command.ConfigError, match=r"Gradio, which is not installed: pip install 'headcount\[demo\]'"):
        server.import_gradio(str(tmp_path))


@pytest.mark.parametrize(("host", "warned"), [("127.0.0.1", False), ("0.0.0.0", True)])
def test_it_listens_where_it_is_told(
    host: str, warned: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And says so; the limits of the command line are those of the page."""
    from engine.test_checkpoint import write_checkpoint
    from headcount.page.counting import PageCounter

    given: list[PageCounter] = []
    served: list[str] = []

    class App:
        def __init__(self, counter: PageCounter, examples: Path | None) -> None:
            given.append(counter)
            assert examples == tmp_path

        def __enter__(self) -> str:
            return "app"

        def __exit__(self, *error: Any) -> None: ...

    class Server:
        def __init__(self, app: str) -> None:
            assert app == "app"

        def run(self, sockets: list[socket.socket]) -> None:
            served.append(sockets[0].getsockname()[0])

    monkeypatch.setattr(server, "page_app", App)
    monkeypatch.setattr(server, "web_server", Server)
    ckpt = write_checkpoint(tmp_path, "model.width=8")
    arguments = [f"ckpt={ckpt}", "--port", "0", "--host", host, "--examples", str(tmp_path), "--max-megapixels", "7"]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # it is put back
    monkeypatch.setattr(sys, "argv", ["demo.py", *arguments, "--device", "cpu", "--window", "64"])
    command.main()
    said = capsys.readouterr()
    assert served == [host]
    assert said.out.startswith(f"http://{host}:")
    assert ("no password" in said.err) is warned
    assert (given[0].limits.megapixels, given[0].limits.megabytes) == (7, 100)
    assert given[0].counter.mode is not None
