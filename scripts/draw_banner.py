"""Draw the README's picture; ``--help`` explains it."""

from headcount.cli.start import run

if __name__ == "__main__":
    run("draw_banner")
