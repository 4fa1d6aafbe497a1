"""The loss of the zero-inflated Poisson head: how many where there are people, how likely, and how far off.

Implements the loss of arXiv:2506.19955 from the counts of the blocks. It does not bound or smooth these counts.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional

from headcount.types import Batch, LossTerms, Prediction
from headcount.zero_inflated import ZipPrediction


class ZipLoss:
    """Weighted sum of four terms, each summed over the blocks and averaged over the images.

    Args:
        cross_entropy_weight: of the cross-entropy over the bins above 0, in the blocks with heads.
        nll_weight: of the negative log-likelihood of the counts.
        epsilon: added to each probability before its logarithm.
        scales: sides of the cells of the multi-scale error, in blocks, each with its weight.
        mae_weight: of the multi-scale error.
        count_weight: of the absolute error of an image's count.

    Source: arXiv:2506.19955.
    """

    needs = frozenset({"labels", "block_counts"})
    honors_masks = True

    def __init__(
        self,
        *,
        cross_entropy_weight: float = 1.0,
        nll_weight: float = 1.0,
        epsilon: float = 1e-8,
        scales: Sequence[tuple[int, float]] = ((1, 0.25), (2, 0.5), (4, 1.0)),
        mae_weight: float = 1.0,
        count_weight: float = 1.0,
    ) -> None:
        self.cross_entropy_weight = cross_entropy_weight
        self.nll_weight = nll_weight
        self.epsilon = epsilon
        self.scales = scales
        self.mae_weight = mae_weight
        self.count_weight = count_weight

    def __call__(self, prediction: Prediction, batch: Batch) -> LossTerms:
        """Compute the loss of a prediction, in float32 even under autocast.

        With masks, blocks entirely inside have a likelihood and a bin; errors are those of the heads inside.

        Returns:
            The total, and its weighted parts ``cross_entropy``, ``nll``, ``multiscale_mae`` and ``count``. Logged only:
            ``log_factorial``, the part of the negative log-likelihood that no prediction changes, weighted alike.

        Raises:
            ValueError: if the prediction is no zero-inflated Poisson distribution, or the batch lacks a target.
        """
        if not isinstance(prediction, ZipPrediction):
            raise ValueError(
                "the zip loss needs a zero-inflated Poisson distribution, which this head does not predict; choose "
                "model.head=zip"
            )
        assert prediction.blocks is not None
        with torch.autocast(prediction.count.device.type, enabled=False):
            blocks = batch.within_mask(_at_least_float32(prediction.blocks))
            true, labels = batch.target("block_counts").to(blocks), batch.target("labels")
            likelihood = zip_nll(
                true, prediction.gate_logits.to(blocks), prediction.rate.to(blocks), epsilon=self.epsilon
            )
            constant = torch.lgamma(true + 1)
            if "mask" in batch.targets:  # of a block that the border of a mask crosses, the count is unknown
                known = batch.target("mask") == 1
                likelihood, constant = likelihood.masked_fill(~known, 0), constant.masked_fill(~known, 0)
                labels = labels * known.squeeze(1)
            mae = multiscale_mae(blocks - true, self.scales)
            count = (blocks.sum((1, 2, 3)) - true.sum((1, 2, 3))).abs()
            parts = {
                "cross_entropy": self.cross_entropy_weight
                * positive_cross_entropy(prediction.bin_logits, labels).mean(),
                "nll": self.nll_weight * likelihood.sum((1, 2, 3)).mean(),
                "multiscale_mae": self.mae_weight * mae.mean(),
                "count": self.count_weight * count.mean(),
            }
        return LossTerms(
            total=torch.stack(list(parts.values())).sum(),
            parts={name: part.detach() for name, part in parts.items()},
            logged={"log_factorial": self.nll_weight * constant.sum((1, 2, 3)).mean()},
        )


def positive_cross_entropy(
    bin_logits: Float[Tensor, "batch positive_bins rows cols"], labels: Int64[Tensor, "batch rows cols"]
) -> Float[Tensor, " batch"]:
    """Cross-entropy over the bins above 0, summed over the blocks of an image that hold heads.

    Args:
        bin_logits: of the bins above 0.
        labels: index of the bin of each block's count, where 0 is the bin {0}.
    """
    # In bins above 0, an empty block has no label; it is ignored.
    entropies = functional.cross_entropy(_at_least_float32(bin_logits), labels - 1, ignore_index=-1, reduction="none")
    return entropies.sum((1, 2))


def zip_nll(
    counts: Float[Tensor, "batch 1 rows cols"],
    gate_logits: Float[Tensor, "batch 2 rows cols"],
    rate: Float[Tensor, "batch 1 rows cols"],
    *,
    epsilon: float,
) -> Float[Tensor, "batch 1 rows cols"]:
    """Negative log-likelihood of each block's count, without the constant log(count!).

    Args:
        counts: heads per block, not capped.
        gate_logits: of a structurally empty block, and of one that is not.
        rate: mean of the Poisson distribution, in heads; above 0.
        epsilon: added to each probability before its logarithm.
    """
    empty, occupied = gate_logits.softmax(1).split(1, dim=1)
    of_zero = -(empty + occupied * (-rate).exp() + epsilon).log()
    of_positive = rate - counts * rate.log() - (occupied + epsilon).log()
    return torch.where(counts > 0, of_positive, of_zero)


def multiscale_mae(
    error: Float[Tensor, "batch 1 rows cols"], scales: Sequence[tuple[int, float]]
) -> Float[Tensor, " batch"]:
    """Absolute errors of averages over square cells of blocks, summed over the cells, weighted and added.

    A cell at the right or lower border that is not full is filled with blocks without error, so that every block of
    the image counts.

    Args:
        error: predicted minus true heads per block.
        scales: side of a cell in blocks, and weight.
    """
    rows, cols = error.shape[2:]
    terms = []
    for side, weight in scales:
        padded = functional.pad(error, (0, -cols % side, 0, -rows % side))
        terms.append(weight * functional.avg_pool2d(padded, side).abs().sum((1, 2, 3)))
    return torch.stack(terms).sum(0)


def _at_least_float32(values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    return values.to(torch.promote_types(values.dtype, torch.float32))
