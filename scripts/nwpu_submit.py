"""Write or check a file for NWPU-Crowd's benchmark; ``--help`` explains it."""

from headcount.cli.start import run

if __name__ == "__main__":
    run("nwpu_submit")
