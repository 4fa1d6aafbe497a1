"""Give random inputs to everything that reads: ``make fuzz``, or ``PYTHONPATH=tests python -m fuzz --seed 7``.

Exit status: 0 without faults, else 1. A fault prints how to run its case again, and its input is kept in fuzz_faults/.
"""

import argparse
import sys
import time
from pathlib import Path

from fuzz.harness import SECONDS, Case, run_cases
from fuzz.kinds import CHECKS, NUMBERS


def main() -> int:
    """Run the cases that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=int(time.time()), help="default: the time")
    parser.add_argument("--share", type=float, default=1.0, help="share of the usual numbers of cases")
    parser.add_argument("--only", action="append", metavar="KIND[:NUMBER]", help="only one kind, or one case of it")
    parser.add_argument("--processes", type=int, default=2, help="number of child processes")
    parser.add_argument(
        "--seconds", type=float, default=SECONDS, help="longest time of a case; raise it on a busy machine"
    )
    parser.add_argument("--keep", type=Path, default=Path("fuzz_faults"), help="folder of the inputs with faults")
    options = parser.parse_args()
    cases = []
    for kind, number in NUMBERS.items():
        chosen = [only.partition(":")[2] for only in options.only or [kind] if only.partition(":")[0] == kind]
        numbers = [int(one) for one in chosen if one] or (
            range(max(1, round(number * options.share))) if chosen else []
        )
        cases += [Case(kind, options.seed, k) for k in numbers]
    print(f"seed {options.seed}: {len(cases)} cases", flush=True)
    started = time.monotonic()
    keep = options.keep.absolute()
    report = run_cases(cases, CHECKS, keep, processes=options.processes, seconds=options.seconds)
    print("\n".join(report.lines()))
    print(f"seed {options.seed}: {len(cases)} cases, {len(report.faults)} faults, {time.monotonic() - started:.0f} s")
    return 1 if report.faults else 0


if __name__ == "__main__":
    sys.exit(main())
