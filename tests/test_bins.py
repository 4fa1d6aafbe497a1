"""Bins against the released sets, the paper's equation, and counts that lie in none."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from headcount.bins import CountBins, build_bins, integer_bins
from headcount.cli.compose import compose
from headcount.config import (
    ZERO_BELOW,
    AutoBinsConfig,
    BinsConfig,
    BlockwiseConfig,
    ConfigError,
    CountedIn,
    FolderDatasetConfig,
    GivenBinsConfig,
    Last,
    Representatives,
    Strategy,
    TrainConfig,
    check,
)
from headcount.data.histograms import block_histogram
from headcount.data.open import open_split
from headcount.engine import checkpoint
from headcount.engine.train import train
from headcount.models.prompts import write_prompts
from headcount.types import BlockGrid

INF = math.inf
# The bins of the released implementation for blocks of 16 (m = 8) and 32 (m = 19) pixels.
RELEASED_8 = {
    Strategy.fine: [(k, k) for k in range(8)] + [(8, INF)],
    Strategy.dynamic: [(0, 0), (1, 1), (2, 2), (3, 3), (4, 5), (6, 7), (8, INF)],
    Strategy.coarse: [(0, 0), (1, 2), (3, 4), (5, 6), (7, INF)],
}
RELEASED_19_LENGTHS = {Strategy.fine: 20, Strategy.dynamic: 15, Strategy.coarse: 11}


@pytest.mark.parametrize("strategy", list(Strategy))
def test_released_bins(strategy: Strategy) -> None:
    assert integer_bins(strategy, 8) == RELEASED_8[strategy]
    assert len(integer_bins(strategy, 19)) == RELEASED_19_LENGTHS[strategy]
    assert integer_bins(Strategy.dynamic, 19)[-3:] == [(14, 15), (16, 17), (18, INF)]


def test_paper_bins_for_blocks_of_8() -> None:
    assert BinsConfig().m == 4
    assert integer_bins(Strategy.fine, BinsConfig().m) == [(0, 0), (1, 1), (2, 2), (3, 3), (4, INF)]


@pytest.mark.parametrize(("block", "head", "m"), [(8, 4, 4), (16, 4, 16), (32, 4, 64), (64, 8, 64), (20, 8, 4)])
def test_maximum_count(block: int, head: int, m: int) -> None:
    assert BinsConfig(block_size=block, min_head_px=head).m == m


@pytest.mark.parametrize("strategy", list(Strategy))
@pytest.mark.parametrize("m", range(1, 40))
def test_every_count_has_exactly_one_bin(strategy: Strategy, m: int) -> None:
    edges = integer_bins(strategy, m)
    for count in range(2 * m + 3):
        assert sum(low <= count <= high for low, high in edges) == 1
    assert m >= edges[-1][0]  # m itself lies in the open bin
    assert max((high - low for low, high in edges[:-1]), default=0) <= 1


# 10 blocks of nobody, 4 of one, 2 of two, 1 of three, 3 of five, 1 of nine.
HISTOGRAM = {0: 10, 1: 4, 2: 2, 3: 1, 5: 3, 9: 1}


def test_mean_representatives_by_hand() -> None:
    bins = CountBins.from_histogram(HISTOGRAM, grid=BlockGrid(16), strategy=Strategy.coarse, m=5)
    assert bins.edges == ((0, 0), (1, 2), (3, 4), (5, INF))
    assert bins.representatives == pytest.approx((0, 8 / 6, 3, (3 * 5 + 9) / 4))
    assert bins.shares(HISTOGRAM) == pytest.approx([10 / 21, 6 / 21, 1 / 21, 4 / 21])


def test_middle_representatives() -> None:
    bins = CountBins.from_histogram(
        HISTOGRAM, grid=BlockGrid(16), strategy=Strategy.coarse, m=5, representatives=Representatives.middle
    )
    assert bins.representatives == (0, 1.5, 3.5, 5)


def test_a_bin_no_block_falls_into_takes_its_middle() -> None:
    bins = CountBins.from_histogram({0: 3}, grid=BlockGrid(16), strategy=Strategy.coarse, m=5)
    assert bins.representatives == (0, 1.5, 3.5, 5)


def test_clipped_caps_labels_and_the_last_representative() -> None:
    bins = CountBins.from_histogram(HISTOGRAM, grid=BlockGrid(8), strategy=Strategy.fine, m=4, last=Last.clipped)
    assert bins.representatives[-1] == 4
    assert bins.label(torch.tensor([[[[0.0, 3.0, 4.0, 9.0]]]])).tolist() == [[[0, 3, 4, 4]]]


def test_labels_of_open_interval_bins() -> None:
    bins = CountBins.from_histogram(HISTOGRAM, grid=BlockGrid(16), strategy=Strategy.dynamic, m=8)
    labels = bins.label(torch.tensor([[[[0.0, 3.0, 4.0], [5.0, 8.0, 300.0]]]]))
    assert labels.tolist() == [[[0, 3, 4], [4, 6, 6]]]


@pytest.mark.parametrize("count", [-1.0, 0.5, math.nan, math.inf])
def test_a_count_in_no_bin_is_refused_by_value(count: float) -> None:
    bins = CountBins.from_histogram(HISTOGRAM, grid=BlockGrid(8), strategy=Strategy.fine, m=4)
    with pytest.raises(ValueError, match=f"block count {count:g} lies in no bin"):
        bins.label(torch.tensor([[[[0.0, count]]]]))


@pytest.mark.parametrize(
    ("edges", "message"),
    [
        (((0, 0), (2, INF)), "leave a gap at"),
        (((0, 1), (1, INF)), "overlap at"),
        (((0, 0), (1, 4)), "must end at inf"),
        (((1, INF),), "leave a gap at"),
    ],
)
def test_bins_that_overlap_or_leave_a_gap_are_refused(edges: tuple[tuple[float, float], ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CountBins(BlockGrid(8), edges, tuple(float(low) for low, _ in edges))


def test_plain_values_and_back() -> None:
    bins = CountBins.from_histogram(HISTOGRAM, grid=BlockGrid(8), strategy=Strategy.fine, m=4, last=Last.clipped)
    assert CountBins.from_dict(bins.to_dict()) == bins


def test_description_names_every_bin_and_its_share() -> None:
    text = CountBins.from_histogram(HISTOGRAM, grid=BlockGrid(16), strategy=Strategy.coarse, m=5).describe(HISTOGRAM)
    assert "[1, 2]" in text
    assert "[5, inf)" in text
    assert "47.6190%" in text
    assert "6.0000" in text


# ---------------------------------------------------------------- without label correction, windows


def test_without_label_correction_every_integer_has_a_bin() -> None:
    bins = build_bins(BinsConfig(label_correction=False), HISTOGRAM)
    assert bins is not None
    assert bins.edges == (*((k, k) for k in range(9)), (9, INF))
    assert bins.representatives == tuple(range(10))
    assert bins.label(torch.tensor([[[[0.0, 5.0, 9.0, 30.0]]]])).tolist() == [[[0, 5, 9, 9]]]
    clipped = build_bins(BinsConfig(label_correction=False, last=Last.clipped), HISTOGRAM)
    assert clipped is not None
    assert (clipped.clip_at, clipped.representatives[-1]) == (9, 9)


def test_prompts_go_on_without_label_correction() -> None:
    bins = build_bins(BinsConfig(label_correction=False), HISTOGRAM)
    assert bins is not None
    prompts = write_prompts(bins.edges, config_of("model=clip_rn50").model.prompts)
    assert prompts[8:] == ["There are eight people.", "There are more than nine people."]


@pytest.mark.parametrize("histogram", [{}, {0: 7}])
def test_images_without_anybody_have_two_bins(histogram: dict[int, int]) -> None:
    bins = build_bins(BinsConfig(label_correction=False), histogram)
    assert bins is not None
    assert bins.edges == ((0, 0), (1, INF))


def test_given_counts_say_how_many_bins_there_are_without_label_correction() -> None:
    config = BinsConfig(label_correction=False, representative_counts=[0, 1, 2, 3, 4, 6.5])
    for histogram in ({}, HISTOGRAM):  # none is known where a checkpoint is converted
        bins = build_bins(config, histogram)
        assert bins is not None
        assert bins.edges == (*((k, k) for k in range(5)), (5, INF))
        assert bins.representatives[-1] == 6.5
    assert check(config_of("bins.label_correction=false", "bins.representative_counts=[0,1,2,3,4,6.5]")) == []


@pytest.mark.parametrize(
    ("settings", "bins"),
    [
        (["bins.representative_counts=[0,1,2]"], 5),
        (["bins.representative_counts=[0,1,2,3,4,5]"], 5),
        (["bins.representative_counts=[0,1,3,2,4]"], 5),
        (["bins.representative_counts=[0,1,2,3,3.5]"], 5),
        (["bins=coarse", "bins.representative_counts=[0,1,2,3,4]"], 3),
        (["bins.max_count=9999", "bins.representative_counts=[0,1]"], 10000),
        (["bins.label_correction=false", "bins.representative_counts=[0]"], 2),
        (["bins.label_correction=false", "bins.representative_counts=[0,1.5,3]"], 3),
    ],
)
def test_representative_counts_that_do_not_fit_are_refused_before_data_is_read(settings: list[str], bins: int) -> None:
    config = config_of(*settings)
    assert isinstance(config.bins, BinsConfig)
    (error,) = check(config)
    assert error.startswith(f"bins.representative_counts={config.bins.representative_counts}: do not fit the {bins} bi")
    assert len(error) < 400
    with pytest.raises(ConfigError) as caught:
        build_bins(config.bins, HISTOGRAM)
    assert str(caught.value) == error


@pytest.mark.parametrize("count", ["inf", "nan"])
def test_representative_counts_are_finite(count: str) -> None:
    config = config_of(f"bins.representative_counts=[0,1,2,3,{count}]")
    (error,) = check(config)
    assert error.endswith(": each number must be from 0 to 1000000")


def test_windows_give_the_means_and_blocks_the_shares() -> None:
    config = BinsConfig(counted=CountedIn.windows, max_count=2)
    bins = build_bins(config, {0: 3, 2: 1}, windows={0: 100, 1: 7, 2: 3, 6: 1})
    assert bins is not None
    assert bins.representatives == (0, 1, 3)
    assert bins.shares({0: 3, 2: 1}) == [0.75, 0, 0.25]


def test_windows_go_as_far_as_the_blocks_without_label_correction() -> None:
    config = BinsConfig(counted=CountedIn.windows, label_correction=False)
    bins = build_bins(config, {0: 3, 2: 1}, windows={0: 100, 2: 3, 6: 1})
    assert bins is not None
    assert bins.edges[-1] == (2, INF)
    assert bins.representatives[-1] == 3


def test_published_representative_counts(golden_dir: Path) -> None:
    """Their histograms, and every published value to five decimals."""
    rows = json.loads((golden_dir / "bins" / "anchor_check.json").read_text())
    assert len(rows) == 35
    for row in rows:
        block, m = int(row["config"].removesuffix(".json").split("_")[1]), int(row["truncation"])
        file = golden_dir / "bins" / "counts" / row["exact_matches"][0] / f"counts_{block}.json"
        windows = {int(count): n for count, n in json.loads(file.read_text()).items()}
        config = BinsConfig(
            block_size=block, max_count=m, strategy=Strategy[row["granularity"]], counted=CountedIn.windows
        )
        bins = build_bins(config, {}, windows=windows)
        assert bins is not None
        k = bins.edges.index((float(row["bin"][0]), float(row["bin"][1])))
        assert abs(bins.representatives[k] - row["config_average"]) < 5.0001e-6, row


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize("one_head_per_pixel", [False, True])
def test_windows_of_shanghaitech_a_give_its_published_count(
    one_head_per_pixel: bool, data_dir: Path, tmp_path: Path
) -> None:
    config = FolderDatasetConfig(name="sha", cache_dir=str(tmp_path), one_head_per_pixel=one_head_per_pixel)
    dataset = open_split(config, "train", data_root=str(data_dir))
    windows = block_histogram(dataset, 8, counted=CountedIn.windows)
    assert sum(windows.values()) == 169_581_420
    assert sum(count * n for count, n in windows.items()) == 10_311_306
    bins = build_bins(BinsConfig(counted=CountedIn.windows), block_histogram(dataset, 8), windows=windows)
    assert bins is not None
    assert round(bins.representatives[-1], 5) == 4.29992
    grid = build_bins(BinsConfig(), block_histogram(dataset, 8))
    assert grid is not None
    assert grid.representatives[-1] == pytest.approx(4.29992, abs=0.05)


@pytest.mark.data
def test_bins_chosen_for_shanghaitech_a_are_those_of_the_paper(data_dir: Path, tmp_path: Path) -> None:
    config = FolderDatasetConfig(name="sha", cache_dir=str(tmp_path))
    histogram = block_histogram(open_split(config, "train", data_root=str(data_dir)), 8)
    bins = build_bins(AutoBinsConfig(), histogram)
    assert bins is not None
    assert list(bins.edges) == integer_bins(Strategy.fine, 4)


def test_bins_with_given_edges() -> None:
    histogram = {0: 90, 1: 5, 2: 3, 4: 1, 9: 1, 12: 1}
    config = GivenBinsConfig(block_size=16, first_counts=[1, 2, 3, 6, 8])
    bins = build_bins(config, histogram)
    assert bins is not None
    assert bins.names() == ["{0}", "{1}", "{2}", "[3, 5]", "[6, 7]", "[8, inf)"]
    assert bins.representatives == (0, 1, 2, 4, 6.5, 10.5)  # means of the blocks; no block holds 6 or 7
    assert bins.grid == BlockGrid(16)
    assert CountBins.from_dict(bins.to_dict()) == bins
    given = replace(config, representative_counts=[0, 1, 2, 3.5, 6, 9])
    assert build_bins(given, histogram).representatives == (0, 1, 2, 3.5, 6, 9)  # type: ignore[union-attr]
    only = build_bins(GivenBinsConfig(first_counts=[1]), histogram)
    assert only is not None
    assert only.edges == ((0, 0), (1, INF))
    with pytest.raises(ConfigError, match=r"^bins=given: 6 bins but 2 representative counts"):
        build_bins(replace(config, representative_counts=[0, 1]), histogram)


# ------------------------------------------------------------------------------ smoothed counts


def test_intervals_by_hand() -> None:
    bins = CountBins.from_edges([0.5, 1.0, 2.0], grid=BlockGrid(8))
    assert bins.edges == ((0, 0), (0, 0.5), (0.5, 1.0), (1.0, 2.0), (2.0, INF))
    assert bins.representatives == (0, 0.25, 0.75, 1.5, 2.5)
    assert bins.names() == ["{0}", "(0, 0.5]", "(0.5, 1]", "(1, 2]", "(2, inf)"]
    counts = torch.tensor([[[[0.0, ZERO_BELOW, 2 * ZERO_BELOW, 0.5, 0.501, 1.0, 2.0, 2.001, 300.0]]]])
    assert bins.label(counts).tolist() == [[[0, 0, 1, 1, 2, 2, 3, 4, 4]]]
    assert bins.label(counts.double()).tolist() == bins.label(counts).tolist()


def test_the_default_intervals_reach_the_largest_count() -> None:
    smoothed = {0.0: 90, 1e-4: 5, 0.03: 3, 0.05: 2, 0.4: 1, 0.92: 1}
    bins = build_bins(BlockwiseConfig(), {}, smoothed=smoothed)
    assert bins is not None
    assert len(bins) == 1 + 19
    assert bins.edges[1:3] == ((0, 0.05), (0.05, 0.1))
    assert bins.edges[-1] == (0.9, INF)  # holds the largest
    assert bins.representatives[-1] == pytest.approx(0.925)
    assert bins.representatives[1] == pytest.approx(0.025)
    shares = [95 / 102, 5 / 102, *[0] * 6, 1 / 102, *[0] * 10, 1 / 102]
    assert bins.shares({0: 1}) == pytest.approx(shares)
    assert "(0.9, inf)" in bins.describe({})
    assert "(20 bins)" in bins.describe({})


@pytest.mark.parametrize(("largest", "bounded"), [(0.0, 0), (0.04, 0), (0.05, 0), (0.06, 1), (0.1, 1), (5.0, 99)])
def test_the_open_interval_is_never_without_blocks(largest: float, bounded: int) -> None:
    bins = build_bins(BlockwiseConfig(), {}, smoothed={0.0: 5, largest: 1})
    assert bins is not None
    assert len(bins) == 2 + bounded
    assert all(math.isfinite(value) for value in bins.representatives)
    assert bins.shares({})[-1] == pytest.approx(1 / 6 if largest else 0)


def test_given_edges_and_integers_in_place_of_smoothed_counts() -> None:
    bins = build_bins(BlockwiseConfig(edges=[1.0, 2.0]), {0: 6, 1: 2, 2: 1, 7: 1})
    assert bins is not None
    assert bins.shares({0: 6, 1: 2, 2: 1, 7: 1}) == [0.6, 0.2, 0.1, 0.1]


@pytest.mark.parametrize("count", [-0.5, math.nan, math.inf])
def test_a_smoothed_count_in_no_interval_is_refused_by_value(count: float) -> None:
    with pytest.raises(ValueError, match=f"block count {count:g} lies in no bin; allowed are numbers from 0"):
        CountBins.from_edges([0.5], grid=BlockGrid(8)).label(torch.tensor([[[[0.0, count]]]]))


@pytest.mark.parametrize("edges", [[0.5, 0.5], [1.0, 0.5], [0.0, 1.0], [-1.0], [1e-5, 1.0], [math.nan], [INF]])
def test_edges_that_do_not_increase_from_zero_are_refused(edges: list[float]) -> None:
    with pytest.raises(ConfigError, match=r"^bins\.edges=\[.*\]: must be finite and increase, and begin above 0"):
        build_bins(BlockwiseConfig(edges=edges), {})
    config = config_of("bins=blockwise")
    config.bins = BlockwiseConfig(edges=edges)
    (error,) = check(config)
    assert error.startswith(f"bins.edges={edges}: ")
    assert error.count(str(edges)) == 1


@pytest.mark.parametrize(
    ("edges", "message"),
    [
        (((0, 0), (0.5, INF)), r"leave a gap at \(0\.5, inf\)"),
        (((0, 0), (0, 1), (0.5, INF)), r"overlap at \(0\.5, inf\)"),
        (((0, 0), (0, 1), (1, 1), (1, INF)), r"overlap at"),
        (((0, 1), (1, INF)), r"first bin of smoothed counts must be \{0\}"),
        (((0, 0), (0, 1)), r"last bin \(0, 1\] must end at inf"),
    ],
)
def test_intervals_that_overlap_or_leave_a_gap_are_refused(
    edges: tuple[tuple[float, float], ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        CountBins(BlockGrid(8), edges, tuple(float(low) for low, _ in edges), smoothed=True)


def test_smoothed_bins_as_plain_values_and_back() -> None:
    bins = build_bins(BlockwiseConfig(), {}, smoothed={0.0: 5, 0.3: 1})
    assert bins is not None
    assert CountBins.from_dict(json.loads(json.dumps(bins.to_dict()))) == bins


# ------------------------------------------------------------------------------ the paper's table III

TABLE_III = {
    "blockwise": ["bins=blockwise", "loss=cross_entropy"],
    "enhanced bins": ["bins.label_correction=false", "loss=cross_entropy"],
    "label correction": ["loss=cross_entropy"],
    **{f"lambda {weight}": [f"loss.weight={weight}"] for weight in (0, 0.01, 0.1, 1, 2)},
}


def config_of(*overrides: str) -> TrainConfig:
    config: TrainConfig = OmegaConf.to_object(compose(overrides, config_name="train"))
    return config


def small(folder: Path, *overrides: str) -> TrainConfig:
    sizes = ["dataset.width=64", "dataset.height=64", "dataset.max_people=40", "model.width=8", "runtime=cpu"]
    few = ["dataset.train_images=4", "dataset.val_images=2", "augment.crop_size=64", "epochs=1", "batch_size=2"]
    where = [f"output_dir={folder}", "run_name=run", "runtime.workers=0"]
    return config_of("scale=smoke", *sizes, *few, *where, *overrides)


@pytest.mark.parametrize("row", TABLE_III)
def test_every_row_of_table_iii_builds(row: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = small(tmp_path, "dry_run=true", *TABLE_III[row])
    assert check(config) == []
    train(config)
    described = capsys.readouterr().out
    says = {"blockwise": "intervals of smoothed counts", "enhanced bins": "no label correction, up to"}
    assert says.get(row, "m = 4") in described


@pytest.mark.parametrize(
    "overrides",
    [
        ["bins=blockwise", "loss=cross_entropy"],
        ["bins=blockwise", "loss=dace", "bins.edges=[0.1,0.3,1]"],
        ["model.head=regression", "bins=none", "loss=mse", "loss.kernel=adaptive"],
        ["bins.counted=windows", "loss=dace_mae", "bins.label_correction=false"],
        ["loss=dace_mse", "bins=coarse"],
        ["loss=dm", "loss.transport=stable", "loss.transport.tolerance=1e-2"],
    ],
    ids=" ".join,
)
def test_it_trains_and_its_checkpoint_rebuilds_it(overrides: list[str], tmp_path: Path) -> None:
    config = small(tmp_path, *overrides)
    assert check(config) == []
    run = train(config)
    assert run is not None
    loaded = checkpoint.load(run.folder / checkpoint.BEST)
    assert math.isfinite(run.metrics[-1]["train/total"])
    assert (loaded.bins is None) == ("bins=none" in overrides)
    if "bins=blockwise" in overrides:
        assert loaded.bins is not None
        assert loaded.bins.smoothed
        assert sum(loaded.bins.shares({})) == pytest.approx(1)
        head = loaded.counter.head
        assert torch.equal(head.representatives, torch.tensor(loaded.bins.representatives))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["bins=blockwise", "model.head=regression"], "model.head=regression: predicts counts without bins"),
        (["bins=blockwise", "model=clip_rn50"], "bins=blockwise: clip_rn50 reads a sentence about each bin"),
        (["bins=none", "model.head=regression", "loss=cross_entropy"], "loss=cross_entropy: classifies blocks"),
        (["bins=none", "model.head=regression", "loss=dace_mse"], "loss=dace_mse: classifies blocks"),
        (["bins=coarse", "bins.label_correction=false"], "bins.strategy=coarse: bins.label_correction=false"),
        (["bins.max_count=5", "bins.label_correction=false"], "bins.max_count=5: bins.label_correction=false"),
    ],
)
def test_settings_that_contradict_are_refused_early(overrides: list[str], message: str) -> None:
    assert any(line.startswith(message) for line in check(config_of(*overrides)))


def test_no_maximum_is_no_error_without_label_correction() -> None:
    assert check(config_of("bins.block_size=2", "bins.label_correction=false")) == []


@pytest.mark.parametrize("wrong", [7.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("smoothed", [False, True])
def test_a_representative_outside_its_bin_is_refused(wrong: float, smoothed: bool) -> None:
    edges = ((0.0, 0.0), (0.0, 1.0), (1.0, math.inf)) if smoothed else ((0.0, 0.0), (1.0, 1.0), (2.0, math.inf))
    CountBins(BlockGrid(8), edges, (0.0, 1.0, 2.5), smoothed=smoothed)
    with pytest.raises(ValueError, match=r"do not fit the 3 bins: one finite number is needed inside each"):
        CountBins(BlockGrid(8), edges, (0.0, wrong, 2.5), smoothed=smoothed)
