"""Write or check a file for NWPU-Crowd's benchmark; ``--help`` explains it."""

from headcount.cli.nwpu_submit import main

if __name__ == "__main__":
    main()
