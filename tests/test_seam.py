"""A head and a training method of one's own work from end to end, registered here: no file of the package is touched.

The head predicts two maps and knows its own mixture of probabilities. The method turns each crop into nested crops,
and its network predicts one number per image, without blocks or bins.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import headcount
from headcount.bins import CountBins
from headcount.cli.compose import compose, to_config
from headcount.config import (
    AdaptiveKernelConfig,
    BlocksConfig,
    ClipViTConfig,
    EvalConfig,
    HeadConfig,
    KernelConfig,
    LossConfig,
    MethodConfig,
    TrainConfig,
    WholeImageConfig,
    check,
    counting_mode,
    register,
)
from headcount.data.loading import MakeBatch, Targets, build_batches, build_smoothing, stack_images
from headcount.engine import checkpoint
from headcount.engine.evaluate import CheckpointEvaluation, evaluate_checkpoint
from headcount.engine.run import run_path
from headcount.engine.runtime import Runtime
from headcount.engine.train import FinishedRun, train
from headcount.losses.build import Loss, build_loss
from headcount.models.heads import PredictionHead, build_head, resample
from headcount.report.evaluation import write_evaluation
from headcount.types import Batch, BlockGrid, LossTerms, Prediction, Sample

# ------------------------------------------------------------------- a head with two maps and a mixture


@dataclass
class HurdleHeadConfig(HeadConfig):
    """Empty or not, and if not, how many."""

    predicts: ClassVar[frozenset[str]] = frozenset({"count", "blocks"})
    needs_bins: ClassVar[bool] = True
    name: str = "hurdle"


@dataclass
class HurdlePrediction(Prediction):
    """The expected count of a block is P(occupied) times the mean of its occupied bins."""

    occupied: Tensor
    if_occupied: Tensor
    squares_if_occupied: Tensor

    def probabilities(self) -> Tensor:
        """A mixture: the empty bin, and the occupied ones."""
        return torch.cat([1 - self.occupied, self.occupied * self.if_occupied], dim=1)

    def variance(self) -> Tensor:
        """Of the mixture."""
        assert self.blocks is not None
        return self.occupied * self.squares_if_occupied - self.blocks.square()


class HurdleHead(PredictionHead):
    """One map of occupation and one of the bins above 0."""

    values: Tensor

    def __init__(self, channels: int, bins: CountBins) -> None:
        super().__init__()
        self.to_occupied = nn.Conv2d(channels, 1, 1)
        self.to_bins = nn.Conv2d(channels, len(bins) - 1, 1)
        self.register_buffer("values", torch.tensor(bins.representatives[1:]).view(-1, 1, 1), persistent=False)

    def forward(self, features: Tensor, *, factor: float) -> HurdlePrediction:
        """Both maps, at the resolution of the blocks."""
        occupied = resample(self.to_occupied(features), factor).float().sigmoid()
        if_occupied = resample(self.to_bins(features), factor).float().softmax(1)
        blocks = occupied * (if_occupied * self.values).sum(1, keepdim=True)
        squares = (if_occupied * self.values.square()).sum(1, keepdim=True)
        return HurdlePrediction(blocks.sum((1, 2, 3)), blocks, occupied, if_occupied, squares)


@build_head.register(HurdleHeadConfig)
def _build_hurdle_head(
    config: HurdleHeadConfig, channels: int, grid: BlockGrid, bins: CountBins | None, texts: Any = None
) -> PredictionHead:
    assert bins is not None
    return HurdleHead(channels, bins)


@dataclass
class HurdleLossConfig(LossConfig):
    """Occupation of each block, and its count."""

    compares: ClassVar[frozenset[str]] = frozenset({"blocks"})
    name: str = "hurdle"
    weight: float = 1.0


class HurdleLoss:
    """Cross-entropy of the occupation plus ``weight`` times the absolute error of the blocks."""

    needs = frozenset({"block_counts"})

    def __init__(self, weight: float) -> None:
        self.weight = weight

    def __call__(self, prediction: Prediction, batch: Batch) -> LossTerms:
        """Needs the head's own map, which only this prediction has."""
        assert isinstance(prediction, HurdlePrediction)
        assert prediction.blocks is not None
        assert set(batch.targets) == self.needs, "the loader makes what the loss needs and nothing else"
        true = batch.target("block_counts")
        parts = {
            "occupation": F.binary_cross_entropy(prediction.occupied, (true > 0).float()),
            "blocks": self.weight * (prediction.blocks - true).abs().mean(),
        }
        return LossTerms(torch.stack(list(parts.values())).sum(), {k: v.detach() for k, v in parts.items()})


@build_loss.register(HurdleLossConfig)
def _build_hurdle_loss(config: HurdleLossConfig, grid: BlockGrid, bins: CountBins | None) -> Loss:
    return HurdleLoss(config.weight)


# ---------------------------------------------------- a method of nested crops and one number per image


@dataclass
class NestedConfig(MethodConfig):
    """Each crop and its middle: the whole cannot show fewer people than its part. Reads no annotation."""

    name: str = "nested"
    crops: int = 2


def nested_batch(samples: Sequence[Sample], *, crops: int) -> Batch:
    """``crops`` images of each sample, from its middle to the whole of it, and their order."""
    images = stack_images(samples)
    side = images.shape[-1]
    views = []
    for k in range(1, crops + 1):
        inner = side * k // crops
        start = (side - inner) // 2
        view = images[..., start : start + inner, start : start + inner].float()
        views.append(F.interpolate(view, (side, side), mode="bilinear").round().byte())
    nested = torch.stack(views, dim=1).flatten(0, 1)
    rank = torch.arange(crops).repeat(len(samples))
    return Batch(nested, [sample.name for sample in samples], {"rank": rank})


@build_batches.register(NestedConfig)
def _build_nested(config: NestedConfig, targets: Targets) -> MakeBatch:
    assert targets.needs == {"rank"}
    return partial(nested_batch, crops=config.crops)


@dataclass
class OneNumberConfig(HeadConfig):
    """One number per image."""

    predicts: ClassVar[frozenset[str]] = frozenset({"count"})
    name: str = "one_number"


class OneNumberHead(PredictionHead):
    """The mean of a map over the image: no blocks."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.to_number = nn.Linear(channels, 1)

    def forward(self, features: Tensor, *, factor: float) -> Prediction:
        """The same count wherever the people are."""
        return Prediction(count=F.softplus(self.to_number(features.mean((2, 3))))[:, 0].float(), blocks=None)


@build_head.register(OneNumberConfig)
def _build_one_number(
    config: OneNumberConfig, channels: int, grid: BlockGrid, bins: CountBins | None, texts: Any = None
) -> PredictionHead:
    return OneNumberHead(channels)


@dataclass
class RankLossConfig(LossConfig):
    """A part must not count more than the whole."""

    compares: ClassVar[frozenset[str]] = frozenset({"count"})
    name: str = "rank"


class RankLoss:
    """Hinge on each pair of neighbors."""

    needs = frozenset({"rank"})

    def __call__(self, prediction: Prediction, batch: Batch) -> LossTerms:
        """Positive where a smaller crop counts more than the next larger one, less a margin."""
        follows = batch.target("rank")[1:] > 0
        total = (prediction.count[:-1] - prediction.count[1:] + 0.1).relu()[follows].mean()
        return LossTerms(total, {"rank": total.detach()})


@build_loss.register(RankLossConfig)
def _build_rank(config: RankLossConfig, grid: BlockGrid, bins: CountBins | None) -> Loss:
    return RankLoss()


# --------------------------------------------------------------------------------------------- proof


@pytest.fixture(scope="module", autouse=True)
def registered() -> None:
    register("model/head", "hurdle", HurdleHeadConfig)
    register("loss", "hurdle", HurdleLossConfig)
    register("method", "nested", NestedConfig)
    register("model/head", "one_number", OneNumberConfig)
    register("loss", "rank", RankLossConfig)


SMALL = ["scale=smoke", "dataset.width=96", "dataset.height=64", "model.width=8", "runtime=cpu", "runtime.workers=0"]


class StopError(Exception):
    """What a kill does."""


def run_of(folder: Path, monkeypatch: pytest.MonkeyPatch, *choices: str) -> FinishedRun:
    """Train an epoch of two steps, stop in the second epoch, and resume."""
    config: TrainConfig = to_config(compose([*SMALL, f"output_dir={folder}", *choices], config_name="train"))
    config.run_name, config.epochs = "own", 2
    seed = Runtime.seed

    def stop_in_the_second_epoch(self: Runtime, number: int, epoch: int = 0) -> None:
        if epoch == 1:
            raise StopError
        seed(self, number, epoch)

    monkeypatch.setattr(Runtime, "seed", stop_in_the_second_epoch)
    with pytest.raises(StopError):
        train(config)
    monkeypatch.setattr(Runtime, "seed", seed)
    last = run_path(config) / checkpoint.LAST
    trained = checkpoint.read(last)
    assert trained["epoch"] == 1
    config.resume = True
    resumed = train(config)
    assert resumed is not None
    assert [record["epoch"] for record in resumed.metrics] == [1, 2]
    weights = checkpoint.read(last)["model"]
    assert any(not torch.equal(weights[name], value) for name, value in trained["model"].items())
    return resumed


def evaluation_of(run: FinishedRun, folder: Path) -> CheckpointEvaluation:
    typed = [f"ckpt={run.folder / checkpoint.BEST}", "max_images=3", "runtime=cpu", f"output_dir={folder}"]
    evaluated = evaluate_checkpoint(to_config(compose(typed, config_name="eval")))
    assert evaluated is not None
    write_evaluation(
        evaluated.evaluation,
        evaluated.dataset,
        evaluated.folder,
        facts=evaluated.facts,
        reliability=evaluated.reliability,
        intervals=evaluated.intervals,
    )
    assert (folder / "metrics.json").is_file()
    return evaluated


@pytest.mark.slow
def test_a_head_with_two_maps_and_its_own_mixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(tmp_path, monkeypatch, "model.head=hurdle", "loss=hurdle", "loss.weight=0.5")
    assert run.metrics[-1]["train/occupation"] > 0
    content = checkpoint.read(run.folder / checkpoint.BEST)
    assert content["config"]["kinds"]["model/head"] == "hurdle"
    evaluated = evaluation_of(run, tmp_path / "report")
    assert evaluated.reliability is not None
    assert evaluated.reliability.blocks.sum() > 0  # the head's own probabilities were measured
    assert {"game1", "game2", "game3", "blocks", "variance"} <= set(evaluated.evaluation.images[0].numbers)
    assert len(evaluated.intervals.own) == 3

    photo = headcount.load(run.folder / checkpoint.BEST).predict(torch.zeros(3, 64, 96, dtype=torch.uint8))
    assert photo.block_counts is not None
    assert photo.probabilities is not None
    assert photo.count == pytest.approx(float(photo.block_counts.sum()), rel=1e-5)
    assert photo.interval is not None
    assert photo.interval.low < photo.count < photo.interval.high
    torch.testing.assert_close(photo.probabilities.sum(0), torch.ones_like(photo.block_counts))


@pytest.mark.slow
def test_a_method_of_nested_crops_that_predicts_one_number_per_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choices = ["method=nested", "method.crops=3", "model.head=one_number", "loss=rank", "bins=none"]
    run = run_of(tmp_path, monkeypatch, *choices)
    assert run.metrics[-1]["train/rank"] >= 0
    assert not {"train/empty_blocks", "eval/empty_blocks"} & run.metrics[-1].keys()
    assert run.best.mae > 0
    evaluated = evaluation_of(run, tmp_path / "report")
    assert evaluated.reliability is None
    assert all(image.blocks is None and image.numbers == {} for image in evaluated.evaluation.images)

    counter = headcount.load(run.folder / checkpoint.BEST)
    photo = counter.predict(torch.zeros(3, 64, 96, dtype=torch.uint8))
    assert photo.block_counts is None
    assert photo.count == counter.count(torch.zeros(3, 64, 96, dtype=torch.uint8)) > 0


@pytest.mark.slow
def test_one_number_per_image_is_never_counted_in_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    typed = ["method=nested", "model.head=one_number", "loss=rank", "bins=none"]
    config = to_config(compose([*SMALL, *typed, "eval=sliding_window"], config_name="train"))
    (error,) = check(config)
    assert error.startswith("eval=sliding_window: model.head=one_number predicts one number per image")
    assert error.endswith("choose eval=whole_image")
    vit = ClipViTConfig(head=OneNumberConfig())
    assert counting_mode(EvalConfig(), vit, crop_size=224) == WholeImageConfig()
    # A large picture, which other counters take in windows.
    monkeypatch.setattr("headcount.engine.predict._MAX_WHOLE_PIXELS", 64 * 64)
    run = run_of(tmp_path, monkeypatch, *typed)
    photo = headcount.load(run.folder / checkpoint.BEST).predict(torch.zeros(3, 64, 96, dtype=torch.uint8))
    assert isinstance(photo.mode, WholeImageConfig)


def test_a_registered_loss_may_smooth_heads_by_its_own_kernel() -> None:
    @dataclass
    class SmoothedConfig(LossConfig):
        name: str = "smoothed"
        kernel: KernelConfig = field(default_factory=lambda: AdaptiveKernelConfig(neighbors=5))

    smoothing = build_smoothing(BlocksConfig(), SmoothedConfig())
    assert smoothing is not None
    assert smoothing.neighbors == 5


def test_a_name_that_is_taken_is_refused() -> None:
    register("loss", "rank", RankLossConfig)  # the same again is no conflict
    with pytest.raises(headcount.errors.ConfigError, match="dace"):
        register("loss", "dace", RankLossConfig)
