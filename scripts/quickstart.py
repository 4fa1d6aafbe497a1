"""Run the quickstart: train, evaluate and compare on generated crowds."""

from headcount.cli.quickstart import main

if __name__ == "__main__":
    main()
