"""Evaluate several counters on several datasets; ``--help`` explains it."""

from headcount.cli.start import run

if __name__ == "__main__":
    run("cross_evaluate")
