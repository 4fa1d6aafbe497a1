"""Runs side by side: what differs, how well they did, one color an experiment, and folders that are none."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from omegaconf import OmegaConf

from headcount.cli.compose import compose, to_config
from headcount.config import TrainConfig, to_plain
from headcount.report.compare import (
    compare,
    differing,
    results_table,
    settings_table,
    terminal_report,
    write_comparison,
)
from report.test_diagnostics import assert_legible

MAE = [90.0, 60.0, 40.0, 30.0, 20.0, 10.0, 22.0]


@pytest.fixture(scope="module")
def config() -> TrainConfig:
    return to_config(compose(["epochs=7"], config_name="train"))


def write_run(folder: Path, config: TrainConfig, mae: list[float | None], **changes: Any) -> Path:
    """A run of one record a value; RMSE is ten above MAE, None was not evaluated. Settings of ``optim`` by name."""
    folder.mkdir(parents=True)
    optim = {key: changes.pop(key) for key in list(changes) if hasattr(config.optim, key)}
    changed = replace(config, optim=replace(config.optim, **optim), **changes)
    OmegaConf.save(OmegaConf.create(to_plain(changed)), folder / "config.yaml")
    lines = []
    for epoch, value in enumerate(mae, start=1):
        record: dict[str, Any] = {"epoch": epoch, "train/total": 100.0 / epoch}
        if value is not None:
            record |= {"eval/split": "val", "eval/mae": value, "eval/rmse": value + 10}
        lines.append(json.dumps(record) + "\n")
    (folder / "metrics.jsonl").write_text("".join(lines))
    return folder


def test_seeds_of_one_run_are_one_experiment(tmp_path: Path, config: TrainConfig) -> None:
    """Wherever they lie and whatever they are called; other settings, or another name for the same, are not."""
    write_run(tmp_path / "a_s2", config, MAE, seed=2, run_name="a_s2")
    write_run(tmp_path / "a_s1", config, MAE, seed=1, run_name="a_s1", output_dir="/elsewhere")
    write_run(tmp_path / "b", config, MAE, lr=0.5, run_name="b")
    comparison = compare([tmp_path])
    assert [(e.name, [run.config.seed for run in e.runs]) for e in comparison.experiments] == [
        ("a", [1, 2]),
        ("b", [config.seed]),
    ]
    assert comparison.broken == []
    assert differing(comparison.experiments) == {"optim.lr": [config.optim.lr, 0.5]}
    assert settings_table(comparison) == [["setting", "[1-2]", "[3]"], ["optim.lr", str(config.optim.lr), "0.5"]]


def test_a_run_is_taken_once_however_often_it_is_named(tmp_path: Path, config: TrainConfig) -> None:
    run = write_run(tmp_path / "a", config, MAE)
    assert len(compare([run, tmp_path, run]).runs) == 1


def test_runs_of_one_name_and_other_settings_are_told_apart(tmp_path: Path, config: TrainConfig) -> None:
    for k, lr in enumerate((0.1, 0.2, 0.3)):
        write_run(tmp_path / str(k), config, MAE, lr=lr, run_name="same" if k < 2 else "other")
    assert [e.name for e in compare([tmp_path]).experiments] == ["same (1)", "same (2)", "other"]


def test_it_says_when_no_settings_differ(tmp_path: Path, config: TrainConfig) -> None:
    one, two, three = (
        write_run(tmp_path / name, config, MAE, seed=seed) for name, seed in (("a", 1), ("b", 2), ("c", 1))
    )
    assert "no settings differ but the seed" in terminal_report(compare([one, two]))
    assert "no settings differ, not even the seed" in terminal_report(compare([one, three]))
    assert "one run: there is nothing to compare it with" in terminal_report(compare([one]))
    assert settings_table(compare([one, two])) == []


def test_errors_of_the_best_the_last_and_the_last_five_epochs(tmp_path: Path, config: TrainConfig) -> None:
    write_run(tmp_path / "a1", config, MAE, seed=1, run_name="a")
    write_run(tmp_path / "a2", config, [v + 2 for v in MAE], seed=2, run_name="a")
    write_run(tmp_path / "a3", config, [500.0, None], seed=3, run_name="a")
    write_run(tmp_path / "b", config, [None], run_name="b", lr=0.5)
    rows = results_table(compare([tmp_path]))
    late = (40 + 30 + 20 + 10 + 22) / 5
    first = ["[1]", "a", "1", "7/7", "yes", "val", "10.00 / 20.00", "6", "22.00 / 32.00", "7"]
    assert rows[1] == [*first, f"{late:.2f} / {late + 10:.2f}", "3-7"]
    only = "500.00 / 510.00"
    assert rows[3] == ["[3]", "a", "3", "2/7", "no", "val", only, "1", only, "1", only, "1-1 (1)"]
    # The mean is that of the finished seeds.
    assert rows[4][1] == "a, mean of 2 seeds"
    assert [rows[4][k] for k in (6, 8, 10)] == [
        "11.00 ± 1.41 / 21.00 ± 1.41",
        "23.00 ± 1.41 / 33.00 ± 1.41",
        f"{late + 1:.2f} ± 1.41 / {late + 11:.2f} ± 1.41",
    ]
    assert rows[5] == ["[4]", "b", str(config.seed), "1/7", "no", *"-------"]
    assert all(len(row) == len(rows[0]) for row in rows)


def test_a_seed_counts_once_in_a_mean(tmp_path: Path, config: TrainConfig) -> None:
    for name, seed, more in (("a1", 1, 0.0), ("a1again", 1, 50.0), ("a2", 2, 2.0)):
        write_run(tmp_path / name, config, [v + more for v in MAE], seed=seed, run_name="a")
    comparison = compare([tmp_path])
    (mean,) = [row for row in results_table(comparison) if row[0] == ""][1:]
    assert (mean[1], mean[6]) == ("a, mean of 2 seeds", "11.00 ± 1.41 / 21.00 ± 1.41")
    assert "a: a seed occurs twice; the mean takes its first finished run" in terminal_report(comparison)


@pytest.mark.slow
def test_runs_on_different_images_have_no_mean(tmp_path: Path, config: TrainConfig) -> None:
    for seed, digest in ((1, "x"), (2, "x"), (3, None), (4, "y")):
        folder = write_run(tmp_path / f"a{seed}", config, MAE, seed=seed, run_name="a")
        if digest is not None:
            (folder / "run.json").write_text(json.dumps({"images": {"train": 2, "selection": 2, "digest": digest}}))
        means = [row[1] for row in results_table(compare([tmp_path])) if row[0] == ""][1:]
        assert means == ([f"a, mean of {seed} seeds"] if seed in (2, 3) else [])
    assert "a: its runs saw different images or annotations, so they have no mean" in terminal_report(
        compare([tmp_path])
    )


def test_folders_that_hold_no_run_are_named(tmp_path: Path, config: TrainConfig) -> None:
    good = write_run(tmp_path / "good", config, MAE)
    whole = (good / "metrics.jsonl").read_text()
    (good / "metrics.jsonl").write_text(whole + '{"epoch": 8, "tra')  # killed while it wrote
    for name in ("unreadable", "middle", "old", "strange"):
        write_run(tmp_path / name, config, MAE)
    write_run(tmp_path / "fresh", config, [])
    (tmp_path / "unreadable" / "config.yaml").write_text("a: [")
    lines = (tmp_path / "middle" / "metrics.jsonl").read_text().splitlines()
    (tmp_path / "middle" / "metrics.jsonl").write_text("\n".join([*lines[:2], "broken", *lines[2:]]))
    (tmp_path / "old" / "config.yaml").write_text("kinds: {}\nno_such_setting: 1\n")
    (tmp_path / "strange" / "metrics.jsonl").write_text('{"step": 1}\n')
    (tmp_path / "lost").mkdir()
    (tmp_path / "lost" / "config.yaml").write_text((good / "config.yaml").read_text())
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "metrics.jsonl").write_text((good / "metrics.jsonl").read_text())
    comparison = compare([tmp_path, tmp_path / "gone"])
    assert [run.folder.name for run in comparison.runs] == ["good"]
    assert comparison.runs[0].epochs == 7
    broken = {Path(line.split(": ")[0].split(" ")[0]): line for line in comparison.broken}
    assert len(broken) == 8
    for name, said in (
        ("unreadable/config.yaml", "cannot be read"),
        ("middle/metrics.jsonl", "line 3 cannot be read"),
        ("old/config.yaml", "another version of headcount"),
        ("strange/metrics.jsonl", "line 1 is not a record"),
        ("fresh/metrics.jsonl", "no epoch is recorded yet"),
        ("lost", "there is no metrics.jsonl"),
        ("bare", "there is no config.yaml"),
        ("gone", "no such folder"),
    ):
        assert said in broken[tmp_path / name]


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    comparison = compare([tmp_path])
    assert comparison.experiments == []
    assert "neither it nor a folder below it holds config.yaml" in comparison.broken[0]


def test_curves_have_one_color_an_experiment_and_a_legend_outside(
    tmp_path: Path, config: TrainConfig, figures: list[Figure]
) -> None:
    for seed in (1, 2):
        write_run(tmp_path / f"a{seed}", config, [None, *MAE[1:]], seed=seed, run_name="$a_b")
    write_run(tmp_path / "b", config, [50.0], lr=0.5, run_name="b")
    write_comparison(compare([tmp_path]), tmp_path / "out")
    (figure,) = figures
    loss, errors = figure.axes
    colors = [to_hex(line.get_color()) for line in loss.lines]
    assert colors[0] == colors[1] != colors[2]
    assert loss.lines[0].get_xydata().tolist() == [[e, pytest.approx(100 / e)] for e in range(1, 8)]
    curves = [line for line in errors.lines if line.get_linestyle() != "None"]
    dots = [line for line in errors.lines if line.get_linestyle() == "None"]
    assert curves[0].get_xydata().tolist() == [[epoch, MAE[epoch - 1]] for epoch in range(2, 8)]
    assert [dot.get_xydata().tolist() for dot in dots] == [[[6, 10]], [[6, 10]], [[1, 50]]]
    assert curves[2].get_marker() == "x"  # one point is no line
    assert [to_hex(line.get_color()) for line in curves] == colors
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["$a_b (2 seeds)", "b"]
    assert [to_hex(line.get_color()) for line in legend.get_lines()] == [colors[0], colors[2]]
    assert_legible(figure)
    assert legend.get_window_extent().x0 > loss.get_window_extent().x1
    page = re.sub(" +", " ", (tmp_path / "out" / "runs.md").read_text())
    assert "| optim.lr |" in page
    assert "![training loss and MAE](runs.png)" in page


@pytest.mark.slow
def test_twelve_runs_have_twelve_colors_and_can_be_read(
    tmp_path: Path, config: TrainConfig, figures: list[Figure]
) -> None:
    for k in range(13):
        write_run(tmp_path / f"{k:02}", config, MAE, lr=0.1 + k, run_name=f"run_{k}_" + "long_" * 20)
    write_comparison(compare([tmp_path]), tmp_path)
    loss, _ = figures[0].axes
    looks = [(to_hex(line.get_color()), line.get_linestyle()) for line in loss.lines]
    assert len(set(looks)) == 13
    assert len({color for color, _ in looks[:12]}) == 12
    assert_legible(figures[0])


def test_names_are_whole_and_epochs_are_whole_numbers(
    tmp_path: Path, config: TrainConfig, figures: list[Figure]
) -> None:
    """Names of runs often differ only in the middle."""
    names = ["mobilenet_v2_" + "w" * 40 + f"_lr-0.{k}_" + "dataset.holdout-0.1_" * 3 for k in (1, 2)]
    for k, (name, maes) in enumerate(zip(names, ([50.0, 40.0, 45.0], [60.0]), strict=True)):
        write_run(tmp_path / str(k), config, maes, lr=0.1 + k, run_name=name)
    write_comparison(compare([tmp_path]), tmp_path)
    (figure,) = figures
    (legend,) = figure.legends
    assert [re.sub(r"\s", "", text.get_text()) for text in legend.get_texts()] == names
    assert_legible(figure)
    for axis in figure.axes:
        assert all(tick == round(tick) for tick in axis.get_xticks())
    errors = figure.axes[1]
    dots = [axis_point for line in errors.lines for axis_point in errors.transData.transform(line.get_xydata())]
    assert all(errors.get_window_extent().padded(-4).contains(*dot) for dot in dots)  # none is cut


def test_runs_that_recorded_nothing_to_draw_say_so(tmp_path: Path, config: TrainConfig, figures: list[Figure]) -> None:
    run = write_run(tmp_path / "a", config, [None])
    (run / "metrics.jsonl").write_text('{"epoch": 1}\n')
    write_comparison(compare([run]), tmp_path)
    assert [axis.texts[0].get_text() for axis in figures[0].axes] == ["nothing recorded"] * 2


def test_a_page_says_which_figures_do_not_compare(tmp_path: Path, config: TrainConfig) -> None:
    write_run(tmp_path / "a", config, MAE)
    other = write_run(tmp_path / "b", config, MAE, lr=0.5)
    assert "differ: errors" not in terminal_report(compare([tmp_path]))
    (other / "metrics.jsonl").write_text((other / "metrics.jsonl").read_text().replace('"val"', '"test"'))
    assert "The splits differ" in terminal_report(compare([tmp_path]))
