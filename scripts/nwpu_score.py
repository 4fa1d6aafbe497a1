"""Score a file for NWPU-Crowd's benchmark offline; ``--help`` explains it."""

from headcount.cli.nwpu_score import main

if __name__ == "__main__":
    main()
