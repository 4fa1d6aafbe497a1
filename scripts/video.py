"""Count the people in a video; ``--help`` explains it."""

from headcount.cli.video import main

if __name__ == "__main__":
    main()
