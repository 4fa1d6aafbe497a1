"""Which units of a network's ReLUs pass a gradient, recorded or prescribed.

A unit whose input is smaller than the rounding of float32 passes its gradient on one processor and not on another. One
such unit moves the gradients of a small network by 1e-4 to 1e-3, so gradients are compared with equal units.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Rectifier(torch.autograd.Function):
    """ReLU, the gradient of which passes the units of ``active``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, active: Tensor) -> Tensor:
        ctx.save_for_backward(active)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (active,) = ctx.saved_tensors
        return gradient * active, None


@contextmanager
def recorded(active: Sequence[Tensor] | None = None) -> Iterator[list[Tensor]]:
    """Collect the inputs of all calls of ``nn.ReLU`` inside the context.

    Args:
        active: per call, the units that pass a gradient; None for those whose input is above zero.
    """
    inputs: list[Tensor] = []

    def forward(self: nn.ReLU, x: Tensor) -> Tensor:
        inputs.append(x.detach().clone())
        return F.relu(x) if active is None else _Rectifier.apply(x, active[len(inputs) - 1])

    with mock.patch.object(nn.ReLU, "forward", forward):
        yield inputs
