"""Store a counter for other people, with its model card; ``--help`` explains it."""

from headcount.cli.start import run

if __name__ == "__main__":
    run("publish_counter")
