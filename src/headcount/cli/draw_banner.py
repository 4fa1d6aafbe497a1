"""Draw the README's picture: a generated crowd beside the density and the count that a counter predicts for it.

  python scripts/draw_banner.py ckpt=checkpoints/synthetic/tiny_fine/seed1/best_mae.pt --output docs/images/crowd.jpg

The crowd is a test image of the synthetic dataset, but larger and with more people than those that the quickstart
trains on. The same checkpoint always gives the same file; --index draws another crowd. Exit status: 0, or 2 if nothing
could be drawn.
"""

from pathlib import Path

from headcount.cli.arguments import read_arguments, script_parser, to_path
from headcount.cli.start import deferred_interrupt
from headcount.cli.status import exit_on_error
from headcount.config import ConfigError, SyntheticConfig, missing_checkpoint
from headcount.files import make_folder

CROWD = SyntheticConfig(width=640, height=320, max_people=400)


def main() -> None:
    """Read the command line and draw."""
    parser = script_parser(__doc__)
    parser.add_argument("settings", nargs="*", metavar="key=value", help="ckpt=FILE, such as best_mae.pt")
    parser.add_argument("--index", type=int, default=20, help="which crowd, from 0; default 20")
    parser.add_argument(
        "--output", type=to_path, default=Path("crowd.jpg"), help="JPEG file to write; default crowd.jpg"
    )
    with exit_on_error(parser.prog):
        arguments = read_arguments(parser)
        ckpt = arguments.values("ckpt").get("ckpt")
        if ckpt is None:
            raise ConfigError("ckpt is not set: type ckpt=best_mae.pt")
        if arguments.options.index < 0:
            raise ConfigError(f"--index {arguments.options.index}: must be at least 0")
        print(count_and_draw(Path(ckpt).expanduser(), arguments.options.index, arguments.options.output.expanduser()))


def count_and_draw(ckpt: Path, index: int, output: Path) -> str:
    """Count one generated crowd and write the picture.

    Args:
        ckpt: file of the checkpoint that counts.
        index: which test image of ``CROWD``, from 0.
        output: the JPEG file to write.

    Returns:
        The true and the predicted count as text.

    Raises:
        ConfigError: if the checkpoint cannot be read or predicts no blocks, or the folder cannot be created.
    """
    if not ckpt.is_file():
        raise ConfigError(missing_checkpoint(ckpt))

    # Heavy imports after the checks.
    with deferred_interrupt():
        from headcount.data.synthetic import draw_crowd
        from headcount.engine.load import load
        from headcount.report.banner import draw_banner

    make_folder(output.parent, "--output")
    crowd = draw_crowd(index, config=CROWD, split="test")
    counted = load(ckpt).predict(crowd.image)
    if counted.block_counts is None:
        raise ConfigError(f"ckpt={ckpt}: this counter predicts one number per image, and no density to draw")
    draw_banner(crowd.image, counted.block_counts, output, block_size=counted.block_size, true_count=len(crowd.points))
    return f"{crowd.name}: true {len(crowd.points)}, predicted {counted.count:.1f}; {output}"
