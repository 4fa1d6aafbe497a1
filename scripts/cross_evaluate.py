"""Evaluate several counters on several datasets; ``--help`` explains it."""

from headcount.cli.cross_evaluate import main

if __name__ == "__main__":
    main()
