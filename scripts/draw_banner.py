"""Draw the README's picture: a generated crowd beside the density and the count that a counter predicts for it.

  python scripts/draw_banner.py ckpt=checkpoints/synthetic/tiny_fine/seed1/best_mae.pt

The crowd is one image of the synthetic dataset, drawn wider and with more people than those the quickstart trains on.
The same checkpoint always gives the same file. --index draws another crowd. Exit status: 0, or 2 if nothing could be
drawn.
"""

import argparse
import sys
from pathlib import Path

from headcount.config import ConfigError, SyntheticConfig
from headcount.files import make_folder

CROWD = SyntheticConfig(width=640, height=320, max_people=400)


def count_and_draw(ckpt: str, index: int, output: Path) -> str:
    """Count one generated crowd and write the picture.

    Args:
        ckpt: file of the checkpoint that counts.
        index: which test image of ``CROWD``, from 0.
        output: the JPEG file to write.

    Returns:
        The true and the predicted count as text.

    Raises:
        ConfigError: if the checkpoint cannot be read or the folder not be created.
    """
    import headcount
    from headcount.data.synthetic import draw_crowd
    from headcount.report.banner import draw_banner

    make_folder(output.parent, "--output ")
    crowd = draw_crowd(index, config=CROWD, split="test")
    prediction = headcount.load(ckpt).predict(crowd.image)
    draw_banner(
        crowd.image, prediction.block_counts, output, block_size=prediction.block_size, true_count=len(crowd.points)
    )
    return f"{crowd.name}: true {len(crowd.points)}, predicted {prediction.count:.1f}"


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ckpt", metavar="ckpt=FILE", help="checkpoint, such as best_mae.pt")
    parser.add_argument("--index", type=int, default=20, help="which crowd, from 0; default 20")
    parser.add_argument("--output", type=Path, default=Path("crowd.jpg"), help="JPEG file to write; default crowd.jpg")
    options = parser.parse_args()
    try:
        print(count_and_draw(options.ckpt.removeprefix("ckpt="), options.index, options.output))
    except ConfigError as error:
        print(f"draw_banner.py: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
