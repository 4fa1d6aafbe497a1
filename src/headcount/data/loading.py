"""From datasets to batches: order, shards over processes, workers.

What a training sample looks like depends on (seed, epoch, index) alone, and the order of an epoch
on (seed, epoch): neither on the number of workers, nor on what was loaded before. A resumed run
therefore sees what an uninterrupted one would.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

from headcount.config import (
    AdaptiveKernelConfig,
    BlocksConfig,
    BlockwiseConfig,
    ConfigError,
    FixedKernelConfig,
    LossConfig,
    MseConfig,
)
from headcount.data.crowd import CrowdDataset, sample_seed
from headcount.data.points import Smoothing, block_counts, one_head_per_pixel, smoothed_counts
from headcount.types import Batch, Sample


def build_smoothing(bins: BlocksConfig, loss: LossConfig) -> Smoothing | None:
    """How heads are smoothed for a loss, or else for the labels of ``bins``; None where neither asks for it."""
    if isinstance(loss, MseConfig):
        match loss.kernel:
            case FixedKernelConfig(sigma):
                return Smoothing(sigma)
            case AdaptiveKernelConfig(sigma, neighbors, beta):
                return Smoothing(sigma, neighbors, beta)
        raise ConfigError(f"no kernel of kind {type(loss.kernel).__name__}")
    return Smoothing(bins.sigma) if isinstance(bins, BlockwiseConfig) else None


def collate(
    samples: Sequence[Sample], *, block_size: int, merge: bool = False, smoothing: Smoothing | None = None
) -> Batch:
    """Samples of one size as a batch, with the heads in each block.

    Args:
        smoothing: how the heads of ``smoothed`` are spread; None leaves it out.
        merge: count the heads of one pixel once, as the released code's density maps do; the points
            of the batch, and so the count and the transport, keep all of them.

    Raises:
        ValueError: if sizes differ or are no multiples of ``block_size``.
    """
    sizes = {tuple(sample.image.shape[1:]) for sample in samples}
    if len(sizes) != 1:
        raise ValueError(f"images of one batch must have one size, got (height, width) {sorted(sizes)}")
    ((height, width),) = sizes
    counted = [one_head_per_pixel(s.points) if merge else s.points for s in samples]
    counts = [block_counts(points, height=height, width=width, block_size=block_size) for points in counted]
    smoothed = None
    if smoothing is not None:
        size = {"height": height, "width": width, "block_size": block_size}
        smoothed = torch.stack([smoothed_counts(p, smoothing.sigmas(p), **size) for p in counted])
        smoothed = smoothed.float().unsqueeze(1)
    return Batch(
        # Channels last in memory, as images are decoded and as convolutions like them.
        images=torch.stack([s.image.permute(1, 2, 0) for s in samples]).permute(0, 3, 1, 2),
        points=[s.points for s in samples],
        block_counts=torch.stack(counts).unsqueeze(1),
        names=[s.name for s in samples],
        smoothed=smoothed,
    )


class EpochSampler(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index) keys, in an order drawn from (seed, epoch).

    The images of an optimizer step are the same on any number of processes; each takes its share
    of them. What is left over at the end of an epoch is dropped, so that all processes see equally
    many batches of equal size. A dataset smaller than one step gives one smaller batch.

    Raises:
        ConfigError: if there are no images, or fewer than processes.
    """

    def __init__(self, images: int, *, batch_size: int, seed: int, rank: int = 0, world: int = 1) -> None:
        if images < 1:
            raise ConfigError("the training split has no images; name or add some")
        if images < world:
            raise ConfigError(
                f"{images} training images cannot be shared among {world} processes; "
                f"set runtime.devices={images} at most"
            )
        self.epoch = 0
        self._images, self._seed, self._rank, self._world = images, seed, rank, world
        # Per process; never more than its share of the dataset, or the epoch would be empty.
        self._batch_size = min(batch_size, images // world)

    def __len__(self) -> int:
        return self._images // (self._batch_size * self._world)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        generator = torch.Generator().manual_seed(sample_seed(self._seed, self.epoch))
        order = torch.randperm(self._images, generator=generator).tolist()
        step = self._batch_size * self._world
        for k in range(len(self)):
            yield [(self.epoch, index) for index in order[k * step : (k + 1) * step][self._rank :: self._world]]


class TrainLoader:
    """Training batches, epoch by epoch; worker processes live as long as this does."""

    def __init__(
        self,
        dataset: CrowdDataset,
        sampler: EpochSampler,
        *,
        block_size: int,
        workers: int,
        pin_memory: bool,
        smoothing: Smoothing | None = None,
    ) -> None:
        self._sampler = sampler
        self._loader: DataLoader[Sample] = DataLoader(
            dataset,
            batch_sampler=sampler,
            num_workers=workers,  # Each runs torch on one thread: DataLoader's own rule.
            collate_fn=partial(collate, block_size=block_size, merge=dataset.one_head_per_pixel, smoothing=smoothing),
            pin_memory=pin_memory,
            persistent_workers=workers > 0,
            generator=torch.Generator(),  # Its draws mean nothing here; the global one is left alone.
        )

    def __len__(self) -> int:
        """Batches an epoch."""
        return len(self._sampler)

    def epoch(self, epoch: int) -> Iterable[Batch]:
        """The batches of that epoch."""
        self._sampler.epoch = epoch
        return iter(self._loader)


def build_train_loader(
    dataset: CrowdDataset,
    *,
    batch_size_per_process: int,
    seed: int,
    block_size: int,
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
    pin_memory: bool = False,
    smoothing: Smoothing | None = None,
) -> TrainLoader:
    """The training batches of one process out of ``world``.

    Args:
        batch_size_per_process: crops a batch on this process; smaller where the dataset is.
        seed: of the order; the samples' own chance is the dataset's.
        smoothing: fills ``Batch.smoothed``; None leaves it out.
    """
    sampler = EpochSampler(len(dataset), batch_size=batch_size_per_process, seed=seed, rank=rank, world=world)
    return TrainLoader(
        dataset, sampler, block_size=block_size, workers=workers, pin_memory=pin_memory, smoothing=smoothing
    )


def evaluation_samples(
    dataset: CrowdDataset, *, rank: int = 0, world: int = 1, workers: int = 0
) -> Iterator[tuple[int, Sample]]:
    """Whole images, one at a time, with their index; process ``rank`` of ``world`` gets each ``world``-th."""
    indices = range(rank, len(dataset), world)
    loader: DataLoader[Sample] = DataLoader(
        dataset,
        sampler=indices,
        batch_size=None,
        num_workers=workers,
        collate_fn=_unchanged,
        generator=torch.Generator(),
    )
    yield from zip(indices, loader, strict=True)


def _unchanged(sample: Any) -> Any:
    return sample
