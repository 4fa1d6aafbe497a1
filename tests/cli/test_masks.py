"""Commands on a dataset with masks, against what is worked out from its blocks."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine.test_masks import config_of, folder
from headcount.data.open import open_split
from headcount.engine import checkpoint
from headcount.engine.train import train


@pytest.mark.slow
def test_the_command_reports_what_is_worked_out_here(tmp_path: Path, script: Any) -> None:
    root = folder(tmp_path / "my", outside=5)
    done = train(config_of(root, tmp_path / "a", "dataset.val_fraction=0.4", "dataset.test_fraction=0.3"))
    assert done is not None
    ckpt = done.folder / checkpoint.BEST
    status, out, err = script("eval.py", f"ckpt={ckpt}", "split=val", "runtime=cpu", f"output_dir={tmp_path / 'e'}")
    assert status == 0, err
    assert "heads count only inside the masks of the images" in out
    metrics = json.loads((tmp_path / "e" / "metrics.json").read_text())

    loaded = checkpoint.load(str(ckpt))
    dataset = open_split(dataclasses.replace(loaded.config.dataset, mask="none"), "val")  # type: ignore[type-var]
    errors = []
    for k in range(len(dataset)):
        sample = dataset[k]
        blocks = loaded.counter.count(sample.image).blocks
        assert blocks is not None
        assert blocks.shape == (12, 12)
        true = int((sample.points[:, 0] < 48).sum())
        errors.append(abs(float(blocks[:, :6].sum(dtype=torch.float64)) - true))
    assert metrics["mae"] == pytest.approx(np.mean(errors), abs=1e-5)
    assert (tmp_path / "e" / "worst.png").is_file()

    status, out, err = script(
        "scripts/cross_evaluate.py", str(ckpt), "--datasets", "custom:val", f"dataset.root={root}",
        "dataset.mask=area/roi.png", "dataset.min_side=96", "dataset.val_fraction=0.4", "dataset.test_fraction=0.3",
        "runtime=cpu", "--output", str(tmp_path / "cross"),
    )  # fmt: skip
    assert status == 0, err
    cell = json.loads((tmp_path / "cross" / "cross.json").read_text())["rows"][0]["cells"][0]
    assert cell["mae"] == pytest.approx(metrics["mae"])
    figure = ["scripts/draw_figure.py", f"ckpt={ckpt}", "split=val", "--output", str(tmp_path / "f.png")]
    status, out, err = script(*figure, "runtime=cpu")
    assert status == 0, err
