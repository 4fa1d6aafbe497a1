"""Errors of regions, and what an evaluation passes on."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from headcount.bins import CountBins
from headcount.cli.compose import compose, to_config
from headcount.config import Strategy, WholeImageConfig
from headcount.engine.evaluate import open_evaluated
from headcount.engine.evaluators import BinReliability, Game, empty_blocks
from headcount.errors import DataError
from headcount.types import BlockGrid, Counted, Sample


def sample(points: list[tuple[float, float]], *, height: int, width: int) -> Sample:
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    return Sample(image=image, points=torch.tensor(points).reshape(-1, 2), name="x")


def counted(blocks: torch.Tensor | None) -> Counted:
    total = 3.0 if blocks is None else float(blocks.sum(dtype=torch.float64))
    return Counted(total, blocks, None, WholeImageConfig())


def game_errors(sample: Sample, blocks: torch.Tensor, block_size: int) -> tuple[float, ...]:
    numbers = Game(BlockGrid(block_size))(sample, counted(blocks))
    return tuple(numbers[f"game{level}"] for level in (1, 2, 3))


def test_evaluators_decline_where_there_are_no_blocks() -> None:
    bins = CountBins.from_histogram({0: 1}, grid=BlockGrid(8), strategy=Strategy.fine, m=2)
    reliability = BinReliability(bins)
    for evaluator in (Game(BlockGrid(8)), empty_blocks, reliability):
        assert evaluator(sample([(3.0, 3.0)], height=16, width=16), counted(None)) == {}
    assert reliability.reliability.blocks.sum() == 0


def test_empty_blocks_are_counted() -> None:
    blocks = torch.tensor([[0.0, 0.49, 0.5], [2.0, 0.1, 0.0]])
    numbers = empty_blocks(sample([], height=16, width=24), counted(blocks))
    assert numbers == {"blocks": 6, "empty_blocks": 4}


def test_game_of_an_image_worked_out_by_hand() -> None:
    # 16 x 16 blocks of 8 px; two heads are predicted in the upper left block, one is where they are
    # and the other in the lower right quarter.
    blocks = torch.zeros(16, 16)
    blocks[0, 0] = 2
    image = sample([(3.0, 3.0), (120.0, 70.0)], height=128, width=128)
    assert game_errors(image, blocks, 8) == (2, 2, 2)
    # The same region of every level: nothing is wrong.
    assert game_errors(sample([(3.0, 3.0), (1.0, 9.0)], height=128, width=128), blocks, 8) == (0, 0, 0)
    # Of one quarter, but of different sixteenths; of one sixteenth, but of different sixty-fourths.
    assert game_errors(sample([(3.0, 3.0), (40.0, 3.0)], height=128, width=128), blocks, 8) == (0, 2, 2)
    assert game_errors(sample([(3.0, 3.0), (20.0, 3.0)], height=128, width=128), blocks, 8) == (0, 0, 2)


def test_a_block_on_a_boundary_is_shared_by_area() -> None:
    # 3 blocks of 8 px: the middle one, with four heads, lies half in the left half of the image.
    blocks = torch.tensor([[0.0, 4.0, 0.0]])
    even = sample([(9.0, 3.0), (10.0, 4.0), (13.0, 3.0), (14.0, 7.0)], height=8, width=24)
    assert game_errors(even, blocks, 8)[0] == pytest.approx(0)  # one head in each quarter
    upper = sample([(9.0, 3.0), (10.0, 3.0), (13.0, 3.0), (14.0, 3.0)], height=8, width=24)
    assert game_errors(upper, blocks, 8)[0] == pytest.approx(4)


def test_the_last_block_reaches_over_the_image_and_heads_outside_count_at_its_border() -> None:
    blocks = torch.tensor([[0.0, 1.0]])  # 8 + 2 px: the second block has all its heads in its 2 px
    inside, outside = ([(9.0, 1.0)], [(300.0, -5.0)])
    errors = [game_errors(sample(points, height=1, width=10), blocks, 8) for points in (inside, outside)]
    assert errors[0][0] == pytest.approx(1)  # upper and lower half share what one of them has
    assert errors[1][0] == pytest.approx(1)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 3), (65, 40), (300, 211)])
def test_game_never_falls_with_its_level_and_starts_at_the_error_of_the_image(height: int, width: int) -> None:
    rng = np.random.default_rng(height)
    rows, cols = math.ceil(height / 8), math.ceil(width / 8)
    blocks = torch.tensor(rng.exponential(1.0, (rows, cols)), dtype=torch.float32)
    points = [(x * width, y * height) for x, y in rng.random((20, 2))]
    levels = game_errors(sample(points, height=height, width=width), blocks, 8)
    whole = abs(float(blocks.sum(dtype=torch.float64)) - len(points))
    assert all(low <= high + 1e-9 for low, high in zip((whole, *levels), levels, strict=False))


def test_a_dataset_that_has_gone_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HEADCOUNT_DATA", raising=False)
    gone = tmp_path / "gone"
    trained = to_config(compose(["dataset=sha", f"dataset.root={gone}"], config_name="train"))
    typed = to_config(compose(["ckpt=any.pt"], config_name="eval"))
    with pytest.raises(DataError, match=re.escape(f"{gone}, the folder of the images in training, no longer exists")):
        open_evaluated(typed, trained)
