"""The audit's page, numbers and pictures say what was found, of images drawn by code and of broken ones."""

import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
import shapely
import torch
from matplotlib.figure import Figure
from PIL import Image

from headcount.bins import build_bins
from headcount.config import BinsConfig, BlocksConfig, Last
from headcount.data.audit import Audit, AuditedImage, AuditedSplit, Fault
from headcount.data.masks import PolygonMask
from headcount.errors import DataError
from headcount.report.audit import (
    audit_numbers,
    audit_page,
    block_picture,
    histogram_picture,
    write_audit,
)
from headcount.report.contact_sheet import _choose_from_sorted, contact_sheet
from report.test_diagnostics import assert_legible

HISTOGRAM = {0: 90, 1: 6, 4: 3, 7: 1}


def image(name: str, points: list[tuple[float, float]], *, width: int = 80, gray: int = 120) -> AuditedImage:
    return AuditedImage(
        name,
        None,
        lambda: torch.full((3, 40, width), gray, dtype=torch.uint8),
        width,
        40,
        "RGB",
        points=torch.tensor(points, dtype=torch.float32).reshape(-1, 2),
    )


def broken(name: str) -> AuditedImage:
    def no_pixels() -> torch.Tensor:
        raise DataError("cut short", kind="image")

    return AuditedImage(name, None, no_pixels, fault=Fault.image, problem=f"{name} cannot be read")


@pytest.fixture
def audit() -> Audit:
    train = AuditedSplit("train", True, [image("a", [(1, 1), (1, 1), (90, 5)]), image("b", []), broken("c")])
    test = AuditedSplit("test", False, [image("d", [], width=20)])
    blocks = {8: HISTOGRAM, 16: {0: 1}, 32: {0: 1}}
    return Audit("mine", "folder", [train, test], None, blocks, [[("train", "a"), ("test", "d")]], ["e: 1\n  why"], [])


def test_numbers_are_plain_and_complete(audit: Audit) -> None:
    config = BinsConfig(block_size=8)
    numbers = json.loads(json.dumps(audit_numbers(audit, config, build_bins(config, HISTOGRAM)), allow_nan=False))
    train, test = numbers["splits"]["train"], numbers["splits"]["test"]
    assert (train["images"], train["usable"], train["heads"], train["empty"]) == (3, 2, 3, 1)
    assert (train["duplicates"], train["images_with_duplicates"], train["outside"]) == (1, 1, 1)
    assert train["faults"] == {"no_image": 0, "no_annotation": 0, "image": 1, "annotation": 0, "not_finite": 0}
    assert train["least_median_most_heads"] == [0, 1.5, 3]
    assert train["least_median_most_longer_side"] == [80, 80, 80]
    assert train["each"][2] == {"name": "c", "problem": "c cannot be read"}
    assert (test["images"], test["heads"], test["count_histogram"]) == (1, None, None)
    assert "heads" not in test["each"][0]
    assert numbers["bins"]["blocks_above_m"] == 1
    assert numbers["bins"]["heads_above_m"] == 3  # 7 heads in a block, m = 4
    assert numbers["bins"]["shares"] == [0.9, 0.06, 0, 0, 0.04]
    assert numbers["copies"] == [[["train", "a"], ["test", "d"]]]


def test_the_page_keeps_the_lines_of_an_error_and_tells_of_missing_annotations(audit: Audit) -> None:
    config = BinsConfig(block_size=8)
    page = audit_page(audit, config, build_bins(config, HISTOGRAM))
    assert "```\ne: 1\n  why\n```" in page
    assert "The annotations of test are not public" in page
    (heads,) = [line for line in page.splitlines() if "annotated heads" in line]
    assert [cell.strip() for cell in heads.split("|")[2:4]] == ["3", "-"]
    assert "after the dataset's resize rule" in page


@pytest.mark.parametrize(("last", "words"), [(Last.open, "share the last bin, uncapped"), (Last.clipped, "are capped")])
def test_heads_are_called_capped_only_if_the_bins_cap_them(audit: Audit, last: Last, words: str) -> None:
    config = BinsConfig(block_size=8, last=last)
    bins = build_bins(config, HISTOGRAM)
    page = audit_page(audit, config, bins)
    (line,) = [line for line in page.splitlines() if "m = 4" in line]
    assert words in line
    assert line.endswith(": 1 blocks (1.0000%), 3 heads above it.")
    assert ("capped at" in page) == audit_numbers(audit, config, bins)["bins"]["capped"] == (last is Last.clipped)


@pytest.mark.slow
def test_names_act_neither_on_the_page_nor_on_a_terminal(tmp_path: Path) -> None:
    name = "caf\udce9\x1b[2J\n```\n<img src=x> **b** |"
    train = AuditedSplit("train", True, [image(name, [(1, 1)]), broken(name)])
    found = Audit("mine", f"/{name}", [train], None, {8: HISTOGRAM}, [], [f"{name} cannot be read\n  why"], [name])
    page = write_audit(found, BlocksConfig(block_size=8), None, tmp_path)
    assert (tmp_path / "report.md").read_text(encoding="utf-8") == page
    assert not set(page) & set("\x1b\udce9")
    inside = re.search(r"^(`{4,})\n(.*?)\n\1$", page, re.DOTALL | re.MULTILINE)
    assert inside is not None
    assert inside[2].splitlines()[-1] == "  why"
    outside = page.replace(inside[0], "")
    assert "<img" not in outside
    assert "**b**" not in outside
    assert r"* caf\udce9\x1b[2J" in outside


@pytest.mark.slow
def test_pictures_of_an_earlier_audit_do_not_stay(audit: Audit, tmp_path: Path) -> None:
    config = BlocksConfig(block_size=8)
    write_audit(audit, config, None, tmp_path)
    assert {p.name for p in tmp_path.glob("*.png")} == {"histograms.png", "blocks.png", "contact_sheet.png"}
    nothing = Audit("mine", "folder", [AuditedSplit("train", True, [])], None)
    write_audit(nothing, config, None, tmp_path)
    assert list(tmp_path.glob("*.png")) == []


@pytest.mark.slow
def test_the_chosen_block_size_is_marked(tmp_path: Path) -> None:
    config = BinsConfig(block_size=16)
    for size in (8, 16):
        config.block_size = size
        block_picture({8: HISTOGRAM, 16: HISTOGRAM}, config, tmp_path / f"{size}.png", title="")
    first, second = (np.asarray(Image.open(tmp_path / f"{size}.png").convert("RGB")) for size in (8, 16))
    blue = [(p == (0, 114, 178)).all(2).nonzero()[1].mean() / p.shape[1] for p in (first, second)]
    assert blue[0] < 0.5 < blue[1]


@pytest.mark.parametrize("gray", [0, 255])
def test_heads_are_seen_on_dark_and_on_light_pictures(tmp_path: Path, gray: int) -> None:
    split = AuditedSplit("train", True, [image("$a_1", [(20, 20), (60, 20), (60, 20), (-300, 5)], gray=gray)])
    contact_sheet([split], tmp_path / "sheet.png", title="mine")
    pixels = np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB"))
    for color in ((255, 221, 0), (255, 79, 216), (255, 0, 0)):
        assert (pixels == color).all(2).sum() >= 5, color


def test_masks_are_counted_and_drawn(tmp_path: Path, audit: Audit) -> None:
    assert "mask" not in audit_page(audit, BlocksConfig(), None)
    masked = image("a", [(20, 20), (60, 20), (79, 39)], gray=255)
    masked.mask = PolygonMask(shapely.box(0, 0, 40, 40))
    masked.load_mask = lambda size: masked.mask
    audit.splits = [AuditedSplit("train", True, [masked])]
    page = audit_page(audit, BlocksConfig(), None)
    assert re.search(r"heads outside the mask, not counted +\| +2 \|", page)
    assert re.search(r"images without mask +\| +0 \|", page)
    each = audit_numbers(audit, BlocksConfig(), None)["splits"]["train"]["each"]
    assert each == [
        {"name": "a", "width": 80, "height": 40, "heads": 3, "duplicates": 0, "outside": 0}
        | {"outside_mask": 2, "area_in_mask": 0.5}
    ]
    contact_sheet(audit.splits, tmp_path / "sheet.png", title="mine")
    pixels = np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB"))
    assert (pixels == 178).all(2).sum() > 5000  # half of the image


@pytest.mark.parametrize(("points", "red"), [([(20, 20)], False), ([(20, 20), (20, 20)], True)])
def test_a_gray_image_is_not_marked_as_a_fault(tmp_path: Path, points: list[tuple[float, float]], red: bool) -> None:
    gray = image("a", points)
    gray.mode = "L"
    contact_sheet([AuditedSplit("train", True, [gray])], tmp_path / "sheet.png", title="mine")
    title = np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB")).reshape(-1, 3)
    assert bool((title == (192, 0, 0)).all(1).any()) == red


def test_the_sheet_spans_all_and_prefers_the_odd() -> None:
    odd = [0] * 100
    odd[37] = 2
    picked = _choose_from_sorted(odd, 10)
    assert (picked[0], picked[-1], len(picked)) == (0, 99, 10)
    assert 37 in picked
    assert _choose_from_sorted([0, 0], 24) == [0, 1]
    assert _choose_from_sorted([0], 24) == [0]
    assert _choose_from_sorted([], 24) == []


def test_a_sheet_shows_what_cannot_be_read_and_nothing_where_there_is_nothing(tmp_path: Path) -> None:
    contact_sheet([AuditedSplit("train", True, [broken("c")])], tmp_path / "sheet.png", title="mine")
    assert (tmp_path / "sheet.png").is_file()
    contact_sheet([AuditedSplit("test", False, [image("d", [])])], tmp_path / "none.png", title="mine")
    assert not (tmp_path / "none.png").exists()


@pytest.mark.parametrize("widths", [(80,), (80, 90), (80, 4000)], ids=["one size", "two sizes", "log"])
def test_histograms_show_the_images_of_every_split(
    widths: tuple[int, ...], tmp_path: Path, figures: list[Figure]
) -> None:
    """Images of one size are no empty plot, and equal splits do not hide each other."""
    splits = [
        AuditedSplit(name, True, [image(f"{name}{w}", [(1, 1)], width=w) for w in widths])
        for name in ("train", "val", "test")
    ]
    histogram_picture(splits, tmp_path / "h.png", title="$mine")
    (figure,) = figures
    assert_legible(figure)
    _, sizes, shorter, longer = figure.axes
    for axis, sides in ((shorter, (40,)), (longer, widths)):
        low, high = axis.get_xlim()
        assert all(low < side < high for side in sides)
        bars = sorted((bar for bar in axis.patches if bar.get_height()), key=lambda bar: bar.get_x())
        assert sum(bar.get_height() for bar in bars) == 3 * len(widths)
        assert len({bar.get_facecolor() for bar in bars}) == 3
        for bar, following in itertools.pairwise(bars):
            assert bar.get_x() + bar.get_width() <= following.get_x() * (1 + 1e-9)
        boxes = [bar.get_window_extent() for bar in bars]
        assert all(box.x0 > axis.bbox.x0 + 2 and box.x1 < axis.bbox.x1 - 2 for box in boxes)  # not on the border
        assert not axis.get_legend().get_window_extent().overlaps(axis.bbox)
    assert shorter.get_xticks().tolist() == [40]
    markers = [dots.get_sizes()[0] for dots in sizes.collections]
    assert sorted(set(markers)) == markers  # around each other
