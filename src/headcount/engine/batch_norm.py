"""Batch normalization over the crops of all processes: a step then does not depend on how its batch is shared.

On a GPU this is torch's ``SyncBatchNorm``, which refuses a CPU; there, the same statistics are computed here.
"""

from typing import Any

import torch
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.functional import batch_norm
from torch.nn.modules.batchnorm import _BatchNorm

from headcount.config import ConfigError


def synchronize_batch_norm(model: nn.Module, device: torch.device) -> nn.Module:
    """Let the batch normalizations inside ``model`` use the crops of all processes, in training.

    The processes must train on batches of equal size. Parameters, buffers and their names stay as they are.

    Raises:
        ConfigError: if a kind of normalization cannot be synchronized on this device.
    """
    if device.type != "cpu":
        return convert_sync_batchnorm(model)  # unlike torch's, keeps the activation inside timm's normalizations
    for name, module in model.named_modules():
        if type(module) in _ON_CPU:
            module.__class__ = _ON_CPU[type(module)]
        elif isinstance(module, _BatchNorm):
            raise ConfigError(
                f"runtime.sync_batchnorm=true: {name} of the network is a {type(module).__name__}, which is "
                "synchronized on GPUs only; set runtime.sync_batchnorm=false"
            )
    return model


class SynchronizedBatchNorm2d(nn.BatchNorm2d):
    """Batch normalization that shares its statistics with the other processes, on a CPU."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalize each channel by its mean and variance over the crops and positions of all processes."""
        return _normalize(self, input) if self.training else super().forward(input)


class SynchronizedBatchNormAct2d(BatchNormAct2d):
    """The same, with the activation of timm's normalizations after it."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalize over all processes, and apply the activation."""
        return self.act(self.drop(_normalize(self, x))) if self.training else super().forward(x)


_ON_CPU: dict[type, type] = {nn.BatchNorm2d: SynchronizedBatchNorm2d, BatchNormAct2d: SynchronizedBatchNormAct2d}


def _normalize(layer: _BatchNorm, input: Tensor) -> Tensor:
    """Normalize a batch, and update the layer's running statistics."""
    output, mean, variance, values = _Normalize.apply(input, layer.weight, layer.bias, layer.eps)
    if layer.running_mean is not None and layer.running_var is not None and layer.num_batches_tracked is not None:
        layer.num_batches_tracked.add_(1)
        factor = 1 / int(layer.num_batches_tracked) if layer.momentum is None else layer.momentum
        layer.running_mean.lerp_(mean, factor)
        layer.running_var.lerp_(variance * (values / (values - 1)), factor)
    return output


class _Normalize(torch.autograd.Function):
    """Batch normalization with statistics over all processes, in float32; one collective forward, one backward."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, int]:
        world = torch.distributed.get_world_size()
        dims = [0, *range(2, input.ndim)]
        values = world * (input.numel() // input.shape[1])
        if values < 2:
            raise ValueError(f"expected more than 1 value per channel in training, got input of {tuple(input.shape)}")
        mean = input.float().mean(dims)
        # torch.var_mean takes ten times as long for these dimensions.
        variance = (input.float() - mean.view(1, -1, *[1] * (input.ndim - 2))).square_().mean(dims)
        own = torch.stack([variance, mean])
        of_all = [torch.empty_like(own) for _ in range(world)]
        torch.distributed.all_gather(of_all, own)
        variances, means = torch.stack(of_all, dim=1)
        mean = means.mean(0)
        # The variance inside each process, and that of the processes' means: no difference of large numbers.
        variance = variances.mean(0) + (means - mean).square().mean(0)
        output = batch_norm(input, mean, variance, weight, bias, training=False, eps=eps)
        ctx.save_for_backward(input, weight, mean, (variance + eps).rsqrt())
        ctx.values, ctx.dims = values, dims
        ctx.mark_non_differentiable(mean, variance)
        return output, mean, variance, values

    @staticmethod
    def backward(ctx: Any, of_output: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        input, weight, mean, scale = ctx.saved_tensors
        shape = [1, -1, *[1] * (input.ndim - 2)]
        gradient = of_output.float()
        centered = input.float() - mean.view(shape)
        # Those of the parameters stay the process's own: DistributedDataParallel averages them.
        of_bias = gradient.sum(ctx.dims)
        of_weight = (gradient * centered).sum(ctx.dims) * scale
        sums = torch.stack([of_bias, of_weight])
        torch.distributed.all_reduce(sums)
        of_mean, of_scale = sums / ctx.values
        factor = scale if weight is None else scale * weight
        # factor * (gradient - of_mean - centered * scale * of_scale), in the memory of ``centered``
        of_input = centered.mul_((-factor * scale * of_scale).view(shape))
        of_input.addcmul_(gradient, factor.view(shape)).sub_((factor * of_mean).view(shape))
        return of_input.to(input.dtype), *(None if weight is None else one for one in (of_weight, of_bias)), None
