"""Several counters that count an image together."""

from collections.abc import Sequence

import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from headcount.config import SlidingWindowConfig, WholeImageConfig
from headcount.models.averaging import GridPlace, average
from headcount.models.counter import Counter
from headcount.types import Counted


class Ensemble(nn.Module):
    """The mean of what several counters predict, on the block grid of the first.

    Args:
        members: may differ in network, bins and block size.
        same_bins: whether all have the same bins; only then their probabilities are averaged.
    """

    def __init__(self, members: Sequence[Counter], *, same_bins: bool) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.grid = members[0].grid
        self.block_sizes = [member.grid.block_size for member in members]
        self.same_bins = same_bins

    @torch.inference_mode()
    def count(
        self,
        image: UInt8[Tensor, "3 height width"],
        mode: Sequence[WholeImageConfig | SlidingWindowConfig],
        *,
        probabilities: bool = False,
        variance: bool = False,
    ) -> Counted:
        """Count the heads in one image, as :meth:`headcount.models.counter.Counter.count`.

        Args:
            mode: how each member counts, in their order.

        Returns:
            Without blocks, if any member predicts none.
        """
        asked = probabilities and self.same_bins
        counted = [
            member.count(image, own, probabilities=asked, variance=variance)  # type: ignore[operator]
            for member, own in zip(self.members, mode, strict=True)
        ]
        grids = [GridPlace.of(image, block_size) for block_size in self.block_sizes]
        return average(counted, grids, onto=grids[0], mode=mode[0])
