"""Train a counter: ``python train.py dataset=sha model=mobilenet_v2``; ``--help`` lists the choices."""

from headcount.cli.train import main

if __name__ == "__main__":
    main()
