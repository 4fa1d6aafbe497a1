"""Evaluate a checkpoint: ``python eval.py ckpt=.../best_mae.pt``; ``--help`` lists the choices."""

from headcount.cli.start import run

if __name__ == "__main__":
    run("evaluate")
