"""The tables of README.md and EXPERIMENTS.md are those of the records, and whatever disagrees is named."""

import copy
import json
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from headcount.cli.compose import compose, to_config
from headcount.config import ConfigError, TrainConfig
from report.test_compare import write_run

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = "scripts/results_table.py"
HEADING, ANCHOR = "## 2026-01-02: a run, with a name", "2026-01-02-a-run-with-a-name"
PAGES = {
    "README.md": "# Project\n\n<!-- results: begin -->\n<!-- results: end -->\n\nThe end\n",
    "EXPERIMENTS.md": "# Experiments\n\n<!-- results: begin -->\n<!-- results: end -->\n\n"
    f"{HEADING}\n\nCommit abc1234. 40 epochs, 12,000 crops, 7.5 minutes.\n\n    python train.py\n\n"
    "| checkpoint | MAE | RMSE | largest |\n| --- | --- | --- | --- |\n| the last epoch | 61.0 | 99.5 | 103.0 |\n"
    "| epoch 35, selected on the test split | 60.5 | 98.5 |\n"
    "| epoch 30, selected on 30 held-out images | 70.5 | 105.5 |\n\n"
    "**64.2 +- 1.5 / 101.0 +- 3.0**, selected on the test split as well as selected on 30 held-out images\n\n"
    "## Another\n\n75.0 / 88.0, the last epoch, def5678\n",
}
LAST: dict[str, Any] = {"selected_on": "nothing", "selection_datasets": [], "selection_images": None, "epoch": 40}
LAST |= {"mae": 61.0, "rmse": 99.5, "mae_std": None, "rmse_std": None}
BEST: dict[str, Any] = {**LAST, "selected_on": "test", "selection_datasets": ["sha"], "selection_images": 182}
BEST |= {"epoch": 35, "mae": 60.5, "rmse": 98.5}
HELD = {**BEST, "selected_on": "holdout", "selection_images": 30, "epoch": 30, "mae": 70.5, "rmse": 105.5}
RECORD: dict[str, Any] = {
    **{"dataset": "sha", "split": "test", "images": 182, "mode": "whole image", "trained_on": "ShanghaiTech part A"},
    **{"network": "VGG16", "parameters": 16_543_210, "epochs": 40, "crop_size": 224, "crops": 12_000},
    **{"hardware": "one GPU", "minutes": 7.5, "seeds": [1], "commit": "abc1234", "command": "python train.py"},
    **{"section": ANCHOR, "expected": None, "in_readme": True, "results": [LAST]},
}
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project of two pages and one record, whose tables are written."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / SCRIPT, tmp_path / SCRIPT)
    for name, text in PAGES.items():
        (tmp_path / name).write_text(text)
    write_record(tmp_path)
    return tmp_path


@pytest.fixture
def tables(script: Run, project: Path) -> Run:
    """Run the script of ``project``."""
    return lambda *arguments: script(str(project / SCRIPT), *arguments)


def write_record(project: Path, name: str = "vgg16", **changes: Any) -> None:
    (project / "results").mkdir(exist_ok=True)
    content = {key: value for key, value in {**RECORD, **changes}.items() if value != "leave out"}
    (project / "results" / f"{name}.json").write_text(json.dumps(content))


def test_the_tables_are_those_of_the_records(script: Run) -> None:
    assert script(SCRIPT, "--check") == (0, "", "")


def test_tables_are_written_between_their_marks(tables: Run, project: Path) -> None:
    status, _, err = tables("--check")
    assert status == 1
    assert err.splitlines() == [
        f"{name}: its table of results is out of date; run python scripts/results_table.py" for name in PAGES
    ]
    assert [(project / name).read_text() for name in PAGES] == list(PAGES.values())
    assert tables() == (0, "", "")
    assert tables("--check") == (0, "", "")
    readme = (project / "README.md").read_text().splitlines()
    assert (readme[:3], readme[-3:]) == (
        ["# Project", "", "<!-- results: begin -->"],
        ["<!-- results: end -->", "", "The end"],
    )
    assert readme[6] == (
        "| ShanghaiTech part A, 182 test images | VGG16, 16.54 M parameters | ShanghaiTech part A; 40 epochs, "
        f"12,000 crops of 224 px | - | - | 61.0 / 99.5 | [section](EXPERIMENTS.md#{ANCHOR}) |"
    )
    assert (project / "EXPERIMENTS.md").read_text().splitlines()[6] == (
        "| ShanghaiTech part A, 182 test images | VGG16 | 16.54 M | ShanghaiTech part A | 40 epochs, 12,000 crops of "
        f"224 px; 7.5 minutes, one GPU | - | - | 61.0 / 99.5 | 1 | abc1234 | [section](#{ANCHOR}) |"
    )


def test_each_selection_has_its_column(tables: Run, project: Path) -> None:
    """What is not recorded is named; records that README.md does not show are in the other table, best first."""
    several = {**LAST, "epoch": None, "mae": 64.2, "mae_std": 1.5, "rmse": 101.0, "rmse_std": 3.0}
    on_test = {**several, "selected_on": "test", "selection_datasets": ["sha"], "selection_images": 182}
    unknown = {"parameters": None, "crops": None, "hardware": None, "minutes": None, "commit": None, "in_readme": False}
    paper = {"mae": 60.0, "rmse": 98.0, "source": "the paper", "same_recipe": True}
    held_out = {**on_test, "selected_on": "holdout", "selection_images": 30}
    write_record(project, "b", **unknown, seeds=[1, 2], expected=paper, results=[on_test, held_out])
    assert tables() == (0, "", "")
    assert (project / "README.md").read_text().count("64.2") == 0
    first, second = (project / "EXPERIMENTS.md").read_text().splitlines()[6:8]
    assert "61.0" in first
    assert second == (
        "| ShanghaiTech part A, 182 test images | VGG16 (paper: 60.0 / 98.0) | not recorded | ShanghaiTech part A | "
        "40 epochs, crops of 224 px | 64.2 +- 1.5 / 101.0 +- 3.0 | 64.2 +- 1.5 / 101.0 +- 3.0 (30 held-out training "
        f"images) | - | 1, 2 | not recorded | [section](#{ANCHOR}) |"
    )


ERRORS = {key: LAST[key] for key in ("mae", "rmse")}


def says(what: str) -> str:
    return f"EXPERIMENTS.md#{ANCHOR} does not say of {what}"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"results": [{**LAST, "mae": 60.9}]}, f"no line of EXPERIMENTS.md#{ANCHOR} has 60.9 / 99.5"),
        # Each is in the section, but not together.
        ({"results": [{**LAST, "rmse": 101.0}]}, f"no line of EXPERIMENTS.md#{ANCHOR} has 61.0 / 101.0"),
        # A part of another number, and a number of another section.
        ({"results": [{**LAST, "mae": 1.0}]}, f"no line of EXPERIMENTS.md#{ANCHOR} has 1.0 / 99.5"),
        ({"results": [{**LAST, "mae": 75.0, "rmse": 88.0}]}, f"no line of EXPERIMENTS.md#{ANCHOR} has 75.0 / 88.0"),
        # Both are on one line, but are not MAE and RMSE.
        ({"results": [{**LAST, "rmse": 103.0}]}, f"no line of EXPERIMENTS.md#{ANCHOR} has 61.0 / 103.0"),
        # The selection, its images, the epoch or the length is of another line.
        ({"results": [{**BEST, **ERRORS}]}, says("61.0 / 99.5: selected on test, 182 images, epoch 35")),
        ({"results": [{**HELD, **ERRORS}]}, says("61.0 / 99.5: selected on holdout, 30 images, epoch 30")),
        ({"results": [{**LAST, "mae": 60.5, "rmse": 98.5}]}, says("60.5 / 98.5: selected on nothing, epoch 40")),
        ({"results": [{**BEST, "epoch": 30}]}, says("60.5 / 98.5: selected on test, 182 images, epoch 30")),
        ({"results": [{**HELD, "selection_images": 40}]}, says("70.5 / 105.5: selected on holdout, 40 images")),
        ({"results": [{**BEST, "epoch": 35}], "epochs": 41}, says("60.5 / 98.5: selected on test, 182 images")),
        ({"crops": 11_840}, f"11,840 crops are not in EXPERIMENTS.md#{ANCHOR}"),
        ({"minutes": 5}, f"5 minutes are not in EXPERIMENTS.md#{ANCHOR}"),
        ({"commit": "abc1234, def5678"}, f"commit def5678 is not in EXPERIMENTS.md#{ANCHOR}"),
        ({"commit": "def5678"}, f"commit def5678 is not in EXPERIMENTS.md#{ANCHOR}"),
        ({"section": "2026-01-02-gone"}, "EXPERIMENTS.md has no section #2026-01-02-gone"),
    ],
)
def test_a_record_that_its_section_contradicts(
    tables: Run, project: Path, changes: dict[str, Any], message: str
) -> None:
    assert tables()[0] == 0
    write_record(project, **changes)
    status, _, err = tables("--check")
    assert status == 1
    assert f"results/vgg16.json: {message}" in err


def test_a_selection_that_its_section_states(tables: Run, project: Path) -> None:
    """Of a commit, the first digits are enough."""
    write_record(project, results=[LAST, BEST, HELD], commit="abc1234567890+changes")
    assert tables() == (0, "", "")


def test_a_selection_of_other_images_with_the_same_name_of_split(tables: Run, project: Path) -> None:
    other = {**BEST, "selection_datasets": ["shb"], "selection_images": 316}
    both = {**HELD, "selection_datasets": ["sha", "shb"]}
    write_record(project, results=[other, both])
    assert tables() == (0, "", "")
    row = (project / "EXPERIMENTS.md").read_text().splitlines()[6]
    assert "| - | 60.5 / 98.5 (316 test images of ShanghaiTech part B); 70.5 / 105.5 (30 held-out" in row
    write_record(project, split="holdout", images=20, results=[both])
    assert tables() == (0, "", "")
    row = (project / "EXPERIMENTS.md").read_text().splitlines()[6]
    assert "| 70.5 / 105.5 (among 30 held-out training images) | - | - |" in row


@pytest.mark.parametrize("file", sorted((ROOT / "results").glob("*.json")), ids=lambda file: file.stem)
def test_no_fact_of_our_records_can_be_changed(file: Path) -> None:
    """Each of these changes of one of our records is found."""
    script = runpy.run_path(str(ROOT / SCRIPT))
    page = (ROOT / "EXPERIMENTS.md").read_text()
    record = script["read_record"](file)
    assert script["disagreements"]("", record, page) == []
    changed = [
        changed_copy(record, key, value)
        for key, value in (
            ("crops", None if record.crops is None else 12_000),
            ("minutes", None if record.minutes is None else record.minutes + 0.5),
            ("epochs", record.epochs + 1),
            ("commit", "abcdef0"),
        )
        if value is not None
    ]
    for k, one in enumerate(record.results):
        others = [other for other in record.results if (other.mae, other.rmse) != (one.mae, one.rmse)]
        for other in others:
            changed.append(copy.deepcopy(record))
            changed[-1].results[k].mae, changed[-1].results[k].rmse = other.mae, other.rmse
        if one.mae_std is None:
            changed.append(copy.deepcopy(record))
            changed[-1].results[k].mae = one.mae - 0.1
        if one.epoch is not None:
            changed.append(copy.deepcopy(record))
            changed[-1].results[k].epoch -= 1
    for one in changed:
        try:
            script["check_record"](file, one)
        except ConfigError:
            continue
        assert script["disagreements"]("", one, page), one


def changed_copy(record: Any, key: str, value: Any) -> Any:
    changed = copy.deepcopy(record)
    setattr(changed, key, value)
    return changed


def test_a_number_changed_in_a_table_is_out_of_date(tables: Run, project: Path) -> None:
    tables()
    readme = project / "README.md"
    readme.write_text(readme.read_text().replace("61.0", "60.0"))
    status, _, err = tables("--check")
    assert (status, err) == (1, "README.md: its table of results is out of date; run python scripts/results_table.py\n")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"best": 3}, "Key 'best' not in 'Record'"),
        ({"results": [{**LAST, "nae": 3}]}, "Key 'nae' not in 'Errors'"),
        ({"commit": "leave out"}, "commit"),
        ({"images": "many"}, "Value 'many' of type 'str' could not be converted to Integer"),
        ({"mode": "${oc.env:HOME}"}, "${ would refer to another value"),
        ({"dataset": "shc"}, "dataset shc, split test: not known; datasets are sha, shb"),
        ({"split": "train"}, "dataset sha, split train: not known"),
        ({"seeds": []}, "results and seeds must not be empty"),
        ({"results": []}, "results and seeds must not be empty"),
        ({"results": [{**LAST, "selected_on": "luck"}]}, "selected_on luck is none of test, val, holdout, nothing"),
        ({"results": [{**LAST, "mae_std": 1.5}]}, "must be null for one seed, and numbers for several"),
        ({"seeds": [1, 2]}, "must be null for one seed, and numbers for several"),
        ({"results": [{**LAST, "mae": 99.5, "rmse": 61.0}]}, "99.5 / 61.0: the RMSE cannot be below the MAE"),
        ({"results": [{**LAST, "epoch": 35}]}, "epoch 35: selected on nothing is only the last epoch, 40"),
        ({"results": [{**LAST, "epoch": None}]}, "epoch None: selected on nothing is only the last epoch, 40"),
        ({"results": [{**BEST, "epoch": 41}]}, "epoch 41: must be one of the 40, and null for several seeds"),
        ({"results": [{**BEST, "selection_datasets": []}]}, "selection_datasets and selection_images must be empty"),
        ({"results": [{**LAST, "selection_images": 30}]}, "selection_datasets and selection_images must be empty"),
        ({"results": [{**BEST, "selection_images": 30}]}, "selection_images is 30, but these images are 182"),
        ({"commit": ""}, "commit '': must be at least 7 hexadecimal digits, or null"),
        ({"commit": "abc"}, "commit 'abc': must be at least 7 hexadecimal digits, or null"),
    ],
)
def test_a_record_that_cannot_be_read(tables: Run, project: Path, changes: dict[str, Any], message: str) -> None:
    write_record(project, **changes)
    for arguments in ((), ("--check",)):
        status, _, err = tables(*arguments)
        assert status == 2
        assert "results/vgg16.json: " in err
        assert message in err
    assert (project / "README.md").read_text() == PAGES["README.md"]


def test_files_that_are_no_records_or_have_no_marks(tables: Run, project: Path) -> None:
    (project / "README.md").write_text("# Project\n")
    status, _, err = tables()
    assert status == 2
    assert "README.md: must have one block between <!-- results: begin --> and <!-- results: end -->" in err
    for content in ("{", "[]", "3"):
        (project / "results" / "broken.json").write_text(content)
        status, _, err = tables("--check")
        assert status == 2
        assert "results/broken.json: " in err


# ------------------------------------------------------------------------------------- a run's record

VAL = {**LAST, "selected_on": "val", "selection_datasets": ["synthetic"]}
NAMED = ("--name", "mine", "--network", "tiny", "--section", ANCHOR)


@pytest.fixture
def run(project: Path) -> Path:
    """A finished run with evaluations of its best and of its last checkpoint."""
    settings = ["epochs=2", "eval_every_epochs=1", "optim.ema_decay=null"]
    config: TrainConfig = to_config(compose(settings, config_name="train"))
    folder = write_run(project / "run" / "seed3", config, [9.0, 8.0], seed=3)
    images = {"train": 180, "selection": 24, "digest": "0"}
    made = {"command": "a/train.py epochs=2", "seconds": 90.0, "device": "a processor", "precision": "bf16"}
    (folder / "run.json").write_text(json.dumps({**made, "images": images}))
    for name, epoch, mae in (("best_mae", 1, 5.274), ("last", 2, 5.31)):
        facts = {"dataset": "synthetic", "split": "test", "images": 48, "mode": "whole image", "epoch": epoch}
        facts |= {"trained_on": "synthetic", "seed": 3, "commit": "abc1234", "selected_on": "val"}
        facts |= {"checkpoint": str(folder / f"{name}.pt"), "mae": mae, "rmse": 7.86, "settings": {}}
        (folder / "eval" / name).mkdir(parents=True)
        (folder / "eval" / name / "metrics.json").write_text(json.dumps(facts))
    return folder


def test_a_record_of_a_run(tables: Run, project: Path, run: Path) -> None:
    status, out, err = tables("--add", str(run / "eval" / "best_mae"), str(run / "eval" / "last"), *NAMED)
    assert (status, err) == (0, "")
    assert "results/mine.json: fill in what is null, describe the run in EXPERIMENTS.md" in out
    assert json.loads((project / "results" / "mine.json").read_text()) == {
        **{"dataset": "synthetic", "split": "test", "images": 48, "mode": "whole image", "network": "tiny"},
        **{"trained_on": "crowds drawn by code (180 images)", "parameters": None, "epochs": 2, "crop_size": 224},
        # 180 images are 22 steps of 8.
        **{"crops": 352, "hardware": "a processor, bf16", "minutes": 1.5, "seeds": [3], "commit": "abc1234"},
        **{"command": "python train.py epochs=2", "section": ANCHOR, "expected": None, "in_readme": False},
        "results": [
            {**VAL, "selection_images": 24, "epoch": 1, "mae": 5.3, "rmse": 7.9},
            {**LAST, "epoch": 2, "mae": 5.3, "rmse": 7.9},
        ],
    }
    said = (
        "5.3 / 7.9: epoch 1, selected on 24 validation images, and the last epoch of 2 epochs; 352 crops, 1.5 minutes"
    )
    page = project / "EXPERIMENTS.md"
    page.write_text(page.read_text().replace("Commit abc1234.", f"Commit abc1234.\n{said}\n"))
    assert tables() == (0, "", "")
    assert "| 5.3 / 7.9 (24 validation images) | 5.3 / 7.9 | 3 | abc1234 |" in page.read_text()
    status, _, err = tables("--add", str(run / "eval" / "last"), *NAMED)
    assert (status, "mine.json: exists; choose another --name, or delete it" in err) == (2, True)


def test_evaluations_that_give_no_record(tables: Run, run: Path, tmp_path: Path) -> None:
    last = run / "eval" / "last"
    status, _, err = tables("--add", str(last), "--name", "mine")
    assert (status, "--add needs --name, --network and --section" in err) == (2, True)
    for arguments in (NAMED, NAMED[:2], ("--check", *NAMED[4:])):
        status, _, err = tables(*arguments)
        assert (status, "--name, --network and --section are those of a new record: they need --add" in err) == (
            2,
            True,
        )
    status, _, err = tables("--check", "--add", str(last), *NAMED)
    assert (status, "--add and --check: choose one" in err) == (2, True)
    status, _, err = tables("--add", str(last), "--name", "../mine", *NAMED[2:])
    assert (status, "--name ../mine: must consist of letters, digits and underscores" in err) == (2, True)
    status, _, err = tables("--add", str(run), *NAMED)
    assert (status, "holds no run: there is no config.yaml" in err) == (2, True)
    status, _, err = tables("--add", str(last), str(run / "eval"), *NAMED)
    assert (status, f"{run / 'eval' / 'metrics.json'}: is not a file that eval.py wrote" in err) == (2, True)
    facts = json.loads((last / "metrics.json").read_text())
    other = run / "eval" / "other"
    other.mkdir()
    for change, message in (
        ({"checkpoint": "epoch_0001.pt"}, "is about epoch_0001.pt; a record is of best_mae.pt, which a split selected"),
        ({"epoch": 1}, "is about epoch 1, not the last, 2; evaluate it again"),
        ({"settings": {"eval.tta": "flip"}}, "was made with {'eval.tta': 'flip'}; a record is of whole splits"),
        ({"images": 20}, "is not an evaluation of the same run and images"),
        ({"seed": 4}, "is not an evaluation of the same run and images"),
    ):
        (other / "metrics.json").write_text(json.dumps({**facts, **change}))
        status, _, err = tables("--add", str(last), str(other), *NAMED)
        assert (status, message in err) == (2, True), err
    elsewhere = tmp_path / "elsewhere" / "eval" / "last"
    shutil.copytree(last, elsewhere)
    status, _, err = tables("--add", str(last), str(elsewhere), *NAMED)
    assert (status, "is not an evaluation of the same run" in err) == (2, True)
    assert not (tmp_path / "results" / "mine.json").exists()


def rewrite(run: Path, change: Callable[[dict[str, Any]], Any], name: str = "config.yaml") -> None:
    """Change a file of a run."""
    file = run / name
    content = yaml.safe_load(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def test_the_last_epoch_of_averaged_weights(tables: Run, project: Path, run: Path) -> None:
    """last.pt stores the weights in training, not the average that is evaluated."""
    rewrite(run, lambda config: config["optim"].update(ema_decay=0.99))
    last = run / "eval" / "last"
    status, _, err = tables("--add", str(last), *NAMED)
    assert status == 2
    assert "last.pt stores the weights in training; errors are those of their average (optim.ema_decay=0.99)" in err
    assert "evaluate epoch_0002.pt, which train.py writes with keep=1 or more" in err
    for k, name in enumerate(("epoch_0002.pt", "epoch_0002_calibrated.pt")):
        rewrite(last, lambda facts, name=name: facts.update(checkpoint=str(run / name)), "metrics.json")  # type: ignore[misc]
        assert tables("--add", str(last), "--name", f"mine{k}", *NAMED[2:])[0] == 0
        (errors,) = json.loads((project / "results" / f"mine{k}.json").read_text())["results"]
        assert (errors["selected_on"], errors["epoch"]) == ("nothing", 2)


def test_a_run_that_ended_early_has_no_last_epoch(tables: Run, run: Path) -> None:
    rewrite(run, lambda made: made.update(stopped_early={"epoch": 2}), "run.json")
    status, _, err = tables("--add", str(run / "eval" / "last"), *NAMED)
    assert (status, "the run ended after epoch 2 of 2, so that its last epoch was not fixed" in err) == (2, True)
    assert tables("--add", str(run / "eval" / "best_mae"), *NAMED)[0] == 0
    rewrite(run, lambda made: made.pop("stopped_early"), "run.json")
    rewrite(run, lambda config: config.update(epochs=3))
    status, _, err = tables("--add", str(run / "eval" / "last"), "--name", "other", *NAMED[2:])
    assert (status, "the run ended after epoch 2 of 3" in err) == (2, True)


def test_a_run_on_several_datasets(tables: Run, project: Path) -> None:
    """All of them are named, whichever was evaluated; their mixture cannot be."""
    settings = ["dataset=mixed", "dataset.parts=[sha,shb]", "dataset.holdout=0.1", "epochs=2", "eval_every_epochs=1"]
    config: TrainConfig = to_config(compose(settings, config_name="train"))
    folder = write_run(project / "run" / "seed1", config, [9.0, 8.0], seed=1)
    made = {"images": {"train": 630, "selection": 70}, "commits": ["abc1234", "def5678+changes"]}
    (folder / "run.json").write_text(json.dumps(made))
    evaluation = folder / "eval" / "sha"
    evaluation.mkdir(parents=True)
    facts = {"dataset": "sha", "split": "test", "images": 182, "mode": "whole image", "epoch": 1, "seed": 1}
    facts |= {"trained_on": "sha", "commit": "abc1234", "selected_on": "holdout", "checkpoint": "best_mae.pt"}
    facts |= {"mae": 70.5, "rmse": 105.5, "settings": {}}
    (evaluation / "metrics.json").write_text(json.dumps(facts))
    assert tables("--add", str(evaluation), *NAMED)[0] == 0
    record = json.loads((project / "results" / "mine.json").read_text())
    assert record["trained_on"] == "ShanghaiTech part A and ShanghaiTech part B (630 images)"
    assert record["results"][0]["selection_datasets"] == ["sha", "shb"]
    assert record["commit"] == "abc1234, def5678+changes"
    (evaluation / "metrics.json").write_text(json.dumps({**facts, "dataset": "mixed", "split": "holdout"}))
    status, _, err = tables("--add", str(evaluation), "--name", "other", *NAMED[2:])
    assert (status, "dataset mixed, split holdout: not known; datasets are sha" in err) == (2, True)
    assert not (project / "results" / "other.json").exists()
