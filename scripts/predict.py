"""Count the people in pictures.

  python scripts/predict.py photo.jpg --ckpt best_mae.pt
  python scripts/predict.py holiday/ "more/*.png" --ckpt best_mae.pt --output out

A PICTURE is a file, a folder (everything below it that has the ending of a picture) or a pattern with * or ?. Counts
go to the terminal, counts.csv and counts.json; people per block to density/<name>.npy; the density over the photo to
pictures/<name>.png. Files of an earlier run in the same folder are replaced.

A picture is resized as the images of the counter's dataset were, and counted as these were evaluated: in one piece
or, by a ViT, in windows. One of more than 8 million pixels is counted in overlapping windows of about 1024 pixels,
unless --window says otherwise. Of an animation the first frame is counted.

Exit status: 0; 1 if a picture could not be counted (the others are); 2 if nothing could be done.
"""

import argparse
import csv
import glob
import json
import os
import sys
from pathlib import Path
from typing import Any

from headcount.config import ConfigError, missing_checkpoint

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")


def expand(typed: list[str]) -> list[Path]:
    """The files that were meant: what exists is taken as it is named, the rest as a pattern."""
    files: dict[Path, None] = {}
    for text in typed:
        path = Path(text).expanduser()
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.suffix.lower() in ENDINGS and p.is_file())
            if not found:
                raise ConfigError(f"{path}: no file below it ends in {', '.join(ENDINGS)}")
        elif path.exists():
            found = [path]
        else:
            found = [Path(p) for p in sorted(glob.glob(str(path), recursive=True))]
        files |= dict.fromkeys(found or [path])  # one that is not there fails later, as any bad picture does
    return list(files)


def distinct_names(files: list[Path]) -> list[str]:
    """What each file's results are called: its stem, numbered where several share one (on any file system)."""
    names: list[str] = []
    taken: set[str] = set()
    for file in files:
        name, number = file.stem, 1
        while name.lower() in taken:
            number += 1
            name = f"{file.stem}_{number}"
        taken.add(name.lower())
        names.append(name)
    return names


def predict(options: argparse.Namespace) -> int:
    """Count all pictures.

    Returns:
        The exit status.

    Raises:
        ConfigError: if nothing can be done.
    """
    ckpt = options.ckpt.expanduser()
    if not ckpt.is_file():
        raise ConfigError(missing_checkpoint(ckpt))
    files = expand(options.pictures)

    # Heavy imports after the checks.
    from tqdm import tqdm

    from headcount.config import SlidingWindowConfig, counting_mode, window_error
    from headcount.engine.evaluate import make_folder
    from headcount.engine.predict import load

    counter = load(ckpt, device=options.device)
    if options.window or options.stride or options.window_batch:
        chosen = SlidingWindowConfig(
            window=options.window, stride=options.stride, window_batch=options.window_batch or 8
        )
        counter.mode = counting_mode(counter.config, chosen)
        if wrong := window_error(counter.mode, counter.counter.block_size, counter.counter.stride):
            raise ConfigError(wrong.replace("eval.", "--"))
    output = options.output.expanduser()
    for folder in (output, *([output / "density"] if options.density else []), *([output / "pictures"] * options.draw)):
        make_folder(folder, "--output ")

    rows: list[dict[str, Any]] = []
    progress = tqdm(list(zip(files, distinct_names(files), strict=True)), desc="counting", unit="img", smoothing=0.1)
    for file, name in progress:
        try:
            row = count_one(counter, file, name, output, options)
        except Exception as error:  # one bad file never stops the rest
            words = str(error) if isinstance(error, (ConfigError, MemoryError)) else f"{type(error).__name__}: {error}"
            row = {"file": str(file), "count": None, "error": words}
        rows.append(row)
    write_counts(rows, output)
    width = max(len(row["file"]) for row in rows)
    for row in rows:
        shown = f"{row['count']:10.1f}" if row["count"] is not None else f"{'failed':>10}"
        print(f"{row['file']:<{width}} {shown}" + (f"  {row['note']}" if row.get("note") else ""))
    failed = [row for row in rows if row["error"]]
    if len(rows) > 1:
        print(f"{'together':<{width}} {sum(row['count'] or 0 for row in rows):10.1f}")
    print(f"{output / 'counts.csv'}")
    if failed:
        print(
            f"failed: {len(failed)} of {len(rows)}", *(f"  {row['error']}" for row in failed), sep="\n", file=sys.stderr
        )
    return 1 if failed else 0


def count_one(counter: Any, file: Path, name: str, output: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Count one picture and write what belongs to it."""
    import numpy as np

    from headcount.config import SlidingWindowConfig
    from headcount.data.readers import open_pillow
    from headcount.report.overlay import overlay_picture

    if not file.exists():
        raise ConfigError(f"{file}: no such file, and no file fits it as a pattern")
    with open_pillow(file) as opened:
        frames = getattr(opened, "n_frames", 1)
        width, height = opened.size
        if opened.getexif().get(_ORIENTATION, 1) > 4:  # lies on its side
            width, height = height, width
    prediction = counter.predict(file)
    notes = [f"the first of {frames} frames"] * (frames > 1)
    if isinstance(prediction.mode, SlidingWindowConfig):
        notes.append(f"in windows of {prediction.mode.window} px")
    row: dict[str, Any] = {
        "file": str(file),
        "count": prediction.count,
        "width": width,
        "height": height,
        "error": "",
        "note": ", ".join(notes),
        "block_size": prediction.block_size,
        "counted_width": prediction.image.shape[2],
        "counted_height": prediction.image.shape[1],
    }
    if options.density:
        row["density"] = f"density/{name}.npy"
        np.save(output / row["density"], prediction.block_counts.numpy())
    if options.draw:
        row["picture"] = f"pictures/{name}.png"
        overlay_picture(
            prediction.image,
            prediction.block_counts,
            output / row["picture"],
            block_size=prediction.block_size,
            title=file.name,
        )
    return row


_ORIENTATION = 0x0112


def write_counts(rows: list[dict[str, Any]], output: Path) -> None:
    """counts.json with everything, counts.csv with the columns of a table; whole or not at all."""
    parts = output / "counts.json.part", output / "counts.csv.part"
    parts[0].write_text(json.dumps(rows, indent=2) + "\n")
    with parts[1].open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "count", "width", "height", "error"])
        for row in rows:
            count = "" if row["count"] is None else f"{row['count']:.4f}"
            writer.writerow([row["file"], count, row.get("width", ""), row.get("height", ""), row["error"]])
    for part in parts:
        os.replace(part, part.with_suffix(""))


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", nargs="+", metavar="PICTURE", help="file, folder or pattern")
    parser.add_argument("--ckpt", type=Path, required=True, help="checkpoint, such as best_mae.pt")
    parser.add_argument("--output", type=Path, default=Path("predictions"), help="folder of the results")
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto (default)")
    parser.add_argument("--window", type=_positive, help="count in windows of this side, pixels")
    parser.add_argument("--stride", type=_positive, help="pixels between windows; default: the window's side")
    parser.add_argument("--window-batch", type=_positive, help="windows at once; fewer need less memory")
    parser.add_argument("--no-pictures", dest="draw", action="store_false", help="draw nothing")
    parser.add_argument("--no-density", dest="density", action="store_false", help="write no .npy files")
    try:
        sys.exit(predict(parser.parse_args()))
    except ConfigError as error:
        print(f"predict.py: {error}", file=sys.stderr)
        sys.exit(2)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be at least 1")
    return value


if __name__ == "__main__":
    main()
