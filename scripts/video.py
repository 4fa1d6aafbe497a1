"""Count the people in a video; ``--help`` explains it."""

from headcount.cli.start import run

if __name__ == "__main__":
    run("video")
