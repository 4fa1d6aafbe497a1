"""Batches: complete, the same on any number of workers and processes, and after a resume."""

import math

import pytest
import torch

from headcount.bins import CountBins
from headcount.config import (
    AdaptiveKernelConfig,
    AugmentConfig,
    BinsConfig,
    BlockwiseConfig,
    ConfigError,
    DaceConfig,
    FixedKernelConfig,
    MethodConfig,
    MseConfig,
    SupervisedConfig,
)
from headcount.data import loading
from headcount.data.augment import build_augment
from headcount.data.crowd import CrowdDataset
from headcount.data.loading import (
    EpochSampler,
    Targets,
    TrainLoader,
    build_batches,
    build_smoothing,
    build_train_loader,
    collate,
    evaluation_samples,
)
from headcount.data.points import Smoothing
from headcount.errors import DataError
from headcount.types import Batch, BlockGrid, Sample


def crowd(images: int, *, seed: int = 0, augmented: bool = True) -> CrowdDataset:
    """Noise images of differing sizes, each named by its number, with as many heads plus one."""
    rng = torch.Generator().manual_seed(17)
    sizes = [(40 + k, 50 - k % 7) for k in range(images)]
    pictures = [torch.randint(0, 256, (3, h, w), generator=rng, dtype=torch.uint8) for w, h in sizes]
    points = [torch.rand(k + 1, 2, generator=rng) * torch.tensor(sizes[k]) for k in range(images)]
    augment = build_augment(AugmentConfig(crop_size=32, max_scale=1.2)) if augmented else None
    names = [str(k) for k in range(images)]
    return CrowdDataset(
        names, pictures.__getitem__, points, source_sizes=sizes, sizes=sizes, augment=augment, seed=seed
    )


def targets_of(*needs: str, merge: bool = False, smoothing: Smoothing | None = None) -> Targets:
    smoothed = {"smoothed"} if smoothing else set()
    return Targets(frozenset(needs) | smoothed, BlockGrid(8), merge=merge, smoothing=smoothing)


def loader(
    dataset: CrowdDataset,
    *,
    batch: int = 4,
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
    smoothing: Smoothing | None = None,
) -> TrainLoader:
    return build_train_loader(
        dataset,
        build_batches(SupervisedConfig(), targets_of("points", "block_counts", smoothing=smoothing)),
        batch_size_per_process=batch,
        seed=5,
        workers=workers,
        rank=rank,
        world=world,
    )


def same(a: list[Batch], b: list[Batch]) -> bool:
    return len(a) == len(b) and all(
        x.names == y.names
        and torch.equal(x.images, y.images)
        and torch.equal(x.target("block_counts"), y.target("block_counts"))
        and all(torch.equal(p, q) for p, q in zip(x.target("points"), y.target("points"), strict=True))
        for x, y in zip(a, b, strict=True)
    )


def test_collate_stacks_images_and_counts_heads() -> None:
    first = Sample(torch.full((3, 16, 24), 7, dtype=torch.uint8), torch.tensor([(0.0, 0.0), (23.0, 15.0)]), "a")
    second = Sample(torch.arange(3 * 16 * 24).remainder(256).to(torch.uint8).view(3, 16, 24), torch.zeros(0, 2), "b")
    batch = collate([first, second], targets=targets_of("points", "block_counts"))
    assert torch.equal(batch.images, torch.stack([first.image, second.image]))
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.target("block_counts").tolist() == [[[[1, 0, 0], [0, 0, 1]]], [[[0, 0, 0], [0, 0, 0]]]]
    assert batch.target("block_counts").dtype == torch.float32
    assert batch.names == ["a", "b"]
    assert torch.equal(batch.target("points")[0], first.points)


def test_only_the_needed_targets_are_made() -> None:
    sample = Sample(torch.zeros(3, 16, 16, dtype=torch.uint8), torch.zeros(0, 2), "a")
    assert set(collate([sample], targets=targets_of("block_counts")).targets) == {"block_counts"}
    assert collate([sample], targets=targets_of()).targets == {}
    with pytest.raises(ValueError, match=r"no target 'points', only block_counts.*`needs`"):
        collate([sample], targets=targets_of("block_counts")).target("points")


def test_labels_are_the_bins_of_the_counts() -> None:
    bins = CountBins(BlockGrid(8), ((0, 0), (1, 1), (2, math.inf)), (0.0, 1.0, 2.5))
    points = torch.tensor([(0.0, 0.0), (17.0, 9.0), (18.0, 9.0), (19.0, 9.0)])
    samples = [Sample(torch.zeros(3, 16, 24, dtype=torch.uint8), p, "a") for p in (points, torch.zeros(0, 2))]
    targets = Targets(frozenset({"labels"}), BlockGrid(8), bins=bins)(samples)
    assert set(targets) == {"labels"}
    assert targets["labels"].tolist() == [[[1, 0, 0], [0, 0, 2]], [[0, 0, 0], [0, 0, 0]]]


def test_labels_of_intervals_are_those_of_the_smoothed_counts() -> None:
    bins = CountBins.from_edges([0.05], grid=BlockGrid(8))
    sample = Sample(torch.zeros(3, 8, 24, dtype=torch.uint8), torch.tensor([(7.0, 4.0)]), "a")
    needs = frozenset({"labels", "block_counts"})
    targets = Targets(needs, BlockGrid(8), smoothing=Smoothing(1.0), bins=bins)([sample])
    assert set(targets) == needs
    # One deviation from the edge, 16 % of a head lie in the next block; nine deviations away, nothing.
    assert targets["labels"].tolist() == [[[2, 2, 0]]]


def test_a_count_in_no_bin_is_refused_when_the_batch_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise it would be trained as a wrong class; the message names the image, also from a worker process."""
    bins = CountBins(BlockGrid(8), ((0, 0), (1, math.inf)), (0.0, 1.0))
    monkeypatch.setattr(loading, "block_counts", lambda points, **_: torch.full((4, 4), len(points) / 2))
    make_batch = build_batches(SupervisedConfig(), Targets(frozenset({"labels"}), BlockGrid(8), bins=bins))
    for workers in (0, 1):
        batches = build_train_loader(
            crowd(1, augmented=False), make_batch, batch_size_per_process=1, seed=0, workers=workers
        )
        with pytest.raises(DataError, match=r"^image 0: block count 0\.5 lies in no bin; allowed are the integers"):
            list(batches.epoch(0))


def test_targets_that_nobody_makes_are_refused() -> None:
    with pytest.raises(ValueError, match="needs smoothed counts, but there is no Gaussian"):
        targets_of("smoothed")
    with pytest.raises(ConfigError, match="needs labels, but there are no bins"):
        targets_of("labels")
    with pytest.raises(ConfigError, match="needs smoothed counts, but there is no Gaussian"):
        Targets(frozenset({"labels"}), BlockGrid(8), bins=CountBins.from_edges([0.5], grid=BlockGrid(8)))
    with pytest.raises(ConfigError, match="method=supervised: the loss needs the target depth"):
        build_batches(SupervisedConfig(), targets_of("points", "depth"))
    with pytest.raises(ConfigError, match="method=other: no builder is registered for MethodConfig"):
        build_batches(MethodConfig(name="other"), targets_of())


def test_collate_counts_a_pixel_once_if_asked_and_keeps_the_points() -> None:
    points = torch.tensor([[1.2, 1.0], [1.7, 1.9], [2.0, 1.0], [9.0, 9.0], [9.0, 9.0]])
    sample = Sample(torch.zeros(3, 16, 16, dtype=torch.uint8), points, "a")
    counted = collate([sample], targets=targets_of("block_counts"))
    assert counted.target("block_counts").flatten().tolist() == [3, 0, 0, 2]
    merged = collate([sample], targets=targets_of("points", "block_counts", merge=True))
    assert merged.target("block_counts").flatten().tolist() == [2, 0, 0, 1]
    assert len(merged.target("points")[0]) == 5


def test_collate_smooths_if_asked() -> None:
    points = torch.tensor([[1.2, 1.0], [1.7, 1.9], [9.0, 9.0]])
    samples = [Sample(torch.zeros(3, 16, 16, dtype=torch.uint8), p, "a") for p in (points, points[:0])]
    smoothed = collate(samples, targets=targets_of(smoothing=Smoothing(2.0))).target("smoothed")
    assert smoothed.shape == (2, 1, 2, 2)
    assert smoothed.dtype == torch.float32
    assert smoothed.sum((1, 2, 3)).tolist() == pytest.approx([3, 0])
    merged = collate(samples, targets=targets_of(merge=True, smoothing=Smoothing(2.0))).target("smoothed")
    assert float(merged.sum()) == pytest.approx(2)


def test_two_workers_smooth_as_none_does() -> None:
    dataset = crowd(8)
    smoothing = Smoothing(4.0, neighbors=3)
    alone, helped = (list(loader(dataset, workers=workers, smoothing=smoothing).epoch(0)) for workers in (0, 2))
    for a, b in zip(alone, helped, strict=True):
        assert torch.equal(a.target("smoothed"), b.target("smoothed"))
        torch.testing.assert_close(a.target("smoothed").sum(), a.target("block_counts").sum())


def test_heads_are_smoothed_for_the_loss_or_else_the_bins() -> None:
    assert build_smoothing(BinsConfig(), DaceConfig()) is None
    assert build_smoothing(BlockwiseConfig(sigma=3.0), DaceConfig()) == Smoothing(3.0)
    assert build_smoothing(BlockwiseConfig(sigma=3.0), MseConfig(kernel=FixedKernelConfig(sigma=9.0))) == Smoothing(9.0)
    adaptive = MseConfig(kernel=AdaptiveKernelConfig(sigma=9.0, neighbors=2, beta=0.1))
    assert build_smoothing(BinsConfig(), adaptive) == Smoothing(9.0, neighbors=2, beta=0.1)


def test_collate_refuses_different_sizes() -> None:
    samples = [Sample(torch.zeros(3, n, 8, dtype=torch.uint8), torch.zeros(0, 2), "x") for n in (8, 16)]
    with pytest.raises(ValueError, match=r"one size, got .*\(8, 8\), \(16, 8\)"):
        collate(samples, targets=targets_of())


def test_an_epoch_shows_each_image_at_most_once_and_drops_less_than_a_batch() -> None:
    train = loader(crowd(10))
    assert len(train) == 2
    for epoch in range(3):
        batches = list(train.epoch(epoch))
        names = [name for batch in batches for name in batch.names]
        assert [len(batch.names) for batch in batches] == [4, 4]
        assert len(set(names)) == 8
    orders = [[name for batch in train.epoch(epoch) for name in batch.names] for epoch in (0, 1)]
    assert orders[0] != orders[1]


@pytest.mark.parametrize(("images", "batch", "world", "expected"), [(3, 8, 1, 3), (5, 8, 2, 2), (2, 1, 2, 1)])
def test_a_dataset_smaller_than_a_batch_gives_one_smaller_batch(
    images: int, batch: int, world: int, expected: int
) -> None:
    for rank in range(world):
        train = loader(crowd(images), batch=batch, rank=rank, world=world)
        assert [len(b.names) for b in train.epoch(0)] == [expected]
        assert len(train) == 1


def test_fewer_images_than_processes_are_refused() -> None:
    with pytest.raises(ValueError, match="2 training images cannot be shared among 3 processes"):
        loader(crowd(2), world=3)


def test_no_images_are_refused() -> None:
    with pytest.raises(ConfigError, match="the training split has no images; name or add some"):
        EpochSampler(0, batch_size=4, seed=1)


def test_processes_share_the_batches_of_one() -> None:
    whole = list(EpochSampler(22, batch_size=6, seed=1))
    parts = [list(EpochSampler(22, batch_size=2, seed=1, rank=rank, world=3)) for rank in range(3)]
    assert len(whole) == 3
    for step, keys in enumerate(whole):
        shares = [part[step] for part in parts]
        assert [len(share) for share in shares] == [2, 2, 2]
        assert sorted(key for share in shares for key in share) == sorted(keys)


def test_two_workers_give_the_samples_of_none() -> None:
    dataset = crowd(8)
    alone, helped = loader(dataset), loader(dataset, workers=2)
    for epoch in (0, 1):
        assert same(list(alone.epoch(epoch)), list(helped.epoch(epoch)))


def batch_of_every_target(samples: list[Sample]) -> Batch:
    """Targets of every type and size; in a worker process."""
    tensors = {
        str(dtype): [torch.arange(24).reshape(4, 6).to(dtype).T, torch.zeros(0, 2, dtype=dtype)]
        for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool)
    }
    others = {"scalar": torch.tensor(2.5), "large": torch.arange(1e6), "nested": {"a": torch.ones(3)}, "none": []}
    return Batch(torch.stack([sample.image for sample in samples]), ["a", "b"], tensors | others)


def test_a_batch_arrives_from_a_worker_as_it_was_made() -> None:
    dataset = crowd(2)
    sampler = EpochSampler(2, batch_size=2, seed=0)
    (sent,) = TrainLoader(dataset, sampler, batch_of_every_target, workers=1, pin_memory=False).epoch(0)
    (kept,) = TrainLoader(dataset, sampler, batch_of_every_target, workers=0, pin_memory=False).epoch(0)
    assert sent.names == kept.names == ["a", "b"]
    assert torch.equal(sent.images, kept.images)
    torch.testing.assert_close(sent.targets, kept.targets, rtol=0, atol=0)
    (small, empty), large = sent.targets["torch.float32"], sent.targets["large"]
    small += 1  # Bytes that were received may be read-only.
    # Each shared tensor costs a connection: only images and large targets are worth one.
    assert not small.is_shared()
    assert not empty.is_shared()
    assert not sent.targets["scalar"].is_shared()
    assert large.is_shared()
    assert sent.images.is_shared()


def test_a_resumed_run_sees_what_an_uninterrupted_one_sees() -> None:
    through, resumed = loader(crowd(8)), loader(crowd(8))
    epochs = [list(through.epoch(epoch)) for epoch in range(3)]
    torch.rand(7)
    assert same(list(resumed.epoch(2)), epochs[2])
    assert not same(epochs[1], epochs[2])


def test_an_epoch_left_early_does_not_disturb_the_next() -> None:
    train = loader(crowd(8), workers=1)
    next(iter(train.epoch(0)))
    assert same(list(train.epoch(1)), list(loader(crowd(8)).epoch(1)))


def test_loading_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    list(loader(crowd(8)).epoch(0))
    list(evaluation_samples(crowd(3)))
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_evaluation_sees_every_image_once_and_whole(workers: int, world: int) -> None:
    dataset = crowd(5)
    seen = {}
    for rank in range(world):
        for index, sample in evaluation_samples(dataset, rank=rank, world=world, workers=workers):
            assert index not in seen
            assert index % world == rank
            seen[index] = (sample.name, tuple(reversed(sample.image.shape[1:])), len(sample.points))
    assert seen == {k: (str(k), dataset.sizes[k], k + 1) for k in range(5)}
