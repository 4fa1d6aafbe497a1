"""The zero-inflated Poisson distribution of the heads in a block, as a prediction.

A block is structurally empty with some probability; otherwise its count has a Poisson distribution, which may be 0 as
well. Implements the distribution of arXiv:2506.19955, with mean, variance and probabilities of bins. Networks and
losses that use it are ``models.zero_inflated`` and ``losses.zero_inflated``.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from headcount.types import Prediction


@dataclass
class ZipPrediction(Prediction):
    """The output of a prediction head that predicts a zero-inflated Poisson distribution for each block."""

    gate_logits: Float[Tensor, "batch 2 rows cols"]
    """Scores of a structurally empty block and of one that is not, before the softmax."""
    bin_logits: Float[Tensor, "batch positive_bins rows cols"]
    """One score per bin above 0, before the softmax."""
    rate: Float[Tensor, "batch 1 rows cols"]
    """Mean of the Poisson distribution (lambda), in heads: the expectation over the bins above 0."""
    last_counts: Float[Tensor, " bins"]
    """Last integer of each bin, {0} included; inf for the last bin."""

    @classmethod
    def from_logits(
        cls,
        gate_logits: Float[Tensor, "batch 2 rows cols"],
        bin_logits: Float[Tensor, "batch positive_bins rows cols"],
        *,
        representatives: Float[Tensor, " positive_bins"],
        last_counts: Float[Tensor, " bins"],
    ) -> "ZipPrediction":
        """The prediction of blocks with these logits.

        Args:
            representatives: count that each bin above 0 stands for.
            last_counts: see the attribute.
        """
        rate = (bin_logits.softmax(1) * representatives[:, None, None]).sum(1, keepdim=True)
        blocks = gate_logits.softmax(1)[:, 1:] * rate
        return cls(blocks.sum((1, 2, 3)), blocks, gate_logits, bin_logits, rate, last_counts)

    def probabilities(self) -> Float[Tensor, "batch bins rows cols"]:
        """Probability that the count, under the mixture, lies in each bin; that of the open bin is what remains.

        Unlike a softmax over bins, {0} includes the blocks that are not structurally empty and still hold nobody.
        """
        empty, occupied = self.gate_logits.softmax(1).split(1, dim=1)
        # P(count <= k) of a Poisson distribution is the regularized upper incomplete gamma function Q(k + 1, rate).
        ends = (self.last_counts[:-1] + 1)[:, None, None].to(self.rate)
        up_to = torch.special.gammaincc(ends.expand(-1, *self.rate.shape[2:]), self.rate)
        below = torch.cat([up_to, torch.ones_like(self.rate)], dim=1)
        poisson = below.diff(dim=1, prepend=torch.zeros_like(self.rate)).clamp(min=0)
        return torch.cat([empty + occupied * poisson[:, :1], occupied * poisson[:, 1:]], dim=1)

    def variance(self) -> Float[Tensor, "batch 1 rows cols"]:
        """Variance of the heads in each block: that of the Poisson distribution, and that of being empty or not."""
        empty, occupied = self.gate_logits.softmax(1).split(1, dim=1)
        return occupied * self.rate + empty * occupied * self.rate.square()
