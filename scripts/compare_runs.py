"""Compare training runs; ``--help`` explains it."""

from headcount.cli.start import run

if __name__ == "__main__":
    run("compare_runs")
