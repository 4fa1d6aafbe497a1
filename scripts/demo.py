"""Show a page on which pictures can be dropped and counted; ``--help`` explains it."""

from headcount.cli.start import run

if __name__ == "__main__":
    run("demo")
