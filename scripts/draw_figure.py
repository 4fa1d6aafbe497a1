"""Draw images with their true and predicted density; ``--help`` explains it."""

from headcount.cli.draw_figure import main

if __name__ == "__main__":
    main()
