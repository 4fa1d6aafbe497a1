"""The loop learns, resumes bit for bit, and stops at a loss that is not finite."""

import copy
import dataclasses
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from headcount.cli.compose import compose
from headcount.config import Accelerator, ConfigError, RuntimeConfig, TrainConfig, from_plain
from headcount.engine import checkpoint
from headcount.engine.records import Meter, Records
from headcount.engine.runtime import Runtime, unwrap
from headcount.engine.train import _is_drawn, train
from headcount.errors import CheckpointError
from headcount.losses.dace import DaceLoss
from headcount.runs import read_metrics
from headcount.types import Batch, CountErrors, LossTerms, Prediction
from values import batch_of, predict

SMALL = ["dataset.width=96", "dataset.height=96", "dataset.max_people=12", "model.width=8", "runtime=cpu"]


def config_of(folder: Path, *overrides: str) -> TrainConfig:
    everything = ["scale=smoke", *SMALL, f"output_dir={folder}", "run_name=run", "runtime.workers=0", *overrides]
    return OmegaConf.to_object(compose(everything, config_name="train"))


def weights(folder: Path, name: str = checkpoint.LAST) -> dict[str, torch.Tensor]:
    return checkpoint.read(folder / name)["model"]


def without_clock(record: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in record.items() if k not in ("train/seconds", "train/images_per_second")}


@pytest.mark.parametrize("recipe", ["adamw_cosine", pytest.param("adam_cosine_restarts", marks=pytest.mark.slow)])
def test_four_epochs_equal_two_and_two_bit_for_bit(
    tmp_path: Path, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [f"optim={recipe}", "optim.warmup_epochs=1", "epochs=4"]
    whole = train(config_of(tmp_path / "whole", *settings))
    assert whole is not None

    # The same run, stopped in its third epoch: its checkpoint is of the second.
    class StopError(Exception): ...

    steps = 0
    add = Meter.add

    def add_until(self: Meter, *values: Any) -> None:
        nonlocal steps
        steps += 1
        if steps == 2 * 2 + 1:
            raise StopError
        add(self, *values)

    monkeypatch.setattr(Meter, "add", add_until)
    with pytest.raises(StopError):
        train(config_of(tmp_path / "halves", *settings))
    monkeypatch.setattr(Meter, "add", add)
    folder = tmp_path / "halves" / "synthetic" / "run" / "seed1"
    assert checkpoint.read(folder / checkpoint.LAST)["epoch"] == 2
    halves = train(config_of(tmp_path / "halves", *settings, "resume=true", "runtime.workers=1"))
    assert halves is not None

    for name in (checkpoint.LAST, checkpoint.BEST):
        for key, value in weights(whole.folder, name).items():
            assert torch.equal(value, weights(halves.folder, name)[key]), key
    assert [without_clock(r) for r in halves.metrics] == [without_clock(r) for r in whole.metrics]
    assert [r["epoch"] for r in whole.metrics] == [1, 2, 3, 4]


@pytest.mark.slow
def test_a_cut_record_is_repaired_on_resume(tmp_path: Path) -> None:
    run = train(config_of(tmp_path))
    assert run is not None
    file = run.folder / "metrics.jsonl"
    file.write_text(file.read_text() + '{"epoch": 3, "train/total"')
    again = train(config_of(tmp_path, "resume=true"))
    assert again is not None
    assert again.metrics == run.metrics


@pytest.mark.slow
def test_a_kill_while_the_records_are_cut_back_leaves_them_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train(config_of(tmp_path))
    assert run is not None
    file = run.folder / "metrics.jsonl"
    before = file.read_text()
    writing = Path.write_text

    def killed(self: Path, text: str, **options: Any) -> int:
        writing(self, text[: len(text) // 2], **options)  # half of it reaches the disk
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", killed)
    with pytest.raises(KeyboardInterrupt):
        train(config_of(tmp_path, "resume=true"))
    monkeypatch.setattr(Path, "write_text", writing)
    assert file.read_text() == before
    again = train(config_of(tmp_path, "resume=true"))
    assert again is not None
    assert again.metrics == run.metrics


def test_an_epoch_records_the_learning_rate_it_was_trained_with(tmp_path: Path) -> None:
    settings = ["optim=adam_cosine_restarts", "optim.lr=1e-3", "optim.min_lr=0", "optim.restart_epochs=2", "epochs=3"]
    run = train(config_of(tmp_path, *settings))
    assert run is not None
    # One rate per epoch: the peak, the middle of the first cosine, and the peak again.
    assert [record["lr"] for record in run.metrics] == pytest.approx([1e-3, 5e-4, 1e-3])


@pytest.mark.slow
def test_a_loaded_config_is_never_changed_in_place(tmp_path: Path) -> None:
    run = train(config_of(tmp_path))
    assert run is not None
    content = checkpoint.read(run.folder / checkpoint.LAST)
    before = copy.deepcopy(content["config"])
    from_plain(content["config"])
    assert content["config"] == before


def test_a_network_that_was_not_wrapped_is_refused() -> None:
    with pytest.raises(TypeError, match=r"wrapped by Runtime\.setup, got Linear"):
        unwrap(torch.nn.Linear(1, 1))


def test_the_loss_runs_on_one_thread_and_leaves_the_others_as_they_were() -> None:
    runtime = Runtime(config_of(Path()).runtime)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with runtime.single_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
def test_a_used_folder_is_refused_and_nothing_lost(tmp_path: Path) -> None:
    run = train(config_of(tmp_path))
    assert run is not None
    before = {f.name: f.read_bytes() for f in run.folder.iterdir() if f.is_file()}
    with pytest.raises(ConfigError, match="already contains a run; add resume=true"):
        train(config_of(tmp_path))
    assert {f.name: f.read_bytes() for f in run.folder.iterdir() if f.is_file()} == before


def test_resume_with_other_settings_names_them(tmp_path: Path) -> None:
    train(config_of(tmp_path))
    with pytest.raises(ConfigError, match=r"optim\.lr=0\.5 \(was 0\.001\), runtime\.precision=bf16 \(was float32\)"):
        train(config_of(tmp_path, "resume=true", "optim.lr=0.5", "runtime.precision=bf16", "runtime.workers=1"))


def test_what_a_run_leaves_behind(tmp_path: Path) -> None:
    drawn = []

    def draw(sample: Any, blocks: torch.Tensor, block_size: int) -> np.ndarray:
        drawn.append((sample.name, tuple(blocks.shape), block_size))
        return np.zeros((3, 8, 24), dtype=np.uint8)

    run = train(config_of(tmp_path), draw=draw)
    assert run is not None
    assert run.folder == tmp_path / "synthetic" / "run" / "seed1"
    names = {f.name.split(".")[0] for f in run.folder.iterdir()}
    assert names == {"config", "metrics", "run", "events", "last", "best_mae"}
    assert len(drawn) == 2 * 3  # three images at each of two evaluations
    assert drawn[0][1:] == ((12, 12), 8)
    record = run.metrics[-1]
    for key in ("train/total", "train/cross_entropy", "train/transport_cost", "train/empty_blocks"):
        assert np.isfinite(record[key])
    assert record["eval/split"] == "val"
    assert record["eval/predicted_std"] >= 0
    content = checkpoint.read(run.folder / checkpoint.BEST)
    assert content["selection"] == {"split": "val", "dataset": "synthetic", "metric": "mae"}
    assert content["best"]["mae"] == min(r["eval/mae"] for r in run.metrics)
    assert "optimizer" not in content


@pytest.mark.slow
def test_a_dry_run_describes_and_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(config_of(tmp_path, "dry_run=true")) is None
    text = capsys.readouterr().out
    for words in ("4 training images", "selected on 3 images of 'val'", "represented by", "trainable", "GMACs", "MiB"):
        assert words in text
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("poisoned_total", "words"),
    [
        (lambda total: total * float("nan"), "epoch 1, step 1: the loss became nan"),
        (lambda total: total * float("inf"), "epoch 1, step 1: the loss became inf"),
        # The derivative of a square root at 0 is infinite, and 0 times that is NaN.
        (lambda total: total + (0 * total).sqrt(), "epoch 1, step 1: the norm of the gradient became nan"),
    ],
    ids=["nan", "inf", "gradient"],
)
def test_what_is_not_finite_stops_the_training_with_the_files_of_its_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, poisoned_total: Any, words: str
) -> None:
    call = DaceLoss.__call__
    poisoned: list[list[str]] = []

    def poison(self: DaceLoss, prediction: Prediction, batch: Batch) -> LossTerms:
        terms = call(self, prediction, batch)
        if poisoned or len(batch.names) < 2:
            return terms
        poisoned.append(batch.names)
        return dataclasses.replace(terms, total=poisoned_total(terms.total))

    monkeypatch.setattr(DaceLoss, "__call__", poison)
    with pytest.raises(FloatingPointError) as caught:
        train(config_of(tmp_path))
    assert str(caught.value).startswith(words)
    for name in (*poisoned[0], "cross_entropy"):
        assert name in str(caught.value)
    assert not (tmp_path / "synthetic" / "run" / "seed1" / checkpoint.LAST).exists()


def test_the_meter_measures_by_hand() -> None:
    runtime = Runtime(config_of(Path()).runtime)
    meter = Meter()
    images = torch.zeros(2, 3, 8, 16, dtype=torch.uint8)
    for total, counts in ((1.0, [[3.0, 0.2], [0.0, 1.0]]), (3.0, [[0.0, 0.0], [4.0, 0.0]])):
        blocks = torch.tensor(counts).view(2, 1, 1, 2)
        batch = batch_of(images, [torch.zeros(0, 2)] * 2, blocks, ["a", "b"])
        terms = LossTerms(torch.tensor(total), {"count": torch.tensor(2 * total)}, {"cost": torch.tensor(7 * total)})
        meter.add(terms, predict(blocks), batch)
    record = meter.close(runtime)
    assert record["train/total"] == 2
    assert record["train/count"] == 4
    assert record["train/cost"] == 14
    assert record["train/empty_blocks"] == pytest.approx((2 / 4 + 3 / 4) / 2)
    assert record["train/predicted_mean"] == pytest.approx(8.2 / 4)
    assert record["train/predicted_std"] == pytest.approx(float(np.std([3.2, 1, 0, 4])), rel=1e-6)


def test_errors_by_hand() -> None:
    errors = CountErrors.from_counts([1.0, 5.0, 2.0], [3.0, 4.0, 0.0])
    assert errors == CountErrors(mae=5 / 3, rmse=3**0.5, nae=(2 / 3 + 1 / 4) / 2, images=3)
    with pytest.raises(ValueError, match="1 predicted, 2 true"):
        CountErrors.from_counts([1.0], [1.0, 2.0])


@pytest.mark.slow
def test_it_overfits_four_images(tmp_path: Path) -> None:
    settings = ["epochs=60", "eval_every_epochs=60", "augment.crop_size=96"]
    settings += ["augment.min_scale=1", "augment.max_scale=1"]
    run = train(config_of(tmp_path, *settings, "model.width=16", "optim.lr=5e-3", "augment.blur_probability=0"))
    assert run is not None
    first, last = run.metrics[0], run.metrics[-1]
    assert last["train/total"] < 0.25 * first["train/total"]
    assert last["train/predicted_std"] > 1  # it did not settle on one count


def test_read_metrics_of_nothing(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == []
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"epoch": 1}) + "\n{")
    assert read_metrics(tmp_path) == [{"epoch": 1}]


@pytest.fixture(scope="module")
def one_epoch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a run of one epoch."""
    folder = tmp_path_factory.mktemp("one_epoch")
    assert train(config_of(folder, "epochs=1")) is not None
    return folder


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content.pop("optimizer"),
        lambda content: content.pop("config"),
        lambda content: content["config"].update(unknown=3),
        lambda content: content["best"].pop("nae"),
        lambda content: content["model"].popitem(),
    ],
    ids=["as best_mae.pt", "no config", "unknown setting", "no nae", "a weight less"],
)
def test_a_damaged_last_checkpoint_is_refused_by_name(one_epoch: Path, tmp_path: Path, damage: Any) -> None:
    shutil.copytree(one_epoch, tmp_path, dirs_exist_ok=True)
    (last,) = tmp_path.rglob(checkpoint.LAST)
    content = checkpoint.read(last)
    damage(content)
    checkpoint.save(content, last)
    with pytest.raises(CheckpointError, match=r"last\.pt: "):
        train(config_of(tmp_path, "epochs=1", "resume=true"))


@pytest.mark.slow
def test_a_resume_with_another_kind_of_group_names_the_group_alone(tmp_path: Path) -> None:
    assert train(config_of(tmp_path, "epochs=1")) is not None
    with pytest.raises(ConfigError) as caught:
        train(config_of(tmp_path, "epochs=1", "resume=true", "loss.transport=stable", "seed=1"))
    assert "differ from those of the run: loss.transport=stable (was released); continue" in str(caught.value)
    with pytest.raises(ConfigError, match=r"of the run: loss=cross_entropy \(was dace\); continue"):
        train(config_of(tmp_path, "epochs=1", "resume=true", "loss=cross_entropy"))


@pytest.mark.slow
def test_a_run_goes_on_with_the_images_it_was_trained_on_alone(tmp_path: Path) -> None:
    def typed(folder: str, epochs: int) -> TrainConfig:
        own = ["dataset=custom", f"dataset.root={tmp_path / folder}", f"dataset.cache_dir={tmp_path / 'cache'}"]
        own += ["dataset.min_side=64", "dataset.side_multiple=8", "model.width=8", "runtime=cpu", "scale=smoke"]
        own += [f"epochs={epochs}", "resume=true", f"output_dir={tmp_path}", "run_name=run"]
        return OmegaConf.to_object(compose(own, config_name="train"))

    for folder, heads in (("here", 3), ("moved", 3), ("denser", 9)):
        for k in range(6):
            image = np.random.default_rng(k).integers(0, 256, (96, 96, 3), dtype=np.uint8)
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(image).save(tmp_path / folder / f"{k}.png")
            np.save(tmp_path / folder / f"{k}.npy", np.full((heads, 2), 9.0))
    first = train(typed("here", 1))
    assert first is not None
    config = typed("denser", 1)
    with pytest.raises(ConfigError, match="training images or annotations that differ"):
        train(config)
    assert "here" in (first.folder / "config.yaml").read_text()  # what it was trained on stays written
    moved = train(typed("moved", 1))
    assert moved is not None


@pytest.mark.slow
def test_a_batch_larger_than_the_dataset_is_shown_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(config_of(tmp_path, "batch_size=64", "dry_run=true")) is None
    described = capsys.readouterr().out
    assert "step: 4 crops of 64 px" in described
    assert "batches hold 4 images, not batch_size=64" in described
    assert train(config_of(tmp_path, "batch_size=64")) is not None
    assert "training: 100%" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("settings", [["batch_size=1"], ["dataset.train_images=1"]])
def test_a_single_value_for_batchnorm_is_refused_before_any_work(tmp_path: Path, settings: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"batch_size=\d augment.crop_size=8: a step of one crop .* at least 2 crops"):
        train(config_of(tmp_path, *settings, "augment.crop_size=8", "augment.blur_size=5"))
    assert not any(tmp_path.iterdir())
    config = config_of(tmp_path, *settings, "augment.crop_size=16", "dry_run=true")
    assert train(config) is None


def test_fp16_without_a_gpu_is_refused() -> None:
    """Lightning would compute in bf16, and the checkpoint would record fp16."""
    settings = config_of(Path(), "runtime.precision=fp16", "runtime.accelerator=auto").runtime
    if torch.cuda.is_available():
        settings.accelerator = Accelerator.cpu
    with pytest.raises(ConfigError, match=r"runtime\.precision=fp16: needs a GPU"):
        Runtime(settings)


def test_more_processes_than_cores_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    with pytest.raises(ConfigError, match=r"runtime\.devices=64: this machine has 4 CPU cores; start at most 4"):
        Runtime(RuntimeConfig(accelerator=Accelerator.cpu, devices=64))


def strict(line: str) -> Any:
    """One line of JSON; NaN and Infinity, which Python writes and reads, are no JSON."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(line, parse_constant=refuse)


def test_records_are_json_where_a_number_is_undefined(tmp_path: Path) -> None:
    records = Records(tmp_path, start_epoch=0)
    records.write({"epoch": 1, "eval/nae": math.nan, "train/gradient_norm": math.inf})
    file = tmp_path / "metrics.jsonl"
    assert strict(file.read_text()) == {"epoch": 1, "eval/nae": None, "train/gradient_norm": None}
    file.write_text('{"epoch": 1, "eval/nae": NaN}\n')  # as earlier versions wrote it
    Records(tmp_path, start_epoch=1)
    assert strict(file.read_text()) == {"epoch": 1, "eval/nae": None}


@pytest.mark.slow
def test_tensorboard_holds_more_than_losses(tmp_path: Path) -> None:
    run = train(config_of(tmp_path))
    assert run is not None
    events = EventAccumulator(str(run.folder)).Reload()
    tags = events.Tags()
    norms = [event.value for event in events.Scalars("train/gradient_norm")]
    assert len(norms) == 2
    assert all(norm > 0 for norm in norms)
    assert [event.value for event in events.Scalars("eval/game1")] == pytest.approx(
        [record["eval/game1"] for record in run.metrics]
    )
    assert all(record["eval/game3"] >= record["eval/game1"] >= record["eval/mae"] for record in run.metrics)
    assert events.Scalars("train/peak_memory_mib")[0].value > 10
    assert "train/peak_memory_mib" not in run.metrics[0]  # a resumed run repeats its records bit for bit
    assert {"train/transport_surrogate", "train/transport_cost"} <= set(tags["scalars"])
    (text,) = events.Tensors("settings/text_summary")
    assert b"output_dir: " in text.tensor_proto.string_val[0]


@pytest.mark.slow
def test_resuming_a_finished_run_adds_no_files_and_keeps_its_duration(tmp_path: Path) -> None:
    run = train(config_of(tmp_path))
    assert run is not None
    before = sorted(file.name for file in run.folder.iterdir())
    made = json.loads((run.folder / "run.json").read_text())
    assert made["seconds"] > 0
    assert made["cpu"]
    assert train(config_of(tmp_path, "resume=true")) is not None
    assert sorted(file.name for file in run.folder.iterdir()) == before
    assert json.loads((run.folder / "run.json").read_text())["seconds"] == made["seconds"]


@pytest.mark.slow
@pytest.mark.parametrize("best_epoch", [1, 2])
def test_the_next_command_names_a_checkpoint_that_exists(
    tmp_path: Path, best_epoch: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    maes = iter([1.0, 2.0] if best_epoch == 1 else [2.0, 1.0])
    measure = CountErrors.from_counts

    def errors(*counts: Any) -> CountErrors:
        return dataclasses.replace(measure(*counts), mae=next(maes))

    monkeypatch.setattr(CountErrors, "from_counts", errors)
    run = train(config_of(tmp_path))
    assert run is not None
    expected = weights(run.folder, checkpoint.BEST)
    (run.folder / checkpoint.BEST).unlink()
    capsys.readouterr()
    assert train(config_of(tmp_path, "resume=true")) is not None
    told = capsys.readouterr().err
    named = Path(told.split("ckpt=")[1].split()[0].strip("'"))
    assert named.is_file()
    if best_epoch == 2:  # last.pt has the same weights
        assert named.name == checkpoint.BEST
        assert all(torch.equal(value, expected[key]) for key, value in weights(run.folder, checkpoint.BEST).items())
    else:
        assert named.name == checkpoint.LAST
        assert "best_mae.pt is missing" in told


@pytest.mark.parametrize(("every", "epochs"), [(0, []), (1, [1, 2, 3, 4, 5]), (2, [1, 2, 4, 5]), (10, [1, 5])])
def test_density_maps_are_drawn_at_intervals(tmp_path: Path, every: int, epochs: list[int]) -> None:
    config = config_of(tmp_path, "epochs=5", "eval_every_epochs=1", f"draw_every_evaluations={every}")
    assert [epoch for epoch in range(1, 6) if _is_drawn(config, epoch)] == epochs
