"""Evaluate a checkpoint: ``python eval.py ckpt=.../best_mae.pt``; ``--help`` lists the choices."""

from headcount.cli.evaluate import main

if __name__ == "__main__":
    main()
