"""A training step as a script of its own would write it: the plain version that ``training.py`` compares with.

Layers of torchvision and open_clip, images that are normalized floats in the contiguous layout, a dense Sinkhorn one
image after the other, torch's Adam with its default implementation. The pieces are in ``textbook.py``.
"""

from typing import Any

import open_clip
import torch
import torch.nn.functional as F
import torchvision
from jaxtyping import Float
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import QuickGELU, VisionTransformer
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from headcount.bins import CountBins
from headcount.config import (
    Algorithm,
    ClipConfig,
    ClipViTConfig,
    ConfigError,
    DaceConfig,
    Decoder,
    DmConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    PromptDepth,
    Reduction,
    ReleasedTransportConfig,
)
from headcount.types import Batch
from textbook import classify_by_cosine, dense_sinkhorn

# ------------------------------------------------------------------------------------------- networks


class TextbookNetwork(nn.Module):
    """A counting network as its papers draw it: encoder, up-sampling to the blocks, decoder, 1x1 convolution to bins.

    Its parameters are those of ours, in the same order.

    Source: arXiv:2403.09281, figure 2; arXiv:1802.10062; arXiv:2009.13077.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module, head: nn.Module, *, factor: float) -> None:
        """Put the parts together.

        Args:
            factor: blocks per feature of the encoder along each axis.
        """
        super().__init__()
        self.encoder = encoder
        self.factor = factor
        self.decoder = decoder
        self.head = head

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> tuple[Tensor, Tensor | None]:
        """Expected heads per block, and logits over bins (None for a head without bins), of normalized images."""
        features = self.encoder(images)
        if self.factor != 1:
            features = F.interpolate(features, scale_factor=self.factor, mode="bilinear", align_corners=False)
        counts: tuple[Tensor, Tensor | None] = self.head(self.decoder(features))
        return counts


class ToBins(nn.Module):
    """1x1 convolution to one logit per bin; a block's count is the expectation under the softmax."""

    representatives: Tensor

    def __init__(self, channels: int, representatives: Tensor) -> None:
        super().__init__()
        self.to_logits = nn.Conv2d(channels, len(representatives), 1)
        self.register_buffer("representatives", representatives)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Expected heads per block, and logits."""
        logits = self.to_logits(features)
        counts = (logits.float().softmax(dim=1) * self.representatives.view(1, -1, 1, 1)).sum(dim=1, keepdim=True)
        return counts, logits


class ToCounts(nn.Module):
    """1x1 convolution and ReLU to the count of each block."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.to_counts = nn.Conv2d(channels, 1, 1)

    def forward(self, features: Tensor) -> tuple[Tensor, None]:
        """Heads per block, without logits."""
        return F.relu(self.to_counts(features)), None


class ToTexts(nn.Module):
    """CLIP's cosine head after up-sampling; see :func:`classify_by_cosine`."""

    def __init__(self, channels: int, representatives: Tensor, text_features: Tensor) -> None:
        super().__init__()
        embed = text_features.shape[1]
        self.logit_scale = nn.Parameter(torch.zeros(()))
        self.projection = nn.Identity() if channels == embed else nn.Conv2d(channels, embed, 1)
        self.register_buffer("text_features", text_features)
        self.register_buffer("representatives", representatives)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Expected heads per block, and logits."""
        return classify_by_cosine(self, features, factor=1)


class PromptedViT(nn.Module):
    """A vision transformer with its own prompt tokens before every layer, removed again after it.

    Source: arXiv:2203.12119, equations 7 and 8.
    """

    def __init__(self, tower: VisionTransformer, tokens: int) -> None:
        super().__init__()
        width = tower.conv1.out_channels
        self.prompts = nn.Parameter(torch.zeros(len(tower.transformer.resblocks), tokens, width)) if tokens else None
        self.tower = tower
        self.tokens = tokens

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch width rows cols"]:
        """The patches of the last layer as a map."""
        x = self.tower.conv1(images)
        batch, width, rows, cols = x.shape
        x = x.reshape(batch, width, rows * cols).permute(0, 2, 1)
        x = torch.cat([self.tower.class_embedding.expand(batch, 1, width), x], dim=1)
        x = self.tower.ln_pre(x + self.tower.positional_embedding)
        for k, block in enumerate(self.tower.transformer.resblocks):
            if self.prompts is not None:
                x = torch.cat([x[:, :1], self.prompts[k].expand(batch, -1, -1), x[:, 1:]], dim=1)
            x = block(x)
            if self.prompts is not None:
                x = torch.cat([x[:, :1], x[:, 1 + self.tokens :]], dim=1)
        return self.tower.ln_post(x[:, 1:]).permute(0, 2, 1).reshape(batch, width, rows, cols)


class _Bottleneck(Bottleneck):
    """torchvision's block with as many channels inside as outside."""

    expansion = 1


TEXTBOOK_MODELS = ("vgg19", "dmcount", "csrnet", "clip_rn50", "clip_vit_b16")
"""The models that have a textbook network."""


def build_textbook(config: ModelConfig, counter: nn.Module) -> TextbookNetwork:
    """The network of ``config``, in plain modules and the contiguous layout, with the weights of ``counter``.

    Args:
        counter: a :class:`headcount.models.counter.Counter` that was built from ``config``.

    Raises:
        ConfigError: if there is no textbook version of this model.
    """
    ours: Any = counter
    if config.name not in TEXTBOOK_MODELS:
        names = ", ".join(TEXTBOOK_MODELS)
        raise ConfigError(f"model={config.name}: has no textbook network; choose one of {names}")
    encoder, decoder, channels = _clip(config) if isinstance(config, ClipConfig) else _vgg(config.name)
    head: nn.Module
    if not config.head.needs_bins:
        head = ToCounts(channels)
    elif isinstance(config, ClipConfig):
        head = ToTexts(channels, ours.head.representatives.clone(), ours.head.text_features.clone())
    else:
        head = ToBins(channels, ours.head.representatives.clone())
    network = TextbookNetwork(encoder, decoder, head, factor=ours.stride / ours.grid.block_size)
    with torch.no_grad():
        for own, given in zip(network.parameters(), ours.parameters(), strict=True):
            assert own.shape == given.shape, f"{tuple(own.shape)} is not {tuple(given.shape)}"
            own.copy_(given)
            own.requires_grad_(given.requires_grad)
    return network.to(ours.mean.device)


def _vgg(name: str) -> tuple[nn.Module, nn.Module, int]:
    """Encoder, decoder, and the decoder's channels, of CSRNet and DM-Count."""
    if name == "csrnet":
        encoder, widths, dilation = torchvision.models.vgg16().features[:23], [512, 512, 512, 256, 128, 64], 2
    else:
        encoder, widths, dilation = torchvision.models.vgg19().features[:36], [256, 128], 1
    layers: list[nn.Module] = []
    channels = 512
    for width in widths:
        layers += [nn.Conv2d(channels, width, 3, padding=dilation, dilation=dilation), nn.ReLU(inplace=True)]
        channels = width
    return encoder, nn.Sequential(*layers), channels


def _clip(config: ClipConfig) -> tuple[nn.Module, nn.Module, int]:
    """Encoder, decoder, and the decoder's channels, of CLIP-EBC."""
    sizes: Any = open_clip.get_model_config({"clip_rn50": "RN50", "clip_vit_b16": "ViT-B-16"}[config.name])
    embed, width = config.embed_dim or sizes["embed_dim"], config.width or sizes["vision_cfg"]["width"]
    layers = config.layers or sizes["vision_cfg"]["layers"]
    encoder: nn.Module
    if isinstance(config, ClipViTConfig):
        if config.prompt_dropout or config.prompt_depth is not PromptDepth.deep:
            raise ConfigError("model.prompt_depth, model.prompt_dropout: the textbook network has plain deep prompts")
        tower = VisionTransformer(
            image_size=config.input_size,
            patch_size=16,
            width=width,
            layers=layers[0] if isinstance(layers, list) else layers,
            heads=config.heads or width // 64,
            mlp_ratio=4.0,
            output_dim=embed,
            act_layer=QuickGELU if config.quick_gelu else nn.GELU,
        )
        tower.proj = None
        encoder, channels = PromptedViT(tower, config.prompt_tokens), width
    else:
        resnet: Any = ModifiedResNet(layers, embed, heads=1, width=width)
        resnet.attnpool = nn.Identity()
        resnet.layer4[0].avgpool = resnet.layer4[0].downsample[0] = nn.Identity()
        encoder, channels = resnet, 32 * width
    if config.decoder is Decoder.none:
        return encoder, nn.Identity(), channels
    if config.decoder_channels not in (None, [channels]):
        raise ConfigError("model.decoder_channels: the decoder of the textbook network is as wide as the features")
    block = BasicBlock if isinstance(config, ClipViTConfig) else _Bottleneck
    return encoder, block(channels, channels), channels


# ----------------------------------------------------------------------------------------------- step


class TextbookLoss:
    """Cross-entropy over bins, and DM-Count's loss, as their equations are written.

    Source: arXiv:2403.09281, equation 3; arXiv:2009.13077, section 3.
    """

    def __init__(self, config: LossConfig, bins: CountBins | None, *, block_size: int) -> None:
        """Read the weights of the terms.

        Raises:
            ConfigError: if there is no textbook version of this loss.
        """
        if not isinstance(config, (DaceConfig, DmConfig)) or not isinstance(config.transport, ReleasedTransportConfig):
            raise ConfigError(
                f"loss={config.choice}: has no textbook version; choose loss=dace or loss=dm, as released"
            )
        self.transport = config.transport
        self.weight = config.weight if isinstance(config, DaceConfig) else 1.0
        self.bins = bins if isinstance(config, DaceConfig) else None
        self.block_size = block_size

    def __call__(self, counts: Tensor, logits: Tensor | None, batch: Batch) -> Tensor:
        """The loss of the expected heads per block and of the logits."""
        true, points = batch.target("block_counts"), batch.target("points")
        loss = self.weight * self.transport_loss(counts.float().squeeze(1), points, true.squeeze(1))
        if self.bins is not None:
            assert logits is not None
            labels = torch.zeros_like(true[:, 0], dtype=torch.long)
            for k, (low, high) in enumerate(self.bins.edges):
                labels[(true[:, 0] >= low) & (true[:, 0] <= high)] = k
            loss = loss + F.cross_entropy(logits.float(), labels, reduction="none").sum(dim=(1, 2)).mean()
        return loss

    def transport_loss(self, counts: Tensor, points: list[Tensor], true: Tensor) -> Tensor:
        """Weighted sum of the count, total-variation and transport terms."""
        config = self.transport
        heads = torch.tensor([float(len(p)) for p in points], device=counts.device)
        total = counts.sum(dim=(1, 2))
        share, true_share = counts / (total + 1e-8)[:, None, None], true / (heads + 1e-8)[:, None, None]
        variation = ((share - true_share).abs().sum(dim=(1, 2)) * heads).mean()
        with torch.no_grad():
            beta = dense_sinkhorn(points, share, block_size=self.block_size).potentials
            square = (total.square() + 1e-8)[:, None, None]
            mean = (counts * beta).sum(dim=(1, 2), keepdim=True)
            gradient = total[:, None, None] / square * beta - mean / square
        transport = (counts * gradient).sum(dim=(1, 2))
        reduced = transport.mean() if config.ot_reduction is Reduction.mean else transport.sum()
        return (
            config.count_weight * (total - heads).abs().mean()
            + config.tv_weight * variation
            + config.ot_weight * reduced
        )


class TextbookStep:
    """Forward, loss, backward and optimizer of a :class:`TextbookNetwork` on one batch."""

    def __init__(
        self,
        network: TextbookNetwork,
        loss: TextbookLoss,
        config: OptimConfig,
        *,
        images: Float[Tensor, "batch 3 height width"],
        batch: Batch,
    ) -> None:
        """Build the optimizer.

        Args:
            config: learning rate, weight decay, clipping and averaging.
            images: normalized.
            batch: holds the targets.
        """
        self.network = network.train()
        self.loss = loss
        self.images = images
        self.batch = batch
        self.max_norm = config.max_grad_norm
        self.trained = [p for p in network.parameters() if p.requires_grad]
        optimizer = {Algorithm.adam: torch.optim.Adam, Algorithm.adamw: torch.optim.AdamW}[config.algorithm]
        self.optimizer = optimizer(self.trained, lr=config.lr, weight_decay=config.weight_decay)
        self.decay = config.ema_decay or 0.0
        averaged = config.ema_decay is not None
        self.average = [v.clone() for v in network.state_dict().values()] if averaged else []

    def forward(self) -> Tensor:
        """The loss."""
        counts, logits = self.network(self.images)
        return self.loss(counts, logits, self.batch)

    def step(self) -> float:
        """The whole step; returns the loss."""
        self.optimizer.zero_grad()
        loss = self.forward()
        loss.backward()
        if self.max_norm is not None:
            nn.utils.clip_grad_norm_(self.trained, self.max_norm)
        self.optimizer.step()
        for average, value in zip(self.average, self.network.state_dict().values(), strict=False):
            if value.is_floating_point():
                average.mul_(self.decay).add_(value, alpha=1 - self.decay)
        return loss.item()
