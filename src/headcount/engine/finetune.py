"""Start a training from the weights of a trained counter (``init_from``): backbone, decoder and, if it fits, head.

A training that was interrupted is continued by ``engine.run``, which restores more than weights.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from headcount.bins import CountBins
from headcount.config import ClipEncodersConfig, ConfigError, ModelConfig, RankingHeadConfig, TrainConfig
from headcount.engine import checkpoint
from headcount.engine.checkpoint import LoadedCheckpoint
from headcount.errors import CheckpointError
from headcount.models.counter import Counter
from headcount.wording import printable

# Settings of a model in which a training may differ from that of the checkpoint it starts from.
_MAY_DIFFER = ("head", "weights", "mean", "std", "prior_bias", "prompts", "prompt_dropout", "freeze", "frozen")


@dataclass(frozen=True)
class Start:
    """The checkpoint that a training starts from, and what becomes of its head."""

    file: str
    source: LoadedCheckpoint
    new_head: str
    """Why the head starts afresh; empty if it is loaded."""

    def needs_pretrained(self, model: ModelConfig) -> bool:
        """Whether the network must be built with its published weights: a new head reads CLIP's texts."""
        return bool(self.new_head) and isinstance(model, ClipEncodersConfig)

    def fill(self, counter: Counter, model: ModelConfig) -> None:
        """Copy the weights into a network that was built for the training.

        Raises:
            ConfigError: if a part that must be the same has another shape.
        """
        weights = self.source.counter.state_dict()
        normalization = [name for name in ("mean", "std") if getattr(model, name) is None]
        parts = ("backbone.", "decoder.", "untuned.", *(() if self.new_head else ("head.",)))
        own = {k: v for k, v in counter.state_dict().items() if k.startswith(parts) or k in normalization}
        taken = {k: v for k, v in weights.items() if k.startswith(parts) or k in normalization}
        _refuse_other_shapes(self.file, taken, own)
        counter.load_state_dict(taken, strict=False)

    def describe(self) -> list[str]:
        """What was loaded and what was not, in two lines."""
        content, config = self.source.content, self.source.config
        decoder = ", decoder" if self.source.counter.decoder is not None else ""
        epoch = "" if content["epoch"] is None else f", epoch {content['epoch']}"
        loaded = f"backbone{decoder}" + ("" if self.new_head else ", head")
        lines = [f"starts from {printable(self.file)} ({config.model.name} of {config.dataset.name}{epoch}): {loaded}"]
        return lines + ([f"starts afresh: head, because {self.new_head}"] if self.new_head else [])

    def to_plain(self) -> dict[str, Any]:
        """For run.json."""
        content = self.source.content
        return {
            "file": self.file,
            "dataset": self.source.config.dataset.name,
            "epoch": content["epoch"],
            "commit": content["commit"],
            "new_head": self.new_head or None,
        }


def read_start(config: TrainConfig, bins: CountBins | None) -> Start | None:
    """Read the checkpoint that ``init_from`` names; None if there is none.

    Args:
        config: of the training.
        bins: of the training.

    Raises:
        CheckpointError: if the file is missing or damaged.
        ConfigError: if its network is another one.
    """
    if config.init_from is None:
        return None
    try:
        source = checkpoint.load(config.init_from)
    except CheckpointError as error:
        raise CheckpointError(str(error).replace("ckpt=", "init_from=", 1)) from error
    _refuse_other_network(config.init_from, source.config.model, config.model)
    _refuse_untuned(config, source.config.model)
    new_head = _why_new(source, config, bins)
    if new_head:
        _refuse_random_texts(config, source.config.model, new_head)
    return Start(config.init_from, source, new_head)


def _refuse_other_network(file: str, trained: ModelConfig, model: ModelConfig) -> None:
    if (type(trained), trained.name) != (type(model), model.name):
        raise ConfigError(
            f"init_from={file}: holds a {trained.name}, and this training builds a {model.name}; choose the same "
            "model, or another checkpoint"
        )
    names = [item.name for item in dataclasses.fields(model) if item.name not in _MAY_DIFFER]
    differ = [name for name in names if getattr(model, name) != getattr(trained, name)]
    if differ:
        listed = ", ".join(f"model.{name}={getattr(model, name)} (was {getattr(trained, name)})" for name in differ)
        raise ConfigError(f"init_from={file}: its network differs: {listed}; set what it was trained with")


def _refuse_untuned(config: TrainConfig, trained: ModelConfig) -> None:
    """Refuse what asks the untuned CLIP where the checkpoint does not hold it."""
    old, new = trained.head, config.model.head
    if not isinstance(old, RankingHeadConfig) or not isinstance(new, RankingHeadConfig):
        return
    if (new.filters or new.crowd_sizes) and not (old.filters or old.crowd_sizes):
        raise ConfigError(
            f"init_from={config.init_from}: was trained without filters and crowd sizes, and holds no untuned CLIP, "
            "which they ask; add 'model.head.scenes=[]' 'model.head.parts=[]' 'model.head.crowd_sizes=[]', or start "
            "from model.weights without init_from"
        )


def _refuse_random_texts(config: TrainConfig, trained: ModelConfig, why: str) -> None:
    """Refuse a new head whose prompts a random text encoder would encode."""
    if not isinstance(config.model, ClipEncodersConfig) or not isinstance(trained, ClipEncodersConfig):
        return
    if config.model.weights != "none" or trained.weights == "none" or config.model.head.name == "regression":
        return
    raise ConfigError(
        f"model.weights=none: the head starts afresh, because {why}, and the text encoder that encodes its prompts "
        f"would be random; set model.weights={trained.weights}, as init_from={config.init_from} was trained with"
    )


def _refuse_other_shapes(file: str, weights: Mapping[str, Tensor], network: Mapping[str, Tensor]) -> None:
    problems = [f"{name} is missing" for name in network if name not in weights]
    problems += [f"{name} is unknown" for name in weights if name not in network]
    problems += [
        f"{name} is {tuple(weights[name].shape)}, not {tuple(value.shape)}"
        for name, value in network.items()
        if name in weights and weights[name].shape != value.shape
    ]
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ConfigError(f"init_from={file}: its weights do not fit: {'; '.join(problems[:3])}{more}")


def _why_new(source: LoadedCheckpoint, config: TrainConfig, bins: CountBins | None) -> str:
    """Why the head of a checkpoint cannot be used; empty if it can."""
    trained = source.config
    if trained.model.head != config.model.head:
        old, new = trained.model.head.name, config.model.head.name
        return f"its kind is {new}, not {old}" if old != new else "its settings differ"
    if trained.bins.block_size != config.bins.block_size:
        return f"its blocks are {config.bins.block_size} px, not {trained.bins.block_size} px"
    if bins is not None and source.bins is not None:
        if bins.edges != source.bins.edges or bins.smoothed != source.bins.smoothed:
            names, before = (f"{len(b)}, up to {b.names()[-1]}" for b in (bins, source.bins))
            return f"its bins differ: {names}, and were {before}"
        if getattr(config.model, "prompts", None) != getattr(trained.model, "prompts", None):
            return "its prompts differ"
    return ""
