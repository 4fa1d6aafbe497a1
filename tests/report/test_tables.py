"""The paper's tables take the runs that are theirs, refuse the others, and compute their percentages."""

import csv
import json
import re
import shlex
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from headcount.cli.compose import compose, to_config
from headcount.config import ConfigError, TrainConfig
from headcount.report import tables
from headcount.report.tables import (
    TABLES,
    ReproducedTable,
    fill_table,
    image_errors,
    improvement,
    paired_difference,
    table_picture,
    verdict,
)
from headcount.runs import evaluation_folder, read_run
from report.test_diagnostics import assert_legible
from test_runs import write_run

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
# All rows of table III on drawn crowds, so that nothing needs a file.
SHORT = ["dataset=synthetic", "model=tiny", "recipe=short", "scale=small"]
MAES = {30: 20.0, 35: 10.0, 40: 12.0}


def markdown(table: ReproducedTable) -> str:
    """The page without the spaces that align its tables."""
    return re.sub(" +", " ", tables.markdown(table))


def latex(table: ReproducedTable) -> str:
    """The table without the spaces that align it."""
    return re.sub(" +", " ", tables.latex(table))


@cache
def composed(overrides: tuple[str, ...]) -> TrainConfig:
    config: TrainConfig = to_config(compose(list(overrides), config_name="train"))
    return config


def fill(name: str, overrides: Sequence[str], runs: Path, seeds: Sequence[int] = (1,)) -> ReproducedTable:
    return fill_table(name, overrides, compose=lambda o: composed(tuple(o)), runs=runs, seeds=seeds)


def run_of(root: Path, experiment: str, *more: str, name: str = "any", mae: float = 10.0, epochs: int = 40) -> Path:
    seed = next((o.split("=")[1] for o in more if o.startswith("seed=")), "1")
    maes = {35: mae, 40: mae + 2}
    return write_run(root / "x" / name / f"seed{seed}", f"experiment={experiment}", *more, maes=maes, epochs=epochs)


def write_counts(folder: Path, errors: Sequence[float]) -> None:
    report = folder / "eval" / "synthetic_val"
    report.mkdir(parents=True, exist_ok=True)
    with (report / "counts.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "true", "predicted", "error"])
        writer.writerows([f"i{k}", 100, 100 + e, e] for k, e in enumerate(errors))


def test_every_cell_is_an_experiment_and_every_experiment_a_cell() -> None:
    cells = {e for table in TABLES.values() for row in table.rows for e in row.experiments}
    folder = CONFIGS / "experiment"
    files = {f.relative_to(folder).with_suffix("").as_posix() for f in folder.glob("*/*.yaml")}
    # What only the benchmark can score has no place in a table that is filled here.
    assert cells == {f for f in files if not f.startswith("nwpu_test/")}
    for table in TABLES.values():
        assert all(len(row.experiments) == len(table.columns) for row in table.rows)


@pytest.mark.slow
def test_percentages_are_computed_and_the_papers_own_are_footnoted(tmp_path: Path) -> None:
    assert improvement(42.9, 104.8) == pytest.approx(59.06, abs=0.01)
    page = markdown(fill("1", [], tmp_path))
    row = next(line for line in page.splitlines() if line.startswith("| CSRNet-EBC over CSRNet | NWPU val"))
    assert "59.1 % (" in row
    assert "76.9 %" in row
    assert "the paper prints 45.5 %; 104.8 to 42.9 is 59.1 %" in page
    # What the paper prints right has no note: 7.4 to 7.0.
    assert "the paper prints 5.4 %" not in page
    assert "24 runs" in page


@pytest.mark.slow
def test_a_run_counts_by_its_settings_whatever_its_name(tmp_path: Path) -> None:
    run_of(tmp_path, "table3/lambda_1", *SHORT, name="mine")
    filled = fill("3", SHORT, tmp_path)
    cell = filled.cells["lambda 1", "MAE"]
    assert list(cell.runs) == [1]
    assert cell.best("mae") == [10.0]
    assert cell.late("mae") == [11.0]
    assert len(filled.missing()) == 6
    assert (
        "| lambda 1 | MAE | 1 | 40 | unknown | synthetic val | 10.0 | 11.0 (2) | 20.0 | 77.9 | other recipe |"
        in markdown(filled)
    )


@pytest.mark.slow
def test_another_run_of_the_name_is_refused_with_the_difference(tmp_path: Path) -> None:
    run_of(tmp_path, "table3/lambda_1", *SHORT, "optim.lr=0.1", name="table3-lambda_1_optim.lr-0.1")
    run_of(tmp_path, "table3/lambda_1", *SHORT, name="table3-lambda_1", epochs=39)
    filled = fill("3", SHORT, tmp_path)
    cell = filled.cells["lambda 1", "MAE"]
    assert cell.runs == {}
    refused = "\n".join(cell.refused)
    assert "optim.lr is 0.1, not 0.0005" in refused
    assert "stopped at epoch 39 of 40" in refused
    assert refused.split("\n")[0] in markdown(filled)
    assert filled.cells["lambda 2", "MAE"].refused == []


@pytest.mark.slow
def test_a_shrunk_run_is_never_taken_for_the_papers(tmp_path: Path) -> None:
    run_of(tmp_path, "table3/lambda_1", *SHORT, name="table3-lambda_1_short")
    paper = fill("3", [], tmp_path).cells["lambda 1", "MAE"]
    assert paper.runs == {}
    (refused,) = paper.refused
    assert "epochs is 40, not 2600" in refused
    assert "dataset.name is synthetic, not qnrf" in refused
    shrunk = fill("3", SHORT, tmp_path)
    page = markdown(shrunk)
    assert "no number below reproduces one of the paper's" in page
    assert "epochs 40 for 2600" in page
    assert "trained otherwise" in latex(shrunk)


def test_the_papers_own_recipe_is_compared(tmp_path: Path) -> None:
    maes = {2600: 80.0}
    write_run(tmp_path / "qnrf" / "r" / "seed1", "experiment=table3/lambda_1", maes=maes, epochs=2600)
    page = markdown(fill("3", [], tmp_path))
    assert "| lambda 1 | MAE | 1 | 2600 | unknown | qnrf val | 80.0 | 80.0 (1) | 160.0 | 77.9 | +2.1 |" in page
    assert "Not the published recipe" not in page


@pytest.mark.slow
def test_seeds_are_averaged_and_the_best_row_is_bold(tmp_path: Path) -> None:
    for seed, mae in ((1, 10.0), (2, 14.0)):
        run_of(tmp_path, "table3/lambda_1", *SHORT, f"seed={seed}", name="a", mae=mae)
    run_of(tmp_path, "table3/blockwise", *SHORT, name="b", mae=50.0)
    filled = fill("3", SHORT, tmp_path, seeds=(1, 2))
    page = markdown(filled)
    assert "| lambda 1 | **12.0 +- 2.8** / 24.0 +- 5.7 |" in page
    assert "| Blockwise | 50.0 / 100.0 |" in page
    assert len(filled.missing()) == 7 * 2 - 3
    text = latex(filled)
    assert r"$\lambda = 1$ & \textbf{12.0 $\pm$ 2.8} / 24.0 $\pm$ 5.7 (77.9) \\" in text
    assert "lambda 1" not in text
    assert text.isascii()
    assert text.splitlines()[0] == r"% Needs the package booktabs: \usepackage{booktabs}"
    assert text.index(r"\caption") < text.index(r"\label{tab:table3}") < text.index(r"\begin{tabular}")
    table_picture(filled, tmp_path / "t.png")
    assert (tmp_path / "t.png").stat().st_size > 5000


def test_a_picture_covers_no_number_and_no_text(tmp_path: Path, figures: list[Figure]) -> None:
    for seed, mae in ((1, 70.0), (2, 85.0)):  # about the published number
        run_of(tmp_path, "table3/lambda_1", *SHORT, f"seed={seed}", name="a", mae=mae)
    table_picture(fill("3", SHORT, tmp_path, seeds=(1, 2)), tmp_path / "t.png")
    (figure,) = figures
    assert_legible(figure)
    (axis,) = figure.axes
    box = axis.get_window_extent()
    bars = [bar.get_window_extent() for bar in axis.patches]
    published = [
        axis.transData.transform(line.get_xydata())[0] for line in axis.lines if line.get_label() == "published"
    ]
    assert len(bars) == 2
    assert bars[0].x1 <= bars[1].x0
    assert len(published) == 7
    assert not any(bar.padded(5).contains(*point) for bar in bars for point in published)
    assert all(box.padded(-5).contains(*point) for point in published)  # no marker is cut
    missing = [text.get_window_extent() for text in axis.texts]
    assert len(missing) == 6
    assert not any(text.contains(*point) for text in missing for point in published)


def two_seeds(root: Path, experiment: str, maes: tuple[float, float], *, counts: bool = True) -> None:
    for seed, mae in enumerate(maes, start=1):
        folder = run_of(root, f"table3/{experiment}", *SHORT, f"seed={seed}", name=experiment, mae=mae)
        if counts:
            write_counts(folder, [mae + 3, -mae, mae - 3])


@pytest.mark.slow
def test_a_difference_within_the_spread_of_seeds_is_undecided(tmp_path: Path) -> None:
    two_seeds(tmp_path, "lambda_1", (10.0, 20.0))
    two_seeds(tmp_path, "lambda_2", (16.0, 18.0))
    filled = fill("3", SHORT, tmp_path, seeds=(1, 2))
    one, other = (filled.cells[f"lambda {k}", "MAE"] for k in (1, 2))
    paired = paired_difference(one, other)
    assert paired is not None
    assert (paired[0], paired[1].low, paired[1].high) == pytest.approx((-2, -2, -2))
    assert verdict(one, other) == "-2.0 [-2.0, -2.0], undecided"


@pytest.mark.slow
def test_a_difference_within_the_spread_of_images_is_undecided(tmp_path: Path) -> None:
    two_seeds(tmp_path, "lambda_1", (10.0, 10.1), counts=False)
    two_seeds(tmp_path, "lambda_2", (11.0, 11.1), counts=False)
    filled = fill("3", SHORT, tmp_path, seeds=(1, 2))
    one, other = (filled.cells[f"lambda {k}", "MAE"] for k in (1, 2))
    assert verdict(one, other).endswith("better")
    for cell, errors in ((one, [30.0, 0.0, 0.0, 10.0]), (other, [0.0, 30.0, 14.0, 0.0])):
        for run in cell.runs.values():
            write_counts(run.folder, [e * cell.best("mae")[run.config.seed - 1] / (sum(errors) / 4) for e in errors])
    assert verdict(one, other).endswith("undecided")


@pytest.mark.slow
def test_a_clear_difference_is_decided_by_more_than_one_seed(tmp_path: Path) -> None:
    two_seeds(tmp_path, "lambda_1", (10.0, 12.0))
    two_seeds(tmp_path, "lambda_2", (40.0, 41.0))
    filled = fill("3", SHORT, tmp_path, seeds=(1, 2))
    one, other = (filled.cells[f"lambda {k}", "MAE"] for k in (1, 2))
    assert verdict(one, other) == "-29.5 [-29.5, -29.5], better"
    assert verdict(other, one) == "+29.5 [+29.5, +29.5], worse"
    single = fill("3", SHORT, tmp_path, seeds=(1,))
    one, other = (single.cells[f"lambda {k}", "MAE"] for k in (1, 2))
    assert len(one.runs) == 1  # of the seeds that were asked for
    assert verdict(one, other).endswith("undecided (one seed)")


@pytest.mark.slow
def test_a_difference_on_one_image_is_undecided(tmp_path: Path) -> None:
    for experiment, mae in (("lambda_1", 10.0), ("lambda_2", 40.0)):
        two_seeds(tmp_path, experiment, (mae, mae), counts=False)
        for seed in (1, 2):
            write_counts(tmp_path / "x" / experiment / f"seed{seed}", [mae])
    filled = fill("3", SHORT, tmp_path, seeds=(1, 2))
    one, other = (filled.cells[f"lambda {k}", "MAE"] for k in (1, 2))
    assert verdict(one, other) == "-30.0 [one image], undecided"


@pytest.mark.slow
def test_counts_of_another_checkpoint_are_not_taken_for_the_best_ones(tmp_path: Path) -> None:
    two_seeds(tmp_path, "lambda_1", (10.0, 12.0))
    two_seeds(tmp_path, "lambda_2", (40.0, 41.0))
    filled = fill("3", SHORT, tmp_path, seeds=(1, 2))
    one, other = (filled.cells[f"lambda {k}", "MAE"] for k in (1, 2))
    assert paired_difference(one, other) is not None
    write_counts(one.runs[1].folder, [99.0, 99.0, 99.0])
    assert paired_difference(one, other) is None


def test_of_two_runs_alike_the_one_of_the_name_counts_and_the_other_is_told(tmp_path: Path) -> None:
    run_of(tmp_path, "table3/lambda_1", *SHORT, name="a_copy", mae=1.0)
    run_of(tmp_path, "table3/lambda_1", *SHORT, name="table3-lambda_1_short", mae=10.0)
    cell = fill("3", SHORT, tmp_path).cells["lambda 1", "MAE"]
    assert cell.best("mae") == [10.0]
    assert "a_copy/seed1: has the settings and the seed of" in cell.refused[0]


@pytest.mark.slow
def test_numbers_published_for_another_training_are_never_compared(tmp_path: Path) -> None:
    write_run(tmp_path / "sha" / "r" / "seed1", "experiment=table1/csrnet_sha", maes={2600: 75.0}, epochs=2600)
    write_run(tmp_path / "sha" / "e" / "seed1", "experiment=table1/csrnet_ebc_sha", maes={2600: 66.0}, epochs=2600)
    filled = fill("1", ["dataset=sha"], tmp_path)
    page = markdown(filled)
    assert "| CSRNet | 68.2 / 115.0* |" in page
    assert "| CSRNet-EBC | 66.3 / 105.0 |" in page
    assert "| CSRNet-EBC over CSRNet | SHA | 2.8 % (1) | 8.7 % (2) | 12.0 %* | -9.0 [not evaluated], undecided" in page
    assert "68.2 / 115.0*" in latex(filled)
    assert "published for another training" in latex(filled)
    assert "| CSRNet | SHA | 1 | 2600 | unknown | sha val | 75.0 | 75.0 (1) | 150.0 | 68.2 | other recipe |" in page
    assert "| CSRNet-EBC | SHA | 1 | 2600 | unknown | sha val | 66.0 | 66.0 (1) | 132.0 | 66.3 | -0.3 |" in page


@pytest.mark.slow
def test_a_run_on_other_images_is_no_run_of_the_dataset(tmp_path: Path) -> None:
    for seed, images in ((1, (10, 10)), (2, (1201, 334)), (3, None)):
        folder = run_of(tmp_path, "table3/lambda_1", f"seed={seed}", epochs=2600)
        made = {} if images is None else {"images": {"train": images[0], "selection": images[1]}}
        (folder / "run.json").write_text(json.dumps({"commits": ["0123456789ab+changes"], **made}))
    filled = fill("3", [], tmp_path, seeds=(1, 2, 3))
    cell = filled.cells["lambda 1", "MAE"]
    assert sorted(cell.runs) == [2, 3]
    assert "trained on 10 images and selected on 10, where qnrf has 1201 and 334" in cell.refused[0]
    assert "| 1201, unknown |" in markdown(filled)
    assert "0123456+changes |" in markdown(filled)


@pytest.mark.slow
def test_runs_of_one_dataset_saw_the_same_images(tmp_path: Path) -> None:
    digests = {("lambda_1", 1): "x", ("lambda_1", 2): "y", ("lambda_2", 1): "x", ("lambda_2", 2): None}
    for (name, seed), digest in digests.items():
        folder = run_of(tmp_path, f"table3/{name}", *SHORT, f"seed={seed}", name=name)
        made = {"images": {"train": 6, "selection": 2, "digest": digest}} if digest else {}
        (folder / "run.json").write_text(json.dumps(made))
    filled = fill("3", SHORT, tmp_path, seeds=(1, 2))
    assert sorted(filled.cells["lambda 2", "MAE"].runs) == [1, 2]
    cell = filled.cells["lambda 1", "MAE"]
    assert list(cell.runs) == [1]
    (refused,) = cell.refused
    assert "lambda_1/seed2: was trained or selected on other images or annotations than" in refused
    assert refused in markdown(filled)


@pytest.mark.slow
def test_a_mean_of_fewer_evaluations_says_of_how_many(tmp_path: Path) -> None:
    run_of(tmp_path, "table3/lambda_1", *SHORT)
    maes = dict.fromkeys(range(20, 41, 5), 10.0)
    write_run(tmp_path / "two" / "seed1", "experiment=table3/lambda_2", *SHORT, maes=maes)
    page = markdown(fill("3", SHORT, tmp_path))
    assert "| 10.0 | 11.0 (2) | 20.0 |" in page
    assert "| 10.0 | 10.0 | 20.0 |" in page


def test_a_wrong_setting_is_told_with_its_cell(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^table3/blockwise: loss\.weight=1: loss has no weight"):
        fill("3", [*SHORT, "loss.weight=1"], tmp_path)


@pytest.mark.parametrize(
    ("table", "typed"),
    [
        ("3", "bins=fine"),
        pytest.param("2", "bins=coarse", marks=pytest.mark.slow),
        pytest.param("4", "bins=fine loss=dace", marks=pytest.mark.slow),
        pytest.param("tokens", "model.prompt_tokens=32", marks=pytest.mark.slow),
        pytest.param("count_loss", "loss=dace", marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_what_a_table_compares_cannot_be_typed(table: str, typed: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the same; leave out what the table compares"):
        fill(table, typed.split(), tmp_path)


@pytest.mark.slow
def test_a_damaged_evaluation_is_none(tmp_path: Path) -> None:
    folder = run_of(tmp_path, "table3/lambda_1", *SHORT, mae=10.0)
    for content in ("", "image,error\n", "image,error\na,ten\n", "image,count\na,3\n", "image,error\na\n"):
        write_counts(folder, [10.0, -10.0])
        assert image_errors(read_run(folder)) == {"i0": 10.0, "i1": 10.0}
        (folder / "eval" / "synthetic_val" / "counts.csv").write_text(content)
        assert image_errors(read_run(folder)) is None


@pytest.mark.slow
def test_the_command_of_a_missing_run_leads_to_where_it_is_looked_for(tmp_path: Path) -> None:
    filled = fill("3", [*SHORT, "model.mean=[0.5,0.5,0.5]"], tmp_path / "my runs, (1)=a'b")
    cell, seed = filled.missing()[0]
    words = shlex.split(filled.command(cell, seed))
    assert composed((words[-1],)).output_dir == str(tmp_path / "my runs, (1)=a'b")
    assert "model.mean=[0.5,0.5,0.5]" in words


@pytest.mark.slow
@pytest.mark.parametrize("table", ["1", "tokens", "count_loss"])
def test_every_table_can_be_read_as_a_picture(table: str, tmp_path: Path, figures: list[Figure]) -> None:
    filled = fill(table, [], tmp_path)
    table_picture(filled, tmp_path / "t.png")
    assert_legible(figures[0])
    assert figures[0].get_size_inches()[0] < 16  # wider pictures are shrunk until nothing can be read
    drawn = [axis for axis in figures[0].axes if axis.axison]
    assert sum(len(axis.get_xticks()) for axis in drawn) == len(filled.cells)
    assert f"\\label{{tab:{'table1' if table == '1' else table.replace('_', '-')}}}" in latex(filled)


@pytest.mark.slow
def test_a_table_that_compares_datasets_is_picked_from(tmp_path: Path) -> None:
    filled = fill("1", ["dataset=shb"], tmp_path)
    assert filled.columns == ["SHB"]
    assert all(not cell.changed for cell in filled.cells.values())
    assert fill("4", ["model=resnet101"], tmp_path).columns == ["ResNet101"]
    with pytest.raises(ConfigError, match=r"dataset=jhu: Table I.* has nwpu, qnrf, sha, shb"):
        fill("1", ["dataset=jhu"], tmp_path)
    with pytest.raises(ConfigError, match="table=9: no such table; there are 1, 2"):
        fill("9", [], tmp_path)


def test_a_difference_that_is_not_evaluated_says_why(tmp_path: Path) -> None:
    """Nothing there, a part of the images, another checkpoint, other images in the other row."""
    against = ("label_correction", "lambda_1")
    folders = [run_of(tmp_path, f"table3/{name}", *SHORT, name=name, mae=10.0) for name in against]
    for folder in folders:
        (folder / "run.json").write_text(json.dumps({"images": {"train": 160, "selection": 2}}))
    filled = fill("3", SHORT, tmp_path)

    def reasons() -> str:
        page = markdown(filled)
        return page.split("## Not evaluated")[1].split("## Runs")[0] if "[not evaluated]" in page else ""

    said = reasons()
    for folder in folders:
        assert f"{folder}/eval/synthetic_val/counts.csv is missing; python eval.py ckpt={folder}/best_mae.pt" in said
        write_counts(folder, [10.0, -10.0])
    assert reasons() == ""
    write_counts(folders[1], [10.0])
    assert "counts.csv holds 1 of the 2 images that selected the checkpoint" in reasons()
    assert image_errors(read_run(folders[1])) is None
    write_counts(folders[1], [9.0, 9.0])
    assert "counts.csv has MAE 9.00, and the best checkpoint 10.00" in reasons()
    counts = folders[1] / "eval" / "synthetic_val" / "counts.csv"
    counts.write_text("image,error\ni0,10\nother,10\n")
    assert "lambda 1 and + label correction: the evaluated images differ" in reasons()


def test_the_evaluation_of_a_run_that_selected_on_a_part_is_found(tmp_path: Path) -> None:
    folder = run_of(tmp_path, "table3/lambda_1", *SHORT, "dataset.max_eval_images=2", mae=10.0)
    write_counts(folder, [10.0, 10.0])  # as earlier versions wrote it
    run = read_run(folder)
    assert image_errors(run) == {"i0": 10.0, "i1": 10.0}
    part = evaluation_folder(folder, "synthetic", "val", settings={"max_images": 2})
    (folder / "eval" / "synthetic_val").rename(part)
    write_counts(folder, [3.0, 4.0, 5.0])  # and the whole split beside it
    assert image_errors(run) == {"i0": 10.0, "i1": 10.0}
