"""Audit a dataset before training on it; ``--help`` explains it."""

from headcount.cli.check_dataset import main

if __name__ == "__main__":
    main()
