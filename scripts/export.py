"""Export a checkpoint to ONNX or a program of torch.export; ``--help`` explains it."""

from headcount.cli.start import run

if __name__ == "__main__":
    run("export")
