"""The zero-inflated Poisson distribution of the heads in a block, as a prediction.

A block is structurally empty with some probability; otherwise its count has a Poisson distribution, which may be 0 as
well. Implements the distribution of arXiv:2506.19955, with mean, variance and probabilities of bins. Networks and
losses that use it are ``models.zero_inflated`` and ``losses.zero_inflated``.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from headcount.types import Prediction


def bin_counts(edges: Sequence[tuple[float, float]]) -> Float[Tensor, "bounded_bins counts"]:
    """Whether each bin but the open one holds each count, from 0 to the last of them: 1 or 0.

    Args:
        edges: first and last integer of each bin; the last bin ends at inf.
    """
    first, last = torch.tensor(edges[:-1])[..., None].unbind(1)
    counts = torch.arange(edges[-1][0])
    return ((first <= counts) & (counts <= last)).float()


@dataclass
class ZipPrediction(Prediction):
    """The output of a prediction head that predicts a zero-inflated Poisson distribution for each block."""

    gate_logits: Float[Tensor, "batch 2 rows cols"]
    """Scores of a structurally empty block and of one that is not, before the softmax."""
    bin_logits: Float[Tensor, "batch positive_bins rows cols"]
    """One score per bin above 0, before the softmax."""
    rate: Float[Tensor, "batch 1 rows cols"]
    """Mean of the Poisson distribution (lambda), in heads: the expectation over the bins above 0."""
    bin_counts: Float[Tensor, "bounded_bins counts"]
    """Which counts, from 0, each bin but the open one holds (:func:`bin_counts`)."""

    @classmethod
    def from_logits(
        cls,
        gate_logits: Float[Tensor, "batch 2 rows cols"],
        bin_logits: Float[Tensor, "batch positive_bins rows cols"],
        *,
        representatives: Float[Tensor, " positive_bins"],
        bin_counts: Float[Tensor, "bounded_bins counts"],
    ) -> "ZipPrediction":
        """The prediction of blocks with these logits.

        Args:
            representatives: count that each bin above 0 stands for.
            bin_counts: see the attribute.
        """
        rate = (bin_logits.softmax(1) * representatives[:, None, None]).sum(1, keepdim=True)
        blocks = gate_logits.softmax(1)[:, 1:] * rate
        return cls(blocks.sum((1, 2, 3)), blocks, gate_logits, bin_logits, rate, bin_counts)

    def probabilities(self) -> Float[Tensor, "batch bins rows cols"]:
        """Probability that the count, under the mixture, lies in each bin; that of the open bin is what remains.

        Unlike a softmax over bins, {0} includes the blocks that are not structurally empty and still hold nobody.
        """
        empty, occupied = self.gate_logits.softmax(1).split(1, dim=1)
        # Operations that ONNX has: it knows neither the incomplete gamma function nor the logarithm of a factorial.
        counts = torch.arange(self.bin_counts.shape[1], device=self.rate.device, dtype=self.rate.dtype)
        log_factorials = counts.clamp(min=1).log().cumsum(0)
        logs = counts[:, None, None] * self.rate.log() - self.rate - log_factorials[:, None, None]
        bounded = torch.einsum("bk,ikrc->ibrc", self.bin_counts.to(self.rate), logs.exp())
        poisson = torch.cat([bounded, (1 - bounded.sum(1, keepdim=True)).clamp(min=0)], dim=1)
        return torch.cat([empty + occupied * poisson[:, :1], occupied * poisson[:, 1:]], dim=1)

    def variance(self) -> Float[Tensor, "batch 1 rows cols"]:
        """Variance of the heads in each block: that of the Poisson distribution, and that of being empty or not."""
        empty, occupied = self.gate_logits.softmax(1).split(1, dim=1)
        return occupied * self.rate + empty * occupied * self.rate.square()
