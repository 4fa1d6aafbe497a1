"""Cross-entropy of every block over the bins of its count, and nothing else.

Implements the classification term of arXiv:2403.09281, equation 3: the baseline that classifies
blocks, and lambda 0 of table III.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from headcount.bins import CountBins
from headcount.types import Batch, BlockPrediction, LossTerms


class CrossEntropyLoss:
    """Cross-entropy over bins, summed over blocks and averaged over images."""

    def __init__(self, bins: CountBins) -> None:
        self.bins = bins

    def __call__(self, prediction: BlockPrediction, batch: Batch) -> LossTerms:
        """The loss of a prediction, in float32 even under autocast.

        Raises:
            ValueError: as :func:`cross_entropy`.
        """
        with torch.autocast(prediction.block_counts.device.type, enabled=False):
            total = cross_entropy(prediction, batch, self.bins, name="cross_entropy")
        return LossTerms(total=total, parts={"cross_entropy": total.detach()})


def cross_entropy(prediction: BlockPrediction, batch: Batch, bins: CountBins, *, name: str) -> Float[Tensor, ""]:
    """Cross-entropy of the logits against the bins of the true counts, smoothed ones where ``bins`` are of these.

    Args:
        name: of the loss that asks, for errors.

    Raises:
        ValueError: if logits or smoothed counts are missing, or a true count lies in no bin.
    """
    if prediction.logits is None:
        raise ValueError(
            f"the {name} loss needs logits of bins, but the model regresses counts: choose a model with bins"
        )
    true = batch.smoothed if bins.smoothed else batch.block_counts
    if true is None:
        raise ValueError("these bins are of smoothed counts, but the batch has none: collate needs a smoothing")
    entropies = functional.cross_entropy(prediction.logits.float(), bins.label(true), reduction="none")
    return entropies.sum((1, 2)).mean()
