"""Compare a training step with a textbook one: ``python benchmarks/training.py model=clip_rn50 --batch 2``.

"ours" is train.py's own step. "textbook" is the same network, loss and optimizer as a script of its own would write
them (``textbook_training.py``): plain layers, normalized float images in the contiguous layout, a dense Sinkhorn one
image after the other, torch's Adam with its default implementation, float32. Both start from the same weights; before
anything is timed, their losses and the gradients of all weights are compared in float32.

Without ``model=``, all models are measured that have a textbook version; ``dmcount`` as published, with regression and
its own loss. Every round measures everything once; times are medians, ratios medians of the rounds' ratios. Memory is
the peak size of the tensors that exist during a step beyond those that existed before it. Weights are random unless
model.weights names some, the optimizer is optim=adam_cosine unless another is chosen. OMP_NUM_THREADS sets the number
of CPU threads.
"""

import copy
import gc
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headcount.cli.arguments import read_arguments, script_parser, whole_number
from headcount.cli.status import exit_on_error
from headcount.config import Precision
from headcount.models.build import follow_weights
from step import Step
from textbook_training import TEXTBOOK_MODELS, TextbookLoss, TextbookStep, build_textbook
from timing import device_name, format_table, median_ms, paired_ratio, peak_bytes, time_in_turns
from workload import Workload

GOALS = {Precision.float32: 1.05, Precision.bf16: 1.6}
"""How many times as fast as the textbook's float32 step a step should be."""

LOSS_TOLERANCE = 1e-4
GRADIENT_TOLERANCE = 1e-2
"""Largest distance of two gradients of one weight, relative to the larger of their norm and a thousandth of the norm of
all gradients: float32 rounds each of the millions of products in another order."""

AS_PUBLISHED = {"dmcount": ["bins=none", "loss=dm", "model.head=regression"]}


def main() -> None:
    """Read the command line and run the benchmark."""
    parser = script_parser(__doc__)
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings of train.py, such as model=csrnet")
    parser.add_argument("--batch", type=whole_number, nargs="+", default=[2, 8], help="crops per step; default 2 and 8")
    parser.add_argument("--crop-size", type=whole_number, default=224, help="side in pixels; default 224")
    parser.add_argument("--points", type=whole_number, default=300, help="heads per crop; default 300")
    parser.add_argument("--repeats", type=whole_number, default=3, help="rounds in which everything is measured once")
    parser.add_argument("--seconds", type=float, default=0.0, help="further rounds until this time has passed, per row")
    parser.add_argument("--precision", choices=["float32", "bf16"], help="measure only this one; default both")
    with exit_on_error(parser.prog):
        arguments = read_arguments(parser)
        options = arguments.options
        precisions = [Precision[options.precision]] if options.precision else list(GOALS)
        rows: list[dict[str, str]] = []
        for settings in chosen_models(arguments.settings):
            for images in options.batch:
                workload = Workload.build(
                    settings,
                    batch_size=images,
                    crop_size=options.crop_size,
                    points=options.points,
                    repeats=options.repeats,
                )
                rows += compare(workload, precisions, seconds=options.seconds, is_first=not rows)
                gc.collect()
        print(f"\n{format_table(rows)}\n\n{describe_goals(precisions)}")


def chosen_models(settings: Sequence[str]) -> list[list[str]]:
    """The settings of each model to measure."""
    optimizer = [] if any(s.startswith("optim=") for s in settings) else ["optim=adam_cosine"]
    common = [*settings, *optimizer]
    if any(s.startswith("model=") for s in settings):
        return [common]
    return [[f"model={name}", *AS_PUBLISHED.get(name, []), *common] for name in TEXTBOOK_MODELS]


def describe_goals(precisions: Sequence[Precision]) -> str:
    """The goals, on one line."""
    goals = ", ".join(f"{GOALS[precision]} times in {precision.name}" for precision in precisions)
    return f"Goal: as fast as the textbook's float32 step {goals}."


def compare(
    workload: Workload, precisions: Sequence[Precision], *, seconds: float, is_first: bool
) -> list[dict[str, str]]:
    """Measure one model with one batch size, and print and return a row of the table for each precision."""
    images = workload.config.batch_size
    ours = {p: Step(workload, images, p, channels_last=workload.config.runtime.channels_last) for p in precisions}
    first = next(iter(ours.values()))
    plain = textbook_step(workload, first)
    if is_first:
        print(
            f"crops of {workload.config.augment.crop_size} px with {workload.points} heads each; "
            f"{device_name(first.device)}; at least {workload.repeats} rounds",
            flush=True,
        )
    print(f"{workload.describe(first.job)}; batch {images}", flush=True)
    if Precision.float32 in ours:
        check_agreement(ours[Precision.float32], plain)
    functions: dict[str, Callable[[], object]] = {"textbook": plain.step}
    functions |= {precision.name: step.step for precision, step in ours.items()}
    peaks = {name: peak_bytes(function, device=first.device) / 1e6 for name, function in functions.items()}
    times = time_in_turns(functions, device=first.device, rounds=workload.repeats, seconds=seconds)
    rows = [row(workload, precision.name, times, peaks) for precision in precisions]
    for values in rows:
        print("  " + ", ".join(f"{key} {value}" for key, value in list(values.items())[2:]), flush=True)
    return rows


def row(workload: Workload, precision: str, times: dict[str, np.ndarray], peaks: dict[str, float]) -> dict[str, str]:
    """Times, ratios and memory of one model, batch size and precision."""
    ours, plain = times[precision], times["textbook"]
    goal = GOALS[Precision[precision]]
    ratio = paired_ratio(plain, ours)
    return {
        "model": workload.config.model.name,
        "batch": str(workload.config.batch_size),
        "precision": precision,
        "ours ms": f"{median_ms(ours):.1f}",
        "textbook ms": f"{median_ms(plain):.1f}",
        "textbook/ours": f"{ratio:.2f}",
        "goal": f"{goal} {'met' if ratio >= goal else 'missed'}",
        "ours MB": f"{peaks[precision]:.0f}",
        "textbook MB": f"{peaks['textbook']:.0f}",
    }


def textbook_step(workload: Workload, ours: Step) -> TextbookStep:
    """The textbook's step with the weights, the images and the targets of ours."""
    config, job = workload.config, ours.job
    model = follow_weights(config.model)
    return TextbookStep(
        build_textbook(model, copy.deepcopy(job.counter)),
        TextbookLoss(config.loss, job.bins, block_size=config.bins.block_size),
        config.optim,
        images=ours.counter.normalize(ours.batch.images).contiguous(),
        batch=ours.batch,
    )


def check_agreement(ours: Step, plain: TextbookStep) -> None:
    """Compare the loss and the gradients of all weights in float32.

    Raises:
        AssertionError: if they differ by more than rounding.
    """
    loss = plain.forward()
    expected = torch.autograd.grad(loss, plain.trained)
    found: Any = ours.job.loss(ours.job.model(ours.batch.images), ours.batch).total
    trained = [p for p in ours.job.counter.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(found, trained)
    torch.testing.assert_close(found, loss, rtol=LOSS_TOLERANCE, atol=0)
    least = 1e-3 * float(torch.nn.utils.get_total_norm(expected))
    for name, a, b in zip(names(ours), gradients, expected, strict=True):
        error = distance(a, b, least=least)
        assert error <= GRADIENT_TOLERANCE, f"gradient of {name}: differs by {error:.2g} of its norm"


def names(ours: Step) -> list[str]:
    """Names of the trained weights."""
    return [name for name, p in ours.job.counter.named_parameters() if p.requires_grad]


def distance(a: Tensor, b: Tensor, *, least: float) -> float:
    """Norm of the difference, relative to the larger of the norm of ``b`` and ``least``."""
    return float((a.double() - b.double()).norm() / max(float(b.double().norm()), least))


if __name__ == "__main__":
    main()
