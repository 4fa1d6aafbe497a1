"""Counters that come with headcount: found by name, listed with their errors, and used if none is named."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import headcount
from engine.test_stored import stored_pair
from headcount import published
from headcount.config import EvalCommandConfig, RuntimeConfig, SyntheticConfig, WholeImageConfig, checkpoint_error
from headcount.engine.card import model_card
from headcount.engine.evaluate import evaluate_checkpoint
from headcount.errors import CheckpointError
from headcount.published import DEFAULT, Figure
from headcount.runs import find_runs

ROOT = Path(__file__).resolve().parent.parent
FIGURES = [
    {
        **{"dataset": "sha", "split": "test", "images": 182, "selected_on": selected, "own": own},
        **{"mae": mae, "rmse": 110.25, "mae_interval": [mae - 5, mae + 5], "rmse_interval": None},
    }
    for selected, own, mae in (("test", False, 60.5), ("holdout", True, 64.25))
]
LICENSE = "research use only, as the terms of ShanghaiTech"


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two published counters: the default one and another."""
    folder = tmp_path_factory.mktemp("published")
    stored_pair(folder, "model.width=8", name=DEFAULT, figures=FIGURES, license=LICENSE)
    stored_pair(folder, "model.width=8", name="another")
    (folder / "best_mae.pt").unlink()
    return folder


@pytest.fixture
def box(tmp_path: Path, stored: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder, where headcount looks for published counters."""
    folder = Path(shutil.copytree(stored, tmp_path / "box"))
    monkeypatch.setattr(published, "published_folder", lambda: folder)
    monkeypatch.chdir(tmp_path)
    return folder


def test_the_default_counter_a_named_one_and_a_file(box: Path) -> None:
    black = np.zeros((40, 56, 3), dtype=np.uint8)
    counts = [headcount.load(*named).count(black) for named in ((), (DEFAULT,), (box / f"{DEFAULT}.json",))]
    assert counts[0] == counts[1] == counts[2]
    assert headcount.load("another").record["selection"]["split"] == "val"
    assert headcount.load().record["license"] == LICENSE


def test_they_are_listed_with_their_figures(box: Path) -> None:
    first, second = headcount.available()
    assert (first.name, first.license, second.name, second.figures) == (DEFAULT, LICENSE, "another", ())
    assert [figure.mae for figure in first.figures] == [64.25, 60.5]  # those of exactly this counter first
    assert str(first) == f"{DEFAULT}: MAE 64.2, RMSE 110.2 on sha test (182 images); license: {LICENSE}"
    assert str(second) == "another: no errors were measured; license: not stated"


def test_a_file_comes_before_a_name(box: Path) -> None:
    Path("another").write_bytes(b"my own file")
    with pytest.raises(CheckpointError, match="ckpt=another: not a checkpoint of headcount"):
        headcount.load("another")


def test_an_unknown_name_lists_those_that_exist(box: Path) -> None:
    with pytest.raises(CheckpointError, match=f"ckpt=shb_lite: no such file.*: {DEFAULT}, another$"):
        headcount.load("shb_lite")
    assert checkpoint_error("hf-hub:owner/name") is None
    assert checkpoint_error("another") is None
    assert "come" not in str(checkpoint_error("folder/shb_lite.pt"))


def test_without_a_default_counter_the_error_says_what_to_do(box: Path) -> None:
    (box / f"{DEFAULT}.safetensors").unlink()
    with pytest.raises(
        CheckpointError, match=rf"{DEFAULT}, does not come .*, which has another: name one .* train\.py"
    ):
        headcount.load()
    (box / "another.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"which has none: name a file with ckpt=best_mae\.pt, or train"):
        headcount.load()
    assert headcount.available() == []


def test_a_damaged_description_is_named(box: Path) -> None:
    (box / "another.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"another\.json: it is truncated or not JSON.*install headcount again"):
        headcount.available()


@pytest.mark.parametrize(
    "change",
    [
        {"mae": -1},
        {"mae": float("nan")},
        {"mae": True},
        {"images": 1.5},
        {"own": 1},
        {"dataset": None},
        {"mae_interval": [1]},
        {"rmse_interval": "wide"},
    ],
)
def test_a_damaged_figure_is_refused(change: dict[str, Any]) -> None:
    assert Figure.from_plain(FIGURES[0]).mae_interval == (55.5, 65.5)
    with pytest.raises(ValueError, match="a figure is"):
        Figure.from_plain(FIGURES[0] | change)


def test_it_is_listed_without_torch() -> None:
    code = "import sys, headcount; headcount.available(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_evaluation_of_it_is_not_written_beside_it(box: Path) -> None:
    small = SyntheticConfig(name="synthetic", test_images=1, width=64, height=64)
    for ckpt in (DEFAULT, str(box / f"{DEFAULT}.safetensors")):
        runtime = RuntimeConfig(workers=0)
        config = EvalCommandConfig(ckpt=ckpt, dataset=small, eval=WholeImageConfig(pictures=0), runtime=runtime)
        result = evaluate_checkpoint(config)
        assert result is not None
        assert result.folder.parts[:4] == ("checkpoints", "published", DEFAULT, "eval")
    assert not [path for path in box.iterdir() if path.is_dir()]


def test_it_is_not_a_run(box: Path) -> None:
    assert list(find_runs(box.parent)) == []


def test_git_keeps_published_counters_and_no_runs() -> None:
    def ignored(path: str) -> bool:
        return subprocess.run(["git", "check-ignore", "-q", path], cwd=ROOT).returncode == 0

    for ending in ("safetensors", "json", "md"):
        assert not ignored(f"checkpoints/published/any.{ending}")
    for path in ("published/any.pt", "published/any/eval/counts.json", "sha/r/seed1/metrics.json", "sha/a.safetensors"):
        assert ignored(f"checkpoints/{path}")


def test_the_cards_of_published_counters_hold_the_figures_of_their_descriptions() -> None:
    for counter in published.available():
        plain = published.read_description(counter.file.with_suffix(".json"))
        assert counter.figures, counter.name
        assert counter.license, counter.name
        assert counter.file.with_suffix(".md").read_text() == model_card(plain, counter.name)
        assert counter.file.stat().st_size < 7_000_000


def test_a_card_has_every_section_and_figure(box: Path) -> None:
    plain = published.read_description(box / f"{DEFAULT}.json") | {"limits": ["fewer than 20 people | or none"]}
    card = model_card(plain, DEFAULT)
    front = card.split("---")[1]
    assert "\nlicense: other\nlicense_name: research-use-only\n" in front
    assert card.split("---")[2].strip().startswith(f"# {DEFAULT}\n")
    headings = ["Training data and its terms", "Recipe", "Errors", "What it is bad at", "Privacy and bias"]
    assert [line[3:] for line in card.splitlines() if line.startswith("## ")] == headings
    rows = [line for line in card.splitlines() if "182 images" in line]
    assert [cell.strip() for cell in rows[0].strip("|").split("|")] == [
        *("sha test, 182 images", "these weights", "holdout", "64.25 (59.25 to 69.25)", "110.25")
    ]
    assert "another checkpoint of the recipe" in rows[1]
    assert "60.50 (55.50 to 65.50)" in rows[1]
    assert "`abc`" in card  # the commit
    assert r"* fewer than 20 people \| or none" in card
    other = plain | {"config": {**plain["config"], "dataset": {**plain["config"]["dataset"], "name": "sha"}}}
    other["config"]["model"] = {**other["config"]["model"], "weights": "/home/me/tiny.pth"}
    assert "/home" not in model_card(other, DEFAULT)
    assert "`tiny.pth`" in model_card(other, DEFAULT)
    assert "ShanghaiTech part A" in model_card(other, DEFAULT)
    assert "Terms of the dataset: research use" in model_card(other, DEFAULT)
