"""Make a table of the paper from our runs; ``--help`` explains it."""

from headcount.cli.reproduce_table import main

if __name__ == "__main__":
    main()
