"""DM-Count's loss alone: the golden terms, with and without logits."""

import torch

from headcount.config import DmConfig, ReleasedTransportConfig
from headcount.losses.build import build_loss
from headcount.losses.dm import DmLoss
from headcount.types import Batch, BlockGrid
from values import batch_of, predict


def one_image(points: torch.Tensor, size: int = 64) -> Batch:
    counts = torch.zeros(1, 1, size // 8, size // 8)
    for x, y in points:
        counts[0, 0, int(y) // 8, int(x) // 8] += 1
    return batch_of(torch.zeros(1, 3, size, size, dtype=torch.uint8), [points], counts, ["a"])


def test_it_is_built_without_bins() -> None:
    assert isinstance(build_loss(DmConfig(), BlockGrid(8), None), DmLoss)


def test_only_the_count_term_is_left_by_the_weights() -> None:
    batch = one_image(torch.tensor([[4.0, 4.0], [20.0, 36.0]]))
    predicted = torch.full((1, 1, 8, 8), 5 / 64)
    loss = build_loss(DmConfig(transport=ReleasedTransportConfig(ot_weight=0, tv_weight=0)), BlockGrid(8), None)
    torch.testing.assert_close(loss(predict(predicted), batch).total, torch.tensor(3.0))


def test_a_perfect_prediction_has_neither_variation_nor_count_error() -> None:
    batch = one_image(torch.tensor([[4.0, 4.0], [20.0, 36.0]]))
    parts = build_loss(DmConfig(), BlockGrid(8), None)(predict(batch.target("block_counts").clone()), batch).parts
    assert float(parts["count"]) == 0
    assert abs(float(parts["total_variation"])) < 1e-6
