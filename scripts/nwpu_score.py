"""Score a file for NWPU-Crowd's benchmark offline; ``--help`` explains it."""

from headcount.cli.start import run

if __name__ == "__main__":
    run("nwpu_score")
