"""Calibrate the intervals of a counter; ``--help`` explains it."""

from headcount.cli.calibrate import main

if __name__ == "__main__":
    main()
