"""What lies outside a mask changes no loss, and a mask of everything changes nothing."""

from collections.abc import Sequence

import pytest
import shapely
import torch

from headcount.bins import CountBins, expected_counts
from headcount.config import (
    BlockErrorKind,
    BlocksConfig,
    ConfigError,
    CrossEntropyConfig,
    DaceBlockErrorConfig,
    DaceConfig,
    DmConfig,
    FixedKernelConfig,
    LossConfig,
    MseConfig,
    ReleasedTransportConfig,
    StableTransportConfig,
)
from headcount.data.crowd import CrowdDataset
from headcount.data.loading import Targets, build_smoothing, collate
from headcount.data.masks import Mask, PolygonMask
from headcount.losses.build import build_loss, require_masks
from headcount.types import Batch, BlockGrid, LossTerms, Prediction
from values import predict as predict_blocks
from values import predict_bins

GRID = BlockGrid(8)
BINS = CountBins(GRID, ((0, 0), (1, 1), (2, float("inf"))), (0.0, 1.0, 2.5))
LOSSES: dict[str, LossConfig] = {
    "cross_entropy": CrossEntropyConfig(),
    "dace, released": DaceConfig(transport=ReleasedTransportConfig()),
    "dace, stable": DaceConfig(transport=StableTransportConfig()),
    "dace, mae": DaceBlockErrorConfig(error=BlockErrorKind.mae),
    "dace, mse": DaceBlockErrorConfig(error=BlockErrorKind.mse),
    "dm": DmConfig(),
    "mse": MseConfig(kernel=FixedKernelConfig()),
}
INSIDE = [(3.0, 3.0), (13.0, 20.0), (13.5, 20.5), (17.0, 5.0)]
OUTSIDE = [(21.0, 3.0), (35.0, 30.0), (36.0, 30.0), (38.0, 2.0)]
# 40 x 32 px are 5 x 4 blocks: two columns inside, half of the third, two outside.
LEFT = PolygonMask(shapely.box(0, 0, 20, 32))
SHARES = torch.tensor([1, 1, 0.5, 0, 0]).expand(1, 1, 4, 5)


def batch_of(points: Sequence[tuple[float, float]], config: LossConfig, mask: Mask | None) -> Batch:
    dataset = CrowdDataset(
        ["a"],
        lambda index: torch.zeros(3, 32, 40, dtype=torch.uint8),
        [torch.tensor(points).reshape(-1, 2)],
        source_sizes=[(40, 32)],
        sizes=[(40, 32)],
        masks=[] if mask is None else [mask],
    )
    needs = build_loss(config, GRID, BINS).needs | ({"mask"} if dataset.has_masks else set())
    smoothing = build_smoothing(BlocksConfig(), config)
    return collate([dataset[0, 0]], targets=Targets(needs, GRID, smoothing=smoothing, bins=BINS))


def evaluate(config: LossConfig, batch: Batch, logits: torch.Tensor) -> LossTerms:
    blocks = expected_counts(logits.softmax(1), torch.tensor(BINS.representatives))
    return build_loss(config, GRID, BINS)(predict_bins(blocks, logits), batch)


def random_logits() -> torch.Tensor:
    return torch.randn(1, 3, 4, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()


@pytest.mark.parametrize("name", LOSSES)
def test_heads_and_predictions_outside_change_nothing(name: str) -> None:
    config, logits = LOSSES[name], random_logits()
    terms = evaluate(config, batch_of(INSIDE, config, LEFT), logits)
    (gradient,) = torch.autograd.grad(terms.total, logits)
    assert bool((gradient[..., 3:] == 0).all())
    assert bool((gradient[..., :2] != 0).any())

    changed = logits.detach().clone()
    changed[..., 3:] = 7 * torch.randn(1, 3, 4, 2, generator=torch.Generator().manual_seed(1))
    changed.requires_grad_()
    other = evaluate(config, batch_of(INSIDE + OUTSIDE, config, LEFT), changed)
    assert torch.equal(other.total, terms.total)
    assert torch.equal(torch.autograd.grad(other.total, changed)[0], gradient)


@pytest.mark.parametrize("name", LOSSES)
def test_a_mask_of_everything_is_no_mask(name: str) -> None:
    config, found = LOSSES[name], []
    for mask in (None, PolygonMask(shapely.box(0, 0, 40, 32))):
        logits = random_logits()
        terms = evaluate(config, batch_of(INSIDE + OUTSIDE, config, mask), logits)
        found.append((terms.total, torch.autograd.grad(terms.total, logits)[0]))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize("name", LOSSES)
def test_a_crop_outside_the_mask_teaches_nothing(name: str) -> None:
    """Its loss is 0 and its gradient finite, whatever is predicted."""
    config, logits = LOSSES[name], random_logits()
    batch = batch_of([], config, LEFT)
    batch.targets["mask"] = torch.zeros_like(batch.target("mask"))
    terms = evaluate(config, batch, logits)
    assert float(terms.total.detach()) == pytest.approx(0, abs=1e-6)
    assert torch.autograd.grad(terms.total, logits)[0].abs().max() == 0


def test_values_by_hand() -> None:
    batch = batch_of(INSIDE + OUTSIDE, LOSSES["dace, mae"], LEFT)
    assert torch.equal(batch.target("mask"), SHARES)
    uniform = torch.zeros(1, 3, 4, 5)
    # Eight blocks are entirely inside; each has a cross-entropy of log 3.
    found = build_loss(CrossEntropyConfig(), GRID, BINS)(predict_bins(torch.ones(1, 1, 4, 5), uniform), batch)
    torch.testing.assert_close(found.total, 8 * torch.tensor(3.0).log())

    # One head is predicted in every block: 8 + 4 / 2 inside. True are 1, 2 and, in half a block, 1.
    predicted = predict_blocks(torch.ones(1, 1, 4, 5))
    batch = batch_of(INSIDE + OUTSIDE, LOSSES["dm"], LEFT)
    assert float(batch.target("block_counts").sum()) == 4
    only_count = DmConfig(transport=ReleasedTransportConfig(ot_weight=0, tv_weight=0))
    torch.testing.assert_close(build_loss(only_count, GRID, None)(predicted, batch).total, torch.tensor(6.0))
    # Variation: shares of 1/10 and 1/20; true 1/4, 2/4, 1/4. Sum of the differences times 4 heads.
    by_hand = 4 * ((0.25 - 0.1) + (0.5 - 0.1) + (0.25 - 0.05) + 6 * 0.1 + 3 * 0.05)
    only_variation = DmConfig(transport=ReleasedTransportConfig(ot_weight=0, tv_weight=1, count_weight=0))
    torch.testing.assert_close(build_loss(only_variation, GRID, None)(predicted, batch).total, torch.tensor(by_hand))
    # Absolute errors: 0, |1 - 2|, |1/2 - 1|, six empty blocks of 1, three half blocks of 1/2.
    error = build_loss(DaceBlockErrorConfig(error=BlockErrorKind.mae, weight=1), GRID, BINS)
    batch = batch_of(INSIDE + OUTSIDE, LOSSES["dace, mae"], LEFT)
    parts = error(predict_bins(torch.ones(1, 1, 4, 5), uniform), batch).parts
    torch.testing.assert_close(parts["absolute_error"], torch.tensor(1 + 0.5 + 6 + 1.5))


def test_transport_moves_heads_only_to_blocks_inside() -> None:
    """A head at the border of the mask pulls at the blocks inside as if there were nothing beyond it."""
    config = DmConfig(transport=StableTransportConfig())
    inside = torch.rand(1, 1, 4, 2, generator=torch.Generator().manual_seed(2))
    found = []
    for columns, mask in ((5, PolygonMask(shapely.box(0, 0, 16, 32))), (2, None)):
        blocks = torch.full((1, 1, 4, columns), 9.0)
        blocks[..., :2] = inside
        blocks.requires_grad_()
        dataset = CrowdDataset(
            ["a"],
            lambda index, width=8 * columns: torch.zeros(3, 32, width, dtype=torch.uint8),
            [torch.tensor([(3.0, 3.0), (15.5, 20.0)])],
            source_sizes=[(8 * columns, 32)],
            sizes=[(8 * columns, 32)],
            masks=[] if mask is None else [mask],
        )
        needs = build_loss(config, GRID, None).needs | ({"mask"} if mask else set())
        batch = collate([dataset[0, 0]], targets=Targets(needs, GRID))
        total = build_loss(config, GRID, None)(predict_blocks(blocks), batch).total
        found.append((total.detach(), torch.autograd.grad(total, blocks)[0][..., :2]))
    torch.testing.assert_close(found[0], found[1], atol=1e-4, rtol=1e-4)


def test_a_loss_that_does_not_honor_masks_is_refused() -> None:
    class Everywhere:
        needs = frozenset({"points"})

        def __call__(self, prediction: Prediction, batch: Batch) -> LossTerms:
            raise NotImplementedError

    with pytest.raises(ConfigError, match=r"loss=dm: the images have masks, which this loss does not honor"):
        require_masks(Everywhere(), DmConfig())
    for config in LOSSES.values():
        require_masks(build_loss(config, GRID, BINS), config)
