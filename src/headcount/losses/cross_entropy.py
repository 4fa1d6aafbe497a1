"""Cross-entropy over the bins of each block's count, without a count loss.

Implements the classification term of arXiv:2403.09281, equation 3: the baseline that only classifies blocks, and
lambda = 0 in table III.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from headcount.types import Batch, BinPrediction, LossTerms, Prediction


class CrossEntropyLoss:
    """Cross-entropy over the bins of the labels, summed over blocks and averaged over images."""

    needs = frozenset({"labels"})
    honors_masks = True

    def __call__(self, prediction: Prediction, batch: Batch) -> LossTerms:
        """Compute the loss of a prediction, in float32 even under autocast.

        Returns:
            The total, also as the part ``cross_entropy``.

        Raises:
            ValueError: see :func:`cross_entropy`.
        """
        with torch.autocast(prediction.count.device.type, enabled=False):
            total = cross_entropy(prediction, batch, name="cross_entropy")
        return LossTerms(total=total, parts={"cross_entropy": total.detach()})


def cross_entropy(prediction: Prediction, batch: Batch, *, name: str) -> Float[Tensor, ""]:
    """Cross-entropy between the logits and the bins of the true counts, summed over blocks, averaged over images.

    The loader finds these bins and refuses a count that lies in none, because that check would make a GPU wait.

    With masks, only blocks entirely inside are compared. Of a block that the border of a mask crosses, the count is
    unknown: a label of the heads inside would teach too few, as evaluation multiplies by the share of the area inside.

    Args:
        name: name of the calling loss, for error messages.

    Raises:
        ValueError: if the prediction has no logits, or the batch no labels.
    """
    if not isinstance(prediction, BinPrediction):
        raise ValueError(
            f"the {name} loss needs logits over bins, which this head does not predict; choose model.head=ebc"
        )
    entropies = functional.cross_entropy(prediction.logits.float(), batch.target("labels"), reduction="none")
    if "mask" in batch.targets:
        entropies = entropies * (batch.target("mask").squeeze(1) == 1)
    return entropies.sum((1, 2)).mean()
