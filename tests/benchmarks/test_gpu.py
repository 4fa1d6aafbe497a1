"""benchmarks/gpu.py runs on the CPU, and tells what differs, fails, or is skipped."""

import dataclasses
import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.test_benchmarks import ROOT, number, tables

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _benchmarks_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def module(name: str) -> Any:
    return importlib.import_module(name)


def test_it_runs_on_the_cpu(run_command: Callable[..., Any], tmp_path: Path) -> None:
    arguments = ["--device", "cpu", "--quick", "--output", str(tmp_path / "report.md")]
    done = run_command("benchmarks/gpu.py", *arguments, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "report.md").read_text() == done.stdout.removesuffix("\n")
    assert done.stdout.splitlines()[2] == f"    python benchmarks/gpu.py {' '.join(arguments)}"
    machine, parity, golden, marked, speed, evaluation = tables(done.stdout)
    assert {"torch", "commit"} <= {row[""] for row in machine}
    assert [row["result"] for row in parity] == ["passed"] * 7
    assert [row["result"] for row in golden + marked] == ["skipped: needs a GPU"] * 2
    assert [row["batch"] for row in speed] == ["2", "2", "4", "4", "", ""]
    for row in speed:
        if row["batch"]:
            assert number(row["ours images/s"]) > 0
            assert number(row["textbook images/s"]) > 0
        else:
            assert row["result"] == "skipped: needs a GPU"
    assert [row["window"] for row in evaluation] == ["", "64 px"]


def test_it_runs_only_the_parts_typed(run_command: Callable[..., Any]) -> None:
    done = run_command("benchmarks/gpu.py", "--device", "cpu", "--quick", "--parts", "evaluation", timeout=600)
    assert [line for line in done.stdout.splitlines() if line.startswith("### ")] == ["### Evaluation"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_to_type(run_command: Callable[..., Any]) -> None:
    done = run_command("benchmarks/gpu.py")
    assert done.returncode == 2
    assert done.stderr.strip().endswith("finds no GPU; to try this file, add --device cpu --quick")


def test_rounding_passes_and_tf32_does_not() -> None:
    parity = module("parity")
    exact = torch.randn(1000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    single = exact.float()
    tf32 = (single.view(torch.int32) & ~0x1FFF).view(torch.float32)  # 10 bits after the first
    for found, passes in ((single, True), (tf32, False), (single * torch.nan, False), (-single, False)):
        distances = parity.Distances()
        distances.add("x", device=found, cpu=[single], exact=exact, floor=parity.LOSS_FLOOR)
        if passes:
            assert set(distances.columns()) == {"x"}
        else:
            with pytest.raises(parity.DifferenceError, match=r"x: \S+ from float64, allowed 1\.0e-05"):
                distances.columns()


def test_the_float64_of_a_loss_is_worked_out_otherwise() -> None:
    """The blockwise errors by numpy, the cross-entropy by its definition."""
    parity, build = module("parity"), module("headcount.losses.build")
    config = module("workload").parse_config(["model=tiny", "loss=dace_mse"])
    grid = module("headcount.types").BlockGrid(8)
    bins = module("headcount.bins").build_bins(config.bins, parity.HISTOGRAM)
    loss = build.build_loss(config.loss, grid, bins)
    prediction, batch = parity.loss_problem(bins)
    assert batch.targets["block_counts"].sum((1, 2, 3)).tolist() == list(parity.HEADS)
    values = parity.exact_value_and_gradients(loss, prediction, batch)
    true = batch.targets["block_counts"].double()
    blocks, logits = prediction.blocks.detach().double(), prediction.logits.detach().double()
    chosen = logits.gather(1, bins.label(true.float()).unsqueeze(1)).squeeze(1)
    entropy = (logits.exp().sum(1).log() - chosen).sum() / len(parity.HEADS)
    squared = (blocks - true).square().sum() / len(parity.HEADS)
    assert float(values["loss"].detach()) == pytest.approx(float(entropy + squared), rel=1e-12)
    expected = 2 * (blocks - true) / len(parity.HEADS)
    torch.testing.assert_close(values["gradient by blocks"], expected, rtol=1e-12, atol=0)


def test_an_iteration_less_on_the_device_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    parity, sinkhorn = module("parity"), module("headcount.losses.sinkhorn")
    solve = sinkhorn.TruncatedSinkhorn.__call__
    calls = []

    def with_one_less(self: Any, *arguments: Any, **options: Any) -> Any:
        calls.append(self)
        if len(calls) == 2:  # the device's
            self = dataclasses.replace(self, iterations=self.iterations - 1)
        return solve(self, *arguments, **options)

    monkeypatch.setattr(sinkhorn.TruncatedSinkhorn, "__call__", with_one_less)
    with pytest.raises(parity.DifferenceError, match="gradient by blocks"):
        parity.compare_loss(parity.LOSSES["dace, released transport alone"], "cpu")
    assert len(calls) == 3


@pytest.mark.parametrize(("changed", "message"), [("weight", "prediction"), ("optimizer", "weights differ by")])
def test_another_step_on_the_device_is_found(changed: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parity = module("parity")
    start_job, started = parity.start_job, []

    def tampered(*arguments: Any, **options: Any) -> Any:
        start = start_job(*arguments, **options)
        started.append(start)
        if len(started) == 2:  # the device's
            if changed == "weight":
                with torch.no_grad():
                    next(start.job.counter.head.parameters()).mul_(1.001)
            else:
                start.job.optimizer.param_groups[0]["betas"] = (0.9, 0.9)
                start.job.optimizer.param_groups[0]["lr"] *= 1.001
        return start

    monkeypatch.setattr(parity, "start_job", tampered)
    with pytest.raises(parity.DifferenceError, match=message):
        parity.compare_step(["model=tiny", "model.width=8"], "cpu", images=2, crop_size=64, points=5)


def test_a_part_reports_what_fails_and_what_there_is_no_time_for() -> None:
    gpu = module("gpu")
    bench = gpu.Bench("cpu", quick=True)

    def wrong() -> dict[str, str]:
        raise ValueError("a | b\nc")

    def tasks(bench: Any) -> Iterator[Any]:
        yield gpu.Task({"x": "right"}, lambda: {"number": "3"})
        yield gpu.Task({"x": "wrong"}, wrong)
        yield gpu.Task({"x": "long"}, lambda: {}, needs=1000)
        yield gpu.Task({"x": "absent"}, lambda: gpu.skip("no such thing"))
        raise RuntimeError("no more")

    parts = [gpu.Part("One", "What.", 100, tasks), gpu.Part("Two", "What.", -1000, tasks)]
    report, failed = gpu.run_parts(bench, parts, machine="## Title\n")
    one, two = tables(report)
    assert one == [
        {"x": "right", "number": "3", "result": "passed"},
        {"x": "wrong", "number": "", "result": "FAILED: ValueError: a / b c"},
        {"x": "long", "number": "", "result": "skipped: the time of this part is used up"},
        {"x": "absent", "number": "", "result": "skipped: no such thing"},
        {"x": "", "number": "", "result": "FAILED: RuntimeError: no more"},
    ]
    assert [row["result"][:7] for row in two] == ["skipped"] * 4 + ["FAILED:"]
    assert failed == 3
    assert report.endswith("seconds; 3 rows failed.\n")


def test_results_of_tests_are_read(tmp_path: Path) -> None:
    suites = module("suites")
    (tmp_path / "test_some.py").write_text(
        "import pytest\n"
        "pytestmark = pytest.mark.gpu\n"
        "def test_right(): pass\n"
        "def test_wrong(): assert 1 == 2\n"
        "@pytest.fixture\ndef broken(): raise OSError('no file')\n"
        "def test_broken(broken): pass\n"
        "@pytest.mark.skip(reason='no disk')\ndef test_absent(): pass\n"
    )
    options = {"timeout": 100, "options": ["-c", "/dev/null", "-p", "no:jaxtyping", "--noconftest"]}
    (outcome,) = suites.run_tests([tmp_path / "test_some.py"], **options)
    assert outcome.columns().keys() == {"tests", "passed", "failed", "skipped"}
    assert (outcome.passed, len(outcome.failures), outcome.skipped) == (1, 2, {"no disk": 1})
    assert "assert 1 == 2" in outcome.failures["test_some::test_wrong"]
    with pytest.raises(suites.TestsError, match="pytest ended with 4"):
        suites.run_tests([tmp_path / "test_none.py"], **options)
    with pytest.raises(suites.TestsError, match=r"did not end within"):
        suites.run_tests([tmp_path / "test_some.py"], **{**options, "timeout": 0.01})


def test_files_with_tests_for_a_gpu_are_found() -> None:
    names = {str(file.relative_to(ROOT / "tests")) for file in module("suites").gpu_tests()}
    assert {"losses/test_golden.py", "models/test_golden.py", "losses/test_stable.py", "engine/test_gpu.py"} <= names
    assert "test_docs.py" not in names


def test_all_parts_end_within_eight_minutes() -> None:
    seconds = sum(part.seconds for part in module("gpu").PARTS.values())
    assert seconds <= 480 - 20  # Python and torch start, a row ends late
