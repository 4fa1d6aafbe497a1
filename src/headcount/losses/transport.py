"""DM-Count's loss between predicted block counts and annotated heads: optimal transport, total variation, count.

Implements arXiv:2009.13077, section 3. It does not use bins or logits, so it works with any model that predicts block
counts.
"""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from headcount.config import Reduction
from headcount.losses.sinkhorn import TransportSolution, from_host
from headcount.types import LossTerms


@runtime_checkable
class TransportSolver(Protocol):
    """A solver of the transport problem; see ``TruncatedSinkhorn`` and ``StableSinkhorn``."""

    def __call__(self, points: list[Tensor], blocks: Tensor, *, block_size: int) -> TransportSolution:
        """Transport the points of each image to its blocks.

        Args:
            points: (x, y) of the heads of each image, in pixels of the input image; may be empty.
            blocks: share of each block, (batch, rows, cols); sums to 1 per image, or to 0.
            block_size: side of a block, in pixels.

        Returns:
            Potentials and costs of each image; zeros for an image without points.
        """
        ...


class TransportLoss:
    """Weighted sum of the transport, total-variation and count terms of a batch.

    Args:
        solver: computes the transport potentials.
        block_size: side of a block, in pixels.
        ot_weight: weight of the transport term, per squared pixel.
        ot_reduction: whether the transport term is averaged or summed over the images of a batch.
        tv_weight: weight of the total-variation term.
        count_weight: weight of the absolute error of the count of an image.

    Source: arXiv:2009.13077, section 3.
    """

    def __init__(
        self,
        solver: TransportSolver,
        *,
        block_size: int,
        ot_weight: float,
        ot_reduction: Reduction,
        tv_weight: float,
        count_weight: float,
    ) -> None:
        self.solver = solver
        self.block_size = block_size
        self.ot_weight = ot_weight
        self.ot_reduction = ot_reduction
        self.tv_weight = tv_weight
        self.count_weight = count_weight

    def __call__(
        self,
        predicted: Float[Tensor, "batch 1 rows cols"],
        points: list[Float[Tensor, "_ 2"]],
        true: Float[Tensor, "batch 1 rows cols"],
    ) -> LossTerms:
        """Compare ``predicted`` with the ``true`` block counts and with the annotated ``points``.

        Args:
            predicted: heads per block.
            points: (x, y) of the heads of each image, in pixels of the input image; may be empty.
            true: heads per block, counted from ``points``.

        Returns:
            The total, and its weighted parts ``count``, ``total_variation`` and ``transport_surrogate``. The value of
            the surrogate is zero up to rounding: it has the gradient of the transport distance, not its value.
            Logged only: ``transport_cost``, the mean <P, C> in squared pixels (0 for an image without heads).
        """
        predicted, true = predicted.squeeze(1), true.squeeze(1).to(predicted)
        heads = from_host([len(p) for p in points], predicted.device).to(predicted.dtype)
        total = predicted.sum((1, 2))
        # A predicted count of 0 gives shares of 0 and a huge but finite gradient towards the annotated heads.
        share = predicted / (total + 1e-8)[:, None, None]
        true_share = true / (heads + 1e-8)[:, None, None]

        solution = self.solver(points, share.detach(), block_size=self.block_size)
        # Released code: sums over the batch, so the weight of the transport term grows with the number of images per
        # process; here: a mean by default, because results must not depend on how a batch is split.
        reduce = torch.mean if self.ot_reduction is Reduction.mean else torch.sum
        parts = {
            "count": self.count_weight * (total - heads).abs().mean(),
            "total_variation": self.tv_weight * ((share - true_share).abs().sum((1, 2)) * heads).mean(),
            "transport_surrogate": self.ot_weight * reduce(transport_surrogate(predicted, solution.potentials)),
        }
        return LossTerms(
            total=torch.stack(list(parts.values())).sum(),
            parts={name: part.detach() for name, part in parts.items()},
            logged={"transport_cost": solution.costs.mean()},
        )


def transport_surrogate(
    predicted: Float[Tensor, "batch rows cols"], potentials: Float[Tensor, "batch rows cols"]
) -> Float[Tensor, " batch"]:
    """A value that is zero up to rounding, with the gradient of the transport distance by the predicted counts.

    The derivative of the distance by the share of a block is the block's potential. Normalizing counts to shares
    subtracts the mean potential from it and divides by the predicted total.

    Args:
        predicted: heads per block.
        potentials: dual variables of the blocks, in squared pixels.

    Returns:
        One value per image, in squared pixels.

    Source: arXiv:2009.13077, section 3.
    """
    values = predicted.detach()
    total = values.sum((1, 2), keepdim=True)
    mean = (values * potentials).sum((1, 2), keepdim=True)
    gradient = (potentials * (total / (total.square() + 1e-8))).sub_(mean / (total.square() + 1e-8))
    return (predicted * gradient).sum((1, 2))
