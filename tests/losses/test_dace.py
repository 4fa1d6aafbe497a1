import dataclasses

import pytest
import torch

from headcount.bins import CountBins, expected_counts
from headcount.config import (
    BlockErrorKind,
    ConfigError,
    CrossEntropyConfig,
    DaceBlockErrorConfig,
    DaceConfig,
    LossConfig,
    Reduction,
    ReleasedTransportConfig,
    StableTransportConfig,
)
from headcount.losses.build import build_loss
from headcount.losses.dace import DaceLoss
from headcount.types import BlockGrid, LossTerms
from values import batch_of, predict_bins
from values import predict as predict_blocks

BINS = CountBins(BlockGrid(8), ((0, 0), (1, 1), (2, float("inf"))), (0.0, 1.0, 2.5))


def prediction_and_batch(*, rows=4, cols=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    points = [torch.rand(n, 2, generator=generator) * torch.tensor([8.0 * cols, 8.0 * rows]) for n in (9, 0, 4)]
    counts = torch.zeros(3, 1, rows, cols)
    for i, p in enumerate(points):
        for x, y in (p // 8).long().tolist():
            counts[i, 0, y, x] += 1
    logits = torch.randn(3, 3, rows, cols, generator=generator).requires_grad_()
    images = torch.zeros(3, 3, 8 * rows, 8 * cols, dtype=torch.uint8)
    return logits, batch_of(images, points, counts, ["a", "b", "c"], bins=BINS)


def predict(logits):
    return predict_bins(expected_counts(logits.softmax(1), torch.tensor(BINS.representatives)), logits)


class FixedCounts:
    """A count loss whose gradient is known."""

    def __call__(self, predicted, points, true):
        total = (predicted - true).square().sum()
        return LossTerms(total, {"count": total.detach()}, {"transport_cost": total.new_tensor(5.0)})


def test_gradient_of_the_chain_is_the_analytic_one():
    logits, batch = prediction_and_batch()
    terms = DaceLoss(FixedCounts(), weight=0.25)(predict(logits), batch)
    found = torch.autograd.grad(terms.total, logits)[0]
    p = logits.detach().softmax(1)
    hot = torch.nn.functional.one_hot(BINS.label(batch.target("block_counts")), 3).movedim(-1, 1)
    expected = expected_counts(p, torch.tensor(BINS.representatives))
    values = torch.tensor(BINS.representatives).view(1, 3, 1, 1)
    # d CE / d logit = p - hot, averaged over images; d E / d logit_k = p_k (a_k - E).
    by_hand = (p - hot) / 3 + 0.25 * 2 * (expected - batch.target("block_counts")) * p * (values - expected)
    torch.testing.assert_close(found, by_hand, rtol=1e-5, atol=1e-6)


def test_cross_entropy_is_summed_over_blocks_and_averaged_over_images():
    logits, batch = prediction_and_batch()
    uniform = torch.zeros_like(logits)
    terms = DaceLoss(FixedCounts(), weight=1.0)(predict(uniform), batch)
    assert float(terms.parts["cross_entropy"]) == pytest.approx(20 * torch.log(torch.tensor(3.0)).item())


def test_parts_are_weighted_and_what_is_only_logged_is_not():
    logits, batch = prediction_and_batch()
    terms = DaceLoss(FixedCounts(), weight=0.5)(predict(logits), batch)
    full = DaceLoss(FixedCounts(), weight=1.0)(predict(logits), batch)
    torch.testing.assert_close(2 * terms.parts["count"], full.parts["count"])
    assert float(terms.logged["transport_cost"]) == 5
    assert float(terms.total.detach()) == pytest.approx(float(terms.parts["cross_entropy"] + terms.parts["count"]))


def test_autocast_changes_nothing():
    class Product:
        """Autocast takes a product of matrices in half precision; that of 1 + 2^-12 with itself tells."""

        def __call__(self, predicted, points, true):
            total = (torch.full((1, 1), 1 + 2**-12) @ torch.ones(1, 1)).sum()
            return LossTerms(total, {"product": total})

    logits, batch = prediction_and_batch()
    prediction = predict(logits)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = DaceLoss(Product(), weight=1.0)(prediction, batch)
    assert terms.total.dtype == torch.float32
    assert float(terms.parts["product"]) == 1 + 2**-12


def test_half_precision_predictions_are_taken_in_float32():
    logits, batch = prediction_and_batch()
    half = predict_bins(predict(logits).blocks.bfloat16(), logits.bfloat16())
    exact = predict_bins(half.blocks.float(), half.logits.float())
    loss = build_loss(DaceConfig(), BINS.grid, BINS)
    torch.testing.assert_close(loss(half, batch).total, loss(exact, batch).total)


def test_all_parts_are_reported_detached():
    logits, batch = prediction_and_batch()
    terms = build_loss(DaceConfig(), BINS.grid, BINS)(predict(logits), batch)
    assert set(terms.parts) == {"cross_entropy", "count", "total_variation", "transport_surrogate"}
    assert set(terms.logged) == {"transport_cost"}
    assert not any(v.requires_grad for v in (*terms.parts.values(), *terms.logged.values()))
    assert float(terms.total.detach()) == pytest.approx(sum(map(float, terms.parts.values())), rel=1e-6)


def test_every_setting_reaches_the_loss():
    logits, batch = prediction_and_batch()

    def gradient(**changes):
        weight, kind = changes.pop("weight", 1.0), changes.pop("kind", ReleasedTransportConfig)
        loss = build_loss(DaceConfig(weight=weight, transport=kind(**changes)), BINS.grid, BINS)
        return torch.autograd.grad(loss(predict(logits), batch).total, logits)[0]

    default = gradient()
    changes = (
        {"weight": 2.0},
        {"ot_weight": 0.1},
        {"ot_reduction": Reduction.sum},
        {"tv_weight": 1.0},
        {"count_weight": 0.0},
        {"regularization": 30.0},
        {"iterations": 3},
        {"kind": StableTransportConfig},
        {"kind": StableTransportConfig, "tolerance": 1e-4},
    )
    for change in changes:
        assert float((gradient(**change) - default).norm() / default.norm()) > 1e-4, change


def test_a_prediction_without_logits_is_refused():
    _, batch = prediction_and_batch()
    with pytest.raises(ValueError, match=r"needs logits.*choose model\.head=ebc"):
        build_loss(DaceConfig(), BINS.grid, BINS)(predict_blocks(batch.target("block_counts")), batch)


def test_without_a_weight_nothing_is_transported():
    def never(predicted, points, true):
        raise AssertionError("the count loss was computed")

    logits, batch = prediction_and_batch()
    terms = DaceLoss(never, weight=0.0)(predict(logits), batch)
    alone = build_loss(CrossEntropyConfig(), BINS.grid, BINS)(predict(logits), batch)
    assert set(terms.parts) == set(alone.parts) == {"cross_entropy"}
    torch.testing.assert_close(terms.total, alone.total)
    assert float(terms.total.detach()) == float(terms.parts["cross_entropy"]) > 0


@pytest.mark.parametrize("error_kind", BlockErrorKind)
def test_count_loss_of_every_block(error_kind):
    logits, batch = prediction_and_batch()
    prediction = predict(logits)
    terms = build_loss(DaceBlockErrorConfig(weight=2.0, error=error_kind), BINS.grid, BINS)(prediction, batch)
    error = (prediction.blocks - batch.target("block_counts")).detach().flatten(1)
    by_hand = 2 * (error.abs() if error_kind is BlockErrorKind.mae else error.square()).sum() / 3
    name = {BlockErrorKind.mae: "absolute_error", BlockErrorKind.mse: "squared_error"}[error_kind]
    torch.testing.assert_close(terms.parts[name], by_hand)
    torch.testing.assert_close(terms.total.detach(), by_hand + terms.parts["cross_entropy"])


def test_the_labels_alone_decide_the_cross_entropy():
    logits, batch = prediction_and_batch()
    ones = {**batch.targets, "labels": torch.ones_like(batch.target("labels"))}
    for loss in (
        build_loss(CrossEntropyConfig(), BINS.grid, BINS),
        build_loss(DaceConfig(weight=0.0), BINS.grid, BINS),
    ):
        found = loss(predict(logits), dataclasses.replace(batch, targets=ones)).total
        torch.testing.assert_close(found, -logits.log_softmax(1)[:, 1].sum((1, 2)).mean())
        unlabeled = {"block_counts": batch.target("block_counts")}
        with pytest.raises(ValueError, match="no target 'labels'"):
            loss(predict(logits), dataclasses.replace(batch, targets=unlabeled))


@pytest.mark.parametrize("config", [DaceConfig(), DaceBlockErrorConfig(), CrossEntropyConfig()])
def test_a_loss_of_bins_says_that_it_needs_them(config):
    with pytest.raises(ConfigError, match=f"loss={config.choice}: classifies blocks into bins, and bins=none has none"):
        build_loss(config, BlockGrid(8), None)


def test_each_loss_names_the_targets_it_needs():
    assert build_loss(DaceConfig(), BINS.grid, BINS).needs == {"points", "block_counts", "labels"}
    assert build_loss(DaceConfig(weight=0.0), BINS.grid, BINS).needs == {"labels"}
    assert build_loss(CrossEntropyConfig(), BINS.grid, BINS).needs == {"labels"}


def test_an_unknown_kind_is_refused():
    with pytest.raises(ConfigError, match="loss=focal: no builder is registered for LossConfig"):
        build_loss(LossConfig(name="focal"), BINS.grid, BINS)
