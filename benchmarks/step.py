"""Compare a training step with its bare layers: ``python benchmarks/step.py model=mobilenet_v2 --batch 4``.

"step" is train.py's own. "bare" is forward and backward of the same modules on normalized floats that are already on
the device, from the mean of the logits (or blocks). The step adds the batch's transfer to the device, normalization,
loss, clipping, optimizer, average and the sums that are logged. Every round measures everything once; times are
medians, ratios medians of the rounds' ratios. Where the layout is contiguous, so are bare's floats; the images of the
step stay as they are decoded, channels last. Memory is the peak size of the tensors that exist during a call beyond
those that existed before it. Weights are random unless model.weights names some.

For a CLIP model without a decoder a second table compares its head with a textbook one. On CUDA a third one lists
images per second in bf16 for growing batches, also compiled. OMP_NUM_THREADS sets the number of CPU threads.
"""

import dataclasses
import gc
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from headcount.config import Precision
from headcount.engine.records import Meter
from headcount.engine.train import CHECK_EVERY, train_step
from headcount.models.heads import CosineClassifier
from headcount.types import Prediction
from textbook import classify_by_cosine
from timing import device_name, format_table, median_ms, paired_ratio, peak_bytes, time_in_turns
from workload import Workload, run_benchmark

MAX_STEP_RATIO = 1.05
"""Goal: a step takes at most this many times as long as its bare layers and its loss."""

MAX_BATCH_SIZE = 1024
"""The search for the largest batch stops here, even if more would fit into memory."""

LAYOUTS = {"channels last": True, "contiguous": False}

CONSTANTS = ("second_moments", "bin_counts")
"""Fields of predictions that describe the bins and are no outputs of the network."""

Key = tuple[str, str, str]
"""(precision, memory layout, part of the step)."""


def main() -> None:
    """Read the command line and run the benchmark."""
    run_benchmark(__doc__, compare_step, of_training=True)


def compare_step(workload: Workload, precision_name: str | None) -> None:
    """Measure the steps of all layouts and precisions (or of one precision), and print the tables."""
    precisions = [Precision[precision_name]] if precision_name else [Precision.float32, Precision.bf16]
    images = workload.config.batch_size
    steps = {
        (precision.name, layout): Step(workload, images, precision, channels_last=channels_last)
        for precision in precisions
        for layout, channels_last in LAYOUTS.items()
    }
    first = next(iter(steps.values()))
    device = first.device
    print(
        f"{workload.describe(first.job)}; {images} crops of {workload.config.augment.crop_size} px with "
        f"{workload.points} heads each; {device_name(device)}; {workload.repeats} rounds",
        flush=True,
    )
    functions: dict[Key, Callable[[], object]] = {}
    for (precision, layout), step in steps.items():
        functions |= {(precision, layout, name): part for name, part in step.parts().items()}
    for function in functions.values():  # libraries choose kernels, the optimizer creates its state
        function()
    times = time_in_turns(functions, device=device, rounds=workload.repeats)
    # In the order of the parts: the optimizer's step clears the gradients that bare leaves.
    peaks = {
        key: peak_bytes(function, device=device) / 1e6
        for key, function in functions.items()
        if key[-1] in ("step", "bare", "optimizer")
    }
    print_steps(list(steps), times, peaks)
    print_heads(list(steps), times)
    if device == "cuda":
        del functions, steps, step, first, function
        print_throughput(workload)


def print_steps(variants: list[tuple[str, str]], times: dict[Key, np.ndarray], peaks: dict[Key, float]) -> None:
    """Print the times of a step and of its parts, and its memory."""
    rows, rest = [], []
    for precision, layout in variants:
        variant = {"precision": precision, "layout": layout}
        parts = ("step", "bare", "loss", "optimizer", "clipping", "average")
        step, bare, loss, optimizer, clipping, average = (times[precision, layout, part] for part in parts)
        others = optimizer + clipping + average
        met = np.median(step - MAX_STEP_RATIO * bare - loss) <= 0
        rows.append(
            {
                **variant,
                "step ms": f"{median_ms(step):.1f}",
                "bare ms": f"{median_ms(bare):.1f}",
                "loss ms": f"{median_ms(loss):.1f}",
                "step/(bare+loss)": f"{paired_ratio(step, bare + loss):.3f}",
                f"step<={MAX_STEP_RATIO}bare+loss": "yes" if met else "no",
                "step MB": f"{peaks[precision, layout, 'step']:.1f}",
                "bare MB": f"{peaks[precision, layout, 'bare']:.1f}",
            }
        )
        rest.append(
            {
                **variant,
                "optimizer ms": f"{median_ms(optimizer):.1f}",
                "clipping ms": f"{median_ms(clipping):.1f}",
                "average ms": f"{median_ms(average):.1f}",
                "step/(bare+loss) without them": f"{paired_ratio(step - others, bare + loss):.3f}",
            }
        )
    print(f"\n{format_table(rows)}\n\nGoal: step/(bare+loss) at most {MAX_STEP_RATIO}.")
    print(f"\nParts of the step that are neither in bare nor in the loss:\n\n{format_table(rest)}", flush=True)


def print_heads(variants: list[tuple[str, str]], times: dict[Key, np.ndarray]) -> None:
    """Print the times of the textbook's cosine head and ours, if they were measured."""
    rows = []
    for precision, layout in variants:
        if (precision, layout, "our head") not in times:
            continue
        textbook, ours = times[precision, layout, "textbook head"], times[precision, layout, "our head"]
        rows.append(
            {
                "precision": precision,
                "layout": layout,
                "textbook ms": f"{median_ms(textbook):.2f}",
                "ours ms": f"{median_ms(ours):.2f}",
                "faster by": f"{paired_ratio(textbook, ours):.2f}x",
            }
        )
    if rows:
        print(f"\nCosine head, forward and backward (goal: 1.3x):\n\n{format_table(rows)}", flush=True)


class Step:
    """A training step on one batch, whole and in parts."""

    def __init__(
        self,
        workload: Workload,
        images: int,
        precision: Precision,
        *,
        channels_last: bool,
        compiled: bool | None = None,
    ) -> None:
        """Set the network up for batches of ``images`` crops.

        Args:
            compiled: whether the network is compiled; None takes the setting runtime.compile.
        """
        self.precision = precision
        self.runtime, self.job = workload.set_up(precision=precision, channels_last=channels_last, compiled=compiled)
        self.device = self.runtime.device.type
        batch = workload.batch(self.job, images)
        self.loaded = batch.pin_memory() if self.device == "cuda" else batch  # as the loader does
        self.meter = Meter()
        self.job.model.train()
        self.counter = self.job.counter
        self.batch = self.runtime.to_device(self.loaded)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        predict = self.counter.predict_normalized
        self.predict = torch.compile(predict) if self.runtime.compile else predict
        with torch.no_grad(), self.autocast():
            self.floats = self.counter.normalize(self.batch.images).contiguous(memory_format=layout)
            example = self.counter.predict_normalized(self.floats)
        self.leaves = {name: value.detach().requires_grad_() for name, value in tensors_of(example).items()}
        self.predicted = dataclasses.replace(example, **self.leaves)

    def autocast(self) -> torch.autocast:
        """The precision of the step's forward pass."""
        return torch.autocast(self.device, torch.bfloat16, enabled=self.precision is Precision.bf16)

    def parts(self) -> dict[str, Callable[[], object]]:
        """What is measured, by name.

        To be called in this order: ``bare`` leaves gradients, which clipping and the optimizer use, and which the
        optimizer clears.
        """
        parts: dict[str, Callable[[], object]] = {
            "step": self.step,
            "bare": self.bare,
            "clipping": self.clip,
            "optimizer": self.update,
            "average": self.follow,
            "loss": self.loss,
        }
        if isinstance(self.counter.head, CosineClassifier) and self.counter.decoder is None:
            parts["textbook head"], parts["our head"] = self.heads()
        return parts

    def step(self) -> None:
        """The whole step, and what the training loop does after it; reads the loss back every tenth time."""
        loss, prediction = train_step(self.runtime, self.job, self.loaded)
        self.meter.add(loss, prediction, self.loaded)
        if self.meter.steps % CHECK_EVERY == 1:
            self.meter.check()

    def bare(self) -> None:
        """Forward and backward of the layers."""
        with self.autocast():
            *_, maps = tensors_of(self.predict(self.floats)).values()
        maps.mean().backward()

    def clip(self) -> None:
        """Clipping of the gradients."""
        self.runtime.clip_gradients(self.job.model, self.job.optimizer, self.job.config.optim.max_grad_norm)

    def update(self) -> None:
        """The optimizer's step."""
        self.job.optimizer.step()
        self.job.optimizer.zero_grad()

    def follow(self) -> None:
        """The update of the average of the weights."""
        self.job.average.update()

    def loss(self) -> None:
        """Forward and backward of the loss, from the prediction."""
        with self.runtime.single_thread():
            total = self.job.loss(self.predicted, self.batch).total
        # A loss of counts alone uses no logits.
        torch.autograd.grad(total, list(self.leaves.values()), allow_unused=True)

    def heads(self) -> tuple[Callable[[], object], Callable[[], object]]:
        """Forward and backward of the textbook's cosine head and of ours, on the features of this batch.

        Raises:
            AssertionError: if they differ in float32.
        """
        with torch.no_grad(), self.autocast():
            features = self.counter.backbone(self.floats).detach().requires_grad_()
        head, factor = self.counter.head, self.counter.stride / self.counter.grid.block_size
        wanted = [features, *head.parameters()]

        def gradients(predict: Callable[[], tuple[Tensor, Tensor]]) -> list[Tensor]:
            with self.autocast():
                blocks, logits = predict()
                scalar = logits.float().mean() + blocks.mean()
            return [logits.detach(), *torch.autograd.grad(scalar, wanted)]

        def ours() -> tuple[Tensor, Tensor]:
            *_, blocks, logits = tensors_of(head(features, factor=factor)).values()
            return blocks, logits

        textbook = partial(gradients, partial(classify_by_cosine, head, features, factor=factor))
        if self.precision is Precision.float32:  # in bf16 the textbook's cosines are imprecise
            for expected, found in zip(textbook(), gradients(ours), strict=True):
                torch.testing.assert_close(found, expected, rtol=0, atol=1e-3 * float(expected.abs().max()))
        return textbook, partial(gradients, ours)


def tensors_of(prediction: Prediction) -> dict[str, Tensor]:
    """The network's outputs by field: the count, blocks if it has any, and then those of the prediction's own kind."""
    names = [field.name for field in dataclasses.fields(prediction) if field.name not in CONSTANTS]
    values = {name: getattr(prediction, name) for name in names}
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def print_throughput(workload: Workload) -> None:
    """Print images per second in bf16 on CUDA for batches of 8, 16, ... until memory ends; compiled for both ends."""
    rows = []
    images = largest = 8
    while images <= MAX_BATCH_SIZE:
        rows.append(throughput_row(workload, images, compiled=False))
        if rows[-1]["step ms"] == "out of memory":
            break
        largest, images = images, 2 * images
    rows += [throughput_row(workload, size, compiled=True) for size in sorted({8, largest})]
    print(f"\nWhole step in bf16:\n\n{format_table(rows)}")


def throughput_row(workload: Workload, images: int, *, compiled: bool) -> dict[str, str]:
    """Images per second of the whole step in bf16 on CUDA."""
    # Free what the last size allocated, and do not compile this one as a variant of it.
    gc.collect()
    torch.cuda.empty_cache()
    torch.compiler.reset()
    row = {"compiled": "yes" if compiled else "no", "batch": str(images)}
    try:
        channels_last = workload.config.runtime.channels_last
        step = Step(workload, images, Precision.bf16, channels_last=channels_last, compiled=compiled)
        for _ in range(3):  # libraries choose kernels, the optimizer creates its state, compilers compile
            step.step()
        times = time_in_turns({"step": step.step, "loss": step.loss}, rounds=workload.repeats, device="cuda")
        peak = peak_bytes(step.step, device="cuda") / 1e6
    except torch.OutOfMemoryError:
        return row | {"images/s": "", "step ms": "out of memory", "loss share": "", "step MB": ""}
    return row | {
        "images/s": f"{images / np.median(times['step']):.1f}",
        "step ms": f"{median_ms(times['step']):.1f}",
        "loss share": f"{paired_ratio(times['loss'], times['step']):.1%}",
        "step MB": f"{peak:.1f}",
    }


if __name__ == "__main__":
    main()
