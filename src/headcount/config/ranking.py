"""Settings of ``method=ranking``: its method, model, prediction head and loss belong together."""

import itertools
from collections.abc import Sequence

from headcount.config.augment import AugmentConfig
from headcount.config.fields import nearest_multiples
from headcount.config.head import RankingHeadConfig, scaled_numbers
from headcount.config.loss import LOSSES, LossConfig
from headcount.config.method import MethodConfig, RankingConfig
from headcount.config.model import ClipRankingConfig, Freeze, ModelConfig, encoder_errors, phrase_fields


def group_errors(method: MethodConfig, model: ModelConfig, loss: LossConfig) -> list[str]:
    """Find the first group whose choice does not belong to the others: one message, or none."""
    losses = [kind for kind, other in LOSSES.items() if "similarities" in other.compares]
    unmade = f"compares nested crops, which method={method.name} does not make; add method=ranking"
    ranked = " or ".join(f"loss={kind}" for kind in losses)
    if isinstance(method, RankingConfig):
        if not isinstance(model, ClipRankingConfig):
            return [
                f"model={model.name}: method=ranking compares whole images with sentences, for which this model has no "
                "text encoder; choose model=clip_ranking"
            ]
        if not isinstance(model.head, RankingHeadConfig):
            return [f"model.head={model.head.name}: method=ranking needs model.head=ranking; leave it out"]
        if loss.name not in losses:
            return [f"loss={loss.choice}: needs annotations, and method=ranking reads none; choose {ranked}"]
        return []
    if isinstance(model, ClipRankingConfig):
        return [f"model=clip_ranking: {unmade}"]
    if isinstance(model.head, RankingHeadConfig):
        return [f"model.head=ranking: belongs to model=clip_ranking, not to {model.name}; add method=ranking"]
    if loss.name in losses:
        return [f"loss={loss.name}: {unmade}"]
    return []


def errors(method: MethodConfig, model: ModelConfig, augment: AugmentConfig) -> list[str]:
    """Find sizes and sentences of a ranking that do not fit; one message each. None for other methods."""
    if not isinstance(method, RankingConfig) or not isinstance(model, ClipRankingConfig):
        return []
    if not isinstance(model.head, RankingHeadConfig):
        return []
    return [
        *_augment_errors(method, augment),
        *_sentence_errors(model.head, crops=method.crops),
        *_encoder_errors(model),
    ]


def _augment_errors(method: MethodConfig, augment: AugmentConfig) -> list[str]:
    """The first random change of training images, which whole images do not get."""
    names = ("flip", "jitter_probability", "grayscale", "blur_probability", "salt_pepper_probability")
    found = [f"augment.{name}={getattr(augment, name):g}" for name in names if getattr(augment, name) > 0]
    return [
        f"{text}: method={method.name} uses whole images without random changes; choose augment=none"
        for text in found[:1]
    ]


def _sentence_errors(head: RankingHeadConfig, *, crops: int) -> list[str]:
    found = []
    if phrase_fields(head.prompt) != {"number"}:
        found.append(f"model.head.prompt={head.prompt}: must hold {{number}}, and no other field")
    if len(head.numbers) != crops:
        found.append(
            f"method.crops={crops}: model.head.numbers={head.numbers} has {len(head.numbers)} numbers; every nested "
            "crop needs one of its own"
        )
    elif not _is_ascending(head.numbers) or not all(map(_is_ascending, scaled_numbers(head))):
        sizes = f" model.head.crowd_sizes={head.crowd_sizes}" if head.crowd_sizes else ""
        found.append(
            f"model.head.numbers={head.numbers}{sizes}: must be ascending, also when they are multiplied so that the "
            "last is a crowd size"
        )
    if not _is_ascending(head.crowd_sizes):
        found.append(f"model.head.crowd_sizes={head.crowd_sizes}: must be ascending")
    for name, words in (("scenes", head.scenes), ("parts", head.parts)):
        if len(words) == 1 or len(set(words)) < len(words) or not all(map(str.strip, words)):
            found.append(
                f"model.head.{name}={words}: the first word is compared with the others; name at least two, each once, "
                f"or none, as in 'model.head.{name}=[]'"
            )
    if head.parts and head.parts_kept >= len(head.parts):
        found.append(
            f"model.head.parts_kept={head.parts_kept}: must be below the number of model.head.parts ({len(head.parts)})"
        )
    return found


def _is_ascending(numbers: Sequence[int]) -> bool:
    return all(first < second for first, second in itertools.pairwise(numbers))


def _encoder_errors(model: ClipRankingConfig) -> list[str]:
    found = encoder_errors(model, stages=1 if model.is_vit else 4)
    if model.input_size % model.patch_size:
        found.append(
            f"model.input_size={model.input_size}: must be a multiple of {model.patch_size} px for "
            f"model.encoder={model.encoder.name}; {nearest_multiples(model.input_size, model.patch_size)}"
        )
    if model.prior_bias:
        found.append("model.prior_bias=True: model.head=ranking has no bias; leave it out")
    if model.adapter is not None and model.freeze is not Freeze.none:
        found.append(f"model.freeze={model.freeze.name}: model.adapter freezes the image encoder itself; leave it out")
    elif model.freeze in (Freeze.backbone, Freeze.all_but_head):
        found.append(
            f"model.freeze={model.freeze.name}: leaves nothing to train; add model.adapter=256 instead, which is "
            "trained on the features of the frozen image encoder"
        )
    return found


def untrained_errors(model: ClipRankingConfig) -> list[str]:
    """Find settings that rely on CLIP's weights, for ``model.weights=none``; one message each."""
    found = []
    head = model.head
    if isinstance(head, RankingHeadConfig) and (head.filters or head.crowd_sizes):
        found.append(
            "model.weights=none: filters and crowd sizes ask CLIP as it was published, and random weights know nothing "
            "about crowds; add 'model.head.scenes=[]' 'model.head.parts=[]' 'model.head.crowd_sizes=[]'"
        )
    if model.adapter is not None:
        found.append(f"model.adapter={model.adapter}: the image encoder would keep its random weights; leave it out")
    return found
