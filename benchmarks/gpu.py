"""Check and measure headcount on a GPU in eight minutes: ``python benchmarks/gpu.py --output gpu.md``.

Compares losses and an optimizer step with the CPU, runs the tests marked ``gpu`` (with HEADCOUNT_GOLDEN all golden
cases), and measures training and evaluation. Prints a Markdown section for EXPERIMENTS.md and also writes it to
``--output``. The exit status is 1 if a check failed. What its time does not suffice for is skipped, and the table says
so.

Before: ``pip install --editable . pytest beartype POT`` in this repository. After that nothing is downloaded: weights
are random and images generated. torch.compile needs a C compiler (gcc); without one its rows are skipped.

``--device cpu --quick`` takes the same way through this file with small sizes, and says what needs a GPU;
``--parts steps evaluation`` runs only these parts.
"""

import gc
import importlib.util
import itertools
import os
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial

import numpy as np
import torch

from headcount.cli.arguments import read_arguments, script_parser, to_path
from headcount.cli.status import FAILED, exit_on_error
from headcount.config import (
    Accelerator,
    ConfigError,
    Precision,
    RuntimeConfig,
    SlidingWindowConfig,
    WholeImageConfig,
    counting_mode,
)
from headcount.engine.checkpoint import commit
from headcount.engine.runtime import Runtime
from headcount.files import write_text
from headcount.losses.dace import DaceLoss
from headcount.losses.transport import TransportLoss
from parity import LOSSES, compare_loss, compare_step, without_tf32
from step import Step
from suites import TestsError, gpu_tests, run_tests
from textbook import dense_sinkhorn
from timing import device_name, format_table, median_ms, paired_ratio, peak_bytes, time_in_turns
from workload import IMAGE_SIZE, Workload

Row = dict[str, str]

RESULT = "result"
"""Last column of every table."""

MODELS = ("vgg19", "clip_rn50", "clip_vit_b16")

MAX_BATCH_SIZE = 256
"""No larger batch is tried: the textbook's loop takes some milliseconds per image."""

COMPILE_SECONDS = 45.0
"""A network is compiled only if this much of the part's time is left."""

TESTS_NEED = ("pytest", "beartype", "ot")
"""Modules that the tests marked ``gpu`` import beside those that headcount needs."""


class SkippedError(Exception):
    """A row is not measured, for a reason that is no failure."""


@dataclass
class Bench:
    """What is checked and measured, and until when."""

    device: str
    quick: bool
    """Small sizes, to try this file."""
    end: float = 0.0
    """When the part that runs should have ended, in seconds of the monotonic clock."""

    @property
    def left(self) -> float:
        """Seconds until then."""
        return self.end - time.monotonic()

    def workload(self, settings: Sequence[str], *, images: int) -> Workload:
        """A network and its images."""
        return Workload.build(
            [*settings, f"runtime.accelerator={self.device}"],
            batch_size=images,
            crop_size=64 if self.quick else None,
            points=20 if self.quick else 300,
            repeats=1,
        )


@dataclass
class Task:
    """What makes one row."""

    subject: Row
    """The first columns."""
    work: Callable[[], Row]
    """Makes the others; raises if a check fails."""
    needs: float = 0.0
    """Seconds that must be left to begin."""


@dataclass
class Part:
    """A section of the report."""

    title: str
    explanation: str
    seconds: float
    """Its time; what a part leaves goes to the later ones."""
    tasks: Callable[[Bench], Iterator[Task]]


def main() -> None:
    """Read the command line, run all parts, and print the report."""
    parser = script_parser(__doc__)
    parser.add_argument("--output", type=to_path, help="also write the report to this file")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--quick", action="store_true", help="small sizes, to try this file")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS), help="run only these parts")
    with exit_on_error(parser.prog):
        options = read_arguments(parser).options
        bench = Bench(options.device, options.quick)
        report, failed = run_parts(bench, [PARTS[name] for name in options.parts], machine=describe_machine(bench))
        print(report)
        if options.output:
            write_text(options.output, report)
    sys.exit(FAILED if failed else 0)


def describe_machine(bench: Bench) -> str:
    """Command, commit, hardware and versions.

    Raises:
        ConfigError: if there is no GPU.
    """
    if bench.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: PyTorch finds no GPU; to try this file, add --device cpu --quick")
    described = Runtime(RuntimeConfig(accelerator=Accelerator[bench.device])).describe()
    rows = {"device": str(described["device"])}
    if bench.device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        rows["GPU memory"] = f"{properties.total_memory / 2**30:.0f} GiB"
        rows["compute capability"] = f"{properties.major}.{properties.minor}"
        rows["driver"] = driver_version()
        rows["CUDA, cuDNN"] = f"{torch.version.cuda}, {torch.backends.cudnn.version()}"
    rows["CPU"] = f"{described['cpu']}, {described['cpu_cores']} cores, {described['threads']} threads"
    rows |= {"torch": str(described["torch"]), "Python": str(described["python"]), "commit": commit()}
    table = format_table([{"": name, "machine": value} for name, value in rows.items()])
    title = f"## {date.today().isoformat()}: parity with the CPU and speed on one {device_name(bench.device)}"
    return f"{title}\n\n    python {' '.join(['benchmarks/gpu.py', *sys.argv[1:]])}\n\n{table}\n"


def driver_version() -> str:
    """Version of the GPU's driver; ``unknown`` without nvidia-smi."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.split("\n")[0].strip() or "unknown"


def run_parts(bench: Bench, parts: Sequence[Part], *, machine: str) -> tuple[str, int]:
    """Run the parts, one after the other.

    Args:
        machine: beginning of the report.

    Returns:
        The report, and the number of rows that failed.
    """
    started = bench.end = time.monotonic()
    sections, failed = [machine], 0
    for part in parts:
        bench.end += part.seconds
        print(f"{part.title} ...", file=sys.stderr, flush=True)
        rows = run_part(bench, part)
        failed += sum(row[RESULT].startswith("FAILED") for row in rows)
        sections.append(f"### {part.title}\n\n{part.explanation}\n\n{format_table(filled(rows))}\n")
    seconds = time.monotonic() - started
    sections.append(f"{seconds:.0f} seconds; {failed or 'no'} row{'s' if failed != 1 else ''} failed.\n")
    return "\n".join(sections), failed


def run_part(bench: Bench, part: Part) -> list[Row]:
    """One row for each task, and one more if the tasks cannot be listed."""
    rows: list[Row] = []
    try:
        for task in part.tasks(bench):
            rows.append(run_task(bench, task))
    except Exception as error:
        traceback.print_exc()
        rows.append({RESULT: failure(error)})
    return rows or [{RESULT: "nothing to do"}]


def run_task(bench: Bench, task: Task) -> Row:
    """The row of a task: what it made, why it was skipped, or how it failed."""
    if bench.left < task.needs or bench.left <= 0:
        return task.subject | {RESULT: "skipped: the time of this part is used up"}
    try:
        return {**task.subject, RESULT: "passed", **task.work()}
    except SkippedError as reason:
        return task.subject | {RESULT: f"skipped: {reason}"}
    except Exception as error:
        traceback.print_exc()
        return task.subject | {RESULT: failure(error)}
    finally:
        gc.collect()
        if bench.device == "cuda":
            torch.cuda.empty_cache()


def failure(error: Exception) -> str:
    """An error in a cell of a table."""
    text = " ".join(str(error).split()).replace("|", "/")
    return f"FAILED: {type(error).__name__}: {text[:300]}"


def filled(rows: Sequence[Row]) -> list[Row]:
    """The rows with all columns of all of them; the result is the last."""
    columns = [*dict.fromkeys(column for row in rows for column in row if column != RESULT), RESULT]
    return [{column: row.get(column, "") for column in columns} for row in rows]


def parity_tasks(bench: Bench) -> Iterator[Task]:
    """Losses, and an optimizer step of three networks."""
    for name, settings in LOSSES.items():
        yield Task({"compared": name}, partial(in_float32, partial(compare_loss, settings, bench.device)))
    for name, images, crop_size in (("tiny", 4, 64), ("mobilenet_v2", 4, 64), ("clip_vit_b16", 2, 64)):
        if bench.quick and name != "tiny":
            continue
        step = partial(compare_step, [f"model={name}"], bench.device)
        work = partial(step, images=images, crop_size=crop_size, points=30)
        yield Task({"compared": f"step of {name}"}, partial(in_float32, work))


def in_float32(work: Callable[[], Row]) -> Row:
    """Do the work without TF32."""
    with without_tf32():
        return work()


def golden_tasks(bench: Bench) -> Iterator[Task]:
    """The golden cases on the device."""
    yield from tests_tasks(bench, golden=True)


def marked_tasks(bench: Bench) -> Iterator[Task]:
    """The other tests marked ``gpu``."""
    yield from tests_tasks(bench, golden=False)


def tests_tasks(bench: Bench, *, golden: bool) -> Iterator[Task]:
    """One row for each file of tests, from one run of pytest."""
    files = [file for file in gpu_tests() if (file.name == "test_golden.py") is golden]
    missing = [name for name in TESTS_NEED if importlib.util.find_spec(name) is None]
    reason = "needs a GPU" if bench.device == "cpu" else ""
    if missing:
        reason = f"{', '.join(missing)} cannot be imported: pip install pytest beartype POT"
    if reason or bench.left <= 0:
        yield Task({"tests": f"{len(files)} files"}, partial(skip, reason or "the time of this part is used up"))
        return
    for outcome in run_tests(files, timeout=bench.left):
        yield Task(outcome.columns(), outcome.check)
        for name, message in outcome.failures.items():
            yield Task({"tests": name}, partial(fail, message))


def skip(reason: str) -> Row:
    """Skip a row."""
    raise SkippedError(reason)


def fail(message: str) -> Row:
    """A test that failed."""
    raise TestsError(message)


def speed_tasks(bench: Bench) -> Iterator[Task]:
    """Training steps: every network in every precision, at two batch sizes; the most useful rows come first."""
    models = ("tiny",) if bench.quick else MODELS
    small = 2 if bench.quick else 8
    for compiled, largest in itertools.product((False, True), (False, True)):
        for precision in (Precision.bf16,) if compiled else (Precision.float32, Precision.bf16):
            for model in models:
                row = {"model": model, "precision": precision.name + (", compiled" if compiled else "")}
                work = partial(measure_largest, small) if largest else partial(measure_step, images=small)
                task = partial(work, bench, model, precision=precision, compiled=compiled)
                yield Task(row, task, needs=COMPILE_SECONDS if compiled and not bench.quick else 0.0)


def measure_largest(small: int, bench: Bench, model: str, *, precision: Precision, compiled: bool) -> Row:
    """:func:`measure_step` of the largest batch that fits.

    Args:
        small: a batch whose memory the largest is estimated from; its fixed part makes the estimate a little too low.
    """
    images = 2 * small
    if bench.device == "cuda":
        refuse_compiling(bench, compiled)
        step = Step(bench.workload([f"model={model}"], images=small), small, precision, channels_last=True)
        step.step()  # the optimizer creates its state
        needed = peak_bytes(step.step, device="cuda")
        del step
        gc.collect()
        torch.cuda.empty_cache()
        images = min(int(0.9 * torch.cuda.mem_get_info()[0] / needed) * small, MAX_BATCH_SIZE)
    while images > small:
        try:
            return measure_step(bench, model, images=images, precision=precision, compiled=compiled)
        except torch.OutOfMemoryError:
            images = images * 3 // 4
        gc.collect()
        torch.cuda.empty_cache()
    raise SkippedError(f"no batch larger than {small} fits")


def refuse_compiling(bench: Bench, compiled: bool) -> None:
    """Skip what is compiled on a machine that cannot compile."""
    if compiled and bench.device == "cpu":
        raise SkippedError("needs a GPU")
    if compiled and not any(map(shutil.which, filter(None, (os.environ.get("CC"), "gcc", "cc", "clang")))):
        raise SkippedError("torch.compile needs a C compiler")


def measure_step(bench: Bench, model: str, *, images: int, precision: Precision, compiled: bool) -> Row:
    """Whole training steps with our loss and with the textbook's, in turns."""
    refuse_compiling(bench, compiled)
    torch.compiler.reset()  # not compiled as a variant of another batch size
    workload = bench.workload([f"model={model}"], images=images)
    step = Step(workload, images, precision, channels_last=True, compiled=compiled)
    transport = transport_of(step)
    solvers = {"ours": transport.solver, "textbook": dense_sinkhorn}

    def run(solver: str, part: Callable[[], None]) -> None:
        transport.solver = solvers[solver]
        part()

    functions = {
        (solver, part): partial(run, solver, method)
        for solver in solvers
        for part, method in (("step", step.step), ("loss", step.loss))
    }
    for _ in range(1 if bench.quick else 3):  # libraries choose kernels, the optimizer creates its state
        functions["ours", "step"]()
    for function in functions.values():
        function()
    rounds, seconds = (1, 0.0) if bench.quick else (3, 1.5)
    times = time_in_turns(functions, device=bench.device, rounds=rounds, seconds=seconds)
    row = {"batch": str(images)}
    for solver in solvers:
        row[f"{solver} images/s"] = f"{images / np.median(times[solver, 'step']):.1f}"
    row["faster by"] = f"{paired_ratio(times['textbook', 'step'], times['ours', 'step']):.2f}x"
    for solver in solvers:
        row[f"{solver} loss share"] = f"{paired_ratio(times[solver, 'loss'], times[solver, 'step']):.1%}"
        row[f"{solver} GB"] = f"{peak_bytes(functions[solver, 'step'], device=bench.device) / 1e9:.2f}"
    return row | {RESULT: "measured"}


def transport_of(step: Step) -> TransportLoss:
    """The part of a step's loss whose solver is exchanged."""
    loss = step.job.loss
    assert isinstance(loss, DaceLoss)
    assert isinstance(loss.count_loss, TransportLoss)
    return loss.count_loss


def evaluation_tasks(bench: Bench) -> Iterator[Task]:
    """Counting one image, whole and in windows."""
    for model in ("tiny",) if bench.quick else MODELS:
        for kind in (WholeImageConfig(), SlidingWindowConfig()):
            name = "windows" if isinstance(kind, SlidingWindowConfig) else "whole image"
            yield Task({"model": model, "counted": name}, partial(measure_evaluation, bench, model, kind))


def measure_evaluation(bench: Bench, model: str, kind: WholeImageConfig | SlidingWindowConfig) -> Row:
    """Images per second and memory of counting."""
    workload = bench.workload([f"model={model}"], images=1)
    runtime, job = workload.set_up(channels_last=True)
    counter = runtime.move_to_device(job.counter.eval())
    mode = counting_mode(kind, workload.config.model, crop_size=workload.config.augment.crop_size)
    width, height = (96, 64) if bench.quick else IMAGE_SIZE
    count = partial(counter.count, workload.photograph[:, :height, :width].contiguous(), mode)
    for _ in range(3):
        count()
    rounds, seconds = (1, 0.0) if bench.quick else (5, 1.0)
    times = time_in_turns({"count": count}, device=bench.device, rounds=rounds, seconds=seconds)["count"]
    row = {"window": f"{mode.window} px"} if isinstance(mode, SlidingWindowConfig) else {}
    row |= {"images/s": f"{1 / np.median(times):.1f}", "ms": f"{median_ms(times):.1f}"}
    return row | {"GB": f"{peak_bytes(count, device=bench.device) / 1e9:.2f}", RESULT: "measured"}


PARTS = {
    "parity": Part(
        "Parity with the CPU",
        "Relative L2 distance from float64 on the CPU: of the device in float32 without TF32 (in parentheses: of the "
        "CPU in float32); allowed are 10 times the CPU's, or a floor (benchmarks/parity.py). Losses of four images "
        "with 0 to 300 heads; steps from equal random weights.",
        60.0,
        parity_tasks,
    ),
    "golden": Part("Golden numbers", "Of the released implementation, without TF32.", 40.0, golden_tasks),
    "tests": Part("Tests marked gpu", "Training, resuming, compiling and counting on the GPU.", 80.0, marked_tasks),
    "steps": Part(
        "Training steps",
        "Images per second of train.py's step with our loss, and of the same step with the textbook's transport: a "
        "dense Sinkhorn loop over the images in float32. Random weights, loss dace, 300 heads per crop of 448 px (224 "
        "px for the ViT), channels last; medians of rounds in which everything is measured once. float32 is torch's "
        "default: convolutions in TF32. GB: peak beyond weights and optimizer. The larger batch is the largest that "
        f"fits, estimated from the memory of the smaller, at most {MAX_BATCH_SIZE}.",
        240.0,
        speed_tasks,
    ),
    "evaluation": Part(
        "Evaluation",
        f"Counting one image of {IMAGE_SIZE[0]} x {IMAGE_SIZE[1]} px in float32 (convolutions in TF32), its transfer "
        "to the GPU included; 8 windows at a time.",
        30.0,
        evaluation_tasks,
    ),
}


if __name__ == "__main__":
    main()
