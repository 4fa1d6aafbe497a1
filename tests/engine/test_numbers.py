"""The numbers of a run: in which precision they are computed, and which settings leave them the same bit for bit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from headcount.config import WholeImageConfig
from headcount.engine import checkpoint
from headcount.engine.runtime import Runtime
from headcount.engine.setup import _over_parts, build_job
from headcount.engine.train import train, train_step
from headcount.losses.sinkhorn import TransportSolution
from headcount.models.tiling import count_image
from headcount.types import BlockGrid, CountErrors, Evaluation, ImageCount
from two_processes import config_of


class Recorder:
    """A transport solver that records what it is given and what it finds."""

    def __init__(self, solver: Any) -> None:
        self.solver = solver
        self.seen: list[tuple[torch.dtype, bool]] = []
        self.found: list[TransportSolution] = []

    def __call__(self, points: list[Tensor], blocks: Tensor, *, block_size: int) -> TransportSolution:
        self.seen.append((blocks.dtype, torch.is_autocast_enabled("cpu")))
        self.found.append(self.solver(points, blocks, block_size=block_size))
        return self.found[-1]


@pytest.mark.parametrize("transport", ["released", "stable"])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_the_transport_is_float32_in_any_precision(transport: str, precision: str) -> None:
    config = config_of(f"runtime.precision={precision}", f"loss.transport={transport}")
    runtime = Runtime(config.runtime)
    job: Any = build_job(config, runtime, pretrained=False)
    recorder = Recorder(job.loss.count_loss.solver)
    job.loss.count_loss.solver = recorder
    computed: set[torch.dtype] = set()
    job.counter.backbone.register_forward_hook(lambda module, inputs, output: computed.add(output.dtype))
    batch = next(iter(job.loader.epoch(0)))
    loss, prediction = train_step(runtime, job, batch)
    assert computed == {torch.bfloat16 if precision == "bf16" else torch.float32}
    assert recorder.seen == [(torch.float32, False)]
    assert {tensor.dtype for tensor in vars(recorder.found[0]).values()} == {torch.float32}
    assert {value.dtype for value in (loss.total, *loss.parts.values(), prediction.count)} == {torch.float32}

    # The same loss inside of autocast, which would round its products to three digits.
    with torch.autocast("cpu", torch.bfloat16):
        inside = job.loss(prediction, batch)
    assert torch.equal(recorder.found[1].potentials, recorder.found[0].potentials)
    assert torch.equal(inside.total, loss.total)


def test_the_count_of_an_image_is_summed_in_float64() -> None:
    # 2^24 + 3 is no float32: it would become 2^24 + 4.
    maps = torch.tensor([[2.0**24, 1.0], [1.0, 1.0]]).view(1, 1, 2, 2)
    found = count_image(
        lambda corners, size: (maps.sum((1, 2, 3)), maps),
        WholeImageConfig(),
        height=16,
        width=16,
        grid=BlockGrid(8),
        stride=8,
    )
    assert found.count == 2**24 + 3


def test_the_errors_of_a_split_are_computed_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    # In float32, both images would be 4 heads wrong, and the square of 2^24 + 1 would be rounded.
    far = 2.0**24
    errors = CountErrors.from_counts([far + 3, far + 3], [far + 1, far + 1])
    assert (errors.mae, errors.rmse) == (2, 2)
    errors = CountErrors.from_counts([far + 1] * 3, [0.0] * 3)
    assert (errors.mae, errors.rmse) == (far + 1, far + 1)
    images = [ImageCount(k, "x", 0.0, 0.0, None, {"game1": value}) for k, value in enumerate((far, 1.0, 1.0, 1.0))]
    assert Evaluation(errors, images).total("game1") == far + 3
    # Over processes: no digit is lost, whatever the order.
    runtime = Runtime(config_of().runtime)
    monkeypatch.setattr(runtime, "gather", lambda items: [[1e16], [1.0], [-1e16]])
    assert runtime.sum([1e16]) == [1.0]


# ------------------------------------------------------------------------------------- repeated runs


def weights_of(folder: Path, *overrides: str, threads: int = 1) -> dict[str, Tensor]:
    """The weights and statistics after two epochs."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        run = train(config_of("epochs=2", f"output_dir={folder}", *overrides))
    finally:
        torch.set_num_threads(before)
    assert run is not None
    found: dict[str, Tensor] = checkpoint.read(run.folder / checkpoint.LAST)["model"]
    return found


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    return weights_of(tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["runtime.deterministic=true"],
        pytest.param(["runtime.workers=2"], marks=pytest.mark.slow),
        pytest.param(["eval_every_epochs=1", "draw_every_evaluations=0"], marks=pytest.mark.slow),
    ],
)
def test_a_run_is_repeated_bit_for_bit(tmp_path: Path, weights: dict[str, Tensor], overrides: list[str]) -> None:
    again = weights_of(tmp_path, *overrides)
    assert [key for key, value in weights.items() if not torch.equal(value, again[key])] == []


def test_another_seed_is_another_run(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    other = weights_of(tmp_path, "seed=2")
    assert not torch.equal(weights["backbone.features.0.0.weight"], other["backbone.features.0.0.weight"])


@pytest.mark.slow
def test_two_threads_repeat_themselves_and_are_close_to_one(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    two = [weights_of(tmp_path / str(k), threads=2) for k in range(2)]
    assert [key for key, value in two[0].items() if not torch.equal(value, two[1][key])] == []
    for key, value in weights.items():
        assert float((value.double() - two[0][key].double()).norm()) <= 1e-4 * float(value.double().norm()), key


@pytest.mark.gpu
def test_a_deterministic_run_on_a_gpu_is_repeated_bit_for_bit(tmp_path: Path) -> None:
    settings = ["runtime.accelerator=cuda", "runtime.deterministic=true", "epochs=3"]
    one, two = (weights_of(tmp_path / str(k), *settings) for k in range(2))
    assert [key for key, value in one.items() if not torch.equal(value, two[key])] == []


def test_the_sum_of_a_transport_term_does_not_depend_on_the_processes() -> None:
    """Gradients are averaged over processes, so that each process's sum counts as many times as there are processes."""
    summed, mean = config_of("loss.transport.ot_reduction=sum", "loss.transport.ot_weight=0.1").loss, config_of().loss
    assert _over_parts(summed, 4).transport.ot_weight == pytest.approx(0.4)  # type: ignore[attr-defined]
    assert _over_parts(summed, 1) == summed
    assert _over_parts(mean, 4) == mean
    plain = config_of("loss=cross_entropy").loss
    assert _over_parts(plain, 4) == plain
