"""Cross-entropy over the bins of each block's count, without a count loss.

Implements the classification term of arXiv:2403.09281, equation 3: the baseline that only classifies blocks, and
lambda = 0 in table III.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from headcount.bins import CountBins
from headcount.types import Batch, BinPrediction, LossTerms, Prediction


class CrossEntropyLoss:
    """Cross-entropy over ``bins``, summed over blocks and averaged over images."""

    def __init__(self, bins: CountBins) -> None:
        self.bins = bins
        self.needs = frozenset({"smoothed" if bins.smoothed else "block_counts"})

    def __call__(self, prediction: Prediction, batch: Batch) -> LossTerms:
        """Compute the loss of a prediction, in float32 even under autocast.

        Returns:
            The total, also as the part ``cross_entropy``.

        Raises:
            ValueError: see :func:`cross_entropy`.
        """
        with torch.autocast(prediction.count.device.type, enabled=False):
            total = cross_entropy(prediction, batch, self.bins, name="cross_entropy")
        return LossTerms(total=total, parts={"cross_entropy": total.detach()})


def cross_entropy(prediction: Prediction, batch: Batch, bins: CountBins, *, name: str) -> Float[Tensor, ""]:
    """Cross-entropy between the logits and the bins of the true counts, summed over blocks, averaged over images.

    The true counts are smoothed ones if ``bins`` are bins of smoothed counts.

    Args:
        name: name of the calling loss, for error messages.

    Raises:
        ValueError: if the prediction has no logits, a target is missing, or a true count lies in no bin.
    """
    if not isinstance(prediction, BinPrediction):
        raise ValueError(
            f"the {name} loss needs logits over bins, which this head does not predict; choose model.head=ebc"
        )
    true = batch.target("smoothed" if bins.smoothed else "block_counts")
    entropies = functional.cross_entropy(prediction.logits.float(), bins.label(true), reduction="none")
    return entropies.sum((1, 2)).mean()
