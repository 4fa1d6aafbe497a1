"""The options that name regions, for every command that counts pictures or frames."""

import argparse
from typing import TYPE_CHECKING

from headcount.cli.arguments import to_path
from headcount.cli.start import deferred_interrupt

if TYPE_CHECKING:
    from headcount.data.regions import Region

REGIONS_HELP = """\
Regions: --region NAME=x1,y1,x2,y2 is a rectangle by two opposite corners, NAME=x1,y1,x2,y2,x3,y3,... a polygon. Numbers
are pixels from the top left corner of the upright picture before it is resized, or shares of its width and height where
each has a percent sign: left=0%,0%,50%,100%. --regions FILE reads what LabelMe saved, or GeoJSON in pixels. A block on
a region's border counts by the share of its area inside, so that regions that tile a picture sum to its count.
"""


def add_region_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--region`` and ``--regions`` to a parser."""
    parser.add_argument(
        "--region",
        action="append",
        default=[],
        metavar="NAME=X1,Y1,X2,Y2,...",
        help="count this rectangle or polygon, too; may be repeated",
    )
    parser.add_argument("--regions", type=to_path, metavar="FILE", help="regions from a file of LabelMe or GeoJSON")


def typed_regions(options: argparse.Namespace) -> "list[Region]":
    """The regions of the options of :func:`add_region_options`, those of the file last.

    Raises:
        ConfigError: if one is invalid, or two have the same name.
        DataError: if the file cannot be read.
    """
    with deferred_interrupt():
        from headcount.data.region_files import read_regions
    from headcount.data.regions import distinct, parse_region

    typed = [parse_region(text) for text in options.region]
    return distinct(typed + (read_regions(options.regions) if options.regions else []))


def regions_error(options: argparse.Namespace, predicts: frozenset[str]) -> str:
    """Why the requested regions cannot be counted; empty if they can, or none is requested.

    Args:
        predicts: what the counter's head predicts, out of count, blocks and logits.
    """
    from headcount.engine.predict import NO_REGIONS

    option = "--region" if options.region else "--regions"
    asked = options.region or options.regions
    return f"{option}: {NO_REGIONS}" if asked and "blocks" not in predicts else ""
