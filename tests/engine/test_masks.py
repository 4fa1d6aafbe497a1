"""Evaluation and training inside masks: numbers by hand, and nothing outside that changes them."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
import torch
from omegaconf import OmegaConf
from PIL import Image
from torch import nn

from headcount.bins import CountBins
from headcount.cli.compose import compose
from headcount.config import Accelerator, ConfigError, Freeze, RuntimeConfig, TrainConfig, WholeImageConfig
from headcount.data.crowd import CrowdDataset
from headcount.data.masks import Mask, PixelMask, PolygonMask
from headcount.engine import checkpoint
from headcount.engine.evaluate import evaluate
from headcount.engine.evaluators import BinReliability, Game, empty_blocks
from headcount.engine.records import Meter
from headcount.engine.runtime import Runtime
from headcount.engine.train import train
from headcount.models.counter import WHOLE_IMAGE, Counter
from headcount.runs import read_metrics
from headcount.types import Batch, BlockGrid, Counted, LossTerms, Sample
from values import predict

BLOCKS = torch.arange(24, dtype=torch.float32).reshape(4, 6) / 8


class Ramp(Counter):
    """A counter that predicts the same known blocks for every image of 48 x 32 pixels."""

    def __init__(self, *, blocks: bool = True) -> None:
        nn.Module.__init__(self)
        self.frozen = Freeze.none
        self.grid = BlockGrid(8)
        self.has_blocks = blocks

    def count(
        self, image: Any, mode: Any = WHOLE_IMAGE, *, probabilities: bool = False, variance: bool = False
    ) -> Counted:
        count = float(BLOCKS.sum(dtype=torch.float64))
        return Counted(count, BLOCKS.clone() if self.has_blocks else None, None, mode)


def no_pixels(index: int) -> torch.Tensor:
    return torch.zeros(3, 32, 48, dtype=torch.uint8)


def crowd(points: list[list[tuple[float, float]]], masks: list[Mask]) -> CrowdDataset:
    sizes = [(48, 32)] * len(points)
    heads = [torch.tensor(of_image, dtype=torch.float32).reshape(-1, 2) for of_image in points]
    names = [str(k) for k in range(len(points))]
    return CrowdDataset(names, no_pixels, heads, source_sizes=sizes, sizes=sizes, masks=masks)


@pytest.fixture(scope="module")
def runtime() -> Runtime:
    return Runtime(RuntimeConfig(accelerator=Accelerator.cpu))


def run(runtime: Runtime, dataset: CrowdDataset, *, workers: int = 0) -> Any:
    evaluators = [Game(BlockGrid(8)), empty_blocks]
    return evaluate(runtime, Ramp(), dataset, workers=workers, evaluators=evaluators)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_evaluation_by_hand(runtime: Runtime, workers: int) -> None:
    """The left half and a quarter of the column after it: 3.25 of 6 columns."""
    inside = np.zeros((32, 48), dtype=bool)
    inside[:, :26] = True
    heads = [(3.0, 3.0), (25.9, 9.0), (26.0, 9.0), (47.0, 30.0)]
    for mask in (PixelMask.pack(inside), PolygonMask(shapely.box(0, 0, 26, 32))):
        evaluation = run(runtime, crowd([heads, []], [mask, mask]), workers=workers)
        predicted = float(BLOCKS[:, :3].sum() + 0.25 * BLOCKS[:, 3].sum())
        assert [image.predicted for image in evaluation.images] == pytest.approx([predicted, predicted])
        assert [image.true for image in evaluation.images] == [2, 0]
        assert evaluation.errors.mae == pytest.approx((predicted - 2 + predicted) / 2)
        blocks = evaluation.images[0].blocks
        assert torch.equal(blocks[:, 4:], torch.zeros(4, 2))
        numbers = evaluation.images[0].numbers
        assert numbers["blocks"] == 16
        assert numbers["empty_blocks"] == int((BLOCKS[:, :3] < 0.5).sum() + (BLOCKS[:, 3] / 4 < 0.5).sum())
        # Quarters: columns 0 to 2 and the part of column 3, rows 0 to 1 and 2 to 3. Both heads lie above, one right.
        right = [float(0.25 * BLOCKS[rows, 3].sum()) for rows in (slice(0, 2), slice(2, 4))]
        left = [float(BLOCKS[rows, :3].sum()) for rows in (slice(0, 2), slice(2, 4))]
        by_hand = abs(left[0] - 1) + abs(right[0] - 1) + left[1] + right[1]
        assert numbers["game1"] == pytest.approx(by_hand)


def test_a_mask_of_everything_is_no_mask_and_complements_sum(runtime: Runtime) -> None:
    heads = [[(3.0, 3.0), (25.9, 9.0), (47.0, 30.0)]]
    inside = np.random.default_rng(0).random((32, 48)) < 0.5
    plain = run(runtime, crowd(heads, [])).images[0]
    everything = run(runtime, crowd(heads, [PixelMask.pack(np.ones_like(inside))])).images[0]
    assert (everything.true, everything.predicted, everything.numbers) == (plain.true, plain.predicted, plain.numbers)
    assert torch.equal(everything.blocks, plain.blocks)
    parts = [run(runtime, crowd(heads, [PixelMask.pack(part)])).images[0] for part in (inside, ~inside)]
    assert sum(part.predicted for part in parts) == pytest.approx(plain.predicted, abs=1e-9)
    assert sum(part.true for part in parts) == plain.true


def test_a_counter_without_blocks_is_refused(runtime: Runtime) -> None:
    dataset = crowd([[]], [PolygonMask(shapely.box(0, 0, 26, 32))])
    with pytest.raises(ConfigError, match=r"the images have masks, but this counter predicts one number per image"):
        evaluate(runtime, Ramp(blocks=False), dataset)


def test_reliability_takes_blocks_entirely_inside() -> None:
    bins = CountBins(BlockGrid(8), ((0, 0), (1, float("inf"))), (0.0, 1.5))
    reliability = BinReliability(bins)
    mask = crowd([[]], [PolygonMask(shapely.box(0, 0, 26, 32))]).mask(0)
    assert mask is not None
    sample = Sample(no_pixels(0), torch.tensor([(3.0, 3.0)]), "a", mask)
    probabilities = torch.full((2, 4, 6), 0.5)
    counted = Counted(0.0, BLOCKS, probabilities, WholeImageConfig()).within(mask.shares(8))
    assert reliability(sample, counted) == {}
    assert reliability.reliability.blocks.sum(axis=1).tolist() == [12, 12]
    assert reliability.reliability.observed.sum(axis=1).tolist() == [11, 1]


def test_the_meter_measures_inside() -> None:
    meter = Meter()
    mask = torch.tensor([[[[1.0, 0.5], [0.0, 0.0]]]])
    batch = Batch(torch.zeros(1, 3, 16, 16, dtype=torch.uint8), ["a"], {"mask": mask})
    prediction = predict(torch.tensor([[[[2.0, 0.1], [5.0, 0.0]]]]))
    meter.add(LossTerms(torch.tensor(1.0)), prediction, batch)
    assert meter.counts[0].tolist() == pytest.approx([2.05])
    assert float(meter.sums["empty_blocks"]) == 0.5


# --------------------------------------------------------------------------------------------- training

SIDE = 64


def folder(root: Path, *, outside: int) -> Path:
    """Six images with heads in the left half, and ``outside`` heads at random places of the right half."""
    rng = np.random.default_rng(outside)
    for k in range(6):
        (root / "images").mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(k).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"{k}.png")
        left = np.random.default_rng(k + 50).random((k + 1, 2)) * (SIDE / 2, SIDE)
        right = rng.random((outside, 2)) * (SIDE / 2, SIDE) + (SIDE / 2, 0)
        np.save(root / "images" / f"{k}.npy", np.concatenate([left, right]))
    inside = np.zeros((SIDE, SIDE), dtype=np.uint8)
    inside[:, : SIDE // 2] = 255
    (root / "area").mkdir()
    Image.fromarray(inside).save(root / "area" / "roi.png")
    return root


def config_of(root: Path, output: Path, *overrides: str) -> TrainConfig:
    everything = ["dataset=custom", f"dataset.root={root}", f"dataset.cache_dir={root.parent / 'cache'}"]
    everything += ["dataset.min_side=96", "dataset.mask=area/roi.png", "model.width=8", "runtime=cpu", "scale=smoke"]
    everything += ["augment.crop_size=64", "epochs=2", f"output_dir={output}", "run_name=run", *overrides]
    config: TrainConfig = OmegaConf.to_object(compose(everything, config_name="train"))  # type: ignore[assignment]
    return config


def trained(config: TrainConfig) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    done = train(config)
    assert done is not None
    records = read_metrics(done.folder)
    for record in records:
        del record["train/seconds"], record["train/images_per_second"]
    return checkpoint.read(done.folder / checkpoint.LAST)["model"], records


@pytest.mark.slow
def test_training_and_selection_do_not_depend_on_heads_outside(tmp_path: Path) -> None:
    """Nor on the number of workers or the cache: masks travel with the images."""
    runs = [
        trained(config_of(folder(tmp_path / "none", outside=0), tmp_path / "a")),
        trained(config_of(folder(tmp_path / "many", outside=40), tmp_path / "b", "runtime.workers=2")),
        trained(config_of(folder(tmp_path / "few", outside=3), tmp_path / "c", "dataset.cache=decoded")),
    ]
    for weights, records in runs[1:]:
        assert records == runs[0][1]
        for name, tensor in weights.items():
            assert torch.equal(tensor, runs[0][0][name]), name
    everywhere, _ = trained(config_of(tmp_path / "many", tmp_path / "d", "dataset.mask=none"))
    assert any(not torch.equal(everywhere[name], tensor) for name, tensor in runs[0][0].items())


@pytest.mark.slow
def test_a_run_goes_on_with_its_masks_alone(tmp_path: Path) -> None:
    root = folder(tmp_path / "my", outside=2)
    config = config_of(root, tmp_path / "a", "epochs=1")
    trained(config)
    again = dataclasses.replace(config, resume=True)
    trained(again)
    # Another mask with the same heads inside: a row without any is one pixel shorter.
    inside = np.asarray(Image.open(root / "area" / "roi.png")).copy()
    heads = np.concatenate([np.load(file) for file in sorted((root / "images").glob("*.npy"))])
    free = np.setdiff1d(np.arange(SIDE), heads[:, 1].astype(int))[:1]
    inside[free, SIDE // 2 - 1] = 0
    Image.fromarray(inside).save(root / "area" / "roi.png")
    with pytest.raises(ConfigError, match="training images or annotations that differ"):
        train(again)
