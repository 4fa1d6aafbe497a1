"""Former name of the benchmarks: ``python scripts/benchmark.py step ...`` is now ``python benchmarks/step.py ...``."""

import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
NAMES = ("loss", "data", "step")


def main() -> None:
    """Run the benchmark of that name after a message with its new spelling."""
    name, arguments = sys.argv[1:2], sys.argv[2:]
    if name[:1] not in ([known] for known in NAMES):
        sys.exit(f"scripts/benchmark.py is now a folder; run one of: {', '.join(python(known) for known in NAMES)}")
    print(f"scripts/benchmark.py {name[0]} is now: {python(name[0])}", file=sys.stderr)
    sys.exit(subprocess.run([sys.executable, str(BENCHMARKS / f"{name[0]}.py"), *arguments]).returncode)


def python(name: str) -> str:
    """The command of a benchmark."""
    return f"python benchmarks/{name}.py"


if __name__ == "__main__":
    main()
