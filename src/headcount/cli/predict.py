"""Count the people in pictures.

  python scripts/predict.py photo.jpg
  python scripts/predict.py photo.jpg ckpt=best_mae.pt
  python scripts/predict.py holiday/ "more/*.png" ckpt=best_mae.pt --output out

Without ckpt=, the default counter that comes with headcount counts. ckpt= takes a checkpoint, a stored counter (either
file of a pair NAME.safetensors and NAME.json), the name of a counter that comes with headcount, or hf-hub:owner/name.

A PICTURE is a file, a folder (everything below it that has the ending of a picture and is not hidden; links to other
folders are followed) or a pattern with *, ? or [abc]; ** stands for any folders between. The name of an existing file
is never read as a pattern. What is left out of a folder is listed, and a file with several paths is counted once.

Counts and their intervals, as in 812 [730, 905] 90 %, are written to the terminal, counts.csv and counts.json; people
per block to density/<name>.npy; the density over the photo to pictures/<name>.png. An interval is the one that held-out
images support if the checkpoint is calibrated (scripts/calibrate.py); otherwise it rests on the counter's own
probabilities, if it has any, and is marked as uncalibrated. Where files share a name, <name> is numbered: photo,
photo_2; counts.json says which is which. In the resized picture, block (row, col) covers block_size x block_size pixels
from x = col * block_size and y = row * block_size; multiply by width / resized_width for pixels of the photo (width and
height are those of the upright picture).

The output folder holds one run: results of an earlier run there are removed once a new one has counted a picture. Other
files are never overwritten.

A picture is resized as the images of the counter's dataset were, and counted as these were evaluated: whole or, by a
ViT, in windows. One of more than 8 million pixels, or one that does not fit into memory, is counted in overlapping
windows of about 1024 pixels, and its line says so. --window applies to all pictures. A strip that resizing would
enlarge to more than 8 million pixels, and more than fourfold, is refused. The EXIF orientation is respected; only the
first frame of an animation is counted, and its line says so.

The counts of several checkpoints, "ckpt=[a.pt,b.pt]", are averaged; people per block are averaged on the blocks of the
first one. --tta and --scales average the counts of versions of each picture.

Exit status: 0; 1 if a picture could not be counted (the others are); 2 if nothing could be done; 130 if interrupted.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from headcount import published
from headcount.cli.arguments import interval_level, read_arguments, script_parser, to_path, whole_number
from headcount.cli.regions import REGIONS_HELP, add_region_options, regions_error, typed_regions
from headcount.cli.start import INTERRUPTED, deferred_interrupt
from headcount.cli.status import FAILED, exit_on_error
from headcount.config import ConfigError, checkpoint_error, checkpoint_errors
from headcount.counting import failure_message, predict_one
from headcount.data.picture_files import check_file, find_pictures
from headcount.files import atomic_write, file_identity, make_folder
from headcount.progress import progress_bar
from headcount.report.predictions import (
    NOT_YET,
    PictureResult,
    Results,
    check_output,
    distinct_names,
    earlier_results,
)
from headcount.wording import first_names, printable

if TYPE_CHECKING:
    from headcount.data.regions import Region
    from headcount.engine.ensemble import PhotoEnsemble
    from headcount.engine.predict import PhotoCount, PhotoCounter
    from headcount.report.regions import DrawnRegion

_SAVE_EVERY = 30  # seconds


def main() -> None:
    """Read the command line and count."""
    parser = script_parser((__doc__ or "").replace("\nExit status", f"\n{REGIONS_HELP}\nExit status"))
    parser.add_argument("pictures", nargs="+", metavar="PICTURE", help="file, folder or pattern; and ckpt=")
    parser.add_argument(
        "--output",
        type=to_path,
        default=Path("predictions"),
        help="folder of the results (default: predictions)",
    )
    parser.add_argument("--device", type=device, default="auto", help="cpu, cuda, cuda:1, ... or auto (default)")
    add_level_option(parser)
    parser.add_argument("--window", type=whole_number, help="count every picture in windows of this side, in pixels")
    parser.add_argument("--stride", type=whole_number, help="pixels between windows (default: the window's side)")
    parser.add_argument("--window-batch", type=whole_number, help="windows per batch (default: 8); fewer save memory")
    parser.add_argument(
        "--max-megapixels", type=whole_number, default=179, help="larger pictures are refused (default: 179)"
    )
    parser.add_argument("--no-pictures", dest="draw", action="store_false", help="draw nothing")
    parser.add_argument("--no-density", dest="density", action="store_false", help="write no .npy files")
    add_averaging_options(parser)
    add_region_options(parser)
    with exit_on_error(parser.prog, OSError):  # errors of a single picture are caught where it is counted
        arguments = read_arguments(parser, mixed=("pictures",), only=("ckpt",), old_flags=("ckpt",))
        checkpoints = chosen_checkpoints(arguments.checkpoints(), arguments.options.pictures)
        sys.exit(predict(checkpoints, arguments.options))


def chosen_checkpoints(typed: Sequence[str], inputs: Sequence[str]) -> list[Path]:
    """The checkpoints that were typed, or the default counter.

    Args:
        typed: one or several; none if ``ckpt=`` was not typed.
        inputs: the pictures or videos that were typed.

    Raises:
        ConfigError, CheckpointError: if there is no such checkpoint, or one occurs twice.
    """
    if len(typed) < 2:
        return [chosen_checkpoint(typed[0] if typed else None, inputs)]
    if errors := checkpoint_errors(typed):
        raise ConfigError("\n  ".join(errors))
    return [Path(ckpt).expanduser() for ckpt in typed]


def chosen_checkpoint(typed: str | None, inputs: Sequence[str]) -> Path:
    """The checkpoint that was typed, or the default counter that comes with headcount, which is announced.

    Args:
        typed: the value of ``ckpt=``; None if it was not typed.
        inputs: the pictures or videos that were typed.

    Raises:
        ConfigError, CheckpointError: if there is no such checkpoint.
    """
    named = [text for text in inputs if Path(text).suffix in (".pt", ".pth", published.WEIGHTS)]
    if typed is None and named:
        file = named[0] if Path(named[0]).exists() else named[0].rpartition("=")[2]
        raise ConfigError(f"ckpt is not set: type ckpt={file}")
    if typed is None:
        counter = published.default_counter()
        print(f"counting with {counter}", file=sys.stderr)
        return counter.file
    if missing := checkpoint_error(typed):
        raise ConfigError(missing)
    return Path(typed).expanduser()


def predict(checkpoints: Sequence[Path], options: argparse.Namespace) -> int:
    """Count all pictures.

    Returns:
        The exit status.

    Raises:
        ConfigError: if nothing can be done.
    """
    regions = typed_regions(options)
    output = options.output.expanduser()
    earlier = earlier_results(output)
    found = find_pictures(options.pictures, leave_out={file_identity(path) for path in earlier})
    files = found.files
    unreadable = refuse_uncountable(files)
    if unreadable:
        print(f"cannot be counted: {printable(first_names(list(unreadable.values())))}", file=sys.stderr)
    results = _empty_results(output, checkpoints_text(checkpoints), files, density=options.density, draw=options.draw)
    for file, picture in zip(files, results.pictures, strict=True):
        picture.error = unreadable.get(file, NOT_YET)
    results.regions = [region.name for region in regions]
    check_output(output, earlier, files, [results.json_file, results.csv_file, *results.files()])

    # Heavy imports after the checks.
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = max(1, options.max_megapixels * 1_000_000 // 2)  # Pillow refuses twice as many
    counter = load_counter(checkpoints, options)
    if wrong := regions_error(options, counter.predicts):
        raise ConfigError(wrong)
    for folder in (output, *{path.parent for path in results.files()}):
        make_folder(folder, "--output")
    for line in found.left_out:
        print(printable(line), file=sys.stderr)
    results.earlier = earlier
    results.save()
    interrupted = count_all(counter, files, results, regions)
    results.finish()
    results.print_table()
    if interrupted:
        return INTERRUPTED
    return FAILED if any(picture.error for picture in results.pictures) else 0


def refuse_uncountable(files: Sequence[Path]) -> dict[Path, str]:
    """The files that cannot be opened, and why; refuse if none can, before anything is loaded or removed.

    Raises:
        ConfigError: says why, for the first ten.
    """
    problems: dict[Path, str] = {}
    for file in files:
        try:
            check_file(file)
        except (ConfigError, OSError) as error:
            problems[file] = str(error)
    if len(problems) < len(files):
        return problems
    first, *others = problems.values()
    more = [f"and {len(others) - 9} more"] if len(others) > 9 else []
    raise ConfigError("\n  ".join([f"there is nothing to count: {first}", *others[:9], *more]))


def _empty_results(output: Path, ckpt: str, files: list[Path], *, density: bool, draw: bool) -> Results:
    """The results before anything is counted, with the names of the files that will be written."""
    pictures = [
        PictureResult(
            file=str(file),
            density=f"density/{name}.npy" if density else None,
            picture=f"pictures/{name}.png" if draw else None,
            error=NOT_YET,
        )
        for file, name in zip(files, distinct_names(files), strict=True)
    ]
    return Results(output, ckpt, pictures)


def checkpoints_text(checkpoints: Sequence[Path]) -> str:
    """One or several checkpoints, for a record."""
    return ", ".join(map(str, checkpoints))


def add_averaging_options(parser: argparse.ArgumentParser) -> None:
    """Add the flags of test-time averaging."""
    parser.add_argument("--tta", choices=("none", "flip"), help="flip also counts the mirror image, and averages")
    parser.add_argument(
        "--scales", type=scales, help="also count other sizes, and average: 0.75,1,1.25 (multiples of the picture's)"
    )


def load_counter(checkpoints: Sequence[Path], options: argparse.Namespace) -> "PhotoCounter | PhotoEnsemble":
    """The counter of the checkpoints, with the windows and averaging that were typed; says what is odd about it.

    Raises:
        ConfigError: if these do not fit a counter.
        CheckpointError: if a checkpoint cannot be used.
    """
    with deferred_interrupt():
        from headcount.data.prepare import resize_note
        from headcount.engine.load import load

    averaging = {"device": options.device, "tta": options.tta, "scales": options.scales}
    if len(checkpoints) == 1:
        counter = load(checkpoints[0], **averaging)
        if note := resize_note(counter.config.dataset):
            print(note, file=sys.stderr)
        choose_level(counter, options.level)
        choose_windows(counter, options)
        return counter
    if options.level is not None:
        raise ConfigError(f"--level {options.level:g}: several checkpoints together have no interval; name only one")
    ensemble = load(list(checkpoints), **averaging)
    for name, member in zip(checkpoints, ensemble.members, strict=True):
        if note := resize_note(member.config.dataset):
            print(f"{name}: {note}", file=sys.stderr)
        try:
            choose_windows(member, options)
        except ConfigError as error:
            raise ConfigError(f"ckpt={name}: {error}") from error
    return ensemble


def add_level_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--level``, for :func:`choose_level`."""
    parser.add_argument(
        "--level",
        type=interval_level,
        metavar="P",
        help="share of pictures whose true count is to lie in its interval, between 0 and 1 (default: 0.9)",
    )


def choose_level(counter: "PhotoCounter", level: float | None) -> None:
    """Set the level of the counter's intervals.

    Args:
        counter: any.
        level: as typed; None is the default.

    Raises:
        ConfigError: if its calibration has too few images for the level.
    """
    if level is not None:
        counter.level = counter.check_level(level, setting="--level")


def choose_windows(counter: "PhotoCounter", options: argparse.Namespace) -> None:
    """Set the counter's windows if any option requests them.

    Raises:
        ConfigError: if they do not fit the counter.
    """
    from headcount.config import SlidingWindowConfig, counting_mode, range_errors, window_error

    asked = {key: getattr(options, key) for key in ("window", "stride", "window_batch") if getattr(options, key)}
    if not asked:
        return
    trained = counter.config
    usual = counting_mode(trained.eval, trained.model, crop_size=trained.augment.crop_size)
    if not options.window and not isinstance(usual, SlidingWindowConfig):
        raise ConfigError(f"--{next(iter(asked)).replace('_', '-')} needs --window: this counter counts whole pictures")
    if isinstance(usual, SlidingWindowConfig) and options.window:
        asked.setdefault("stride", None)  # the default stride belongs to the default window
    chosen = replace(usual, **asked) if isinstance(usual, SlidingWindowConfig) else SlidingWindowConfig(**asked)
    if errors := range_errors(chosen, "--"):
        raise ConfigError("\n  ".join(errors).replace("--window_batch", "--window-batch"))
    counter.mode = counting_mode(trained.eval, trained.model, crop_size=trained.augment.crop_size, chosen=chosen)
    if wrong := window_error(counter.mode, counter.network.grid.block_size, counter.network.stride):
        raise ConfigError(wrong.replace("eval.", "--"))


def count_all(
    counter: "PhotoCounter | PhotoEnsemble", files: Sequence[Path], results: Results, regions: "Sequence[Region]" = ()
) -> bool:
    """Count the pictures and fill in their results, which are saved periodically.

    Returns:
        Whether it was interrupted.
    """
    pictures = results.pictures
    progress = progress_bar(files, label="counting", smoothing=0.1)
    interrupted = False
    try:
        for k, file in enumerate(progress):
            result = replace(pictures[k], error="")
            prediction = predict_one(counter, file, result)
            pictures[k] = result
            if prediction is not None:
                results.begin()
                write_one(file, prediction, result, results.output, regions)
            results.save(every=_SAVE_EVERY)
    except KeyboardInterrupt:
        interrupted = True
        for picture in pictures:
            picture.error = "not counted: interrupted" if picture.error == NOT_YET else picture.error
    progress.close()
    return interrupted


def write_one(
    file: Path, prediction: "PhotoCount", result: PictureResult, output: Path, regions: "Sequence[Region]" = ()
) -> None:
    """Count the regions of one picture and write its files; an error is recorded in the result."""
    import numpy as np

    from headcount.report.overlay import overlay_picture

    errors: list[str] = []
    drawn: list[DrawnRegion] = []
    try:
        drawn = count_regions(prediction, result, regions)
    except Exception as error:  # the picture is drawn without them
        errors.append(failure_message(file, error))
    try:
        if result.density and prediction.block_counts is not None:
            with atomic_write(output / result.density) as part, part.open("wb") as density:
                np.save(density, prediction.block_counts.numpy())
        if result.picture and prediction.block_counts is not None:
            overlay_picture(
                prediction.image,
                prediction.block_counts,
                output / result.picture,
                block_size=prediction.block_size,
                title=printable(file.name),
                interval="" if prediction.interval is None else str(prediction.interval),
                regions=drawn,
            )
    except Exception as error:  # one bad file never stops the others
        errors.append(failure_message(file, error))
        for name in ("density", "picture"):
            written = getattr(result, name)
            if written and not (output / written).exists():
                setattr(result, name, None)
    result.error = "; ".join(errors)


def count_regions(prediction: "PhotoCount", result: PictureResult, regions: "Sequence[Region]") -> "list[DrawnRegion]":
    """Record the people in each region of one picture; what is drawn of them.

    Raises:
        ConfigError: if a region does not fit the picture.
    """
    from headcount.report.regions import drawn_regions

    if not regions or prediction.block_counts is None:
        return []
    grid = prediction.region_grid(regions)
    result.regions = grid.count(prediction.block_counts.double().numpy())
    return drawn_regions(grid, result.regions, photo_size=prediction.photo_size)


def scales(text: str) -> list[float]:
    """The type of a flag that takes several sizes."""
    try:
        return [float(number) for number in text.strip("[]").split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: must be numbers such as 0.75,1,1.25") from None


def device(text: str) -> str:
    """The type of a flag that takes the name of a device."""
    if not re.fullmatch(r"cpu|auto|cuda(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"{text}: must be cpu, cuda, cuda:N or auto")
    return text
