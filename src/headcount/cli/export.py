"""Export a checkpoint to a file that counts people without headcount: ONNX, or torch.export's .pt2; or to .safetensors.

  python scripts/export.py ckpt=best_mae.pt --output counter.onnx
  python scripts/export.py ckpt=best_mae.pt --output counter.pt2
  python scripts/export.py ckpt=best_mae.pt --output counter.safetensors
  python scripts/export.py ckpt=best_mae.pt --output counter.onnx --check my_pictures
  python scripts/export.py ckpt=best_mae.pt --output small.onnx --int8 --calibrate my_pictures --check my_pictures

An ONNX or .pt2 file takes images as bytes, uint8 (batch, height, width, 3), RGB, of any size, and returns "count"
(batch), "blocks" (batch, rows, cols) and, from a counter with bins, "probabilities" (batch, bins, rows, cols).
Normalization and padding to whole blocks are inside. Not inside is what its metadata describe: how a photo is resized
first ("resize"), and for a counter that counts in windows, such as a CLIP ViT, how it is cut into them ("windows");
such a file takes one window. Before it is written, the file counts two generated images, and is refused if it does not
count as the checkpoint. docs/export.md has a program that counts a photo with it.

Without ckpt=, the default counter that comes with headcount is exported.

A .safetensors file is for headcount itself, and for other people: it comes with a description (.json) and a model card
(.md), and every command takes it as ckpt=. It is what publish_counter.py writes, whose options add errors and limits to
the card, store all 32 bits, or upload it.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headcount.cli.arguments import read_arguments, script_parser, to_path
from headcount.cli.predict import refuse_uncountable
from headcount.cli.publish_counter import store
from headcount.cli.start import deferred_interrupt
from headcount.cli.status import exit_on_error
from headcount.commands import as_typed
from headcount.config import ConfigError, EvalConfig, checkpoint_error
from headcount.data.picture_files import find_pictures
from headcount.files import make_folder
from headcount.progress import progress_bar
from headcount.published import WEIGHTS, default_counter
from headcount.wording import printable

if TYPE_CHECKING:
    from torch import Tensor

    from headcount.config import SlidingWindowConfig, WholeImageConfig
    from headcount.engine.checkpoint import LoadedCheckpoint
    from headcount.engine.exported import ExportedCounter
    from headcount.engine.predict import PhotoCounter

_SUFFIXES = (".onnx", ".pt2", WEIGHTS)


def main() -> None:
    """Read the command line and export."""
    parser = script_parser(__doc__)
    parser.add_argument(
        "settings", nargs="*", metavar="ckpt=FILE", help="the checkpoint (default: the default counter)"
    )
    parser.add_argument(
        "--output", type=to_path, required=True, help="the file to write: .onnx, .pt2 or .safetensors; must not exist"
    )
    parser.add_argument("--int8", action="store_true", help="weights of 8 bits (.onnx only)")
    parser.add_argument(
        "--calibrate",
        metavar="PICTURES",
        help="with --int8: a file, folder or pattern of photos to measure the ranges of the layers on, which makes the "
        "file faster than float32; without, it is smaller but, for convolutions, slower",
    )
    parser.add_argument("--check", metavar="PICTURES", help="count these photos with the checkpoint and with the file")
    parser.add_argument("--float32", action="store_true", help=argparse.SUPPRESS)  # of publish_counter.py
    parser.add_argument(
        "--license", help="terms of the weights (default: those that the checkpoint states, or those of the dataset)"
    )
    with exit_on_error(parser.prog, OSError):
        arguments = read_arguments(parser, old_flags=("ckpt",))
        ckpt = arguments.values("ckpt").get("ckpt")
        if ckpt is None:
            counter = default_counter()
            print(f"exporting {counter}", file=sys.stderr)
            ckpt = counter.name
        export_checkpoint(ckpt, arguments.options)


def export_checkpoint(ckpt: str, options: argparse.Namespace) -> None:
    """Export, and compare with the checkpoint.

    Raises:
        ConfigError, CheckpointError: if it cannot be done; nothing is written.
    """
    output = options.output.expanduser()
    if missing := checkpoint_error(ckpt):
        raise ConfigError(missing)
    _refuse_options(output, options)
    calibration, checked = _pictures(options.calibrate), _pictures(options.check)
    make_folder(output.parent, "--output")

    # Heavy imports after the checks.
    with deferred_interrupt():
        from headcount.engine import checkpoint, export, predict
        from headcount.engine.card import usual_license

    if output.suffix == ".onnx":
        export.import_onnx()
    loaded = checkpoint.load(ckpt)
    mode = loaded.counting_mode(EvalConfig())
    photos = predict.PhotoCounter(loaded.counter, loaded.config, loaded.bins, mode, loaded.seen)
    terms = options.license or usual_license(loaded.content)
    if output.suffix == WEIGHTS:
        store(output, {**loaded.content, "license": terms})
        again = checkpoint.load(output).counter
        compare(photos, lambda image: again.count(image, mode).count, checked)
        return
    exported = _export_graph(loaded, mode, photos, calibration, terms, options)
    compare(photos, lambda image: exported.count(image).count, checked)


def _export_graph(
    loaded: "LoadedCheckpoint",
    mode: "WholeImageConfig | SlidingWindowConfig",
    photos: "PhotoCounter",
    calibration: list[Path],
    terms: str,
    options: argparse.Namespace,
) -> "ExportedCounter":
    """Write an ONNX or .pt2 file.

    Args:
        photos: the same counter, for pictures.
        calibration: pictures to measure the ranges of the layers on.
        terms: the license of the weights.
    """
    from headcount.engine import export
    from headcount.engine.exported import check_parity, from_onnx, from_program
    from headcount.engine.quantize import quantize

    output = options.output.expanduser()
    description = export.describe(loaded, mode, terms)
    print(f"recording the operations of {description['model']}", file=sys.stderr)
    program = export.trace(export.build_graph(loaded.counter, mode), description["model"])
    if output.suffix == ".pt2":
        exported = from_program(program, description)
        difference = check_parity(exported, loaded.counter)
        export.save_program(program, description, output)
    else:
        proto = export.to_onnx(program, description)
        exported = from_onnx(proto.SerializeToString(), str(output))
        difference = check_parity(exported, loaded.counter)
        if options.int8:
            proto = quantize(proto, _parts(photos, calibration) if options.calibrate else None)
            exported = from_onnx(proto.SerializeToString(), str(output))
        export.save_onnx(proto, output)
    print(printable(f"{output}: {_summary(description, output)}"))
    print(f"largest difference of a block from the checkpoint's, in float32: {difference:.1e} people")
    return exported


def _refuse_options(output: Path, options: argparse.Namespace) -> None:
    """Raise a ConfigError for options that do not fit together."""
    if output.suffix not in _SUFFIXES:
        raise ConfigError(f"--output {output}: the name must end in {' or '.join(_SUFFIXES)}, which chooses the format")
    if output.exists():
        raise ConfigError(f"{output}: exists; name another file, or remove it")
    if options.float32:
        raise ConfigError(
            "--float32: ONNX and .pt2 files hold 32 bits without it; for a .safetensors file of 32 bits, type "
            f"{as_typed('python scripts/publish_counter.py')} ckpt=... --output {output.with_suffix('')} --float32"
        )
    if options.int8 and output.suffix != ".onnx":
        raise ConfigError(f"--int8: only ONNX files are quantized; name a file.onnx instead of {output}")
    if options.calibrate and not options.int8:
        raise ConfigError("--calibrate needs --int8: a file in float32 has no ranges to measure")


def _pictures(typed: str | None) -> list[Path]:
    """The pictures of an option; none if it is not used.

    Raises:
        ConfigError, DataError: if none of them can be opened, or one is damaged or no picture.
    """
    if typed is None:
        return []
    with deferred_interrupt():
        from headcount.data.images import read_image

    files = find_pictures([typed], leave_out=set()).files
    refuse_uncountable(files)
    for file in files:
        read_image(file, upright=True)  # also damage below the header, before the work rather than after it
    return files


def _parts(photos: "PhotoCounter", files: list[Path]) -> Iterator[Any]:
    """What an exported file gets of each picture: the whole, or one window after the other."""
    from headcount.config import SlidingWindowConfig
    from headcount.models.tiling import window_corners

    for file in progress_bar(files, label="calibrating"):
        image = photos.prepare(file)
        pixels = image.permute(1, 2, 0).contiguous().numpy()
        if not isinstance(photos.mode, SlidingWindowConfig):
            yield pixels
            continue
        side = photos.mode.window or 0
        height, width = image.shape[1:]
        block = photos.network.grid.block_size
        for top, left in window_corners(photos.mode, height=height, width=width, block_size=block):
            yield pixels[top : top + side, left : left + side]


def _summary(description: dict[str, Any], output: Path) -> str:
    """The file in one line."""
    windows = description["windows"]
    counted = "whole images" if windows is None else f"windows of {windows['window']} px"
    size = output.stat().st_size / 1e6
    return f"{description['model']}, {counted}, blocks of {description['block_size']} px, {size:.2f} MB"


def compare(photos: "PhotoCounter", recount: Callable[["Tensor"], float], files: list[Path]) -> None:
    """Count pictures with the checkpoint and with the exported file, and print both counts.

    Args:
        recount: the count of the exported file, of an image as the checkpoint gets it.
        files: pictures; without any, nothing is printed.
    """
    if not files:
        return
    from tabulate import tabulate

    rows = []
    for file in progress_bar(files, label="checking"):
        prediction = photos.predict(file)
        count = recount(prediction.image)
        rows.append((printable(str(file)), prediction.count, count, count - prediction.count))
    shown = [(name, f"{ours:.3f}", f"{theirs:.3f}", f"{error:+.4f}") for name, ours, theirs, error in rows]
    headers = ["picture", "checkpoint", "file", "difference"]
    print(tabulate(shown, headers, tablefmt="plain", disable_numparse=True, colalign=["left", *["right"] * 3]))
    errors = [abs(error) for *_, error in rows]
    print(f"difference: mean {sum(errors) / len(errors):.4f}, largest {max(errors):.4f} people")
