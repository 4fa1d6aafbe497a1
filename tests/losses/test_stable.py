"""The stable solver is POT's log-domain one, at the same number of iterations and converged."""

import numpy as np
import ot
import pytest
import torch

from headcount.config import Reduction, StableTransportConfig
from headcount.losses import stable
from headcount.losses.build import build_loss
from headcount.losses.stable import StableSinkhorn
from headcount.losses.transport import TransportLoss
from headcount.types import BlockGrid
from losses.problems import KNOWN, crowd, squared_distances


def solve(points, blocks, *, block_size=8, regularization=10.0, iterations=100, tolerance=None):
    return StableSinkhorn(regularization, iterations, tolerance)(points, blocks, block_size=block_size)


def pot(points, blocks, *, block_size=8, regularization=10.0, iterations, stop=0.0):
    """Potentials of the blocks, their weighted mean 0, and <P, C>, by POT's iteration in logarithms."""
    b = blocks.numpy().ravel()
    a, cost = np.full(len(points), 1 / len(points)), squared_distances(points.numpy(), *blocks.shape, block_size)
    plan, log = ot.sinkhorn(
        *(a, b, cost, regularization),
        method="sinkhorn_log",
        numItermax=iterations,
        stopThr=stop,
        warn=False,
        log=True,
    )
    g = regularization * log["log_v"]
    return (g - g @ b).reshape(blocks.shape), float((plan * cost).sum())


PROBLEMS = [(23, 4, 5, 100.0), (50, 8, 8, 10.0), (1, 8, 8, 10.0), (30, 8, 5, 1.0), (2, 1, 8, 10.0)]


@pytest.mark.parametrize(("n", "rows", "cols", "regularization"), PROBLEMS)
@pytest.mark.parametrize("iterations", [1, 2, 9, 100])
def test_pot_makes_the_same_iterations(n, rows, cols, regularization, iterations):
    points, blocks = crowd(n, rows, cols, seed=n)
    kind = {"regularization": regularization, "iterations": iterations}
    potentials, cost = pot(points, blocks, **kind)
    solution = solve([points], blocks[None], **kind)
    np.testing.assert_allclose(solution.potentials[0].numpy(), potentials, rtol=0, atol=1e-6)
    assert float(solution.costs) == pytest.approx(cost, rel=1e-6)
    single = solve([points.float()], blocks[None].float(), **kind)
    np.testing.assert_allclose(single.potentials[0].numpy(), potentials, rtol=0, atol=1e-2)
    assert float(single.costs) == pytest.approx(cost, rel=1e-4)


def test_absorbing_often_or_never_changes_nothing(monkeypatch):
    points, blocks = crowd(40, 8, 8, seed=3)
    usual = solve([points], blocks[None])
    for largest in (1.0, 1 + 1e-3, 2.0**200):
        monkeypatch.setattr(stable, "MAX_SCALING", largest)
        torch.testing.assert_close(solve([points], blocks[None]).potentials, usual.potentials, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("n", "rows", "cols", "regularization"), PROBLEMS[:3])
def test_with_a_tolerance_it_is_pot_converged(n, rows, cols, regularization):
    points, blocks = crowd(n, rows, cols, seed=n)
    potentials, cost = pot(points, blocks, regularization=regularization, iterations=50_000, stop=1e-13)
    solution = solve([points], blocks[None], regularization=regularization, iterations=10_000, tolerance=1e-12)
    np.testing.assert_allclose(solution.potentials[0].numpy(), potentials, rtol=0, atol=1e-6)
    assert float(solution.costs) == pytest.approx(cost, rel=1e-6)


def test_a_looser_tolerance_stops_earlier_and_within_it():
    points, blocks = crowd(50, 8, 8, seed=4)
    cost = torch.from_numpy(squared_distances(points.numpy(), 8, 8, 8))
    converged = solve([points], blocks[None], iterations=10_000, tolerance=1e-10).costs
    errors = []
    for tolerance in (1e-2, 1e-4):
        g = solve([points], blocks[None], iterations=10_000, tolerance=tolerance).potentials.flatten()
        plan = torch.softmax((g - cost) / 10, 1) / 50
        assert float((plan.sum(0) - blocks.flatten()).abs().sum()) < tolerance
        errors.append(abs(float((plan * cost).sum() - converged)))
    assert 0 < errors[1] < errors[0]


def test_a_tolerance_out_of_reach_ends_all_the_same():
    points, blocks = crowd(9, 3, 4, seed=5)
    capped = solve([points], blocks[None], iterations=37, tolerance=0.0)
    counted = solve([points], blocks[None], iterations=37)
    torch.testing.assert_close(capped.potentials, counted.potentials)


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_known_answers(name, dtype):
    problem = KNOWN[name]()
    solution = solve(
        [problem.points.to(dtype)],
        problem.blocks[None].to(dtype),
        block_size=problem.block_size,
        regularization=problem.regularization,
        iterations=10_000,
        tolerance=1e-6 if dtype is torch.float32 else 1e-12,
    )
    # Blocks without a share: as many floors as there are.
    tolerance = 1e-4 if dtype is torch.float32 else 1e-8
    assert float(solution.costs) == pytest.approx(problem.cost, rel=tolerance, abs=tolerance)
    if problem.potentials is not None:
        difference = solution.potentials[0].double() - problem.potentials
        assert float(difference.max() - difference.min()) < tolerance * 10


def test_heads_far_from_all_the_mass_are_transported():
    # 440 px apart: exp(-440^2 / 10) is 0 in any precision, and the released iteration transports nothing.
    blocks = torch.zeros(1, 1, 56)
    blocks[0, 0, 55] = 1
    solution = solve([torch.tensor([[4.0, 4.0]])], blocks)
    assert float(solution.costs) == pytest.approx(440.0**2, rel=1e-6)


def stable_loss(weights=(0.8, 0.01, 1.0), iterations=20):
    ot_weight, tv_weight, count_weight = weights
    return TransportLoss(
        StableSinkhorn(10.0, iterations),
        block_size=8,
        ot_weight=ot_weight,
        ot_reduction=Reduction.mean,
        tv_weight=tv_weight,
        count_weight=count_weight,
    )


@pytest.mark.parametrize(
    "case",
    ["no points", "nothing predicted", "empty blocks", "one point", "equal points", "on the corners", "certain"],
)
def test_loss_and_gradient_are_finite(case):
    predicted, points = torch.rand(2, 1, 56, 40), [torch.rand(n, 2) * torch.tensor([320.0, 448.0]) for n in (30, 5)]
    if case == "no points":
        points[0] = torch.zeros(0, 2)
    if case == "nothing predicted":
        predicted[0] = 0
    if case == "empty blocks":  # what a ReLU leaves
        predicted = (predicted - 0.9).relu()
    if case == "one point":
        points = [p[:1] for p in points]
    if case == "equal points":
        points = [torch.full_like(p, 100.0) for p in points]
    if case == "on the corners":
        points = [torch.tensor([[0.0, 0.0], [320.0, 448.0]])] * 2
    if case == "certain":
        predicted = (1e-30 * torch.ones_like(predicted)).index_fill(3, torch.tensor([39]), 1.0)
    true, predicted = torch.zeros(2, 1, 56, 40), predicted.requires_grad_()
    for weights in ((0.8, 0.01, 1.0), (1.0, 0.0, 0.0)):
        terms = stable_loss(weights)(predicted, points, true)
        found = torch.autograd.grad(terms.total, predicted)[0]
        assert torch.isfinite(terms.total)
        assert torch.isfinite(found).all()
        assert all(torch.isfinite(v) for v in terms.parts.values())
    idle = {"no points": True, "nothing predicted": True}.get(case, False)
    assert bool(found[0].any()) is not idle  # the transport alone, of the first image
    assert found[1].any()


def test_a_batch_is_its_images_one_at_a_time():
    crowds = [crowd(n, 7, 5, seed=n) for n in (0, 3, 40, 1)]
    together = solve([p for p, _ in crowds], torch.stack([b for _, b in crowds]))
    for i, (points, blocks) in enumerate(crowds):
        alone = solve([points], blocks[None])
        torch.testing.assert_close(together.potentials[i], alone.potentials[0])
        torch.testing.assert_close(together.costs[i], alone.costs[0])


def test_transposing_the_image_transposes_the_potentials():
    points, blocks = crowd(40, 7, 13, seed=6)
    upright, turned = solve([points], blocks[None]), solve([points.flip(1)], blocks.T[None])
    torch.testing.assert_close(turned.potentials[0].T, upright.potentials[0], rtol=0, atol=1e-6)


def test_nothing_is_differentiated():
    points, blocks = crowd(5, 6, 6, seed=9)
    assert not solve([points], blocks[None].requires_grad_()).potentials.requires_grad


def test_the_config_chooses_it():
    from headcount.config import DmConfig

    transport = StableTransportConfig(regularization=3.0, iterations=7, tolerance=1e-3)
    loss = build_loss(DmConfig(transport=transport), BlockGrid(8), None)
    assert loss.transport.solver == StableSinkhorn(3.0, 7, 1e-3)
    assert StableTransportConfig().max_iterations == 100
    assert StableTransportConfig(tolerance=1e-3).max_iterations == 10_000


@pytest.mark.gpu
def test_a_gpu_finds_the_same():
    points, blocks = crowd(50, 20, 28, seed=1)
    here, there = solve([points], blocks[None]), solve([points.cuda()], blocks[None].cuda())
    torch.testing.assert_close(there.potentials.cpu(), here.potentials, rtol=0, atol=1e-6)
