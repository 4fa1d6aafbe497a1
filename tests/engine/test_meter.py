"""The first number of a training that is not finite is reported with its step, its files, and the terms of the loss."""

import math
from typing import Any

import pytest
import torch

from headcount.config import Accelerator, RuntimeConfig
from headcount.engine.records import Meter
from headcount.engine.runtime import Runtime
from headcount.types import LossTerms
from values import batch_of, predict

NAN, INF = math.nan, math.inf
# Total, its two terms, and the norm of the gradient, of one step.
GOOD = (3.0, 1.0, 2.0, 5.0)


def meter_of(*steps: tuple[float, float, float, float]) -> Meter:
    meter = Meter(epoch=4)
    images = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    for number, values in enumerate(steps, start=1):
        total, first, second, norm = map(torch.tensor, values)
        terms = LossTerms(total, {"count": first, "cross_entropy": second}, {"gradient_norm": norm})
        blocks = torch.ones(1, 1, 1, 1)
        meter.add(terms, predict(blocks), batch_of(images, [torch.zeros(0, 2)], blocks, [f"{number}.jpg"]))
    return meter


class Scaled(Runtime):
    """One process that multiplies its loss by ``scale``, as fp16 does."""

    def __init__(self, scale: float) -> None:
        super().__init__(RuntimeConfig(accelerator=Accelerator.cpu))
        self.scale = scale

    def scaler_state(self) -> dict[str, Any]:
        return {"scale": self.scale}


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (
            (NAN, NAN, 2.0, NAN),
            "the loss became nan on the batch of 2.jpg (not finite: count nan; finite are cross_entropy 2)",
        ),
        (
            (INF, 1.0, INF, INF),
            "the loss became inf on the batch of 2.jpg (not finite: cross_entropy inf; finite are count 1)",
        ),
        (
            (-INF, -INF, NAN, 0.0),
            "the loss became -inf on the batch of 2.jpg (not finite: count -inf, cross_entropy nan)",
        ),
        (
            (INF, 3e38, 3e38, 1.0),
            "the loss became inf on the batch of 2.jpg (not finite: only the sum of its terms; finite are count 3e+38, "
            "cross_entropy 3e+38)",
        ),
        (
            (3.0, 1.0, 2.0, NAN),
            "the norm of the gradient became nan on the batch of 2.jpg, though the loss is 3 (count 1, cross_entropy "
            "2)",
        ),
        ((3.0, 1.0, 2.0, INF), "the norm of the gradient became inf on the batch of 2.jpg"),
    ],
)
def test_the_first_number_that_is_not_finite_is_reported(step: tuple[float, float, float, float], words: str) -> None:
    wrong_after = (NAN, NAN, NAN, NAN)  # what follows from it
    for runtime in (None, Runtime(RuntimeConfig(accelerator=Accelerator.cpu))):
        with pytest.raises(FloatingPointError) as caught:
            meter_of(GOOD, step, wrong_after).check(runtime)
        assert str(caught.value).startswith(f"epoch 4, step 2: {words}")


def test_a_step_is_numbered_from_the_start_of_the_epoch() -> None:
    meter = meter_of(GOOD, GOOD)
    assert meter.check().startswith("total 3 ")
    assert meter.unchecked == []
    meter.unchecked = meter_of(GOOD, (NAN, NAN, NAN, NAN)).unchecked
    meter.steps += 2
    with pytest.raises(FloatingPointError, match="step 4: the loss"):
        meter.check()


@pytest.mark.parametrize("scale", [65536.0, 2.0])
def test_an_overflow_of_scaled_gradients_is_no_error(scale: float) -> None:
    """The gradient scaler skips that step, and halves its factor."""
    assert meter_of((3.0, 1.0, 2.0, INF)).check(Scaled(scale))


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_gradients_that_overflow_without_any_scale_are_an_error(scale: float) -> None:
    with pytest.raises(FloatingPointError, match="norm of the gradient became inf"):
        meter_of((3.0, 1.0, 2.0, INF)).check(Scaled(scale))


def test_a_loss_is_an_error_at_any_scale() -> None:
    with pytest.raises(FloatingPointError, match="the loss became nan"):
        meter_of((NAN, 1.0, NAN, INF)).check(Scaled(65536.0))


def test_the_process_whose_loss_it_was_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its gradient made those of the others NaN, whose loss was finite at that step."""
    runtime = Runtime(RuntimeConfig(accelerator=Accelerator.cpu))
    other = meter_of(GOOD, (NAN, 1.0, NAN, NAN))._first_not_finite(gradients=True)
    monkeypatch.setattr(runtime, "gather", lambda items: [*items, other])
    with pytest.raises(FloatingPointError, match=r"^epoch 4, step 2: the loss became nan"):
        meter_of(GOOD, (3.0, 1.0, 2.0, NAN)).check(runtime)
    with pytest.raises(FloatingPointError, match=r"^epoch 4, step 2: the loss became nan"):
        meter_of(GOOD, GOOD).check(runtime)
    with pytest.raises(FloatingPointError, match=r"^epoch 4, step 1: the norm of the gradient became inf"):
        meter_of((3.0, 1.0, 2.0, INF), GOOD).check(runtime)


def test_the_predicted_mean_is_that_of_all_counts_also_where_an_image_gives_several() -> None:
    meter = Meter()
    images = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    counts = [20.0, 55.0, 90.0, 125.0]
    blocks = torch.tensor(counts).reshape(4, 1, 1, 1)
    total = torch.tensor(1.0)
    meter.add(LossTerms(total, {}, {}), predict(blocks), batch_of(images, [torch.zeros(0, 2)], blocks, ["a.jpg"]))
    found = meter.close(Runtime(RuntimeConfig(accelerator=Accelerator.cpu)))
    assert found["train/predicted_mean"] == pytest.approx(72.5)
    assert found["train/predicted_std"] == pytest.approx(1531.25**0.5)
