"""Solves the transport problem of ``sinkhorn`` with an iteration that does not underflow.

Same problem, marginals and order of steps as the released iteration (arXiv:1306.0895, algorithm 1), so results after
the same number of iterations are comparable. The potentials are stored as logarithms and absorbed into the kernel
(stabilization of arXiv:1610.06519, section 3), so most iterations are two matrix-vector products. It does not reproduce
published results, which depend on the underflow of the released iteration. No gradient flows through it.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from headcount.losses.sinkhorn import CHECK_EVERY, TransportSolution

FLOOR = 1e-16
"""Minimum share of a block. The potential of a block with share 0 is infinite; this share is practically 0."""

MAX_SCALING = 2.0**20
"""Scalings above this value or below its inverse are absorbed into the potentials, and the kernel is recomputed."""

MIN_ENTRY = 2.0**26
"""Kernel entries below this multiple of the smallest normal number are set to 0. They would not change a marginal
noticeably, and a CPU multiplies denormal numbers a hundred times more slowly."""


@dataclass(frozen=True)
class StableSinkhorn:
    """Log-domain Sinkhorn with absorbed potentials, one image at a time."""

    regularization: float
    """Entropic regularization, in squared pixels."""
    iterations: int
    """Maximum number of iterations per image."""
    tolerance: float | None = None
    """An image is finished earlier when the absolute errors of its block shares sum to less than this value; None
    always runs all ``iterations``."""

    @torch.no_grad()
    def __call__(
        self, points: list[Float[Tensor, "_ 2"]], blocks: Float[Tensor, "batch rows cols"], *, block_size: int
    ) -> TransportSolution:
        """Transport the points of each image to its blocks.

        Args:
            points: (x, y) of the heads of each image, in pixels of the input image; may be empty.
            blocks: share of each block; sums to 1 per image, or to 0 where the predicted count is 0.
            block_size: side of a block, in pixels.

        Returns:
            Potentials with mean 0 when weighted by the shares of the blocks (they are defined up to a constant), and
            costs. Both are zero for an image without points or with a predicted count of 0.
        """
        potentials, costs = torch.zeros_like(blocks), blocks.new_zeros(len(blocks))
        row, col = (block_size * (torch.arange(k, device=blocks.device) + 0.5) for k in blocks.shape[1:])
        predicted = (blocks > 0).flatten(1).any(1).tolist()  # device sync
        for i, image in enumerate(points):
            if not len(image) or not predicted[i]:
                continue
            heads, b = image.to(blocks), blocks[i].flatten()
            dx2, dy2 = (heads[:, :1] - col).square(), (heads[:, 1:] - row).square()
            cost = (dy2[:, :, None] + dx2[:, None, :]).flatten(1)
            g, costs[i] = self._solve(cost, b.clamp(min=FLOOR))
            potentials[i] = (self.regularization * (g - (g * b).sum() / b.sum())).view_as(blocks[i])
        return TransportSolution(potentials, costs)

    def _solve(
        self, cost: Float[Tensor, "n m"], b: Float[Tensor, " m"]
    ) -> tuple[Float[Tensor, " m"], Float[Tensor, ""]]:
        """Solve one image.

        Returns:
            Potentials of the blocks divided by the regularization, and the cost <P, C> in squared pixels.
        """
        a = 1 / len(cost)
        log_a, log_b = torch.full_like(cost[:, 0], a).log(), b.log()
        scaled = cost / -self.regularization
        least = MIN_ENTRY * torch.finfo(cost.dtype).tiny
        f, done, close = log_a, 0, False
        while True:
            # One iteration in the log domain, which is exact for any potentials.
            g = log_b - torch.logsumexp(scaled + f[:, None], 0)
            f = log_a - torch.logsumexp(scaled + g, 1)
            done += 1
            kernel = (scaled + f[:, None]).add_(g).exp_()
            kernel = functional.threshold(kernel, least, 0, inplace=True)
            u, v, received = torch.ones_like(f), torch.ones_like(g), kernel.sum(0)
            # Further iterations as products with that kernel, while its scalings stay near 1.
            while done < self.iterations:
                if self.tolerance is not None and done % CHECK_EVERY == 0:
                    close = bool((v * received - b).abs().sum() < self.tolerance)  # device sync
                    if close:
                        break
                next_v = b / received
                next_u = a / (kernel @ next_v)
                if not _near_one(next_u, next_v):
                    break
                u, v, done = next_u, next_v, done + 1
                received = u @ kernel
            if done >= self.iterations or close:
                return g + v.log(), u @ (kernel.mul_(cost) @ v)
            f, g = f + u.log(), g + v.log()


def _near_one(*scalings: Tensor) -> bool:
    """Whether all scalings lie between 1 / ``MAX_SCALING`` and ``MAX_SCALING``; false for NaN."""
    # Device sync, once for all scalings.
    return bool(torch.stack([((s < MAX_SCALING) & (s > 1 / MAX_SCALING)).all() for s in scalings]).all())
