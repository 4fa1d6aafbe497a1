"""Count the people in pictures with a trained counter, in three lines of Python."""

import dataclasses
import itertools
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from headcount.bins import CountBins
from headcount.config import (
    ConfigError,
    DatasetConfig,
    EvalConfig,
    FolderDatasetConfig,
    MixedConfig,
    SlidingWindowConfig,
    TrainConfig,
    Tta,
    WholeImageConfig,
    counting_errors,
    counting_mode,
    range_errors,
)
from headcount.data.kinds import DataErrorKind
from headcount.data.prepare import MAX_SIDE, ResizeRule
from headcount.data.regions import Region, RegionGrid, as_regions
from headcount.engine import checkpoint
from headcount.engine.photos import FilePath, Photo, ReadPicture, as_tensor, read_photo
from headcount.errors import DataError
from headcount.models.averaging import GridPlace, average
from headcount.models.counter import Counter
from headcount.types import Counted, SeenImages

# Counting a larger image as a whole would take several GB.
_MAX_WHOLE_PIXELS = 8_000_000
_WINDOW = 1024
# A strip of a few pixels would be enlarged to thousands of megapixels.
_MAX_ENLARGED_PIXELS = 100_000_000
NO_REGIONS = (
    "this counter predicts one number per picture and no blocks, so that regions cannot be counted; use another"
)
_DARK = "nearly black: 16 bits without a value above 4095; multiply 12-bit values by 16"

if TYPE_CHECKING:
    Device = str | torch.device
    Regions = Mapping[str, Any] | Sequence[Region]
else:  # anything may be passed; what is not taken is refused with an error of our own
    Device = Regions = Any


@dataclass(repr=False)
class PhotoCount:
    """The people in one picture."""

    count: float
    """Expected people."""
    block_counts: Float[Tensor, "rows cols"] | None
    """Expected people per block, which sum to ``count``; None for a counter that predicts one number per image."""
    probabilities: Float[Tensor, "bins rows cols"] | None
    """Probability of each bin in each block; None for a counter without bins."""
    block_size: int
    """Side of a block, in pixels of ``image``."""
    image: UInt8[Tensor, "3 height width"]
    """The picture as it was resized for the counter."""
    photo_size: tuple[int, int]
    """(width, height) of the upright picture before it was resized, in pixels."""
    mode: WholeImageConfig | SlidingWindowConfig
    """How it was counted: whole, or in windows."""
    reason: str = ""
    """Why it was counted in windows although this counter usually counts whole images; otherwise empty."""
    note: str = ""
    """What is odd about the picture, so that its count may be wrong; empty if nothing is."""

    def __repr__(self) -> str:
        width, height = self.photo_size
        blocks = "no blocks"
        if self.block_counts is not None:
            rows, cols = self.block_counts.shape
            blocks = f"{rows} x {cols} blocks of {self.block_size} px"
        note = f", {self.note}" if self.note else ""
        return f"PhotoCount(count={self.count:.2f}, picture of {width} x {height} px, {blocks}{note})"

    def count_regions(self, regions: Regions) -> dict[str, float]:
        """The people in each region of the picture.

        A block that a region's border crosses counts by the share of its area that lies in the region: the counts of
        regions that tile the picture sum to its count.

        Args:
            regions: the result of :func:`~headcount.data.region_files.read_regions`, or name -> region: text such as
                ``"10,20,300,200"`` (opposite corners of a rectangle), ``"0,0,90,0,90,80"`` (a polygon) or
                ``"0%,0%,50%,100%"`` (shares of width and height), a list of corners (x, y), or a shapely polygon.
                Numbers without a percent sign are pixels of the upright picture before it was resized.

        Returns:
            Expected people by name.

        Raises:
            ConfigError: if a region is invalid or outside the picture, or the counter predicts no blocks.
        """
        grid = self.region_grid(as_regions(regions))
        assert self.block_counts is not None, "region_grid refuses it"
        return grid.count(self.block_counts.double().numpy())

    def region_grid(self, regions: Sequence[Region]) -> RegionGrid:
        """Regions on the blocks of this picture, and of all pictures of its size.

        Raises:
            ConfigError: if a region does not fit the picture, or the counter predicts no blocks.
        """
        if self.block_counts is None:
            raise ConfigError(NO_REGIONS)
        image_size = (self.image.shape[2], self.image.shape[1])
        return RegionGrid.build(regions, photo_size=self.photo_size, image_size=image_size, block_size=self.block_size)


@dataclass
class _Prepared:
    """A picture that is ready to be counted."""

    image: UInt8[Tensor, "3 height width"]
    photo_size: tuple[int, int]
    """(width, height) of the upright picture before it was resized, in pixels."""
    dark: bool
    what: str
    """Its path for messages, followed by a colon; empty for others."""


@dataclass(repr=False)
class PhotoCounter:
    """A counter and the settings it was trained with; build with ``load``."""

    network: Counter
    config: TrainConfig
    """Settings of the training run."""
    bins: CountBins | None
    """None for a counter without bins."""
    mode: WholeImageConfig | SlidingWindowConfig | None = None
    """Windows or whole images. None counts as the counter was evaluated in training, except that a picture of more
    than 8 million pixels, or one that does not fit into memory, is counted in windows of about 1024 px."""
    seen: SeenImages | None = None
    """Limits of the training images; None knows only the side of a training crop."""
    averaging: EvalConfig = field(default_factory=EvalConfig)
    """Test-time averaging, ``tta`` and ``scales``; None is that of ``mode``, or else of the training."""

    def __repr__(self) -> str:
        config, grid = self.config, self.network.grid
        bins = "without bins" if self.bins is None else f"{len(self.bins)} bins"
        return (
            f"PhotoCounter({config.model.name}, {bins}, blocks of {grid.block_size} px, trained on "
            f"{config.dataset.name}, on {self.network.mean.device})"
        )

    @property
    def members(self) -> "list[PhotoCounter]":
        """This counter alone; those of an ensemble are several."""
        return [self]

    @property
    def predicts(self) -> frozenset[str]:
        """Of ``blocks`` and ``count``, what it predicts for a picture."""
        return self.config.model.head.predicts

    def predict(self, photo: Photo) -> PhotoCount:
        """Count the people in a picture of any size.

        It is resized like the images of the counter's dataset, so that it gives the same count as an evaluation.
        Block (row, col) covers the pixels from ``col * block_size`` and ``row * block_size`` of the resized
        picture; multiply by ``photo_size`` over that picture's size for pixels of the photo.

        Args:
            photo: a path, a file opened with ``"rb"``, an ``io.BytesIO`` or a Pillow image (all are turned upright by
                their EXIF orientation), or bytes: a NumPy array (height, width, 3) or a tensor (3, height, width),
                RGB, or (height, width), gray. OpenCV's arrays are BGR: pass ``array[..., ::-1]``.

        Raises:
            DataError: if the file is missing or not a picture, the picture is too narrow to be enlarged, or an array
                does not have that shape and type.
            MemoryError: if the picture does not fit into memory.
            FloatingPointError: if the count is not finite.
        """
        prepared = self._prepared(photo)
        return self._photo_count(prepared, self._count_image(prepared.image))

    def predict_batch(self, photos: Sequence[Photo]) -> list[PhotoCount]:
        """Count the people in several pictures, such as the frames of a video; see ``predict``.

        Pictures that have the same size go through the network together, up to 8 million pixels at once, which is
        faster on a GPU. Counts may differ from those of ``predict`` by rounding.

        Raises:
            DataError, MemoryError, FloatingPointError: as ``predict``, if any of them cannot be counted.
        """
        prepared = [self._prepared(photo) for photo in photos]
        counted: list[Counted] = []
        while len(counted) < len(prepared):
            shape = prepared[len(counted)].image.shape
            room = max(1, _MAX_WHOLE_PIXELS // (shape[1] * shape[2]))
            following = [picture.image for picture in prepared[len(counted) :][:room]]
            same = list(itertools.takewhile(lambda image, shape=shape: image.shape == shape, following))  # type: ignore[misc]
            counted += self._count_images(same)
        return [self._photo_count(picture, one) for picture, one in zip(prepared, counted, strict=True)]

    def _count_images(self, images: list[UInt8[Tensor, "3 height width"]]) -> list[Counted]:
        """Count images that all have the same size and are already resized, in one batch where possible."""
        usual = self._usual_mode()
        if len(images) > 1 and isinstance(usual, WholeImageConfig):
            try:
                return self.network.count_batch(images, usual, probabilities=True)
            except MemoryError:
                pass
        return [self._count_image(image) for image in images]

    def _prepared(self, photo: Photo | ReadPicture) -> "_Prepared":
        """A picture of any kind at the scale of the counter's training images."""
        read = photo if isinstance(photo, ReadPicture) else read_photo(photo)
        picture, what = read.picture, read.what
        size = (picture.pixels.shape[2], picture.pixels.shape[1])
        return _Prepared(self._resized(picture.pixels), size, dark=picture.dark, what=what)

    def _photo_count(self, picture: "_Prepared", counted: Counted) -> PhotoCount:
        """What is returned of a picture that was counted."""
        if not math.isfinite(counted.count):
            raise FloatingPointError(
                f"{picture.what}the predicted count is {counted.count}; the counter's weights are unusable, choose "
                "another checkpoint"
            )
        seen = self.seen or SeenImages.from_plain(None, crop_size=self.config.augment.crop_size)
        size = (picture.image.shape[2], picture.image.shape[1])
        far = seen.note(stored=picture.photo_size, prepared=size, heads=counted.count)
        return PhotoCount(
            count=counted.count,
            block_counts=counted.blocks,
            probabilities=counted.probabilities,
            block_size=self.network.grid.block_size,
            image=picture.image,
            photo_size=picture.photo_size,
            mode=counted.mode,
            reason=counted.reason,
            note="; ".join(filter(None, [_DARK if picture.dark else "", far])),
        )

    def _usual_mode(self) -> WholeImageConfig | SlidingWindowConfig:
        """How pictures are counted that are not too large for it."""
        config, mode, averaging = self.config, self.mode or EvalConfig(), self.averaging
        chosen = dataclasses.replace(mode, tta=averaging.tta or mode.tta, scales=averaging.scales or mode.scales)
        return counting_mode(config.eval, config.model, crop_size=config.augment.crop_size, chosen=chosen)

    def _count_image(self, image: UInt8[Tensor, "3 height width"]) -> Counted:
        """Count an image of the right size, in windows if that is usual, requested or necessary."""
        usual = self._usual_mode()
        fixed = self.mode is not None or "blocks" not in self.config.model.head.predicts
        if fixed or not isinstance(usual, WholeImageConfig):
            return self.network.count(image, usual, probabilities=True)
        reason = f"more than {_MAX_WHOLE_PIXELS / 1e6:g} million pixels"
        if image.shape[1] * image.shape[2] * max(view.scale for view in usual.views) ** 2 <= _MAX_WHOLE_PIXELS:
            try:
                return self.network.count(image, usual, probabilities=True)
            except MemoryError:
                reason = "not enough memory to count it as a whole"
        # Outside the except block, in which the traceback still holds what filled the memory.
        windows = dataclasses.replace(self._windows(), tta=usual.tta, scales=usual.scales)
        counted = self.network.count(image, windows, probabilities=True)
        return dataclasses.replace(counted, reason=reason)

    def count(self, photo: Photo) -> float:
        """The expected number of people in a picture; see ``predict``."""
        return self.predict(photo).count

    def _resized(self, image: UInt8[Tensor, "3 height width"]) -> UInt8[Tensor, "3 new_height new_width"]:
        """The picture at the scale of the counter's training images."""
        dataset = _scaling(self.config.dataset)
        height, width = image.shape[1:]
        if not isinstance(dataset, FolderDatasetConfig):
            return image
        size = ResizeRule.from_config(dataset).size(width, height)
        if size == (width, height):
            return image
        if max(size) > MAX_SIDE or size[0] * size[1] > max(_MAX_ENLARGED_PIXELS, height * width):
            raise DataError(
                f"the picture is too narrow: its {width} x {height} pixels would become {size[0]} x {size[1]}, because "
                f"the counter's images have a short side of at least {dataset.min_side}; crop it",
                kind=DataErrorKind.image,
            )
        resized = Image.fromarray(image.permute(1, 2, 0).numpy()).resize(size, Image.Resampling.BICUBIC)
        return as_tensor(np.array(resized))

    def _windows(self) -> SlidingWindowConfig:
        """Windows for pictures that are too large to count as a whole; they overlap so that no head is cut twice."""
        multiple = math.lcm(self.network.stride, self.network.grid.block_size)
        window = max(_WINDOW // multiple, 1) * multiple
        stride = max(window * 7 // 8 // multiple, 1) * multiple
        return SlidingWindowConfig(window=window, stride=stride, window_batch=1)


def _scaling(dataset: DatasetConfig) -> DatasetConfig:
    """The dataset whose resize rule applies to pictures: of a mixed one, the first part that resizes its images."""
    if not isinstance(dataset, MixedConfig):
        return dataset
    parts = list(dataset.datasets.values())
    return next((part for part in parts if isinstance(part, FolderDatasetConfig)), parts[0])


@dataclass(repr=False)
class PhotoEnsemble:
    """Several counters that count a picture together: the mean of their counts; build with ``load``.

    Each resizes the picture by its own rule. People per block are averaged on the blocks of the first counter; a block
    of another is divided among these by area. A counter without blocks leaves the ensemble without any.
    """

    members: list[PhotoCounter]
    names: list[str]
    """The checkpoint of each."""
    same_bins: bool
    """Whether all have the same bins; only then their probabilities are averaged."""

    @property
    def predicts(self) -> frozenset[str]:
        """Of ``blocks`` and ``count``, what it predicts for a picture: what all members do."""
        return frozenset.intersection(*(member.predicts for member in self.members))

    def __repr__(self) -> str:
        return f"PhotoEnsemble({', '.join(map(repr, self.members))})"

    def predict(self, photo: Photo) -> PhotoCount:
        """Count the people in a picture of any size; see :meth:`PhotoCounter.predict`."""
        return self.predict_batch([photo])[0]

    def predict_batch(self, photos: Sequence[Photo]) -> list[PhotoCount]:
        """Count the people in several pictures; see :meth:`PhotoCounter.predict_batch`."""
        read: list[Any] = [read_photo(photo) for photo in photos]
        of_members = []
        for name, member in zip(self.names, self.members, strict=True):
            try:
                of_members.append(member.predict_batch(read))
            except FloatingPointError as error:
                raise FloatingPointError(f"{name}: {error}") from error
        return [self._average(counts) for counts in zip(*of_members, strict=True)]

    def count(self, photo: Photo) -> float:
        """The expected number of people in a picture; see ``predict``."""
        return self.predict(photo).count

    def _average(self, counts: Sequence[PhotoCount]) -> PhotoCount:
        counted = [
            Counted(one.count, one.block_counts, one.probabilities if self.same_bins else None, one.mode, one.reason)
            for one in counts
        ]
        grids = [GridPlace.of(one.image, one.block_size) for one in counts]
        mean = average(counted, grids, onto=grids[0], mode=counts[0].mode)
        return dataclasses.replace(
            counts[0],
            count=mean.count,
            block_counts=mean.blocks,
            probabilities=mean.probabilities,
            reason=mean.reason,
            note="; ".join(dict.fromkeys(filter(None, (one.note for one in counts)))),
        )


@overload
def load(
    path: FilePath, *, device: Device = "cpu", tta: str | None = None, scales: Sequence[float] | None = None
) -> PhotoCounter: ...
@overload
def load(
    path: list[FilePath] | tuple[FilePath, ...],
    *,
    device: Device = "cpu",
    tta: str | None = None,
    scales: Sequence[float] | None = None,
) -> PhotoEnsemble: ...
def load(
    path: FilePath | list[FilePath] | tuple[FilePath, ...],
    *,
    device: Device = "cpu",
    tta: str | None = None,
    scales: Sequence[float] | None = None,
) -> PhotoCounter | PhotoEnsemble:
    """The counter of a checkpoint, or of several whose counts are averaged; no other file is needed.

    Args:
        path: of the checkpoint; or a list of several.
        device: a ``torch.device``, or ``cpu``, ``cuda``, ``cuda:1``, ..., or ``auto``: a GPU if one is available.
        tta: ``flip`` averages the counts of each picture and its mirror image; ``none`` does not; None is as in
            training.
        scales: sizes at which each picture is counted, as multiples of its own, such as ``[0.75, 1, 1.25]``; the
            counts are averaged. None is as in training.

    Raises:
        CheckpointError: if a file is missing, truncated or not a checkpoint of headcount.
        ConfigError: if the device does not exist, ``path`` is no path, or ``tta`` or ``scales`` are invalid.
    """
    averaging = _averaging(tta, scales)
    if not isinstance(path, list | tuple):
        return dataclasses.replace(_load(path, device)[0], averaging=averaging)
    if not path:
        raise ConfigError("load takes the path of a checkpoint, or a list of several, not an empty list")
    opened = [_load(one, device) for one in path]
    members = [dataclasses.replace(counter, averaging=averaging) for counter, _ in opened]
    same_bins = checkpoint.have_same_bins([loaded for _, loaded in opened])
    return PhotoEnsemble(members, [os.fsdecode(one) for one in path], same_bins)


def _averaging(tta: str | None, scales: Sequence[float] | None) -> EvalConfig:
    """Test-time averaging as settings.

    Raises:
        ConfigError: if a value is not allowed.
    """
    if tta is not None and tta not in Tta.__members__:
        raise ConfigError(f"tta={tta}: must be {' or '.join(Tta.__members__)}")
    config = EvalConfig(tta=None if tta is None else Tta[tta], scales=None if scales is None else list(scales))
    if wrong := range_errors(config) or counting_errors(config):
        raise ConfigError(wrong[0].removeprefix("eval."))
    return config


def _load(path: FilePath, device: Device) -> tuple[PhotoCounter, checkpoint.LoadedCheckpoint]:
    if not isinstance(path, str | os.PathLike):
        raise ConfigError(f"load takes the path of a checkpoint, not {type(path)}; save what it holds to a file")
    device = str(device)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = device.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdecimal()):
        raise ConfigError(f"device={device}: must be cpu, cuda, cuda:N or auto")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device={device}: PyTorch finds no GPU; use cpu or auto")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device={device}: PyTorch finds {torch.cuda.device_count()} GPUs, counted from 0")
    loaded = checkpoint.load(os.fsdecode(path))
    return PhotoCounter(loaded.counter.to(device), loaded.config, loaded.bins, seen=loaded.seen), loaded
