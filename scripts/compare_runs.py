"""Compare training runs; ``--help`` explains it."""

from headcount.cli.compare_runs import main

if __name__ == "__main__":
    main()
