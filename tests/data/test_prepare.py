"""The one-time resize: the paper's rule, a cache that can be trusted."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from headcount.config import ConfigError
from headcount.data import prepare
from headcount.data.prepare import PreparedImage, ResizeRule, cache_folder, check_cache_dir, plan_image, prepare_images

RULE = ResizeRule(min_side=64, max_side=128, multiple=32)
GOLDEN = Path(__file__).parents[1] / "golden" / "calc_size.json"


def test_the_released_rule_is_reproduced_exactly() -> None:
    rows = json.loads(GOLDEN.read_text())["rows"]
    assert len(rows) == 492
    for width, height, min_side, max_side, *expected in rows:
        size = ResizeRule(min_side, max_side, 32).size(width, height)
        assert size == tuple(expected), (width, height, min_side, max_side)


@pytest.mark.parametrize(
    ("min_side", "max_side", "message"),
    [(450, 4096, "min_side is 450"), (448, 1000, "max_side is 1000"), (448, 320, "below min_side"), (0, None, "is 0")],
)
def test_limits_that_cannot_hold_are_refused(min_side: int, max_side: int | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ResizeRule(min_side, max_side, 32)


@pytest.fixture
def sources(tmp_path: Path) -> list[Path]:
    """An image of 64 x 64, which fits, and two that do not."""
    files = []
    for name, size in (("fits", (64, 64)), ("small", (20, 40)), ("odd", (70, 100))):
        y, x = np.mgrid[: size[1], : size[0]]
        ramp = np.stack([255 * x / size[0], 255 * y / size[1], 0 * x], axis=2)
        files.append(tmp_path / "set" / f"{name}.jpg")
        files[-1].parent.mkdir(exist_ok=True)
        Image.fromarray(ramp.astype(np.uint8)).save(files[-1], quality=95)
    return files


@pytest.fixture
def prepare_all(sources: list[Path], tmp_path: Path) -> Callable[..., list[PreparedImage]]:
    def run(files: list[Path] | None = None) -> list[PreparedImage]:
        chosen = sources if files is None else files
        images = [plan_image(file, tmp_path / "cache", rule=RULE) for file in chosen]
        assert not prepare_images(images, label="test")
        return images

    return run


def test_only_images_that_need_it_are_resized(
    sources: list[Path], prepare_all: Callable[..., list[PreparedImage]], tmp_path: Path
) -> None:
    fits, small, odd = prepare_all()
    assert fits.path == sources[0]
    assert sorted(os.listdir(tmp_path / "cache")) == ["odd.jpg", "small.jpg"]
    assert (small.source_size, small.size) == ((20, 40), (64, 128))
    assert (odd.source_size, odd.size) == ((70, 100), (64, 96))
    with Image.open(odd.path) as image:
        assert image.size == odd.size
        red, green, _ = np.asarray(image)[48, 16]
    # The picture is the same: a quarter from the left, half-way down.
    assert abs(int(red) - 255 // 4) < 6
    assert abs(int(green) - 255 // 2) < 6


def test_finished_files_are_not_made_again(prepare_all: Callable[..., list[PreparedImage]]) -> None:
    first = [image.path.stat().st_mtime_ns for image in prepare_all()]
    assert [image.path.stat().st_mtime_ns for image in prepare_all()] == first


def test_an_interrupted_preparation_resumes_where_it_stopped(
    prepare_all: Callable[..., list[PreparedImage]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = Image.Image.save

    def interrupted(self: Image.Image, file: Path, *args: object, **kwargs: object) -> None:
        save(self, file, *args, **kwargs)  # type: ignore[arg-type]
        if self.size == (64, 96):
            os.truncate(file, 100)
            raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", interrupted)
    monkeypatch.setattr(prepare.os, "cpu_count", lambda: 1)
    with pytest.raises(KeyboardInterrupt):
        prepare_all()
    assert os.listdir(tmp_path / "cache") == ["small.jpg"]
    finished = (tmp_path / "cache" / "small.jpg").stat().st_mtime_ns
    monkeypatch.undo()
    _, small, odd = prepare_all()
    assert small.path.stat().st_mtime_ns == finished
    with Image.open(odd.path) as image:
        image.load()


def test_a_half_written_file_left_by_a_killed_run_is_not_used(
    prepare_all: Callable[..., list[PreparedImage]], tmp_path: Path
) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "odd.jpg").write_bytes(b"\xff\xd8\xff")
    with Image.open(prepare_all()[2].path) as image:
        assert image.size == (64, 96)


def test_a_file_cut_short_is_made_again(prepare_all: Callable[..., list[PreparedImage]]) -> None:
    odd = prepare_all()[2].path
    whole = odd.read_bytes()
    os.truncate(odd, len(whole) - 1)
    assert prepare_all()[2].path.read_bytes() == whole


def test_a_folder_that_cannot_be_created_is_reported(sources: list[Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    images = [plan_image(file, tmp_path / "file" / "x", rule=RULE) for file in sources]
    with pytest.raises(ConfigError, match=r"choose another with dataset\.cache_dir="):
        prepare_images(images, label="test")


def test_a_changed_source_is_prepared_again(
    sources: list[Path], prepare_all: Callable[..., list[PreparedImage]]
) -> None:
    odd = prepare_all()[2]
    Image.new("RGB", (70, 100), (0, 0, 255)).save(sources[2])
    assert prepare_all()[2] == odd
    with Image.open(odd.path) as image:
        assert image.getpixel((30, 30))[2] > 250


def test_the_cache_depends_on_settings_and_folder(tmp_path: Path) -> None:
    def folder(root: str, min_side: int, max_side: int | None = None, multiple: int = 32) -> Path:
        rule = ResizeRule(min_side, max_side, multiple)
        return cache_folder(str(tmp_path / "cache"), dataset="sha", root=tmp_path / root, rule=rule)

    folders = [folder("a", 64), folder("a", 96), folder("a", 64, 64), folder("b", 64), folder("a", 64, multiple=16)]
    assert len(set(folders)) == 5
    assert folder("a", 64) == folders[0]


def test_caches_of_earlier_versions_keep_their_folder() -> None:
    """The name was computed by version 0.1."""
    folder = cache_folder("/cache", dataset="sha", root=Path("/data/part_A"), rule=ResizeRule(448, 4096, 32))
    assert folder == Path("/cache/sha-634bddff3b84")


def test_the_cache_is_never_inside_the_dataset(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="choose a folder outside"):
        check_cache_dir(str(tmp_path / "set" / "cache"), tmp_path / "set")
    with pytest.raises(ConfigError, match="choose a folder outside"):
        cache_folder(str(tmp_path / "set" / "cache"), dataset="sha", root=tmp_path / "set", rule=RULE)
