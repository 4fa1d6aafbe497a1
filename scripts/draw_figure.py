"""Draw images with their true and predicted density; ``--help`` explains it."""

from headcount.cli.start import run

if __name__ == "__main__":
    run("draw_figure")
