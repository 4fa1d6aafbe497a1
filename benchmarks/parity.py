"""Compare losses, gradients and optimizer steps of a device with those of the CPU, by their distance from float64.

Float32 on two machines never agrees bit for bit: sums are taken in another order, convolutions by another algorithm. So
each result is compared with the same one in float64 on the CPU. The device may be ``FACTOR`` times as far from it as
float32 on the CPU is, or as far as a floor: what rounding alone may do where the CPU happens to be exact.
"""

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from headcount.bins import CountBins, build_bins
from headcount.config import BinsConfig
from headcount.engine.runtime import Runtime
from headcount.engine.setup import Job
from headcount.engine.train import train_step
from headcount.losses.build import Loss, build_loss
from headcount.losses.dace import DaceLoss
from headcount.models.counter import Counter
from headcount.types import Batch, BinPrediction, BlockGrid, Prediction
from step import tensors_of
from workload import Workload, parse_config

FACTOR = 10.0
"""Two correct orders of summation differ in their error by less than this; one rounding to TF32's 11 bits adds 3e-4,
which is a thousand times float32's."""

MAX_DISTANCE = 0.2
"""No rounding explains more. MobileNetV2 with random weights comes near: float32 on the CPU, channels last, is 2 % from
the gradient in float64, because each of its 50 normalizations by the statistics of few values amplifies rounding."""

LOSS_FLOOR = 1e-5
"""Relative error of a loss and of its gradient: 100 iterations of sums of up to a thousand terms, each rounded by 6e-8,
which add like a random walk or, in the worst case, linearly."""

FORWARD_FLOOR = 2e-5
"""Relative error of a network's outputs: fifty layers, each of some roundings of 6e-8."""

GRADIENT_FLOOR = 2e-3
"""Relative error of a network's gradient. It is not continuous: a ReLU whose input is rounded to the other side of zero
changes it. One such unit of a small network has changed the golden gradients by 7e-4."""

UPDATE_FLOOR = 1e-5
"""Difference of two weights after a step from equal gradients, as a share of the learning rate, beside the rounding of
the weight itself."""

# Transport alone: the gradient of the count is 1 everywhere, and would hide what the solver adds to it.
_ALONE = ["loss.transport.count_weight=0", "loss.transport.tv_weight=0"]
LOSSES = {
    "dace, released transport": [],
    "dace, released transport alone": _ALONE,
    "dace, stable transport": ["loss.transport=stable"],
    "dace, stable transport alone": ["loss.transport=stable", *_ALONE],
    "dace_mae": ["loss=dace_mae"],
    "dace_mse": ["loss=dace_mse"],
}
"""Settings of the compared losses."""

HEADS = (0, 1, 40, 300)
"""Heads per image of the compared losses: none, one, and crowds."""

HISTOGRAM = {0: 900, 1: 60, 2: 20, 3: 10, 4: 5, 5: 5}
"""Number of blocks by their count, of which the bins are made."""

GRID_SIDE = 28

MAX_GRAD_NORM = 1.0
"""Norm that the gradients of the compared update are clipped to."""


class DifferenceError(AssertionError):
    """A device computes something else than the CPU."""


@dataclass
class Distances:
    """Relative L2 distances from float64, by what is compared."""

    device: dict[str, float] = field(default_factory=dict)
    cpu: dict[str, float] = field(default_factory=dict)
    floors: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, *, device: Tensor, cpu: Sequence[Tensor], exact: Tensor, floor: float) -> None:
        """Measure one tensor on the device, and in some ways on the CPU, in float32, against the ``exact`` one."""
        self.device[name] = distance(device, exact)
        self.cpu[name] = max(distance(tensor, exact) for tensor in cpu)
        self.floors[name] = floor

    def columns(self) -> dict[str, str]:
        """One cell for each comparison: the device's distance and the CPU's.

        Raises:
            DifferenceError: if the device is too far from float64 anywhere.
        """
        wrong = [
            f"{name}: {found:.1e} from float64, allowed {self.allowed(name):.1e}"
            for name, found in self.device.items()
            if not found <= self.allowed(name)  # NaN too
        ]
        if wrong:
            raise DifferenceError("; ".join(wrong))
        return {name: f"{found:.1e} ({self.cpu[name]:.1e})" for name, found in self.device.items()}

    def allowed(self, name: str) -> float:
        """The largest distance that rounding explains."""
        return min(max(FACTOR * self.cpu[name], self.floors[name]), MAX_DISTANCE)


def distance(found: Tensor, exact: Tensor) -> float:
    """Relative L2 distance in float64; absolute where the exact tensor is zero."""
    found, exact = found.detach().cpu().double(), exact.detach().cpu().double()
    size = float(exact.norm())
    return float((found - exact).norm()) / (size if size > 0 else 1.0)


@contextmanager
def without_tf32() -> Iterator[None]:
    """Let convolutions on the GPU compute in float32; torch's default is TF32, with 11 significant bits."""
    # By the older of torch's two interfaces: setting one operation of the newer makes reading the older an error.
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def compare_loss(settings: list[str], device: str) -> dict[str, str]:
    """Value and gradients of a loss on images with ``HEADS`` heads.

    Raises:
        DifferenceError: if they differ by more than rounding.
    """
    config = parse_config(["model=tiny", *settings])
    assert isinstance(config.bins, BinsConfig)
    grid, bins = BlockGrid(config.bins.block_size), build_bins(config.bins, HISTOGRAM)
    assert bins is not None
    loss = build_loss(config.loss, grid, bins)
    assert isinstance(loss, DaceLoss)
    prediction, batch = loss_problem(bins)
    here = _value_and_gradients(loss, prediction, batch)
    there = _value_and_gradients(loss, _moved(prediction, device), batch.to(device))
    exact = exact_value_and_gradients(loss, prediction, batch)
    distances = Distances()
    for name, reference in exact.items():
        distances.add(name, device=there[name], cpu=[here[name]], exact=reference, floor=LOSS_FLOOR)
    return distances.columns()


def loss_problem(bins: CountBins) -> tuple[BinPrediction, Batch]:
    """A random prediction, and a batch with one image for each number in ``HEADS``."""
    generator = torch.Generator().manual_seed(0)
    size = GRID_SIDE * bins.grid.block_size
    points = [(torch.rand(n, 2, generator=generator, dtype=torch.float64) * (size - 0.01)).float() for n in HEADS]
    counts = torch.zeros(len(HEADS), 1, GRID_SIDE, GRID_SIDE)
    for image, heads in zip(counts, points, strict=True):
        column, row = (heads // bins.grid.block_size).long().T
        image[0].index_put_((row, column), torch.ones(len(heads)), accumulate=True)
    blocks = torch.rand(counts.shape, generator=generator).square().requires_grad_()
    logits = torch.randn(len(HEADS), len(bins.edges), GRID_SIDE, GRID_SIDE, generator=generator).requires_grad_()
    images = torch.zeros(len(HEADS), 3, size, size, dtype=torch.uint8)
    names = [f"{n} heads" for n in HEADS]
    batch = Batch(images, names, {"points": points, "block_counts": counts, "labels": bins.label(counts)})
    return BinPrediction(count=blocks.sum((1, 2, 3)), blocks=blocks, logits=logits), batch


def _moved(prediction: BinPrediction, device: str) -> BinPrediction:
    assert prediction.blocks is not None
    blocks, logits = (t.detach().to(device).requires_grad_() for t in (prediction.blocks, prediction.logits))
    return BinPrediction(count=blocks.sum((1, 2, 3)), blocks=blocks, logits=logits)


def _value_and_gradients(loss: DaceLoss, prediction: BinPrediction, batch: Batch) -> dict[str, Tensor]:
    assert prediction.blocks is not None
    total = loss(prediction, batch).total
    by_blocks, by_logits = torch.autograd.grad(total, [prediction.blocks, prediction.logits])
    return {"loss": total, "gradient by blocks": by_blocks, "gradient by logits": by_logits}


def exact_value_and_gradients(loss: DaceLoss, prediction: BinPrediction, batch: Batch) -> dict[str, Tensor]:
    """The loss in float64, whose own call computes in float32: equation 3 of arXiv:2403.09281 from its terms."""
    assert prediction.blocks is not None
    blocks, logits = (t.detach().double().requires_grad_() for t in (prediction.blocks, prediction.logits))
    true = batch.target("block_counts")
    entropy = functional.cross_entropy(logits, batch.target("labels"), reduction="none").sum((1, 2)).mean()
    counts = loss.count_loss(blocks, [points.double() for points in batch.target("points")], true.double())
    total = entropy + loss.weight * counts.total
    by_blocks, by_logits = torch.autograd.grad(total, [blocks, logits])
    return {"loss": total, "gradient by blocks": by_blocks, "gradient by logits": by_logits}


def compare_step(settings: list[str], device: str, *, images: int, crop_size: int, points: int) -> dict[str, str]:
    """Forward, backward and update of one optimizer step from equal weights, in float32.

    The networks are given equal gradients of their outputs, and the optimizers equal gradients of the weights: Adam's
    first step is nearly the sign of a gradient, so a difference of the last bit would change whole weights.

    Raises:
        DifferenceError: if they differ by more than rounding.
    """
    # The device may be this CPU: in the other memory layout it computes in another order.
    here, there = (
        start_job([*settings, f"runtime.accelerator={kind}"], images, crop_size, points, channels_last=channels_last)
        for kind, channels_last in (("cpu", False), (device, True))
    )
    counter, loss = here.job.counter, here.job.loss
    with torch.no_grad():
        outputs = _outputs(counter, here.batch)
    leaves = {name: tensor.requires_grad_() for name, tensor in tensors_of(outputs).items()}
    total = loss(dataclasses.replace(outputs, **leaves), here.batch).total
    cotangents = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    exact = Pass.run(copy.deepcopy(counter).double(), loss, here.batch, cotangents)
    found = Pass.run(there.job.counter, there.job.loss, there.batch, cotangents)
    cpu = [Pass.run(counter, loss, here.batch, cotangents)]
    other, batch = copy.deepcopy(counter).to(memory_format=torch.channels_last), copy.copy(here.batch)
    batch.images = batch.images.contiguous(memory_format=torch.channels_last)
    cpu.append(Pass.run(other, loss, batch, cotangents))

    distances = Distances()
    for name, floor in (("prediction", FORWARD_FLOOR), ("gradient", GRADIENT_FLOOR)):
        rounded = [one.value(name) for one in cpu]
        distances.add(name, device=found.value(name), cpu=rounded, exact=exact.value(name), floor=floor)
    distances.columns()  # before the steps, which would differ too
    before = copy.deepcopy(counter.state_dict())
    update = compare_updates(here, there, exact.gradients)
    there.job.counter.load_state_dict(before)
    stepped = train_step(there.runtime, there.job, there.loaded)[0].total
    distances.add("loss", device=stepped, cpu=[one.loss for one in cpu], exact=exact.loss, floor=FORWARD_FLOOR)
    return distances.columns() | {"update / lr": f"{update:.1e}"}


@dataclass
class Start:
    """A job that has not made a step, and its first batch."""

    runtime: Runtime
    job: Job
    loaded: Batch
    batch: Batch
    """The same on the device."""


def start_job(settings: list[str], images: int, crop_size: int, points: int, *, channels_last: bool) -> Start:
    """A job with the same weights and the same batch every time."""
    workload = Workload.build(settings, batch_size=images, crop_size=crop_size, points=points, repeats=1)
    runtime, job = workload.set_up(channels_last=channels_last)
    job.model.train()
    loaded = workload.batch(job, images)
    return Start(runtime, job, loaded, runtime.to_device(loaded))


def _outputs(counter: Counter, batch: Batch) -> Prediction:
    """The prediction in the arithmetic of the weights."""
    return counter.predict_normalized(counter.normalize(batch.images).to(next(counter.parameters())))


@dataclass
class Pass:
    """Forward and backward of a network in training."""

    prediction: Tensor
    """The outputs that the loss uses, in one row."""
    loss: Tensor
    gradients: list[Tensor]
    """Gradients of the trained weights, in the order of the parameters."""

    @classmethod
    def run(cls, counter: Counter, loss: Loss, batch: Batch, cotangents: tuple[Tensor | None, ...]) -> "Pass":
        """Run both; no gradient is left behind.

        Args:
            cotangents: gradient by each tensor of the prediction; None for a tensor that the loss does not use.
        """
        prediction = _outputs(counter, batch)
        used = [
            (tensor, cotangent.to(tensor))
            for tensor, cotangent in zip(tensors_of(prediction).values(), cotangents, strict=True)
            if cotangent is not None
        ]
        tensors = [tensor for tensor, _ in used]
        trained = [p for p in counter.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(tensors, trained, [cotangent for _, cotangent in used], materialize_grads=True)
        rows = torch.cat([tensor.detach().flatten() for tensor in tensors])
        return cls(rows, loss(prediction, batch).total.detach(), list(gradients))

    def value(self, name: str) -> Tensor:
        """What is compared under this name, as one tensor."""
        if name == "gradient":
            return torch.cat([gradient.flatten() for gradient in self.gradients])
        value: Tensor = getattr(self, name)
        return value


def compare_updates(here: Start, there: Start, gradients: list[Tensor]) -> float:
    """The largest difference of two weights after clipping and the optimizer, as a share of the learning rate.

    Args:
        gradients: of the trained weights, which both are given.

    Raises:
        DifferenceError: if it is more than rounding.
    """
    updated: list[list[Tensor]] = []
    for start in (here, there):
        trained = [p for p in start.job.counter.parameters() if p.requires_grad]
        for parameter, gradient in zip(trained, gradients, strict=True):
            parameter.grad = torch.empty_like(parameter).copy_(gradient)
        start.runtime.clip_gradients(start.job.model, start.job.optimizer, MAX_GRAD_NORM)
        start.job.optimizer.step()
        start.job.optimizer.zero_grad()
        updated.append([p.detach().cpu().double() for p in trained])
    lr = here.job.optimizer.param_groups[0]["lr"]
    worst = 0.0
    for expected, found in zip(*updated, strict=True):
        rounding = 2 * torch.finfo(torch.float32).eps * expected.abs()
        worst = max(worst, float(((found - expected).abs() - rounding).max()) / lr)
    if not worst <= UPDATE_FLOOR:
        raise DifferenceError(f"weights differ by {worst:.1e} learning rates after a step from equal gradients")
    return worst
