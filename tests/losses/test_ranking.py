"""Losses of nested crops: by hand, by finite differences, and which set of sentences they compare."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from headcount.config import ClipLossConfig, Compared, LossConfig, MmrConfig
from headcount.losses.build import Loss, build_loss
from headcount.types import Batch, BlockGrid, SimilarityPrediction

SIMILARITIES = torch.tensor([[20.0, 21.0, 30.0], [19.0, 22.0, 18.0], [25.0, 17.0, 26.0]])
"""Of three crops (rows, smallest first) with their sentences (columns)."""


def loss_of(config: LossConfig) -> Loss:
    return build_loss(config, BlockGrid(8), None)


def batch_of(images: int, crops: int) -> Batch:
    rank = torch.arange(crops).expand(images, -1)
    return Batch(torch.zeros(images * crops, 3, 2, 2, dtype=torch.uint8), ["image"] * images, {"rank": rank})


def prediction_of(similarities: Tensor, sets: Tensor | None = None) -> SimilarityPrediction:
    """Of (images x crops, sets, sentences)."""
    crops = len(similarities)
    return SimilarityPrediction(
        torch.zeros(crops), None, similarities, torch.zeros(crops, dtype=torch.int64) if sets is None else sets
    )


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        # s(i, j) - s(j, j) of smaller crops i < j: (0, 1): 21 - 22, (0, 2): 30 - 26, (1, 2): 18 - 26.
        (MmrConfig(), 4.0),
        (MmrConfig(margin=2.0), 1.0 + 6.0),
        # s(j, i) - s(j, j) of the sentences i < j: (0, 1): 19 - 22, (0, 2): 25 - 26, (1, 2): 17 - 26.
        (MmrConfig(compared=Compared.prompts), 0.0),
        (MmrConfig(compared=Compared.prompts, margin=2.0), 1.0),
        # Logarithms of sums of exponentials, less the diagonal.
        (ClipLossConfig(), None),
    ],
)
def test_losses_by_hand(config: LossConfig, expected: float | None) -> None:
    if expected is None:
        rows = [float(torch.logsumexp(SIMILARITIES[k], 0) - SIMILARITIES[k, k]) for k in range(3)]
        columns = [float(torch.logsumexp(SIMILARITIES[:, k], 0) - SIMILARITIES[k, k]) for k in range(3)]
        expected = (sum(rows) / 3 + sum(columns) / 3) / 2
    terms = loss_of(config)(prediction_of(SIMILARITIES[:, None]), batch_of(1, 3))
    assert float(terms.total) == pytest.approx(expected, rel=1e-5)
    assert float(terms.logged["own_sentence"]) == pytest.approx(2 / 3)
    assert list(terms.parts) == [config.name]


@pytest.mark.parametrize("config", [MmrConfig(margin=1.0), ClipLossConfig()], ids=["mmr", "clip"])
def test_losses_are_means_over_images(config: LossConfig) -> None:
    loss = loss_of(config)
    others = SIMILARITIES.T.contiguous()
    alone = [float(loss(prediction_of(one[:, None]), batch_of(1, 3)).total) for one in (SIMILARITIES, others)]
    both = loss(prediction_of(torch.cat([SIMILARITIES, others])[:, None]), batch_of(2, 3))
    assert float(both.total) == pytest.approx(sum(alone) / 2, rel=1e-6)


@pytest.mark.parametrize(
    "config",
    [MmrConfig(margin=1.0), MmrConfig(margin=1.0, compared=Compared.prompts), ClipLossConfig()],
    ids=["crops", "prompts", "clip"],
)
def test_gradients_by_finite_differences(config: LossConfig) -> None:
    loss, batch = loss_of(config), batch_of(2, 4)
    values = 3 * torch.randn(8, 1, 4, generator=torch.Generator().manual_seed(0))

    def total(similarities: Tensor) -> Tensor:
        return loss(prediction_of(similarities), batch).total

    assert_gradient(total, values)


def assert_gradient(function: Callable[[Tensor], Tensor], values: Tensor, step: float = 1e-2) -> None:
    """Compare the gradient with central differences, which are exact for a hinge that keeps its side."""
    leaf = values.clone().requires_grad_()
    function(leaf).backward()  # type: ignore[no-untyped-call]
    assert leaf.grad is not None
    for index in range(values.numel()):
        change = torch.zeros_like(values).flatten()
        change[index] = step
        ends = [function(values + sign * change.view_as(values)) for sign in (1, -1)]
        slope = float(ends[0].double() - ends[1].double()) / (2 * step)
        assert float(leaf.grad.flatten()[index]) == pytest.approx(slope, abs=2e-3)


def test_the_largest_crop_chooses_the_set_of_sentences() -> None:
    sets = torch.tensor([0, 0, 1])
    similarities = torch.stack([torch.full((3, 3), 7.0), SIMILARITIES], dim=1)
    terms = loss_of(MmrConfig())(prediction_of(similarities, sets), batch_of(1, 3))
    assert float(terms.total) == 4.0
    terms = loss_of(MmrConfig())(prediction_of(similarities, torch.tensor([1, 1, 0])), batch_of(1, 3))
    assert float(terms.total) == 0.0
