"""Count the people in the frames of a video, a camera or a stream.

  python scripts/video.py crowd.mp4 --output out
  python scripts/video.py crowd.mp4 ckpt=best_mae.pt --every 2s --region "door=0%,50%,30%,100%"
  python scripts/video.py rtsp://camera.local/stream ckpt=best_mae.pt --every 1s --end 3600

Without ckpt=, the default counter that comes with headcount counts, as in predict.py.

SOURCE is a video file; a folder, pattern ("frames/*.png") or numbered name (frame_%04d.png) of images, which are
ordered by the numbers in their names; a camera (camera:0 or /dev/video0); or the address of a stream (rtsp://, http://,
...). Frames have the times of the file's own time stamps, so that a variable frame rate is respected, and are turned as
the file says. A frame has the count that predict.py gives for the same frame saved as PNG.

The output folder gets counts.csv (a line per frame: number, seconds, people, people in each region, interval), which
grows while frames are counted; counts.png, the curve over time; annotated.mp4, the counted frames with density, count,
interval and regions; and video.json, a summary. It holds one run: results of an earlier run are replaced once a frame
is counted; other files are never overwritten.

A frame that cannot be decoded is named and skipped. Ctrl-C (or SIGTERM) ends the run and keeps what was counted: the
video can be played. Cameras and streams are counted until Ctrl-C or --end; frames that come while others are counted
are dropped.

Exit status: 0; 1 if a frame could not be counted (the others are); 2 if nothing could be done; 130 if a file was
interrupted.
"""

import argparse
import re
import sys
import threading
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headcount.cli.arguments import read_arguments, script_parser, to_path, whole_number
from headcount.cli.predict import (
    add_averaging_options,
    add_level_option,
    checkpoints_text,
    chosen_checkpoints,
    device,
    load_counter,
)
from headcount.cli.regions import REGIONS_HELP, add_region_options, regions_error, typed_regions
from headcount.cli.start import INTERRUPTED, deferred_interrupt
from headcount.cli.status import FAILED, REFUSED, exit_on_error
from headcount.config import ConfigError
from headcount.engine.signals import stop_event
from headcount.files import make_folder
from headcount.progress import progress_bar

if TYPE_CHECKING:
    from headcount.data.regions import Region
    from headcount.engine.ensemble import PhotoEnsemble
    from headcount.engine.frames import Source
    from headcount.engine.predict import PhotoCounter
    from headcount.engine.video import FrameCount
    from headcount.report.video import VideoResults

_NUMBER = re.compile(r"\d+\.?\d*|\.\d+")


def main() -> None:
    """Read the command line and count."""
    parser = script_parser((__doc__ or "").replace("\nExit status", f"\n{REGIONS_HELP}\nExit status"))
    parser.add_argument("source", nargs="+", metavar="SOURCE", help="video, images, camera or address; and ckpt=")
    parser.add_argument(
        "--output", type=to_path, default=Path("video_counts"), help="folder of the results (default: video_counts)"
    )
    parser.add_argument(
        "--every",
        type=every,
        default=(1, None),
        metavar="N or Ns",
        help="use one of N frames, or with an s one frame in N seconds: 5, 0.5s (default: 1, every frame)",
    )
    parser.add_argument("--start", type=seconds, default=0.0, help="seconds of the video to skip (default: 0)")
    parser.add_argument("--end", type=seconds, help="time in seconds at which to stop (default: the end)")
    parser.add_argument("--rate", type=positive, help="frames per second of images, which have no times (default: 25)")
    parser.add_argument(
        "--batch", type=whole_number, help="frames counted together (default: 8; 1 for cameras and streams)"
    )
    parser.add_argument("--device", type=device, default="auto", help="cpu, cuda, cuda:1, ... or auto (default)")
    add_level_option(parser)
    parser.add_argument("--window", type=whole_number, help="count every frame in windows of this side, in pixels")
    parser.add_argument("--stride", type=whole_number, help="pixels between windows (default: the window's side)")
    parser.add_argument("--window-batch", type=whole_number, help="windows per batch (default: 8); fewer save memory")
    parser.add_argument("--no-video", dest="draw", action="store_false", help="write no annotated video")
    add_averaging_options(parser)
    add_region_options(parser)
    with exit_on_error(parser.prog, OSError):
        arguments = read_arguments(parser, mixed=("source",), only=("ckpt",), old_flags=("ckpt",))
        options = arguments.options
        if len(options.source) != 1:
            found = ", ".join(options.source) or "none"
            raise ConfigError(f"one source is counted at a time, and {len(options.source)} are given: {found}")
        sys.exit(count_video(options.source[0], chosen_checkpoints(arguments.checkpoints(), []), options))


def count_video(source_name: str, checkpoints: Sequence[Path], options: argparse.Namespace) -> int:
    """Count the frames of a source.

    Returns:
        The exit status.

    Raises:
        ConfigError, DataError: if nothing can be done.
    """
    with deferred_interrupt():
        from headcount.report.predictions import check_output
        from headcount.report.video import VideoResults, earlier_video

    if options.end is not None and options.end <= options.start:
        raise ConfigError(f"--end {options.end:g} is not after --start {options.start:g}: no frame would be used")
    regions = typed_regions(options)
    output = options.output.expanduser()
    earlier = earlier_video(output)
    results = VideoResults(
        output, "", checkpoints_text(checkpoints), [region.name for region in regions], options.draw, earlier
    )
    check_output(output, earlier, [Path(source_name).expanduser()], results.files())

    # Heavy imports after the checks.
    with deferred_interrupt():
        from headcount.engine.frames import DEFAULT_RATE, ImageSequence, import_av, open_source

    if options.draw:
        import_av("an annotated video")
    with closing(open_source(source_name, rate=options.rate or DEFAULT_RATE)) as source:
        if options.rate is not None and not isinstance(source, ImageSequence):
            raise ConfigError(f"--rate {options.rate:g}: {source.name} has times of its own; --rate is for images only")
        results.source = source.name
        counter = load_counter(checkpoints, options)
        if wrong := regions_error(options, counter.predicts):
            raise ConfigError(wrong)
        make_folder(output, "--output")
        with stop_event() as stop:
            count_all(counter, source, results, regions, options, stop)
        results.finish(interrupted=stop.is_set(), dropped=getattr(source, "left_out", 0))
    results.print_table()
    if stop.is_set() and not source.live:
        return INTERRUPTED
    if not results.began and not results.failed:
        print(f"{results.source}: no frame from {options.start:g} s on", file=sys.stderr)
        return REFUSED
    return FAILED if results.failed else 0


def count_all(
    counter: "PhotoCounter | PhotoEnsemble",
    source: "Source",
    results: "VideoResults",
    regions: "list[Region]",
    options: argparse.Namespace,
    stop: threading.Event,
) -> None:
    """Count the frames until the end or until ``stop`` is set, and write the results of each."""
    from headcount.engine.frames import Selection
    from headcount.engine.video import count_frames, write_video
    from headcount.report.frames import FrameAnnotator

    selection = Selection(options.start, options.end, *options.every)
    batch = options.batch or (1 if source.live else 8)
    expected = None if source.live else selection.expected(source.duration, source.rate)
    annotator = FrameAnnotator()
    with (
        ExitStack() as stack,
        closing(source.frames(selection, stop)) as frames,
        progress_bar(label="counting", unit="frame", total=expected, smoothing=0.1) as progress,
    ):
        writer = None
        for frame in count_frames(counter, frames, regions=regions, batch=batch):
            progress.update()
            if frame.prediction is None:
                results.fail(frame.number, frame.seconds, frame.error)
                continue
            counts = [frame.prediction.count, *frame.regions.values()]
            interval = frame.prediction.interval
            note = "; ".join(filter(None, [frame.prediction.note, "" if interval is None else interval.note]))
            results.add(frame.number, frame.seconds, counts, interval=interval, note=note)
            if options.draw:
                writer = writer or stack.enter_context(write_video(results.video))
                writer.write(drawn(annotator, frame), frame.seconds)


def drawn(annotator: Any, frame: "FrameCount") -> Any:
    """The picture of a frame in the annotated video."""
    from headcount.report.frames import clock
    from headcount.report.regions import drawn_regions

    prediction = frame.prediction
    assert prediction is not None
    regions = []
    if frame.grid is not None:
        regions = drawn_regions(frame.grid, frame.regions, photo_size=prediction.photo_size)
    interval = [] if prediction.interval is None else [str(prediction.interval)]
    return annotator.draw(
        prediction.image,
        prediction.block_counts,
        block_size=prediction.block_size,
        caption=[f"{prediction.count:.1f} people", *interval, clock(frame.seconds)],
        regions=regions,
    )


def every(text: str) -> tuple[int, float | None]:
    """The type of ``--every``: a number of frames, or of seconds with an ``s``."""
    if text.isdecimal() and int(text):
        return int(text), None
    number = text.removesuffix("s")
    if number != text and _NUMBER.fullmatch(number) and float(number) > 0:
        return 1, float(number)
    raise argparse.ArgumentTypeError(f"{text}: must be a number of frames such as 5, or of seconds such as 0.5s")


def seconds(text: str) -> float:
    """The type of a flag that takes a time."""
    if not _NUMBER.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text}: must be a number of seconds, at least 0")
    return float(text)


def positive(text: str) -> float:
    """The type of a flag that takes a number above 0."""
    if not _NUMBER.fullmatch(text) or not float(text):
        raise argparse.ArgumentTypeError(f"{text}: must be a number above 0")
    return float(text)
