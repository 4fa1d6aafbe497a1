"""Export a checkpoint to ONNX or a program of torch.export; ``--help`` explains it."""

from headcount.cli.export import main

if __name__ == "__main__":
    main()
