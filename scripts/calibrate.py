"""Calibrate the intervals of a counter; ``--help`` explains it."""

from headcount.cli.start import run

if __name__ == "__main__":
    run("calibrate")
