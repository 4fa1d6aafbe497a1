"""A counter stored for other people from the command line: the pair, the model card, the upload."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

import headcount
from engine.test_checkpoint import write_checkpoint
from headcount.cli import publish_counter
from headcount.engine import checkpoint
from headcount.engine.card import model_card
from headcount.engine.checkpoint import weights_digest
from headcount.published import read_description

MEASURED: dict[str, Any] = {
    **{"mae": 61.5, "rmse": 101.25, "mae_interval": {"low": 55.0, "high": 68.5}, "rmse_interval": {"low": None}},
    **{"dataset": "sha", "split": "test", "images": 182, "selected_on": "val", "epoch": 3, "commit": "abc", "seed": 1},
    **{"scale": "small", "checkpoint": "runs/best_mae.pt", "settings": {}},
}


def write_metrics(folder: Path, name: str = "metrics.json", **changes: Any) -> str:
    """An evaluation of the checkpoint in ``folder``, but for what is changed."""
    weights = weights_digest(checkpoint.read(folder / "best_mae.pt")["model"])
    (folder / name).write_text(json.dumps(MEASURED | {"weights": weights} | changes))
    return name


@pytest.fixture
def publish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run the command in ``tmp_path``, which holds a checkpoint: status, output, errors."""
    monkeypatch.chdir(tmp_path)
    write_checkpoint(tmp_path, "model.width=8")

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["publish_counter.py", *arguments])
        status = 0
        try:
            publish_counter.main()
        except SystemExit as end:
            status = int(end.code or 0)
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


def test_a_counter_is_stored_with_its_figures_and_card(publish: Any, tmp_path: Path) -> None:
    own = write_metrics(tmp_path)
    last = write_metrics(tmp_path, "l.json", checkpoint="r/last.pt", epoch=9, mae=70, weights="0" * 16)
    options = ["--license", "research only", "--limit", "empty scenes", "--limit", "night"]
    status, out, err = publish("ckpt=best_mae.pt", "--output", "c/mine", "--metrics", own, last, *options)
    assert status == 0, err
    assert [line.split(":")[0] for line in out.splitlines()] == ["c/mine.safetensors", "c/mine.json", "c/mine.md"]
    plain = read_description(tmp_path / "c" / "mine.json")
    assert [figure["own"] for figure in plain["figures"]] == [True, False]
    assert plain["figures"][0]["mae_interval"] == [55.0, 68.5]
    assert plain["figures"][0]["rmse_interval"] is None
    assert plain["figures"][1]["selected_on"] == "nothing: the last epoch"
    card = (tmp_path / "c" / "mine.md").read_text()
    assert card == model_card(plain, "mine")
    for text in ("61.50 (55.00 to 68.50)", "101.25", "70.00", "research only", "* empty scenes\n* night\n"):
        assert text in card
    record = headcount.load("c/mine.json").record
    assert (record["license"], record["limits"]) == ("research only", ["empty scenes", "night"])
    assert publish("ckpt=best_mae.pt", "--output", "c/mine.json")[0] == 2  # exists


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "a"], "ckpt is not set: type ckpt=best_mae.pt"),
        (["ckpt=gone.pt", "--output", "a"], "ckpt=gone.pt: no such file; there is best_mae.pt"),
        (["ckpt=best_mae.pt"], "nothing to do: type --output FILE, --push OWNER/NAME, or both"),
        (["ckpt=best_mae.pt", "--output", "a", "--metrics", "gone.json"], "--metrics gone.json: cannot be read"),
        (["ckpt=best_mae.pt", "--output", "a", "--metrics", "best_mae.pt"], "--metrics best_mae.pt: cannot be read"),
        (["ckpt=best_mae.pt", "--output", "a", "--metrics", "other.json"], "not a metrics.json of eval.py"),
        (["ckpt=best_mae.pt", "--output", "a", "--metrics", "part.json"], "evaluated with max_images"),
        (["ckpt=best_mae.pt", "--output", "a", "--metrics", "bad.json"], "a figure is"),
        (["ckpt=best_mae.pt", "--output", "a", "--metrics", "foreign.json"], "of another training (seed)"),
        (["ckpt=best_mae.pt", "--push", "name"], "--push 'name': must be owner/name"),
        (["ckpt=best_mae.pt", "--push", "name", "--output", "a"], "must be owner/name"),
        (["ckpt=best_mae.pt", "--output", "best"], "best.md: exists; name another file"),
    ],
)
def test_what_cannot_be_published_is_refused(
    publish: Any, tmp_path: Path, uploaded: dict[str, Any], arguments: list[str], message: str
) -> None:
    (tmp_path / "other.json").write_text("[]")
    (tmp_path / "best.md").touch()
    write_metrics(tmp_path, "part.json", settings={"max_images": 3})
    write_metrics(tmp_path, "bad.json", mae="low")
    write_metrics(tmp_path, "foreign.json", seed=2, weights="")
    before = sorted(tmp_path.iterdir())
    status, _, err = publish(*arguments)
    assert status == 2
    assert message in err
    assert sorted(tmp_path.iterdir()) == before
    assert not uploaded


def test_it_is_uploaded(publish: Any, uploaded: dict[str, Any]) -> None:
    status, out, err = publish("ckpt=best_mae.pt", "--push", "owner/name", "--private", "--float32")
    assert status == 0, err
    assert "https://hub/owner/name: count with ckpt=hf-hub:owner/name" in out
    assert uploaded["private"]
    assert not json.loads(uploaded["files"]["model.json"])["weights"]["half"]
    assert publish("ckpt=best_mae.pt", "--push", "owner/name")[0] == 2
    assert publish("ckpt=best_mae.pt", "--push", "owner/name", "--replace")[0] == 0
    assert json.loads(uploaded["files"]["model.json"])["weights"]["half"]
    assert 'headcount.load("hf-hub:owner/name")' in uploaded["files"]["README.md"].decode()


def test_images_of_ones_own_need_a_license(publish: Any, tmp_path: Path, uploaded: dict[str, Any]) -> None:
    write_checkpoint(tmp_path, "model.width=8", "dataset=custom")
    for typed in (["--push", "owner/name"], ["--output", "a"]):
        status, _, err = publish("ckpt=best_mae.pt", *typed)
        assert status == 2
        assert "was trained on dataset=custom, whose terms are not known" in err
        assert "--license" in err
    assert not uploaded
    assert not (tmp_path / "a.json").exists()
    assert publish("ckpt=best_mae.pt", "--output", "a", "--license", "mine")[0] == 0
    assert publish("ckpt=a.safetensors", "--push", "owner/name")[0] == 0  # which states one
