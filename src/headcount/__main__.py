"""``python -m headcount``: the same as the command ``headcount``."""

from headcount.cli.console import main

if __name__ == "__main__":
    main()
