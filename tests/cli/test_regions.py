"""Regions of pictures from the command line and from Python."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import headcount
from engine.test_checkpoint import write_checkpoint
from headcount.cli import predict as command
from headcount.config import ConfigError

Predict = Callable[..., tuple[int, str, str]]
HALVES = ["--region", "left=0%,0%,50%,100%", "--region", "right=50%,0%,100%,0%,100%,100%,50%,100%"]


@pytest.fixture(scope="module")
def best(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A counter that resizes pictures: 90 x 60 pixels become 128 x 96."""
    folder = tmp_path_factory.mktemp("checkpoint")
    return str(write_checkpoint(folder, "model.width=8", "dataset=sha", "dataset.min_side=96"))


@pytest.fixture
def predict(best: str, counting: Callable[..., Predict]) -> Predict:
    return counting(command.main, "predict.py", best)


def picture(path: Path, seed: int = 0, size: tuple[int, int] = (90, 60)) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def records(folder: Path) -> list[dict[str, object]]:
    return json.loads((folder / "counts.json").read_text())["pictures"]


def test_regions_are_columns_of_every_result(predict: Predict, tmp_path: Path) -> None:
    for k in range(2):
        picture(tmp_path / f"p{k}.png", seed=k)
    status, out, err = predict("p*.png", *HALVES, "--region", "all=0,0,90,60")
    assert status == 0, err
    rows = list(csv.DictReader((tmp_path / "predictions" / "counts.csv").read_text().splitlines()))
    assert list(rows[0])[:5] == ["file", "count", "region left", "region right", "region all"]
    for row, told in zip(rows, records(tmp_path / "predictions"), strict=True):
        inside = told["regions"]
        assert inside["all"] == pytest.approx(told["count"], abs=1e-6)  # type: ignore[index]
        assert inside["left"] + inside["right"] == pytest.approx(told["count"], abs=1e-6)  # type: ignore[index]
        assert float(row["region left"]) == pytest.approx(inside["left"], abs=1e-4)  # type: ignore[index]
        # Half of 128 pixels are 8 of 16 columns of blocks.
        blocks = np.load(tmp_path / "predictions" / str(told["density"]))
        assert inside["left"] == pytest.approx(blocks[:, :8].sum(dtype=float), abs=1e-6)  # type: ignore[index]
    header, *lines = [line.split() for line in out.splitlines()]
    assert header == ["file", "people", "interval", "left", "right", "all", "pixels"]
    assert lines[2][0] == "total"
    assert float(lines[2][2]) == pytest.approx(sum(float(row["region left"]) for row in rows), abs=0.06)


def test_regions_of_a_file_and_a_picture_that_they_do_not_fit(predict: Predict, tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "small.png", size=(60, 60))
    shape = {"label": "door", "points": [[60, 10], [90, 60]], "shape_type": "rectangle"}
    (tmp_path / "r.json").write_text(json.dumps({"shapes": [shape], "imageWidth": 90, "imageHeight": 60}))
    status, _, err = predict("a.png", "small.png", "--regions", "r.json")
    assert status == 1
    assert "small.png: region door: was drawn on a picture of 90 x 60 pixels, and this one has 60 x 60" in err
    first, second = records(tmp_path / "predictions")
    assert 0 < first["regions"]["door"] < first["count"]  # type: ignore[index]
    assert second["regions"] is None
    assert second["count"] is not None  # it was counted, and drawn without the region
    assert (tmp_path / "predictions" / "pictures" / "small.png").is_file()


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["--region", "left"], "region left: must be NAME=x1,y1,x2,y2"),
        (["--region", "a=0,0,9,9", "--region", "a=1,1,9,9"], "region a: is given 2 times; each region needs its own"),
        (["--region", "a=0,0,9,9,9,0,0,9"], "region a: its outline crosses or touches itself"),
        (["--regions", "p.png"], "p.png: cannot be read as regions: it is not text"),
        (["--regions", "other.json"], "it holds COCO annotations"),
    ],
)
def test_invalid_regions_are_refused_before_anything_is_counted(
    typed: list[str], message: str, predict: Predict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture(tmp_path / "p.png")
    (tmp_path / "other.json").write_text('{"images": [], "annotations": []}')
    monkeypatch.setattr("headcount.engine.load.load", None)  # cannot be called
    status, _, err = predict("p.png", *typed)
    assert status == 2
    assert message in err
    assert not (tmp_path / "predictions").exists()


def test_regions_in_python(best: str, tmp_path: Path) -> None:
    prediction = headcount.load(best).predict(picture(tmp_path / "p.png"))
    blocks = prediction.block_counts.double().numpy()
    assert blocks.shape == (12, 16)  # of 8 pixels in 128 x 96
    counts = prediction.count_regions(
        {
            "text": "0%,0%,50%,50%",
            "corners": [(0, 0), (45, 30)],
            "array": np.array([(0, 0), (45, 0), (45, 30), (0, 30)]),
            "triangle": "0,0,90,0,0,60",
        }
    )
    quarter = blocks[:6, :8].sum()
    assert [counts[name] for name in ("text", "corners", "array")] == pytest.approx([quarter] * 3, abs=1e-9)
    # The diagonal of the picture, by the share of each block above it, sampled.
    y, x = (np.mgrid[:1200, :1600] + 0.5) / [[[1200]], [[1600]]]
    above = (x + y < 1).reshape(12, 100, 16, 100).mean(axis=(1, 3))
    assert counts["triangle"] == pytest.approx((blocks * above).sum(), rel=2e-4)
    (tmp_path / "r.json").write_text(
        json.dumps(
            {
                "type": "Feature",
                "properties": {"name": "q"},
                "geometry": {"type": "Polygon", "coordinates": [[[0, 0], [45, 0], [45, 30], [0, 30], [0, 0]]]},
            }
        )
    )
    assert prediction.count_regions(headcount.read_regions(tmp_path / "r.json")) == {"q": pytest.approx(quarter)}
    with pytest.raises(ConfigError, match="region a: reaches 10 pixels beyond the right border"):
        prediction.count_regions({"a": "0,0,100,60"})
    prediction.block_counts = None
    with pytest.raises(ConfigError, match="predicts one number per picture and no blocks, so that regions"):
        prediction.count_regions({"a": "0,0,10,10"})


def test_a_counter_without_blocks_refuses_regions(
    predict: Predict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture(tmp_path / "p.png")
    load = headcount.load

    def load_one_number(path: Path, **options: Any) -> headcount.PhotoCounter:
        counter = load(path, **options)
        monkeypatch.setattr(type(counter.config.model.head), "predicts", frozenset({"count"}))
        return counter

    monkeypatch.setattr("headcount.engine.load.load", load_one_number)
    status, _, err = predict("p.png", *HALVES)
    assert status == 2
    assert "--region: this counter predicts one number per picture and no blocks" in err
    assert not (tmp_path / "predictions").exists()


def test_pixels_are_those_of_the_upright_picture(predict: Predict, best: str, tmp_path: Path) -> None:
    image = Image.open(picture(tmp_path / "p.png"))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    counter = headcount.load(best)
    turned = counter.predict(tmp_path / "turned.png")
    assert turned.photo_size == (60, 90)
    expected = counter.predict(image.rotate(-90, expand=True)).count_regions({"a": "0,60,60,90"})
    assert turned.count_regions({"a": "0,60,60,90"}) == expected
    assert torch.equal(turned.image, counter.predict(tmp_path / "turned.png").image)
