"""A counter: pixels in, expected heads of every block out."""

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from headcount.config import ConfigError, Freeze, SlidingWindowConfig, View, WholeImageConfig
from headcount.models.averaging import GridPlace, average, show_view
from headcount.models.backbones import Backbone
from headcount.models.heads import PredictionHead, resample
from headcount.models.tiling import count_image, count_whole
from headcount.types import BlockGrid, Counted, Prediction

WHOLE_IMAGE = WholeImageConfig()


class Counter(nn.Module):
    """Backbone, optional decoder at the resolution of the blocks, and prediction head.

    A backbone is a module that states its ``channels`` and its ``stride`` in pixels, and returns one
    feature vector per complete stride.

    Source: arXiv:2403.09281, section III.
    """

    mean: Tensor
    std: Tensor

    counts_in_one_pass = True
    """Whether the count of a whole image is that of the network's forward pass."""

    def __init__(
        self,
        backbone: nn.Module,
        head: PredictionHead,
        *,
        grid: BlockGrid,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        decoder: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.stride = int(backbone.stride)  # type: ignore[arg-type]
        self.decoder = decoder
        self.head = head
        self.grid = grid
        self.frozen = Freeze.none
        """The parts that are not trained (:meth:`freeze`)."""
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))

    def freeze(self, what: Freeze) -> None:
        """Do not train these parts: their parameters get no gradient, and they stay in evaluation mode.

        Raises:
            ConfigError: if there is no such part.
        """
        self.frozen = what
        if what is Freeze.batch_norm and not self._frozen_parts():
            raise ConfigError("model.freeze=batch_norm: the backbone has no BatchNorm; choose model.freeze=none")
        for part in self._frozen_parts():
            part.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> "Counter":
        """Set the mode of all parts that are not frozen, which therefore keep the statistics of their BatchNorm."""
        super().train(mode)
        for part in self._frozen_parts():
            part.eval()
        return self

    def _frozen_parts(self) -> list[nn.Module]:
        match self.frozen:
            case Freeze.batch_norm:  # searched each time: others replace them when processes share their statistics
                return [part for part in self._pretrained().modules() if isinstance(part, _BatchNorm)]
            case Freeze.backbone:
                return [self._pretrained()]
            case Freeze.all_but_head:
                return [self.backbone, *([] if self.decoder is None else [self.decoder])]
        return []

    def _pretrained(self) -> nn.Module:
        """The backbone without layers that it adds to its pretrained ones, such as a feature pyramid."""
        return self.backbone.features if isinstance(self.backbone, Backbone) else self.backbone

    def normalize(self, images: UInt8[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 height width"]:
        """Convert bytes to the range that the weights were trained on."""
        return images.float().div_(255).sub_(self.mean).div_(self.std)

    def forward(self, images: UInt8[Tensor, "batch 3 height width"]) -> Prediction:
        """Predict the heads in each block.

        Args:
            images: RGB bytes, 0 to 255. Nothing is padded: the prediction covers the complete strides of
                the backbone, so 104 x 136 pixels at stride 16 give 12 x 16 blocks of 8.
        """
        return self.predict_normalized(self.normalize(images))

    def predict_normalized(self, pixels: Float[Tensor, "batch 3 height width"]) -> Prediction:
        """As :meth:`forward`, for images that :meth:`normalize` has already converted."""
        features = self.backbone(pixels)
        factor = self.stride / self.grid.block_size
        if self.decoder is None:
            return self.head(features, factor=factor)
        return self.head(self.decoder(resample(features, factor)), factor=1)

    @torch.inference_mode()
    def count(
        self,
        image: UInt8[Tensor, "3 height width"],
        mode: WholeImageConfig | SlidingWindowConfig = WHOLE_IMAGE,
        *,
        probabilities: bool = False,
        variance: bool = False,
    ) -> Counted:
        """Count the heads in one image of any size, without gradients.

        Where a window (or the whole image) extends beyond the right or lower border, it is filled with
        the mean color. Blocks that several windows cover are averaged, as are the views of the image that
        ``mode`` requests (:mod:`headcount.models.averaging`).

        Args:
            mode: windows with every size given (:func:`headcount.config.counting_mode`).
            probabilities: also return the probability of each bin, which costs memory for many bins.
            variance: also return the variance of each block. Where windows overlap, a block's distribution is the
                mixture of theirs.

        Raises:
            MemoryError: if not even one window fits into memory.
            ConfigError: if the network predicts no blocks and ``mode`` requests windows.
        """

        def count_view(views: Sequence[Tensor]) -> list[Counted]:
            def predict(corners: list[tuple[int, int]], size: tuple[int, int]) -> tuple[Tensor, Tensor | None]:
                return self._predict_windows(views[0], corners, size, probabilities, variance)

            height, width = views[0].shape[-2:]
            counted = count_image(
                predict, mode, height=height, width=width, grid=self.grid, stride=self.stride, variance=variance
            )
            return [counted]

        return self._average_views(count_view, [image], mode)[0]

    @torch.inference_mode()
    def count_batch(
        self,
        images: Sequence[UInt8[Tensor, "3 height width"]],
        mode: WholeImageConfig = WHOLE_IMAGE,
        *,
        probabilities: bool = False,
        variance: bool = False,
    ) -> list[Counted]:
        """Count the heads in images of one size as wholes, in one batch; otherwise as :meth:`count`.

        Raises:
            MemoryError: if they do not fit into memory together.
        """

        def count_views(views: Sequence[Tensor]) -> list[Counted]:
            def predict(corners: list[tuple[int, int]], size: tuple[int, int]) -> tuple[Tensor, Tensor | None]:
                return self._predict_parts(views, size, probabilities, variance)

            height, width = views[0].shape[-2:]
            return count_whole(
                predict, mode, height=height, width=width, grid=self.grid, stride=self.stride, variance=variance
            )

        return self._average_views(count_views, images, mode)

    def _average_views(
        self,
        count: Callable[[Sequence[UInt8[Tensor, "3 _ _"]]], list[Counted]],
        images: Sequence[UInt8[Tensor, "3 height width"]],
        mode: WholeImageConfig | SlidingWindowConfig,
    ) -> list[Counted]:
        """Count the views of images of one size that ``mode`` requests, and average those of each image."""
        views = mode.views
        multiple = math.lcm(self.stride, self.grid.block_size)
        onto = GridPlace.of(images[0], self.grid.block_size)
        counted: list[list[Counted]] = [[] for _ in images]
        grids = []
        for view in views:
            shown = [show_view(image, view, multiple=multiple) for image in images]
            grids.append(GridPlace.of(shown[0], self.grid.block_size, mirrored=view.mirrored))
            for of_image, one in zip(counted, count(shown), strict=True):
                of_image.append(one)
        if len(views) == 1 and views[0] == View():
            return [one for (one,) in counted]
        return [average(of_image, grids, onto=onto, mode=mode) for of_image in counted]

    def _predict_windows(
        self,
        image: UInt8[Tensor, "3 height width"],
        corners: list[tuple[int, int]],
        size: tuple[int, int],
        probabilities: bool,
        variance: bool,
    ) -> tuple[Float[Tensor, " windows"], Float[Tensor, "windows maps rows cols"] | None]:
        """Predict the windows of ``size`` (height, width) at ``corners`` (top, left) of ``image``, on the host."""
        parts = [image[:, top : top + size[0], left : left + size[1]] for top, left in corners]
        return self._predict_parts(parts, size, probabilities, variance)

    def _predict_parts(
        self, parts: Sequence[UInt8[Tensor, "3 _ _"]], size: tuple[int, int], probabilities: bool, variance: bool
    ) -> tuple[Float[Tensor, " windows"], Float[Tensor, "windows maps rows cols"] | None]:
        """Predict images or parts of one, padded at the right and at the bottom to ``size``, on the host."""
        device = self.mean.device
        # Zero is the mean color of normalized pixels.
        pixels = torch.zeros(len(parts), 3, *size, device=device).contiguous(memory_format=torch.channels_last)
        for k, part in enumerate(parts):
            pixels[k, :, : part.shape[1], : part.shape[2]] = self.normalize(part[None].to(device))[0]
        prediction = self.predict_normalized(pixels)
        counts = prediction.count.float().cpu()
        if prediction.blocks is None:
            return counts, None
        blocks = prediction.blocks.float()
        maps = [blocks]
        if variance:
            of_blocks = prediction.variance()
            # Unlike variances, mean squares can be averaged over windows.
            maps.append(torch.full_like(blocks, torch.nan) if of_blocks is None else of_blocks + blocks.square())
        of_bins = prediction.probabilities() if probabilities else None
        if of_bins is not None:
            maps.append(of_bins)
        return counts, torch.cat(maps, dim=1).cpu()
