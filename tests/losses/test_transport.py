import ot
import pytest
import torch

from headcount.config import Reduction
from headcount.losses.sinkhorn import TruncatedSinkhorn
from headcount.losses.transport import TransportLoss, transport_surrogate
from losses.problems import crowd, squared_distances


def transport_loss(*, ot_weight=0.8, reduction=Reduction.mean, tv_weight=0.01, count_weight=1.0, regularization=10.0):
    return TransportLoss(
        TruncatedSinkhorn(regularization, 100),
        block_size=8,
        ot_weight=ot_weight,
        ot_reduction=reduction,
        tv_weight=tv_weight,
        count_weight=count_weight,
    )


def batch_of(*lengths, rows=6, cols=9, dtype=torch.float64):
    """Predicted block counts, points and true block counts of crowds of these sizes."""
    crowds = [crowd(n, rows, cols, seed=i) for i, n in enumerate(lengths)]
    predicted = torch.stack([(n + 2) * b for n, (_, b) in zip(lengths, crowds, strict=True)]).unsqueeze(1).to(dtype)
    true = torch.zeros(len(lengths), 1, rows, cols, dtype=dtype)
    for i, (points, _) in enumerate(crowds):
        col, row = (points // 8).long().unbind(1)
        true[i, 0].index_put_((row, col), torch.ones(len(points), dtype=dtype), accumulate=True)
    return predicted.requires_grad_(), [p.to(dtype) for p, _ in crowds], true


def gradient(loss, predicted, points, true):
    return torch.autograd.grad(loss(predicted, points, true).total, predicted)[0]


def test_parts_by_hand():
    predicted = torch.tensor([[[[1.0, 3.0]]], [[[0.0, 0.5]]]], dtype=torch.float64)
    points = [torch.tensor([[4.0, 4.0], [12.0, 4.0], [13.0, 4.0]]), torch.zeros(0, 2)]
    true = torch.tensor([[[[1.0, 2.0]]], [[[0.0, 0.0]]]], dtype=torch.float64)
    parts = transport_loss(tv_weight=0.5, count_weight=2.0)(predicted, points, true).parts
    assert float(parts["count"]) == pytest.approx(2 * (1 + 0.5) / 2)
    assert float(parts["total_variation"]) == pytest.approx(0.5 * (3 * (1 / 12 + 1 / 12) + 0) / 2)
    assert float(parts["transport_surrogate"]) == pytest.approx(0, abs=1e-9)


def test_total_is_the_sum_of_the_weighted_parts():
    terms = transport_loss()(*batch_of(20, 3, 0))
    assert float(terms.total.detach()) == pytest.approx(sum(float(v) for v in terms.parts.values()))
    assert float(terms.logged["transport_cost"]) > 1
    assert not any(v.requires_grad for v in terms.parts.values())


def test_gradient_of_variation_and_count_is_numerical():
    predicted, points, true = batch_of(8, 3, rows=3, cols=4)
    loss = transport_loss(ot_weight=0.0)
    assert torch.autograd.gradcheck(lambda p: loss(p, points, true).total, (predicted,))


def test_gradient_of_transport_is_that_of_the_entropic_distance():
    # POT, converged: the least value of <P, C> + reg * sum P (log P - 1), as the prediction moves a little.
    n, rows, cols, regularization = 9, 3, 4, 50.0
    points, blocks = crowd(n, rows, cols, seed=4)
    predicted = (7 * blocks)[None].requires_grad_()
    a = torch.full((n,), 1 / n, dtype=torch.float64)
    cost = torch.from_numpy(squared_distances(points.numpy(), rows, cols, 8))

    def distance(counts):
        b = (counts / counts.sum()).flatten()
        plan = ot.sinkhorn(a, b, cost, regularization, method="sinkhorn_log", numItermax=20000, stopThr=1e-13)
        return float((plan * cost).sum() + regularization * (plan * (plan.clamp(min=1e-300).log() - 1)).sum())

    solution = TruncatedSinkhorn(regularization, 2000)([points], blocks[None], block_size=8)
    found = torch.autograd.grad(transport_surrogate(predicted, solution.potentials).sum(), predicted)[0][0]
    for k in range(6):
        step = 1e-4 * torch.randn(rows, cols, dtype=torch.float64, generator=torch.Generator().manual_seed(k)) * blocks
        change = (distance(predicted[0].detach() + step) - distance(predicted[0].detach() - step)) / 2
        # The solver stops once the error is below its threshold, which leaves some per mille.
        assert float((found * step).sum()) == pytest.approx(change, rel=2e-2, abs=1e-7)


def test_gradient_of_transport_does_not_change_the_count():
    predicted, points, true = batch_of(20, 3)
    found = gradient(transport_loss(tv_weight=0.0, count_weight=0.0), predicted, points, true)
    assert float(found.abs().max()) > 0.1
    torch.testing.assert_close(
        (found * predicted).sum((1, 2, 3)), torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-5
    )


def test_mean_does_not_depend_on_the_batch_size_and_sum_does():
    predicted, points, true = batch_of(20, 3, 0)
    twice = predicted.detach().repeat(2, 1, 1, 1).requires_grad_(), points * 2, true.repeat(2, 1, 1, 1)
    mean, total = transport_loss(), transport_loss(reduction=Reduction.sum, tv_weight=0.0, count_weight=0.0)
    once = mean(predicted, points, true)
    for name, value in mean(*twice).parts.items():
        torch.testing.assert_close(value, once.parts[name], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(2 * gradient(mean, *twice)[:3], gradient(mean, predicted, points, true))
    torch.testing.assert_close(gradient(total, *twice)[:3], gradient(total, predicted, points, true))


def test_default_weight_is_the_released_one_for_eight_images():
    eight = batch_of(20, 3, 0, 40, 1, 7, 12, 30)
    ours = transport_loss(ot_weight=0.8, reduction=Reduction.mean)
    released = transport_loss(ot_weight=0.1, reduction=Reduction.sum)
    torch.testing.assert_close(gradient(ours, *eight), gradient(released, *eight))


def test_order_of_the_images_does_not_matter():
    predicted, points, true = batch_of(20, 3, 0, 150, 7)
    order = [3, 0, 4, 2, 1]
    loss = transport_loss()
    shuffled = predicted.detach()[order].requires_grad_(), [points[i] for i in order], true[order]
    torch.testing.assert_close(gradient(loss, *shuffled), gradient(loss, predicted, points, true)[order])


def test_transposed_images_have_transposed_gradients():
    predicted, points, true = batch_of(20, 3)
    loss = transport_loss()
    turned = predicted.detach().mT.contiguous().requires_grad_(), [p.flip(1) for p in points], true.mT
    torch.testing.assert_close(gradient(loss, *turned).mT, gradient(loss, predicted, points, true))


@pytest.mark.parametrize(
    "case",
    ["no points", "nothing predicted", "one point", "equal points", "on the corners", "nothing at all", "certain"],
)
def test_loss_and_gradient_are_finite(case):
    lengths = {"no points": (0, 5), "one point": (1, 1), "nothing at all": (0, 0)}.get(case, (30, 5))
    predicted, points, true = batch_of(*lengths, rows=56, cols=40, dtype=torch.float32)
    if case in ("nothing predicted", "nothing at all"):
        predicted = torch.zeros_like(predicted).requires_grad_()
    if case == "equal points":
        points = [torch.full_like(p, 100.0) for p in points]
    if case == "on the corners":
        points = [torch.tensor([[0.0, 0.0], [320.0, 448.0]])] * 2
    if case == "certain":  # a saturated softmax: one block holds everything, far from the points
        predicted = (1e-30 * torch.ones_like(predicted)).index_fill(3, torch.tensor([39]), 1.0).requires_grad_()
    terms = transport_loss()(predicted, points, true)
    found = torch.autograd.grad(terms.total, predicted)[0]
    assert torch.isfinite(terms.total)
    assert torch.isfinite(found).all()
    assert all(torch.isfinite(v) for v in terms.parts.values())
    if case == "nothing at all":
        assert float(terms.total.detach()) == 0
