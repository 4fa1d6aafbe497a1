"""Commands that count, in this process."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from headcount.files import quoted


@pytest.fixture
def counting(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., Callable[..., tuple[int, str, str]]]:
    """Make a command that counts with a checkpoint run in this process, from ``tmp_path``: status, output, errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # it is put back

    def make(main: Callable[[], None], program: str, checkpoint: str) -> Callable[..., tuple[int, str, str]]:
        def run(*arguments: str, ckpt: str = checkpoint) -> tuple[int, str, str]:
            monkeypatch.setattr(sys, "argv", [program, "--device", "cpu", *arguments, f"ckpt={quoted(ckpt)}"])
            with pytest.raises(SystemExit) as end:
                main()
            said = capfd.readouterr()  # also what is written without sys.stderr
            return int(end.value.code or 0), said.out, said.err

        return run

    return make
