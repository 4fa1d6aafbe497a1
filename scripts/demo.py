"""Show a page on which pictures can be dropped and counted; ``--help`` explains it."""

from headcount.cli.demo import main

if __name__ == "__main__":
    main()
