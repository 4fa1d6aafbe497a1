"""DM-Count's loss between predicted block counts and heads: optimal transport, total variation, count.

Implements arXiv:2009.13077, section 3. It knows neither bins nor logits, so that any counter may use it.
"""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from headcount.config import Reduction
from headcount.losses.sinkhorn import TransportSolution
from headcount.types import LossTerms


@runtime_checkable
class TransportSolver(Protocol):
    """What a solver of the transport problem offers; see ``TruncatedSinkhorn``."""

    def __call__(self, points: list[Tensor], blocks: Tensor, *, block_size: int) -> TransportSolution:
        """Potentials and costs of each image; an image without points has zeros."""
        ...


class TransportLoss:
    """Weighted sum of the transport, total-variation and count terms of a batch."""

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
        """Compare ``predicted`` with ``true`` block counts, and with the ``points`` they were counted from.

        Returns:
            The parts ``count``, ``total_variation`` and ``transport``, weighted; and ``transport_cost``, the
            mean <P, C> in squared pixels, 0 in an image without heads, which is only told. ``transport`` is zero but
            for rounding: it has the gradient of the transport distance, not its value.
        """
        predicted, true = predicted.squeeze(1), true.squeeze(1).to(predicted)
        heads = torch.tensor([len(p) for p in points], dtype=predicted.dtype, device=predicted.device)
        total = predicted.sum((1, 2))
        # Nothing predicted leaves shares of 0 and a finite, if huge, gradient that asks for heads where they are.
        share = predicted / (total + 1e-8)[:, None, None]
        true_share = true / (heads + 1e-8)[:, None, None]

        solution = self.solver(points, share.detach(), block_size=self.block_size)
        # Released code: sums over the batch, so that the weight of the transport grows with the images a process
        # holds; here: a mean by default, because results must not depend on how a batch is split.
        reduce = torch.mean if self.ot_reduction is Reduction.mean else torch.sum
        parts = {
            "count": self.count_weight * (total - heads).abs().mean(),
            "total_variation": self.tv_weight * ((share - true_share).abs().sum((1, 2)) * heads).mean(),
            "transport": self.ot_weight * reduce(transport_surrogate(predicted, solution.potentials)),
        }
        return LossTerms(
            total=torch.stack(list(parts.values())).sum(),
            parts={name: part.detach() for name, part in parts.items()} | {"transport_cost": solution.costs.mean()},
        )


def transport_surrogate(
    predicted: Float[Tensor, "batch rows cols"], potentials: Float[Tensor, "batch rows cols"]
) -> Float[Tensor, " batch"]:
    """A value that is zero but for rounding, with the gradient of the distance between heads and predicted shares.

    The distance grows with the share of a block by its potential; dividing by the predicted total takes off the mean
    potential and divides by the total (arXiv:2009.13077, section 3).
    """
    values = predicted.detach()
    total = values.sum((1, 2), keepdim=True)
    mean = (values * potentials).sum((1, 2), keepdim=True)
    gradient = (potentials * (total / (total.square() + 1e-8))).sub_(mean / (total.square() + 1e-8))
    return (predicted * gradient).sum((1, 2))
