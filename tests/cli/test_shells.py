"""Completion in the shells themselves: lines typed at a terminal, in a home folder as the help page sets it up."""

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

# Shell -> the file of its settings, what that must hold beside the line of the help page, and how it is started.
SHELLS = {
    "bash": (".bashrc", "", ["bash", "-i"]),
    "zsh": (".zshrc", "autoload -U compinit; compinit -u -D", ["zsh", "-i"]),
    "fish": (".config/fish/config.fish", "", ["fish", "-i"]),
}
# What is typed before and after the Tab key -> the words that the shell then runs.
TYPED = {
    ("pre", "x"): ["predict", "x"],
    ("train optim.warmup_e", "5"): ["train", "optim.warmup_epochs=5"],
    ("train dataset=qn", "x"): ["train", "dataset=qnrf", "x"],
    ("train optim.alg", "x"): ["train", "optim.algorithm=x"],
    ("predict --outp", "x"): ["predict", "--output", "x"],
    ("predict ck", "x"): ["predict", "ckpt=x"],
    ("predict pho", "x"): ["predict", "photo.jpg", "x"],
    ("predict ckpt=min", "x"): ["predict", "ckpt=mine.pt", "x"],
}
# Makes the terminal that of the shell's session, as a terminal program does.
AT_A_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execvp(sys.argv[1], sys.argv[1:])"
)


@pytest.mark.parametrize("shell", SHELLS)
def test_commands_settings_flags_and_files_are_completed(shell: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    with terminal(shell, tmp_path) as (write, wait_for):
        for (before, after), words in TYPED.items():
            write(f"headcount {before}\t{after}\n")
            wait_for(f"ran[{'|'.join(words)}]")


def line_of_the_help_page(shell: str) -> str:
    from headcount.cli import completion

    (line,) = (line for line in (completion.__doc__ or "").splitlines() if line.startswith(f"  {shell}: "))
    return line.partition(": ")[2].partition("  in ")[0].strip()


@contextmanager
def terminal(shell: str, home: Path) -> Iterator[tuple[Callable[[str], None], Callable[[str], None]]]:
    """A shell in a home of its own, where headcount only completes: how to type, and to wait for output."""
    settings, more, command = SHELLS[shell]
    (home / settings).parent.mkdir(parents=True, exist_ok=True)
    (home / settings).write_text(f"{more}\n{line_of_the_help_page(shell)}\n")
    bin_folder, work = home / "bin", home / "work"
    bin_folder.mkdir()
    work.mkdir()
    for name in ("photo.jpg", "mine.pt"):
        (work / name).touch()
    program = bin_folder / "headcount"
    program.write_text(
        f'#!/bin/sh\ncase "$1" in\n--complete|completion) exec "{sys.executable}" -m headcount "$@";;\n'
        'esac\nIFS="|"; echo "ran[$*]"\n'
    )
    program.chmod(0o755)
    environment = {**os.environ, "HOME": str(home), "PATH": f"{bin_folder}:{os.environ['PATH']}", "TERM": "xterm"}
    for variable in ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "ZDOTDIR", "HEADCOUNT_COMMAND"):
        environment.pop(variable, None)
    screen, terminal_side = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", AT_A_TERMINAL, *command],
        **dict.fromkeys(("stdin", "stdout", "stderr"), terminal_side),
        cwd=work,
        env=environment,
        start_new_session=True,
    )
    os.close(terminal_side)

    def wait_for(text: str) -> None:
        shown, end = b"", time.monotonic() + 120
        while text.encode() not in shown:
            ready, _, _ = select.select([screen], [], [], max(end - time.monotonic(), 0))
            assert ready, f"{shell} shows no {text}: {shown!r}"
            shown += os.read(screen, 4096)

    def write(text: str) -> None:
        os.write(screen, text.encode())

    try:
        write("headcount ready\n")
        wait_for("ran[ready]")
        yield write, wait_for
    finally:
        process.kill()
        process.wait()
        os.close(screen)
