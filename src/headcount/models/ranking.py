"""CLIP as a counter that is trained without labels: an image is compared with sentences about numbers of people.

Implements CrowdCLIP (arXiv:2304.04231). The nested crops are made by ``data.loading``, and compared by
``losses.ranking``.
"""

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from headcount.bins import CountBins
from headcount.config import (
    ClipRankingConfig,
    ConfigError,
    Freeze,
    NoPatchLeft,
    PromptsConfig,
    RankingHeadConfig,
    SlidingWindowConfig,
    WholeImageConfig,
    scaled_numbers,
)
from headcount.crops import cut_resized, patch_boxes
from headcount.models.clip import ClipTexts, build_encoders, settle_activation
from headcount.models.counter import WHOLE_IMAGE, Counter
from headcount.models.heads import PredictionHead, TextEncoder, build_head
from headcount.types import BlockGrid, Counted, SimilarityPrediction

# CLIP's own scale of cosines at the end of its training, its upper limit.
_SCALE = 100
# Patches per forward pass.
_BATCH = 16


class RankingHead(PredictionHead):
    """Compares the feature of an image with those of sentences, which are encoded once and stored with the weights.

    Args:
        config: the sentences.
        texts: encodes them.
    """

    numbers: Tensor
    prompt_features: Tensor
    size_features: Tensor
    scene_features: Tensor
    part_features: Tensor

    def __init__(self, config: RankingHeadConfig, texts: TextEncoder) -> None:
        super().__init__()
        self.config = config
        numbers = scaled_numbers(config)
        self.register_buffer("numbers", torch.tensor(numbers), persistent=False)

        def encode(sentences: Sequence[str]) -> Float[Tensor, "sentences embed"]:
            return F.normalize(texts.encode(list(sentences)), dim=1)

        prompts = encode([config.prompt.format(number=n) for of_size in numbers for n in of_size])
        self.register_buffer("prompt_features", prompts.unflatten(0, (len(numbers), -1)))
        sizes = [config.prompt.format(number=size) for size in config.crowd_sizes]
        sentences = {
            "size_features": sizes,
            "scene_features": [f"The object is {word}" for word in config.scenes],
            "part_features": [f"The objects are {word}" for word in config.parts],
        }
        for name, written in sentences.items():
            self.register_buffer(name, encode(written) if written else prompts[:0])

    @property
    def asks_untuned(self) -> bool:
        """Whether the features of CLIP as it was published are needed."""
        return self.config.filters or bool(self.config.crowd_sizes)

    def forward(
        self,
        features: Float[Tensor, "batch embed 1 1"],
        *,
        factor: float = 1,
        untuned: Float[Tensor, "batch embed 1 1"] | None = None,
    ) -> SimilarityPrediction:
        """Compare images with the sentences about numbers.

        Args:
            factor: not used, because an image has one feature.
            untuned: features of CLIP as it was published, which choose the crowd size; None if there are none.
        """
        cosines = _cosines(features, self.prompt_features.flatten(0, 1))
        similarities = _SCALE * cosines.unflatten(1, self.prompt_features.shape[:2])
        if untuned is None or not len(self.size_features):
            sets = torch.zeros(len(features), dtype=torch.int64, device=features.device)
        else:
            sets = _cosines(untuned, self.size_features).argmax(1)
        own = similarities.detach()[torch.arange(len(features), device=features.device), sets]
        count = self.numbers[sets].gather(1, own.argmax(1, keepdim=True))[:, 0]
        return SimilarityPrediction(count.float(), None, similarities, sets)

    def keeps(self, untuned: Float[Tensor, "batch embed 1 1"]) -> tuple[Bool[Tensor, " batch"], Bool[Tensor, " batch"]]:
        """Which images show a crowd, by what the scene and by what its parts are."""
        return (
            _is_among_best(_cosines(untuned, self.scene_features), 1),
            _is_among_best(_cosines(untuned, self.part_features), self.config.parts_kept),
        )


def _cosines(
    features: Float[Tensor, "batch embed 1 1"], texts: Float[Tensor, "texts embed"]
) -> Float[Tensor, "batch texts"]:
    """Cosines of images with texts of length one, in float32: they need more digits than bfloat16 has."""
    with torch.autocast(features.device.type, enabled=False):
        return F.normalize(features.flatten(1).float(), dim=1) @ texts.T


def _is_among_best(similarities: Float[Tensor, "batch words"], kept: int) -> Bool[Tensor, " batch"]:
    """Whether the first word is among the most similar ones; always if there are no words."""
    if not similarities.shape[1]:
        return torch.ones(len(similarities), dtype=torch.bool, device=similarities.device)
    return (similarities > similarities[:, :1]).sum(1) < kept


class PooledEncoder(nn.Module):
    """CLIP's image encoder with its pooling: the feature of a whole image, as a map of one by one."""

    stride = 1

    def __init__(self, tower: nn.Module, channels: int) -> None:
        super().__init__()
        self.tower = tower
        self.channels = channels

    def forward(self, images: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch embed 1 1"]:
        """Encode images of the encoder's own size."""
        return self.tower(images)[:, :, None, None]


class Adapter(nn.Module):
    """A bottleneck of two layers whose output is mixed with its input.

    Source: arXiv:2110.04544, section 3.2.
    """

    def __init__(self, channels: int, hidden: int, *, ratio: float) -> None:
        super().__init__()
        self.ratio = ratio
        self.layers = nn.Sequential(
            nn.Conv2d(channels, hidden, 1, bias=False),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, channels, 1, bias=False),
            nn.ReLU(inplace=True),
        )

    def forward(self, features: Float[Tensor, "batch embed 1 1"]) -> Float[Tensor, "batch embed 1 1"]:
        """Mix the features with what the layers make of them."""
        return self.ratio * self.layers(features) + (1 - self.ratio) * features


class RankingCounter(Counter):
    """Counts the patches of an image that show a crowd, each as the number in the sentence most similar to it.

    Args:
        untuned: the image encoder as it was published, which is never trained; None if that is ``backbone``, because
            only an adapter is trained, or if nothing asks it.
        adapter: trained instead of the backbone; None trains the backbone.
        input_size: side of the images that the backbone reads, in pixels.
    """

    head: RankingHead

    counts_in_one_pass = False

    def __init__(
        self,
        backbone: PooledEncoder,
        head: RankingHead,
        *,
        untuned: PooledEncoder | None,
        adapter: Adapter | None,
        input_size: int,
        grid: BlockGrid,
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ) -> None:
        super().__init__(backbone, head, grid=grid, mean=mean, std=std, decoder=adapter)
        self.input_size = input_size
        self.untuned = None if untuned is None else untuned.requires_grad_(False)
        self.freeze(Freeze.none)

    def freeze(self, what: Freeze) -> None:
        """See :class:`Counter`; with an adapter, the backbone is always frozen."""
        super().freeze(what if self.decoder is None else Freeze.backbone)

    def _frozen_parts(self) -> list[nn.Module]:
        return [*super()._frozen_parts(), *([] if self.untuned is None else [self.untuned])]

    def predict_normalized(self, pixels: Float[Tensor, "batch 3 size size"]) -> SimilarityPrediction:
        """See :class:`Counter`; the images are crops or patches, of ``input_size``."""
        features = self.backbone(pixels)
        untuned = self._untuned(pixels, features) if len(self.head.size_features) else None
        return self.head(features if self.decoder is None else self.decoder(features), untuned=untuned)

    @torch.no_grad()
    def _untuned(self, pixels: Tensor, features: Tensor) -> Float[Tensor, "batch embed 1 1"]:
        """The features of CLIP as it was published; ``features`` if the backbone is it."""
        return features if self.untuned is None else self.untuned(pixels)

    @torch.inference_mode()
    def count(
        self,
        image: UInt8[Tensor, "3 height width"],
        mode: WholeImageConfig | SlidingWindowConfig = WHOLE_IMAGE,
        *,
        probabilities: bool = False,
        variance: bool = False,
    ) -> Counted:
        """Count one image of any size by its patches; see :class:`Counter`.

        There are no blocks, probabilities or variances. What the filters dropped is in ``Counted.measured``.

        Raises:
            ConfigError: if ``mode`` requests windows.
        """
        if not isinstance(mode, WholeImageConfig):
            raise ConfigError(
                "eval=sliding_window: model.head=ranking divides an image into patches itself (model.head.patches); "
                "choose eval=whole_image"
            )
        return self.count_batch([image], mode)[0]

    @torch.inference_mode()
    def count_batch(
        self,
        images: Sequence[UInt8[Tensor, "3 height width"]],
        mode: WholeImageConfig = WHOLE_IMAGE,
        *,
        probabilities: bool = False,
        variance: bool = False,
    ) -> list[Counted]:
        """See :class:`Counter`; the images are counted one after the other."""
        return self._average_views(lambda views: [self._count_patches(view, mode) for view in views], images, mode)

    def _count_patches(self, image: UInt8[Tensor, "3 height width"], mode: WholeImageConfig) -> Counted:
        height, width = image.shape[1:]
        boxes = patch_boxes(width, height, patches=self.head.config.patches)
        counts, in_scene, in_parts = [], [], []
        for start in range(0, len(boxes), _BATCH):
            patches = cut_resized(image, boxes[start : start + _BATCH], size=self.input_size)
            pixels = self.normalize(patches.to(self.mean.device))
            features = self.backbone(pixels)
            untuned = self._untuned(pixels, features) if self.head.asks_untuned else features
            scene, parts = self.head.keeps(untuned)
            tuned = features if self.decoder is None else self.decoder(features)
            counts.append(self.head(tuned, untuned=untuned).count.cpu())
            in_scene.append(scene.cpu())
            in_parts.append(parts.cpu())
        of_patches, scene, parts = torch.cat(counts).double(), torch.cat(in_scene), torch.cat(in_parts)
        kept = scene & parts
        measured = {
            "patches": float(len(boxes)),
            "dropped_by_scene": float((~scene).sum()),
            "dropped_by_parts": float((scene & ~parts).sum()),
        }
        if not kept.any() and self.head.config.no_patch_left is NoPatchLeft.all:
            kept = torch.ones_like(kept)
        return Counted(float(of_patches[kept].sum()), None, None, mode, measured=measured)


# ------------------------------------------------------------------------------------------- building


@build_head.register(RankingHeadConfig)
def _build_ranking_head(
    config: RankingHeadConfig,
    channels: int,
    grid: BlockGrid,
    bins: CountBins | None,
    texts: TextEncoder | None = None,
) -> PredictionHead:
    if texts is None:
        raise ConfigError("model.head=ranking: this model has no text encoder; choose model=clip_ranking")
    return RankingHead(config, texts)


def build_ranking(config: ClipRankingConfig, grid: BlockGrid, *, pretrained: bool = True) -> RankingCounter:
    """Build CLIP as a counter by ranking.

    Args:
        pretrained: False builds the same network without its weights, for a checkpoint to fill.

    Raises:
        ConfigError: if weights are missing or do not fit, or a sentence is too long.
        CheckpointError: if the file of weights is damaged.
    """
    config = settle_activation(config, pretrained=pretrained)
    encoders = build_encoders(config, pretrained=pretrained, pooled=True)
    backbone = PooledEncoder(encoders.image, encoders.embed_dim)
    texts = ClipTexts(PromptsConfig(), embed_dim=encoders.embed_dim, tower=encoders.text)
    head = build_head(config.head, backbone.channels, grid, None, texts)
    assert isinstance(head, RankingHead)
    adapter = None
    if config.adapter is not None:
        adapter = Adapter(backbone.channels, config.adapter, ratio=config.adapter_ratio)
    return RankingCounter(
        backbone,
        head,
        untuned=copy.deepcopy(backbone) if head.asks_untuned and adapter is None else None,
        adapter=adapter,
        input_size=config.input_size,
        grid=grid,
        mean=tuple(config.mean or encoders.mean),
        std=tuple(config.std or encoders.std),
    )
