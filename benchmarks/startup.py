"""Measure how long train.py takes to start: ``python benchmarks/startup.py model=tiny``.

Runs each command in a process of its own, in turns: ``train.py --help``, a run with an invalid setting, and a run up to
the end of its first optimizer step. The first row, ``import torch`` alone, is what any program that computes needs.
Settings apply to the run only; its datasets are prepared and cached before anything is measured.
"""

import tempfile
import time
from pathlib import Path

import numpy as np

from headcount.cli.arguments import read_arguments, script_parser, whole_number
from headcount.cli.status import REFUSED, exit_on_error
from timing import format_table, run_quietly

TRAIN = Path(__file__).resolve().parent.parent / "train.py"
INVALID_SETTING = "optim.lr=-1"

# Stops train.py after its first step, and prints when that was.
UNTIL_FIRST_STEP = """
import runpy, sys, time
from torch.optim.optimizer import register_optimizer_step_post_hook

def stop(*_):
    print(time.time())
    sys.exit(0)

register_optimizer_step_post_hook(stop)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def main() -> None:
    """Read the command line and print the table."""
    parser = script_parser(__doc__)
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings of the run, such as model=tiny")
    parser.add_argument("--repeats", type=whole_number, default=5, help="rounds in which each command is run once")
    with exit_on_error(parser.prog, RuntimeError):
        arguments = read_arguments(parser)
        seconds = measure(arguments.settings, rounds=arguments.options.repeats)
    rows = [
        {"command": command, "median s": f"{np.median(values):.2f}", "fastest s": f"{min(values):.2f}"}
        for command, values in seconds.items()
    ]
    print(f"{arguments.options.repeats} rounds:\n\n{format_table(rows)}")


def measure(settings: list[str], *, rounds: int) -> dict[str, list[float]]:
    """Seconds of each command in each round.

    Raises:
        RuntimeError: if a command does not end as it should.
    """
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        first_step(settings, folder, "warm-up")
        for k in range(rounds):
            invalid = [str(TRAIN), INVALID_SETTING]
            taken = {
                "import torch": duration(["-c", "import torch"], folder),
                "train.py --help": duration([str(TRAIN), "--help"], folder),
                f"train.py {INVALID_SETTING}": duration(invalid, folder, expected_status=REFUSED),
                " ".join(["train.py", *settings]) + ", first step": first_step(settings, folder, str(k)),
            }
            for command, value in taken.items():
                seconds.setdefault(command, []).append(value)
    return seconds


def duration(command: list[str], folder: str, *, expected_status: int = 0) -> float:
    """Seconds until a Python command exits."""
    start = time.time()
    run_quietly(command, folder=folder, expected_status=expected_status)
    return time.time() - start


def first_step(settings: list[str], folder: str, name: str) -> float:
    """Seconds until a run named ``name`` has taken its first optimizer step."""
    command = ["-c", UNTIL_FIRST_STEP, str(TRAIN), *settings, f"output_dir={folder}/{name}"]
    start = time.time()
    output = run_quietly(command, folder=folder)
    return float(output.splitlines()[-1]) - start


if __name__ == "__main__":
    main()
