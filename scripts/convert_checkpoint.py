"""Convert a checkpoint of the released code; ``--help`` explains it."""

from headcount.cli.start import run

if __name__ == "__main__":
    run("convert_checkpoint")
