import numpy as np
import ot
import pytest
import torch

from headcount.losses import sinkhorn
from headcount.losses.sinkhorn import TruncatedSinkhorn
from losses.problems import KNOWN, crowd, dense_iteration, squared_distances


def solve(points, blocks, *, block_size=8, regularization=10.0, iterations=100):
    return TruncatedSinkhorn(regularization, iterations)(points, blocks, block_size=block_size)


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_known_answers(name, dtype):
    problem = KNOWN[name]()
    solution = solve(
        [problem.points.to(dtype)],
        problem.blocks[None].to(dtype),
        block_size=problem.block_size,
        regularization=problem.regularization,
    )
    tolerance = 1e-4 if dtype is torch.float32 else 1e-9
    assert float(solution.costs) == pytest.approx(problem.cost, rel=tolerance, abs=tolerance)
    if problem.potentials is not None:
        difference = solution.potentials[0].double() - problem.potentials
        assert float(difference.max() - difference.min()) < tolerance * 10


@pytest.mark.parametrize("iterations", [1, 9, 45])
def test_pot_makes_the_same_iterations(monkeypatch, iterations):
    monkeypatch.setattr(sinkhorn, "STOP_BELOW", -1.0)
    points, blocks = crowd(23, 4, 5, seed=1)
    regularization = 100.0  # every block within reach, where EPSILON has no say
    cost = squared_distances(points.numpy(), 4, 5, 8)
    plan, log = ot.bregman.sinkhorn_knopp(
        np.full(23, 1 / 23),
        blocks.numpy().ravel(),
        cost,
        regularization,
        numItermax=iterations,
        stopThr=0,
        warn=False,
        log=True,
    )
    solution = solve([points], blocks[None], regularization=regularization, iterations=iterations)
    potentials = regularization * np.log(log["v"]).reshape(4, 5)
    np.testing.assert_allclose(solution.potentials[0].numpy(), potentials, rtol=0, atol=1e-7)
    assert float(solution.costs) == pytest.approx((plan * cost).sum(), rel=1e-9)


def test_many_iterations_approach_the_exact_transport():
    points, blocks = crowd(12, 3, 4, seed=2)
    exact = ot.emd2(np.full(12, 1 / 12), blocks.numpy().ravel(), squared_distances(points.numpy(), 3, 4, 8))
    costs = [float(solve([points], blocks[None], regularization=r, iterations=5000).costs) for r in (60.0, 20.0)]
    assert exact < costs[1] < costs[0]
    assert costs[1] < 1.1 * exact


# At 448 px most of the kernel vanishes, so that EPSILON decides: one point, few, many; square and not; far apart.
@pytest.mark.parametrize(("n", "rows", "cols"), [(1, 56, 56), (5, 56, 56), (60, 56, 40), (400, 20, 56)])
def test_the_sparse_kernel_makes_the_dense_iteration(n, rows, cols):
    points, blocks = crowd(n, rows, cols, seed=n)
    potentials, cost, _ = dense_iteration(points, blocks, block_size=8, regularization=10, iterations=100)
    solution = solve([points], blocks[None])
    np.testing.assert_allclose(solution.potentials[0].numpy(), potentials, rtol=0, atol=2e-3)
    assert float(solution.costs) == pytest.approx(cost, rel=1e-5)
    single = solve([points.float()], blocks[None].float())
    np.testing.assert_allclose(single.potentials[0].numpy(), potentials, rtol=0, atol=2e-2)
    assert float(single.costs) == pytest.approx(cost, rel=1e-4)


@pytest.mark.parametrize(("block_size", "regularization"), [(4, 10.0), (16, 10.0), (8, 1.0), (8, 1000.0)])
def test_other_blocks_and_regularizations(block_size, regularization):
    points, blocks = crowd(30, 12, 9, seed=3, block_size=block_size)
    kind = {"block_size": block_size, "regularization": regularization, "iterations": 40}
    potentials, cost, _ = dense_iteration(points, blocks, **kind)
    solution = solve([points], blocks[None], **kind)
    np.testing.assert_allclose(solution.potentials[0].numpy(), potentials, rtol=0, atol=2e-4 * regularization)
    assert float(solution.costs) == pytest.approx(cost, rel=1e-5)


def test_points_out_of_reach_of_every_block():
    points, blocks = torch.tensor([[1.0, 1.0], [126.0, 1.0]]), torch.full((1, 1, 2), 0.5)
    solution = solve([points], blocks, block_size=64, regularization=1.0)
    torch.testing.assert_close(solution.potentials, torch.full_like(blocks, 0.5e16).log())
    assert not solution.costs.any()


def test_an_image_stops_at_the_released_threshold():
    points = torch.from_numpy(np.random.default_rng(0).uniform(0, 96, (1000, 2)))
    counts = np.histogram2d(points[:, 1], points[:, 0], bins=12, range=[[0, 96]] * 2)[0] + 1
    blocks = torch.from_numpy(counts * np.random.default_rng(1).uniform(0.9, 1.1, (12, 12)))
    blocks /= blocks.sum()
    kind = {"block_size": 8, "regularization": 100.0, "iterations": 100}
    stopped, _, made = dense_iteration(points, blocks, **kind)
    went_on, _, _ = dense_iteration(points, blocks, **kind, stop=0)
    assert made < 100
    assert np.abs(stopped - went_on).max() > 0.3

    # The other image of the batch goes on to the end.
    other_points, other_blocks = crowd(40, 12, 12, seed=5)
    other, _, other_made = dense_iteration(other_points, other_blocks, **kind)
    assert other_made == 100
    solution = solve([points, other_points], torch.stack([blocks, other_blocks]), regularization=100.0)
    np.testing.assert_allclose(solution.potentials[0].numpy(), stopped, rtol=0, atol=1e-6)
    np.testing.assert_allclose(solution.potentials[1].numpy(), other, rtol=0, atol=1e-6)


@pytest.mark.parametrize("at_once", [(1, 1), (128, 1024), (10_000, 10_000)])
@pytest.mark.parametrize("vector_product", [True, False])
def test_a_ragged_batch_is_its_images_one_at_a_time(monkeypatch, at_once, vector_product):
    if vector_product and not sinkhorn.VECTOR_PRODUCT_ON_CPU:
        pytest.skip("this torch has no product of a sparse matrix and a vector on the CPU")
    monkeypatch.setitem(sinkhorn.POINTS_AT_ONCE, "cpu", at_once)
    monkeypatch.setattr(sinkhorn, "VECTOR_PRODUCT_ON_CPU", vector_product)
    crowds = [crowd(n, 14, 9, seed=n) for n in (0, 3, 200, 50, 1, 0, 90)]
    solution = solve([p for p, _ in crowds], torch.stack([b for _, b in crowds]))
    assert not solution.potentials[[0, 5]].any()
    assert not solution.costs[[0, 5]].any()
    for i in (1, 2, 3, 4, 6):
        potentials, cost, _ = dense_iteration(*crowds[i], block_size=8, regularization=10, iterations=100)
        np.testing.assert_allclose(solution.potentials[i].numpy(), potentials, rtol=0, atol=2e-3)
        assert float(solution.costs[i]) == pytest.approx(cost, rel=1e-5)


# A batch at once as on a GPU, in parts, and one image at a time; a block of the first is not one of the last.
@pytest.mark.parametrize("at_once", [(10_000, 10_000), (64, 128), (1, 1)])
@pytest.mark.parametrize(("regularization", "iterations"), [(10.0, 100), (100.0, 45)])
def test_nothing_read_from_the_device_is_the_same(monkeypatch, at_once, regularization, iterations):
    kind = {"regularization": regularization, "iterations": iterations}
    crowds = [crowd(n, 14, 9, seed=n) for n in (0, 3, 200, 0, 50, 1, 0)]
    points, blocks = [p for p, _ in crowds], torch.stack([b for _, b in crowds])
    monkeypatch.setitem(sinkhorn.POINTS_AT_ONCE, "cpu", at_once)
    expected = solve(points, blocks, **kind)
    monkeypatch.setitem(sinkhorn.READS_SIZES, "cpu", False)
    found = solve(points, blocks, **kind)
    torch.testing.assert_close(found.potentials, expected.potentials, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.costs, expected.costs, rtol=1e-9, atol=0)
    single = solve([p.float() for p in points], blocks.float(), **kind)
    torch.testing.assert_close(single.potentials.double(), expected.potentials, rtol=0, atol=2e-2)


def test_an_image_stops_at_the_released_threshold_though_nothing_is_read(monkeypatch):
    monkeypatch.setitem(sinkhorn.READS_SIZES, "cpu", False)
    test_an_image_stops_at_the_released_threshold()


def test_transposing_the_image_transposes_the_potentials():
    points, blocks = crowd(40, 7, 13, seed=6)
    upright = solve([points], blocks[None])
    turned = solve([points.flip(1)], blocks.T[None])
    torch.testing.assert_close(turned.potentials[0].T, upright.potentials[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(turned.costs, upright.costs)


def test_moving_heads_and_prediction_by_blocks_moves_the_potentials():
    points, inner = crowd(40, 6, 6, seed=7)
    here, there = torch.zeros(1, 20, 24, dtype=torch.float64), torch.zeros(1, 20, 24, dtype=torch.float64)
    here[0, 6:12, 6:12] = inner
    there[0, 8:14, 11:17] = inner
    a, b = solve([points + 48], here), solve([points + torch.tensor([11 * 8, 8 * 8])], there)
    torch.testing.assert_close(b.potentials[0, 8:14, 11:17], a.potentials[0, 6:12, 6:12], rtol=0, atol=1e-9)
    torch.testing.assert_close(a.costs, b.costs)


def test_equal_heads_are_several():
    points, blocks = crowd(5, 6, 6, seed=8)
    once, twice = solve([points], blocks[None]), solve([points.repeat(2, 1)], blocks[None])
    torch.testing.assert_close(twice.costs, once.costs)  # a = 1 / n: the same distribution


def test_the_number_of_threads_is_given_back():
    points, blocks = crowd(5, 6, 6, seed=9)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        solve([points], blocks[None])
        assert torch.get_num_threads() == 2
        with pytest.raises(IndexError):
            solve([points], torch.zeros(0, 6, 6))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_nothing_is_differentiated():
    points, blocks = crowd(5, 6, 6, seed=9)
    assert not solve([points], blocks[None].requires_grad_()).potentials.requires_grad
