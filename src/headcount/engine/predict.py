"""Count the people in pictures with a trained counter, in three lines of Python."""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from headcount.bins import CountBins
from headcount.config import (
    DEFAULT_LEVEL,
    ConfigError,
    EvalConfig,
    SlidingWindowConfig,
    TrainConfig,
    WholeImageConfig,
    ZipHeadConfig,
    check_level,
    counting_mode,
    describe_mode,
)
from headcount.data.kinds import DataErrorKind
from headcount.data.prepare import MAX_SIDE, ResizeRule
from headcount.data.regions import Region, RegionGrid, as_regions
from headcount.distribution import counted_distribution, own_interval
from headcount.engine import hub
from headcount.engine.photos import Photo, ReadPicture, as_tensor, read_photo
from headcount.errors import DataError
from headcount.intervals import Calibration
from headcount.models.counter import Counter
from headcount.types import Counted, CountInterval, SeenImages

# Counting a larger image as a whole would take several GB.
_MAX_WHOLE_PIXELS = 8_000_000
_WINDOW = 1024
# Of the area, for pictures that become that large: a narrow strip would take minutes, and its pixels show no people.
_MAX_ENLARGEMENT = 4
NO_REGIONS = (
    "this counter predicts one number per picture and no blocks, so that regions cannot be counted; use another"
)
_DARK = "nearly black: 16 bits without a value above 4095; multiply 12-bit values by 16"

if TYPE_CHECKING:
    Regions = Mapping[str, Any] | Sequence[Region]
else:  # anything may be passed; what is not taken is refused with an error of our own
    Regions = Any


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
    interval: CountInterval | None = None
    """Where the true count is expected; None for a counter that is not calibrated and has no probabilities."""

    def __repr__(self) -> str:
        width, height = self.photo_size
        blocks = "no blocks"
        if self.block_counts is not None:
            rows, cols = self.block_counts.shape
            blocks = f"{rows} x {cols} blocks of {self.block_size} px"
        note = f", {self.note}" if self.note else ""
        interval = "" if self.interval is None else f" in {self.interval}"
        return f"PhotoCount(count={self.count:.2f}{interval}, picture of {width} x {height} px, {blocks}{note})"

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
    calibration: Calibration | None = None
    """Errors on held-out images (``headcount calibrate``); None bases intervals on the counter's own probabilities."""
    level: float = DEFAULT_LEVEL
    """Level of the intervals, between 0 and 1."""
    record: dict[str, Any] = field(default_factory=dict)
    """What its checkpoint holds beside the weights, such as commit, selection, license and figures."""
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

    def check_level(self, level: float, *, setting: str = "level") -> float:
        """A level that intervals of this counter can have.

        Args:
            setting: named in the error.

        Raises:
            ConfigError: if it is not between 0 and 1, or the calibration has too few images for it.
        """
        if self.calibration is None:
            return check_level(level, setting=setting)
        return self.calibration.check_level(level, setting=setting)

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
            ConfigError: if intervals cannot have the counter's ``level``.
            MemoryError: if the picture does not fit into memory.
            FloatingPointError: if the count is not finite.
        """
        self.check_level(self.level)
        prepared = self._prepared(photo)
        return self._photo_count(prepared, self._count_image(prepared.image))

    def predict_batch(self, photos: Sequence[Photo]) -> list[PhotoCount]:
        """Count the people in several pictures, such as the frames of a video; see ``predict``.

        Pictures that have the same size go through the network together, up to 8 million pixels at once, which is
        faster on a GPU. Counts may differ from those of ``predict`` by rounding.

        Raises:
            ConfigError, DataError, MemoryError, FloatingPointError: as ``predict``, if any of them cannot be counted.
        """
        self.check_level(self.level)
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
                return self.network.count_batch(images, usual, probabilities=True, variance=True)
            except MemoryError:
                pass
        return [self._count_image(image) for image in images]

    def prepare(self, photo: Photo) -> UInt8[Tensor, "3 height width"]:
        """The pixels that the network gets for a picture, before they are normalized; see ``predict``."""
        return self._prepared(photo).image

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
            interval=self._interval(counted, size=size),
        )

    def _interval(self, counted: Counted, *, size: tuple[int, int]) -> CountInterval | None:
        """The interval of a counted image of ``size`` (width, height) in pixels."""
        if any(view.scale != 1 for view in counted.mode.views):
            return None  # the blocks of other sizes hold other counts
        if self.calibration is not None:
            mode, variance = describe_mode(counted.mode), counted.total_variance()
            return self.calibration.interval(counted.count, variance, self.level, size=size, mode=mode)
        zero_inflated = isinstance(self.config.model.head, ZipHeadConfig)
        return own_interval(counted_distribution(counted, self.bins, zero_inflated=zero_inflated), self.level)

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
            return self.network.count(image, usual, probabilities=True, variance=True)
        reason = f"more than {_MAX_WHOLE_PIXELS / 1e6:g} million pixels"
        if image.shape[1] * image.shape[2] * max(view.scale for view in usual.views) ** 2 <= _MAX_WHOLE_PIXELS:
            try:
                return self.network.count(image, usual, probabilities=True, variance=True)
            except MemoryError:
                reason = "not enough memory to count it as a whole"
        # Outside the except block, in which the traceback still holds what filled the memory.
        windows = dataclasses.replace(self._windows(), tta=usual.tta, scales=usual.scales)
        counted = self.network.count(image, windows, probabilities=True, variance=True)
        return dataclasses.replace(counted, reason=reason)

    def count(self, photo: Photo) -> float:
        """The expected number of people in a picture; see ``predict``."""
        return self.predict(photo).count

    def push_to_hub(
        self,
        repository: str,
        *,
        private: bool = False,
        token: str | None = None,
        int16: bool = True,
        replace: bool = False,
    ) -> str:
        """Upload the counter and its model card to the Hugging Face Hub: ``headcount.load("hf-hub:owner/name")`` reads
        it.

        Args:
            repository: ``owner/name``; created if it does not exist.
            private: whether a repository that is created can be read by its owner only.
            token: of the hub; None uses the one of ``hf auth login`` or of the variable HF_TOKEN.
            int16: whether to store the weights as 16-bit integers, which halves the file and changes counts by less
                than 0.1 %.
            replace: whether a counter that the repository holds is replaced.

        Returns:
            The address of the repository.

        Raises:
            ConfigError: if the counter was not loaded from a checkpoint, the name is invalid, the repository holds a
                counter, or the hub refuses or cannot be reached.
        """
        if not self.record:
            raise ConfigError("push_to_hub: only a counter that headcount.load returned knows how it was trained")
        content = {**self.record, "model": self.network.state_dict()}
        return hub.push(content, repository, private=private, token=token, int16=int16, replace=replace)

    def _resized(self, image: UInt8[Tensor, "3 height width"]) -> UInt8[Tensor, "3 new_height new_width"]:
        """The picture at the scale of the counter's training images."""
        rule = ResizeRule.for_pictures(self.config.dataset)
        height, width = image.shape[1:]
        if rule is None:
            return image
        size = rule.size(width, height)
        if size == (width, height):
            return image
        if max(size) > MAX_SIDE or size[0] * size[1] > max(_MAX_WHOLE_PIXELS, _MAX_ENLARGEMENT * height * width):
            raise DataError(
                f"the picture is too narrow: its {width} x {height} pixels would become {size[0]} x {size[1]}, because "
                f"the counter's images have a short side of at least {rule.min_side}; crop it",
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
