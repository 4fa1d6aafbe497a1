"""Train a counter: ``python train.py dataset=sha model=mobilenet_v2``; ``--help`` lists the choices."""

from headcount.cli.start import run

if __name__ == "__main__":
    run("train")
