"""Store a counter for other people, with its model card; ``--help`` explains it."""

from headcount.cli.publish_counter import main

if __name__ == "__main__":
    main()
