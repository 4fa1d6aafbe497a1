"""Draw the README's picture; ``--help`` explains it."""

from headcount.cli.draw_banner import main

if __name__ == "__main__":
    main()
