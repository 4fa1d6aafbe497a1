"""Run the quickstart: train, evaluate and compare on generated crowds."""

from headcount.cli.start import run

if __name__ == "__main__":
    run("quickstart")
