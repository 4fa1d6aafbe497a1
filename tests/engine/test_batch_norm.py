"""Synchronized normalization is torch's own on one process; test_processes.py compares two processes with one."""

import copy
from collections.abc import Iterator

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from headcount.config import ConfigError
from headcount.engine.batch_norm import synchronize_batch_norm
from headcount.engine.runtime import has_batch_norm

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def group() -> Iterator[None]:
    """A process group of one process."""
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=torch.distributed.HashStore())
    yield
    torch.distributed.destroy_process_group()


def layers(**options: object) -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8, **options),  # type: ignore[arg-type]
        nn.Conv2d(8, 4, 3, bias=False),
        BatchNormAct2d(4),
    )
    for parameter in network.parameters():
        nn.init.normal_(parameter)
    return network


def outcome(network: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """The output, all gradients, and the statistics after two batches."""
    images = images.clone().requires_grad_()
    output = network(images)
    (output * torch.linspace(-1, 2, output.numel()).view_as(output)).sum().backward()
    network(2 * images.detach() + 1)
    grads = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    return {"output": output.detach(), "images": images.grad, **grads, **dict(network.named_buffers())}  # type: ignore[dict-item]


@pytest.mark.parametrize(
    "options", [{}, {"affine": False}, {"momentum": None}, {"track_running_stats": False}], ids=str
)
@pytest.mark.parametrize("channels_last", [False, True])
def test_on_one_process_it_is_batch_normalization(options: dict[str, object], channels_last: bool) -> None:
    plain = layers(**options)
    synchronized = synchronize_batch_norm(copy.deepcopy(plain), CPU)
    assert {type(layer).__name__ for layer in synchronized} >= {"SynchronizedBatchNorm2d", "SynchronizedBatchNormAct2d"}
    # Far from zero: a variance of squares minus the square of the mean would lose its digits.
    images = 3 * torch.randn(4, 3, 9, 11) + 50
    layout = torch.channels_last if channels_last else torch.contiguous_format
    expected = outcome(plain.double(), images.double())
    found = outcome(synchronized, images.contiguous(memory_format=layout))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        # A bias before another normalization has the gradient 0.
        close = 1e-4 * (1 + float(value.abs().max()))
        assert torch.allclose(found[name].double(), value.double(), rtol=1e-4, atol=close), name


def test_names_and_evaluation_are_unchanged() -> None:
    plain = layers()
    synchronized = synchronize_batch_norm(copy.deepcopy(plain), CPU)
    assert synchronized.state_dict().keys() == plain.state_dict().keys()
    images = torch.randn(2, 3, 9, 9)
    assert torch.equal(synchronized.eval()(images), plain.eval()(images))
    copied = copy.deepcopy(synchronized)  # as for the average of the weights
    assert torch.equal(copied(images), plain(images))
    assert has_batch_norm(plain)
    assert has_batch_norm(synchronized)
    assert not has_batch_norm(plain[0])  # type: ignore[index]


def test_statistics_are_float32_in_bf16() -> None:
    network = synchronize_batch_norm(nn.Sequential(nn.BatchNorm2d(1)), CPU)
    images = (torch.arange(512.0).view(2, 1, 16, 16) + 1000).to(torch.bfloat16)
    output = network(images)
    assert output.dtype is torch.bfloat16
    layer = network[0]  # type: ignore[index]
    assert float(layer.running_mean) == pytest.approx(0.1 * float(images.double().mean()), rel=1e-6)
    assert float(layer.running_var) == pytest.approx(0.9 + 0.1 * float(images.double().var()), rel=1e-5)


def test_a_single_value_has_no_variance() -> None:
    network = synchronize_batch_norm(nn.Sequential(nn.BatchNorm2d(1)), CPU)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        network(torch.zeros(1, 1, 1, 1))


def test_another_kind_of_normalization_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"sync_batchnorm=true: 0 of the network is a BatchNorm3d.*=false$"):
        synchronize_batch_norm(nn.Sequential(nn.BatchNorm3d(1)), CPU)


def test_on_a_gpu_it_is_that_of_torch() -> None:
    kinds = [type(layer) for layer in synchronize_batch_norm(layers(), torch.device("cuda"))]  # type: ignore[attr-defined]
    assert issubclass(kinds[1], nn.SyncBatchNorm)
    assert issubclass(kinds[3], nn.SyncBatchNorm)
