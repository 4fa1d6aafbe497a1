"""Losses of the nested crops of images, each of which has a sentence about a number of people.

They compare similarities and read no annotation. The crops are made by ``data.loading``.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from headcount.config import Compared
from headcount.types import Batch, LossTerms, Prediction, SimilarityPrediction


class MmrLoss:
    """Multimodal ranking loss: the sum of hinges over all pairs of crops, averaged over images.

    With the similarity s(i, j) of crop i and the sentence of crop j, and i < j for a smaller crop i, the hinge is
    max(0, margin + s(i, j) - s(j, j)), or max(0, margin + s(j, i) - s(j, j)) if sentences are compared.

    Source: arXiv:2304.04231, equation 2, whose margin is 0.
    """

    needs = frozenset({"rank"})

    def __init__(self, *, margin: float, compared: Compared) -> None:
        self.margin = margin
        self.compared = compared

    def __call__(self, prediction: Prediction, batch: Batch) -> LossTerms:
        """The loss of the nested crops of each image."""
        similarities = similarities_of_images(prediction, batch)
        own = similarities.diagonal(dim1=1, dim2=2)
        others = similarities if self.compared is Compared.crops else similarities.mT
        hinges = (self.margin + others - own[:, None, :]).relu()  # [i, j], of the pair i < j
        total = hinges.triu(1).sum((1, 2)).mean()
        return LossTerms(total, {"mmr": total.detach()}, {"own_sentence": own_sentence(similarities)})


class ClipLoss:
    """CLIP's symmetric cross-entropy over the crops of an image and their sentences, averaged over crops and images.

    Source: arXiv:2103.00020, figure 3.
    """

    needs = frozenset({"rank"})

    def __call__(self, prediction: Prediction, batch: Batch) -> LossTerms:
        """The loss of the nested crops of each image."""
        similarities = similarities_of_images(prediction, batch)
        own = batch.target("rank")
        of_sentences = F.cross_entropy(similarities.transpose(1, 2), own)
        of_crops = F.cross_entropy(similarities, own)
        total = (of_sentences + of_crops) / 2
        return LossTerms(total, {"clip": total.detach()}, {"own_sentence": own_sentence(similarities)})


def similarities_of_images(prediction: Prediction, batch: Batch) -> Float[Tensor, "images crops crops"]:
    """The similarities of the crops of each image with the sentences of the set that its largest crop chose."""
    assert isinstance(prediction, SimilarityPrediction)
    images, crops = batch.target("rank").shape
    of_images = prediction.similarities.float().unflatten(0, (images, crops))
    chosen = prediction.sets.unflatten(0, (images, crops))[:, -1]
    return of_images[torch.arange(images, device=chosen.device), :, chosen]


def own_sentence(similarities: Float[Tensor, "images crops crops"]) -> Float[Tensor, ""]:
    """The share of crops whose own sentence is the most similar one, detached."""
    best = similarities.detach().argmax(2)
    return (best == torch.arange(best.shape[1], device=best.device)).float().mean()
