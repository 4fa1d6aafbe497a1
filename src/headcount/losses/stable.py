"""The transport problem of ``sinkhorn`` by an iteration that never underflows.

Same problem, same marginals, same order of steps as the released iteration (arXiv:1306.0895,
algorithm 1), so that the same number of iterations may be compared. The potentials are kept as
logarithms, and the kernel holds them already (stabilized as in arXiv:1610.06519, section 3), so
that most iterations are two products of a matrix and a vector. It does not make published numbers:
those rest on what the released iteration loses. Nothing differentiates through it.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from headcount.losses.sinkhorn import CHECK_EVERY, TransportSolution, one_thread

FLOOR = 1e-16
"""Least share of a block. A block that expects nobody has no finite potential; this is as good as nobody."""

LARGEST_SCALING = 2.0**20
"""Scalings beyond this, or below its inverse, are put into the logarithms, and the kernel is formed anew."""

LEAST_ENTRY = 2.0**26
"""Times the least normal number: smaller entries are left out. They change no marginal visibly, and products of
numbers that are no longer normal take a CPU a hundred times as long."""


@dataclass(frozen=True)
class StableSinkhorn:
    """Log-domain Sinkhorn with absorbed potentials, one image at a time."""

    regularization: float
    """Entropic regularization, squared pixels."""
    iterations: int
    """Maximum number of iterations per image."""
    tolerance: float | None = None
    """Stop earlier once the shares of the blocks differ from their targets by less than this in total; None never."""

    @torch.no_grad()
    def __call__(
        self, points: list[Float[Tensor, "_ 2"]], blocks: Float[Tensor, "batch rows cols"], *, block_size: int
    ) -> TransportSolution:
        """Transport the points of each image to its blocks.

        Args:
            points: (x, y) of the heads of each image, in pixels of the input; may be empty.
            blocks: share of each block, summing to 1 in each image (or to 0, where nothing is predicted).
            block_size: side of a block in pixels.

        Returns:
            Potentials whose mean, weighted by the blocks' shares, is 0: they are known up to a constant. An image
            without points or without any prediction has zeros.
        """
        potentials, costs = torch.zeros_like(blocks), blocks.new_zeros(len(blocks))
        row, col = (block_size * (torch.arange(k, device=blocks.device) + 0.5) for k in blocks.shape[1:])
        predicted = (blocks > 0).flatten(1).any(1).tolist()  # device sync
        with one_thread():
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
        """Potentials of the blocks over the regularization, and <P, C>."""
        a = 1 / len(cost)
        log_a, log_b = torch.full_like(cost[:, 0], a).log(), b.log()
        scaled = cost / -self.regularization
        least = LEAST_ENTRY * torch.finfo(cost.dtype).tiny
        f, done, close = log_a, 0, False
        while True:
            # One iteration in logarithms, which holds whatever the potentials were.
            g = log_b - torch.logsumexp(scaled + f[:, None], 0)
            f = log_a - torch.logsumexp(scaled + g, 1)
            done += 1
            kernel = (scaled + f[:, None]).add_(g).exp_()
            kernel = functional.threshold(kernel, least, 0, inplace=True)
            u, v, received = torch.ones_like(f), torch.ones_like(g), kernel.sum(0)
            # The others by products with that kernel, as long as its scalings stay near 1.
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
    """Whether no scaling has gone beyond ``LARGEST_SCALING`` (infinities and NaN have)."""
    # Device sync, once for all of them.
    return bool(torch.stack([((s < LARGEST_SCALING) & (s > 1 / LARGEST_SCALING)).all() for s in scalings]).all())
