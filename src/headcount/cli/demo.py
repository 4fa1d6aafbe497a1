"""Show a page in the browser on which pictures can be dropped and counted.

  python scripts/demo.py
  python scripts/demo.py ckpt=best_mae.pt --examples holiday/ --port 8000

Open the address that is printed. Pictures, a video or the camera; the density over the picture, the most probable bin
of each block, the count of regions that are drawn or typed, and downloads. Counts are those of predict.py; without
ckpt=, the default counter that comes with headcount counts.

The page runs on this computer, sends nothing anywhere, and needs no network. It can be reached from this computer only,
unless --host says otherwise (--host 0.0.0.0: from everywhere); it has no password. Uploaded files are deleted after ten
minutes. Ten people can use it at the same time; one picture is counted at a time, and the others wait.

Ctrl-C ends it.
"""

import argparse
import ipaddress
import sys
from pathlib import Path

from headcount.cli.arguments import read_arguments, script_parser, to_path, whole_number
from headcount.cli.predict import choose_windows, chosen_checkpoint, device
from headcount.cli.start import deferred_interrupt
from headcount.cli.status import exit_on_error
from headcount.config import ConfigError

DEFAULT_PORT = 7860


def main() -> None:
    """Read the command line and serve the page until Ctrl-C."""
    parser = script_parser(__doc__)
    parser.add_argument("settings", nargs="*", metavar="ckpt=FILE", help="the checkpoint of the counter")
    parser.add_argument("--examples", type=to_path, help="a folder of pictures to begin with (default: drawn crowds)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1, this computer)")
    parser.add_argument("--port", type=port, default=DEFAULT_PORT, help="0 for any free one (default: 7860)")
    parser.add_argument("--max-megabytes", type=whole_number, help="larger files are refused (default: 100)")
    parser.add_argument("--max-megapixels", type=whole_number, help="larger pictures are refused (default: 50)")
    parser.add_argument("--device", type=device, default="auto", help="cpu, cuda, cuda:1, ... or auto (default)")
    parser.add_argument("--window", type=whole_number, help="count every picture in windows of this side, in pixels")
    parser.add_argument("--stride", type=whole_number, help="pixels between windows (default: the window's side)")
    parser.add_argument("--window-batch", type=whole_number, help="windows per batch (default: 8); fewer save memory")
    with exit_on_error(parser.prog, OSError):
        arguments = read_arguments(parser, old_flags=("ckpt",))
        show_page(chosen_checkpoint(arguments.values("ckpt").get("ckpt"), []), arguments.options)


def show_page(ckpt: Path, options: argparse.Namespace) -> None:
    """Serve the page until Ctrl-C.

    Raises:
        ConfigError, DataError, CheckpointError: if it cannot be shown.
    """
    # Heavy imports after the checks.
    with deferred_interrupt():
        from PIL import Image

        from headcount.engine.load import load
        from headcount.page.counting import PageCounter
        from headcount.page.limits import Limits
        from headcount.page.server import open_port, page_app, web_server

    if options.examples and not options.examples.expanduser().is_dir():
        raise ConfigError(f"--examples {options.examples}: is no folder")
    chosen = {"megabytes": options.max_megabytes, "megapixels": options.max_megapixels}
    limits = Limits(**{name: value for name, value in chosen.items() if value is not None})
    Image.MAX_IMAGE_PIXELS = limits.megapixels * 1_000_000 // 2  # Pillow refuses twice as many
    with open_port(options.host, options.port) as listening:
        counter = load(ckpt, device=options.device)
        choose_windows(counter, options)
        examples = options.examples and options.examples.expanduser()
        with page_app(PageCounter(counter, limits), examples) as app:
            host, number = listening.getsockname()[:2]
            name = f"[{host}]" if ":" in host else host
            print(f"http://{name}:{number}  (Ctrl-C ends it)", flush=True)
            if not ipaddress.ip_address(host).is_loopback:
                print("everyone who can reach this address can use the page; it has no password", file=sys.stderr)
            web_server(app).run(sockets=[listening])


def port(text: str) -> int:
    """The type of a flag that takes the number of a port."""
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text}: must be a whole number, at most 65535")
    return int(text)
