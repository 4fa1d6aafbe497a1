"""From datasets to batches: targets, order, shards over processes, workers.

A training sample depends only on (seed, epoch, index), and the order of an epoch only on (seed,
epoch): neither on the number of workers nor on what was loaded before. A resumed run therefore
sees the same batches as an uninterrupted one.

A training method of your own: a config (``headcount.config.register("method", name, YourConfig)``)
and a builder registered with ``@build_batches.register``.
"""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial, singledispatch
from multiprocessing.reduction import ForkingPickler
from multiprocessing.util import Finalize
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from headcount.bins import CountBins
from headcount.config import (
    AdaptiveKernelConfig,
    BlocksConfig,
    BlockwiseConfig,
    ConfigError,
    FixedKernelConfig,
    LossConfig,
    MethodConfig,
    RankingConfig,
    SupervisedConfig,
)
from headcount.crops import cut_resized, nested_boxes
from headcount.data.crowd import CrowdDataset, Key, sample_seed
from headcount.data.points import Smoothing, block_counts, one_head_per_pixel, smoothed_counts
from headcount.errors import DataError, HeadcountError
from headcount.types import Batch, BlockGrid, Sample
from headcount.wording import printable


def build_smoothing(bins: BlocksConfig, loss: LossConfig) -> Smoothing | None:
    """The Gaussian of smoothed counts for a loss, or otherwise for the labels of ``bins``; None if neither needs it."""
    match getattr(loss, "kernel", None):  # any loss may have one
        case FixedKernelConfig(sigma):
            return Smoothing(sigma)
        case AdaptiveKernelConfig(sigma, neighbors, beta):
            return Smoothing(sigma, neighbors, beta)
    return Smoothing(bins.sigma) if isinstance(bins, BlockwiseConfig) else None


@dataclass(frozen=True)
class Targets:
    """Makes the targets that a loss needs from the heads of a batch's images, and no others.

    Raises:
        ConfigError: if ``needs`` has ``labels`` and no ``bins`` are given, or smoothed counts are needed, for
            ``smoothed`` or for the labels, and no ``smoothing`` is given.
    """

    needs: frozenset[str]
    """Names of targets: ``points``, one (n, 2) tensor per image, (x, y) in pixels; ``block_counts`` and ``smoothed``,
    heads per block, (batch, 1, rows, cols); ``labels``, the bin of each block's count, (batch, rows, cols); ``mask``,
    the share of each block inside the image's mask, (batch, 1, rows, cols). A method may make others itself."""
    grid: BlockGrid
    merge: bool = False
    """Count the heads in one pixel once, as the released code's density maps do; ``points``, and therefore the count
    and transport terms, keep all of them."""
    smoothing: Smoothing | None = None
    """Gaussian of the ``smoothed`` counts; None if they are not needed."""
    bins: CountBins | None = None
    """Bins of the ``labels``; None if they are not needed."""
    input_size: int | None = None
    """Side of the square images that the network reads, in pixels; None if it reads others."""

    def __post_init__(self) -> None:
        if "labels" in self.needs and self.bins is None:
            raise ConfigError(
                "the loss needs labels, but there are no bins to label with; choose bins, such as bins=fine"
            )
        if "smoothed" in self.needs | self._labeled and self.smoothing is None:
            raise ConfigError(
                "the loss needs smoothed counts, but there is no Gaussian to make them with: it comes from the loss's "
                "own setting `kernel`, or from bins=blockwise"
            )

    def __call__(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """The targets of images of one size, by name.

        Raises:
            ValueError: if a side is no multiple of the block size.
            DataError: if a count lies in no bin; names the image.
        """
        made: dict[str, Any] = {}
        if "mask" in self.needs:
            made["mask"] = torch.stack([self._mask(sample) for sample in samples]).float().unsqueeze(1)
        if "points" in self.needs:
            made["points"] = [sample.points for sample in samples]
        if "block_counts" in self.needs | self._labeled:
            made["block_counts"] = torch.stack([self._block_counts(sample) for sample in samples]).unsqueeze(1)
        if "smoothed" in self.needs | self._labeled:
            made["smoothed"] = torch.stack([self._smoothed(sample) for sample in samples]).float().unsqueeze(1)
        for name in self._labeled:
            made["labels"] = self._labels(samples, made[name])
        return {name: target for name, target in made.items() if name in self.needs}

    @property
    def _labeled(self) -> set[str]:
        """The name of the counts whose bins are the labels; empty if no labels are needed."""
        if "labels" not in self.needs or self.bins is None:
            return set()
        return {"smoothed" if self.bins.smoothed else "block_counts"}

    def _labels(self, samples: Sequence[Sample], counts: Tensor) -> Tensor:
        """The labels of counts, checked here, on the host, where a check makes no GPU wait."""
        assert self.bins is not None
        labels = []
        for sample, of_sample in zip(samples, counts, strict=True):
            try:
                labels.append(self.bins.label(of_sample[None]))
            except ValueError as error:
                raise DataError(f"image {printable(sample.name)}: {error}", kind="count") from error
        return torch.cat(labels)

    def _mask(self, sample: Sample) -> Tensor:
        if sample.mask is not None:
            return sample.mask.shares(self.grid.block_size)
        return torch.ones(self.grid.shape(*sample.image.shape[1:]))

    def _counted(self, sample: Sample) -> Tensor:
        return one_head_per_pixel(sample.points) if self.merge else sample.points

    def _block_counts(self, sample: Sample) -> Tensor:
        height, width = sample.image.shape[1:]
        return block_counts(self._counted(sample), height=height, width=width, block_size=self.grid.block_size)

    def _smoothed(self, sample: Sample) -> Tensor:
        assert self.smoothing is not None
        points, (height, width) = self._counted(sample), sample.image.shape[1:]
        sigmas = self.smoothing.sigmas(points)
        inside = None if sample.mask is None else self._mask(sample)
        return smoothed_counts(
            points, sigmas, height=height, width=width, block_size=self.grid.block_size, inside=inside
        )


_SENT_TYPES = (torch.float32, torch.float64, torch.int64, torch.int32, torch.uint8, torch.bool)
_SENT_BYTES = 2**18
"""Largest target that a worker process sends by value; a larger one is shared."""

MakeBatch = Callable[[Sequence[Sample]], Batch]
"""Turns training samples into a batch; called in worker processes."""


def stack_images(samples: Sequence[Sample]) -> UInt8[Tensor, "batch 3 height width"]:
    """The images of the samples as one tensor.

    Raises:
        ValueError: if their sizes differ.
    """
    sizes = {tuple(sample.image.shape[1:]) for sample in samples}
    if len(sizes) != 1:
        raise ValueError(f"images of one batch must have one size, got (height, width) {sorted(sizes)}")
    # Channels last in memory, as images are decoded and as convolutions prefer. In a worker process, default_collate
    # stacks them in shared memory.
    return default_collate([s.image.permute(1, 2, 0) for s in samples]).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class _ByValue:
    """A tensor whose bytes are sent to another process."""

    tensor: Tensor

    def __reduce__(self) -> tuple[Any, ...]:
        return torch.from_numpy, (self.tensor.numpy(),)


def _by_value(target: Any) -> Any:
    plain = isinstance(target, Tensor) and target.layout is torch.strided and not target.requires_grad
    return _ByValue(target) if plain and target.dtype in _SENT_TYPES and target.nbytes <= _SENT_BYTES else target


def _send_batch(batch: Batch) -> tuple[Any, ...]:
    """Reduce a batch for the queue of a worker process: its small targets become bytes.

    torch places each tensor in shared memory and hands it over through a connection of its own. A batch has one tensor
    of points per image, and these connections would take more time than the images.
    """
    targets = {
        name: [_by_value(tensor) for tensor in target] if isinstance(target, list) else _by_value(target)
        for name, target in batch.targets.items()
    }
    return Batch, (batch.images, batch.names, targets)


ForkingPickler.register(Batch, _send_batch)


def collate(samples: Sequence[Sample], *, targets: Targets) -> Batch:
    """Samples of one size as a batch with its targets.

    Raises:
        ValueError: if sizes differ or are no multiples of the block size.
    """
    return Batch(stack_images(samples), [sample.name for sample in samples], targets(samples))


@singledispatch
def build_batches(config: MethodConfig, targets: Targets) -> MakeBatch:
    """Build the function that makes the batches of a training method; other methods register builders by config type.

    Args:
        targets: makes the targets that the loss needs.

    Raises:
        ConfigError: if the loss needs a target that the method does not make, or no builder is registered.
    """
    raise ConfigError(f"method={config.name}: no builder is registered for {type(config).__name__}")


@build_batches.register(SupervisedConfig)
def _build_supervised(config: SupervisedConfig, targets: Targets) -> MakeBatch:
    if missing := targets.needs - {"points", "block_counts", "smoothed", "labels", "mask"}:
        raise ConfigError(
            f"method={config.name}: the loss needs the target {', '.join(sorted(missing))}, which this method does not "
            "make; choose another loss or method"
        )
    return partial(collate, targets=targets)


@build_batches.register(RankingConfig)
def _build_ranking(config: RankingConfig, targets: Targets) -> MakeBatch:
    if targets.needs != {"rank"}:
        raise ConfigError(f"method={config.name}: the loss needs annotations; choose loss=mmr or loss=clip")
    if targets.input_size is None:
        raise ConfigError(f"method={config.name}: needs a model of one input size; choose model=clip_ranking")
    return partial(nested_batch, config=config, size=targets.input_size)


def nested_batch(samples: Sequence[Sample], *, config: RankingConfig, size: int) -> Batch:
    """The nested crops of each image, one image after the other, and their ranks; annotations are not used.

    Args:
        size: side of the square to which crops are resized, in pixels.

    Returns:
        A batch whose target ``rank`` is the position of each crop among those of its image, (images, crops), from 0 for
        the smallest.
    """
    crops = []
    for sample in samples:
        height, width = sample.image.shape[1:]
        boxes = nested_boxes(width, height, crops=config.crops, layout=config.layout)
        crops.append(cut_resized(sample.image, boxes, size=size))
    rank = torch.arange(config.crops).expand(len(samples), -1).contiguous()
    return Batch(torch.cat(crops), [sample.name for sample in samples], {"rank": rank})


def step_images(images: int, batch_size: int, shares: int) -> int:
    """Images per optimizer step, over all processes: a batch, or what can be shared equally of a smaller dataset.

    Args:
        images: in the dataset.
        batch_size: over all processes.
        shares: number of processes, times the number of parts in which each computes its share.
    """
    return min(batch_size // shares, images // shares) * shares


class EpochSampler(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index) keys, in an order drawn from (seed, epoch).

    The images of an optimizer step are the same on any number of processes; each process takes its share
    of them. Images that do not fill a last batch are dropped, so that all processes see the same number
    of batches of the same size. A dataset smaller than one step gives one smaller batch, which each process can split
    into ``parts`` of equal size.

    Args:
        images: number of images per epoch.
        batch_size: images per batch of this process.
        seed: of the order.
        drawn: returns the indices of an epoch's images, ``images`` of them; None draws each image once.

    Raises:
        ConfigError: if there are no images, or fewer than processes or parts.
    """

    def __init__(
        self,
        images: int,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        drawn: Callable[[int], Sequence[int]] | None = None,
        parts: int = 1,
    ) -> None:
        if images < 1:
            raise ConfigError("the training split has no images; name or add some")
        if images < world:
            raise ConfigError(
                f"{images} training images cannot be shared among {world} processes; "
                f"start at most {images} (runtime.devices)"
            )
        if images < world * parts:
            raise ConfigError(
                f"accumulate={parts}: {images} training images cannot be split into {world * parts} parts; "
                f"set at most {images // world}"
            )
        self.epoch = 0
        self.start = 0
        """Number of batches at the start of the epoch that are left out."""
        self._images, self._seed, self._rank, self._world = images, seed, rank, world
        self._drawn = drawn
        # Per process; at most its share of the dataset, because otherwise the epoch would be empty.
        self._batch_size = step_images(images, batch_size * world, world * parts) // world

    @property
    def step_images(self) -> int:
        """Images per optimizer step, over all processes."""
        return self._batch_size * self._world

    def __len__(self) -> int:
        return self._images // self.step_images

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        generator = torch.Generator().manual_seed(sample_seed(self._seed, self.epoch))
        order = torch.randperm(self._images, generator=generator).tolist()
        if self._drawn is not None:
            indices = self._drawn(self.epoch)
            order = [indices[k] for k in order]
        step = self.step_images
        for k in range(self.start, len(self)):
            yield [(self.epoch, index) for index in order[k * step : (k + 1) * step][self._rank :: self._world]]


class TrainLoader:
    """Training batches, epoch by epoch; its worker processes live as long as this object."""

    def __init__(
        self,
        dataset: CrowdDataset,
        sampler: EpochSampler,
        make_batch: MakeBatch,
        *,
        workers: int,
        pin_memory: bool,
    ) -> None:
        _kill_workers_at_exit(os.getpid())
        self._sampler = sampler
        self._loader: DataLoader[Any] = DataLoader(
            _ReturnsErrors(dataset),
            batch_sampler=sampler,
            num_workers=workers,  # Each runs torch on one thread: DataLoader's own rule.
            collate_fn=partial(_make_batch, make_batch),
            worker_init_fn=_ignore_signals,
            pin_memory=pin_memory,
            persistent_workers=workers > 0,
            generator=torch.Generator(),  # Its numbers are not used; the global generator stays untouched.
        )

    def __len__(self) -> int:
        """Batches per epoch."""
        return len(self._sampler)

    @property
    def step_images(self) -> int:
        """Images per optimizer step, over all processes; fewer than the batch size if the dataset is smaller."""
        return self._sampler.step_images

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[Batch]:
        """The batches of that epoch, without the first ``start``, whose images are not loaded.

        Raises:
            HeadcountError, MemoryError: if a sample cannot be loaded, in whichever process.
        """
        self._sampler.epoch, self._sampler.start = epoch, start
        yield from map(_raise_error, self._loader)


def build_train_loader(
    dataset: CrowdDataset,
    make_batch: MakeBatch,
    *,
    batch_size_per_process: int,
    seed: int,
    parts: int = 1,
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
    pin_memory: bool = False,
) -> TrainLoader:
    """The training batches of process ``rank`` out of ``world``.

    Args:
        make_batch: from :func:`build_batches`.
        batch_size_per_process: samples per batch on this process; smaller if the dataset is.
        seed: of the order; the augmentation of the samples has the dataset's seed.
        parts: number of equal parts into which each batch will be split.
        workers: processes that load samples; 0 loads in this process.
        pin_memory: return batches in page-locked memory, for a GPU.
    """
    sampler = EpochSampler(
        dataset.images_per_epoch,
        batch_size=batch_size_per_process,
        seed=seed,
        rank=rank,
        world=world,
        drawn=dataset.drawn,
        parts=parts,
    )
    return TrainLoader(dataset, sampler, make_batch, workers=workers, pin_memory=pin_memory)


def evaluation_samples(
    dataset: CrowdDataset, *, rank: int = 0, world: int = 1, workers: int = 0
) -> Iterator[tuple[int, Sample]]:
    """Whole images, one at a time, with their index; process ``rank`` gets every ``world``-th image."""
    _kill_workers_at_exit(os.getpid())
    indices = range(rank, len(dataset), world)
    loader: DataLoader[Any] = DataLoader(
        _ReturnsErrors(dataset),
        sampler=indices,
        batch_size=None,
        num_workers=workers,
        collate_fn=_unchanged,
        worker_init_fn=_ignore_signals,
        generator=torch.Generator(),
    )
    yield from zip(indices, map(_raise_error, loader), strict=True)


def _unchanged(sample: Any) -> Any:
    return sample


class _ReturnsErrors(Dataset[Any]):
    """A dataset that returns an error for the user instead of raising it.

    DataLoader would replace the message of an error that a worker process raises by its traceback.
    """

    def __init__(self, dataset: CrowdDataset) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, key: Key) -> Any:
        try:
            return self._dataset[key]
        except (HeadcountError, MemoryError) as error:
            return error


def _make_batch(make_batch: MakeBatch, samples: Sequence[Any]) -> Any:
    """The batch of these samples, or the first error among them or of making it."""
    errors = [sample for sample in samples if isinstance(sample, Exception)]
    if errors:
        return errors[0]
    try:
        return make_batch(samples)
    except (HeadcountError, MemoryError) as error:
        return error


def _raise_error(loaded: Any) -> Any:
    if isinstance(loaded, Exception):
        raise loaded
    return loaded


def _ignore_signals(worker: int) -> None:
    """Leave signals to the training process: it saves its state, which takes more batches, and then ends this one."""
    for name in ("SIGTERM", "SIGUSR1", "SIGHUP", "SIGINT"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


@cache
def _kill_workers_at_exit(process: int) -> None:
    """Let this process, once, kill the workers that are left when it ends; by SIGTERM, multiprocessing would try."""
    Finalize(None, _kill_workers, exitpriority=0)


def _kill_workers() -> None:
    if hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch would report them as errors
    for worker in multiprocessing.active_children():
        if worker.daemon:
            worker.kill()
