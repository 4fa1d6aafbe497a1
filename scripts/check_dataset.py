"""Audit a dataset before training on it; ``--help`` explains it."""

from headcount.cli.start import run

if __name__ == "__main__":
    run("check_dataset")
