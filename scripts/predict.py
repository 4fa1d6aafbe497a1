"""Count the people in pictures; ``--help`` explains it."""

from headcount.cli.predict import main

if __name__ == "__main__":
    main()
