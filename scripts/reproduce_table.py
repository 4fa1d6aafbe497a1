"""Make a table of the paper from our runs; ``--help`` explains it."""

from headcount.cli.start import run

if __name__ == "__main__":
    run("reproduce_table")
