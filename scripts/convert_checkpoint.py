"""Convert a checkpoint of the released code; ``--help`` explains it."""

from headcount.cli.convert_checkpoint import main

if __name__ == "__main__":
    main()
