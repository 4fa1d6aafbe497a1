"""Counting, checking and scoring for NWPU-Crowd as typed, on a small folder in its layout."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from data.folders import Heads, make_nwpu, write_image
from engine.test_checkpoint import write_checkpoint
from headcount.cli.compose import compose, to_config
from headcount.engine.evaluate import evaluate_checkpoint

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["model.width=8", "dataset.min_side=64"]
VAL: dict[str, Heads] = {"0004": [(5.0, 6.0)] * 3, "0005": [], "0006": [(1.0, 1.0)] * 120}
Script = Callable[..., tuple[int, str, str]]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A dataset whose test list is not in ascending order, and an image that evaluation shrinks."""
    root = tmp_path / "data" / "NWPU-Crowd"
    make_nwpu(root, {"train": {"0001": [(1.0, 1.0)]}, "val": VAL, "test": {"0012": [], "0007": [], "0010": []}})
    write_image(root / "images" / "0010.jpg", width=96, height=41, seed=7)
    (root / "test.txt").write_text("0012\n0007\n0010\n")
    (root / "val.txt").write_text("0004 1 1\n0005 1 0\n0006 2 2\n")
    return tmp_path / "data"


def read(file: Path) -> list[tuple[str, float]]:
    return [(line.split()[0], float(line.split()[1])) for line in file.read_text().splitlines()]


@pytest.mark.slow
def test_submission_is_counted_checked_and_not_overwritten_by_a_failure(
    script: Script, data: Path, tmp_path: Path
) -> None:
    ckpt = write_checkpoint(tmp_path, "dataset=nwpu", *SMALL)
    typed = (f"ckpt={ckpt}", f"data_root={data}", "--output", "out/sub.txt")
    status, out, err = script("scripts/nwpu_submit.py", *typed, "runtime=cpu", "dataset.cache_dir=cache")
    assert status == 0, err
    assert "3 test images" in out
    counts = read(tmp_path / "out" / "sub.txt")
    assert [name for name, _ in counts] == ["12", "7", "10"]  # the order of the list
    assert all(count > 0 for _, count in counts)
    # As prepared for the checkpoint, short sides of 64 px: 41 x 96 became 64 x 160, not 448 as by dataset=nwpu.
    assert [p.name for p in (tmp_path / "cache").rglob("*.jpg")] == ["0010.jpg"]

    assert script("scripts/nwpu_submit.py", "--validate", "out/sub.txt", f"data_root={data}")[0] == 0
    status, out, _ = script("scripts/nwpu_submit.py", "--validate", "out/sub.txt")
    assert status == 1
    assert "line 1: id 12 is not one of the 1500 images" in out
    assert "1500 of 1500 images are missing: 3610 to 5109" in out

    (data / "NWPU-Crowd" / "images" / "0007.jpg").unlink()
    status, _, err = script("scripts/nwpu_submit.py", *typed, "runtime=cpu", "dataset.cache_dir=cache")
    assert status == 2
    assert "1 of 3 test images cannot be read" in err
    assert "0007.jpg" in err
    assert read(tmp_path / "out" / "sub.txt") == counts


@pytest.mark.slow
def test_images_that_moved_are_found_by_their_folder_alone(script: Script, data: Path, tmp_path: Path) -> None:
    """The rule stays that of the checkpoint, 64 px: one image is resized, not all to 448 px."""
    ckpt = write_checkpoint(tmp_path, "dataset=nwpu", *SMALL, "dataset.root=/gone", "dataset.cache_dir=/gone/cache")
    where = ("dataset.root=data/NWPU-Crowd", "dataset.cache_dir=cache", "runtime=cpu", "runtime.workers=0")
    status, _, err = script("scripts/nwpu_submit.py", f"ckpt={ckpt}", "--output", "sub.txt", *where)
    assert status == 0, err
    assert [p.name for p in (tmp_path / "cache").rglob("*.jpg")] == ["0010.jpg"]
    cross = ("scripts/cross_evaluate.py", str(ckpt), "--datasets", "nwpu:val", "--output", "out")
    status, _, err = script(*cross, *where)
    assert status == 0, err
    assert json.loads((tmp_path / "out" / "cross.json").read_text())["rows"][0]["cells"][0]["own"]


def test_published_ids_are_valid(script: Script, tmp_path: Path) -> None:
    (tmp_path / "s.txt").write_text("".join(f"{k} {k / 7:.4f}\n" for k in range(3610, 5110)))
    status, out, _ = script("scripts/nwpu_submit.py", "--validate", "s.txt")
    assert status == 0
    assert "valid, 1500 images, checked against the published ids 3610 to 5109" in out


def test_counts_of_val_are_those_of_an_evaluation_and_are_scored(script: Script, data: Path, tmp_path: Path) -> None:
    """By the rule of dataset=nwpu, for a counter trained on other data."""
    ckpt = write_checkpoint(tmp_path, "dataset=sha", *SMALL)
    where = (f"data_root={data}",)
    status, _, err = script(
        *("scripts/nwpu_submit.py", f"ckpt={ckpt}", *where, "split=val", "--output", "val.txt"),
        *("runtime=cpu", "dataset.cache_dir=cache"),
    )
    assert status == 0, err
    counts = {int(name): count for name, count in read(tmp_path / "val.txt")}
    typed = ["ckpt=unused", "dataset=nwpu", "split=val", f"data_root={data}", "runtime=cpu", "dataset.cache_dir=cache"]
    config = to_config(compose(typed, config_name="eval"))
    config.ckpt = str(ckpt)
    result = evaluate_checkpoint(config)
    assert result is not None
    assert counts == {int(i.name): pytest.approx(i.predicted, abs=1e-4) for i in result.evaluation.images}

    status, out, err = script("scripts/nwpu_score.py", "val.txt", *where)
    assert status == 0, err
    scores = json.loads((tmp_path / "val_scores.json").read_text())
    errors = {int(name): counts[int(name)] - len(heads) for name, heads in VAL.items()}
    assert scores["overall"]["mae"] == pytest.approx(sum(map(abs, errors.values())) / 3)
    assert {k: v and v["mae"] for k, v in scores["levels"].items()} == {
        "S0": pytest.approx(abs(errors[5])),
        "S1": pytest.approx(abs(errors[4])),
        "S2": pytest.approx(abs(errors[6])),
        "S3": None,
        "S4": None,
    }
    assert scores["luminance"]["L1"]["images"] == 2
    assert scores["luminance"]["L2"]["mae"] == pytest.approx(abs(errors[6]))
    assert f"{scores['overall']['mae']:.2f}" in out


def test_a_file_with_wrong_ids_is_not_scored(script: Script, data: Path, tmp_path: Path) -> None:
    (tmp_path / "val.txt").write_text("4 3\n5 0\n9 1\n")
    status, out, _ = script("scripts/nwpu_score.py", "val.txt", f"data_root={data}")
    assert status == 1
    assert "line 3: id 9 is not one of the 3 images" in out
    assert "1 of 3 images are missing: 6" in out
    assert not (tmp_path / "val_scores.json").exists()


def test_lost_annotations_are_named(script: Script, data: Path, tmp_path: Path) -> None:
    (tmp_path / "val.txt").write_text("4 3\n5 0\n6 1\n")
    (data / "NWPU-Crowd" / "mats" / "0005.mat").unlink()
    status, _, err = script("scripts/nwpu_score.py", "val.txt", f"data_root={data}")
    assert status == 2
    assert "1 of 3 images of val have no annotation" in err
    assert "0005.mat" in err


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["ckpt=gone.pt", "--output", "o.txt"], "ckpt=gone.pt: no such file"),
        (["ckpt=gone.pt"], "--output is not set"),
        (["ckpt=x.pt", "--output", "o", "max_images=3"], "max_images=3: cannot be set here; a submission holds"),
        (["ckpt=x.pt", "--output", "o", "dataset=sha"], "dataset=sha: cannot be set here"),
        (["ckpt=x.pt", "--output", "o", "eval=sliding"], "eval=sliding: no such choice; allowed are auto"),
        (["--validate", "gone.txt"], "--validate gone.txt: no such file"),
        (["--validate", "gone.txt", "--output", "o"], "takes no --output"),
    ],
)
def test_what_cannot_be_is_refused(typed: list[str], said: str, script: Script) -> None:
    status, _, err = script("scripts/nwpu_submit.py", *typed)
    assert status == 2
    assert said in err
    assert "Traceback" not in err


def test_earlier_spellings_still_work(script: Script, data: Path, tmp_path: Path) -> None:
    (tmp_path / "val.txt").write_text("4 3\n5 0\n6 1\n")
    old = ("--data-root", str(data), "--split", "val")
    status, _, err = script("scripts/nwpu_score.py", "val.txt", *old)
    assert (status, err) == (0, f"nwpu_score.py: --data-root, --split are now typed data_root={data} split=val\n")
    status, out, err = script("scripts/nwpu_submit.py", "--validate", "val.txt", *old)
    assert status == 0
    assert "valid, 3 images" in out
    assert "are now typed split=val" in err


def test_a_split_without_annotations_is_refused(script: Script, data: Path, tmp_path: Path) -> None:
    (tmp_path / "val.txt").write_text("4 3\n")
    status, _, err = script("scripts/nwpu_score.py", "val.txt", "split=test")
    assert status == 2
    assert "split=test: must be val or train" in err
    status, _, err = script("scripts/nwpu_score.py", "val.txt", "dataset=sha")
    assert status == 2
    assert "there is no setting dataset; allowed are data_root, split" in err


def test_without_a_folder_only_what_can_be_typed_is_suggested(script: Script, tmp_path: Path) -> None:
    (tmp_path / "val.txt").write_text("4 3\n")
    status, _, err = script("scripts/nwpu_score.py", "val.txt")
    assert status == 2
    assert "no folder given; type data_root=FOLDER, or set the environment variable HEADCOUNT_DATA" in err
    assert "dataset.root" not in err
