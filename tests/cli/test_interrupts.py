"""Ctrl-C at any moment of a command: one line and status 130, no traceback."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from headcount.cli.start import deferred_interrupt, ends_at_interrupt, run
from headcount.cli.status import REFUSED

ROOT = Path(__file__).resolve().parents[2]
# Interrupts itself in the middle of the import of numpy, which then fails with another error than KeyboardInterrupt.
DURING_IMPORT = """
import signal, sys
from importlib.abc import MetaPathFinder

class Interrupting(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, Interrupting())
sys.argv = {arguments!r}
from headcount.cli.console import main
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("module", ["headcount.commands", "hydra", "numpy._core.multiarray"])
def test_an_interrupted_import_ends_with_one_line(module: str, tmp_path: Path) -> None:
    code = DURING_IMPORT.format(module=module, arguments=["headcount", "env"])
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 130
    name = "headcount env" if module.startswith("numpy") else "headcount"
    assert ended.stderr == f"\n{name}: interrupted\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        ["-m", "headcount", "export", "--output", "a.onnx"],
        ["-m", "headcount", "explain"],
        ["-m", "headcount", "predict", "a.png"],
        ["train.py", "scale=smoke", "model.width=8"],
        ["eval.py", "ckpt=a.pt"],
        ["scripts/publish_counter.py", "--output", "a"],
    ],
)
def test_ctrl_c_at_several_moments(command: list[str], tmp_path: Path) -> None:
    program = [str(ROOT / word) if word.endswith(".py") else word for word in command]
    (tmp_path / "a.png").write_bytes(b"not empty")
    for delay in (0.3, 0.5, 0.8, 1.6):
        process = subprocess.Popen(
            [sys.executable, *program],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        )
        time.sleep(delay)
        has_ended = process.poll() is not None
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
        assert "Traceback" not in err, delay
        # One that is ending may die by the signal, without a word, or has already refused its settings.
        refused = process.returncode == REFUSED and "interrupted" not in err
        assert has_ended or refused or process.returncode in (130, -signal.SIGINT), (delay, err)


def test_a_deferred_interrupt_comes_at_the_end_and_a_second_one_at_once() -> None:
    reached = []

    def press_twice() -> None:
        with deferred_interrupt():
            signal.raise_signal(signal.SIGINT)
            reached.append("after the first")
            signal.raise_signal(signal.SIGINT)
            reached.append("after the second")

    with pytest.raises(KeyboardInterrupt):
        press_twice()
    assert reached == ["after the first"]
    with pytest.raises(KeyboardInterrupt), deferred_interrupt():
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_nothing_is_deferred_where_another_handler_is_set_or_in_other_threads() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with deferred_interrupt():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    seen = []

    def work() -> None:
        with deferred_interrupt():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]


def test_an_error_of_an_import_is_not_hidden(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ModuleNotFoundError):
        run("no_such_command")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with pytest.raises(SystemExit) as stop, ends_at_interrupt():
        raise KeyboardInterrupt
    assert stop.value.code == 130
    assert capsys.readouterr().err.endswith(": interrupted\n")
