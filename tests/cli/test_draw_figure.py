"""Figure 6 drawn from the command line."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure

from data.folders import make_shanghaitech
from engine.test_checkpoint import write_checkpoint
from headcount.config import SlidingWindowConfig, WholeImageConfig
from headcount.models.counter import Counter
from headcount.types import Counted

ROOT = Path(__file__).resolve().parents[2]
Script = Callable[..., tuple[int, str, str]]
DRAW = "scripts/draw_figure.py"
SMALL = ["model.width=8", "dataset.width=64", "dataset.height=64", "dataset.test_images=9"]
CPU = ["runtime=cpu"]


@pytest.fixture
def modes(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """How each image that was counted was counted."""
    seen: list[Any] = []
    count = Counter.count

    def spy(self: Counter, image: Any, mode: Any) -> Any:
        seen.append(mode)
        return count(self, image, mode)

    monkeypatch.setattr(Counter, "count", spy)
    return seen


def test_a_few_images_are_counted_and_drawn(
    script: Script, modes: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **_: path.touch() or figures.append(figure))
    write_checkpoint(tmp_path, *SMALL)
    status, out, err = script("scripts/draw_figure.py", "ckpt=best_mae.pt", "--images", "3", *CPU, "--output", "f.pdf")
    assert status == 0, err
    assert len(modes) == 3  # none of the other six
    lines = [line for line in out.splitlines() if ": true" in line]
    counts = [float(line.split("true ")[1].split(",")[0]) for line in lines]
    assert len(counts) == 3
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]
    said = [text.get_text() for text in figures[0].texts]
    for line, count in zip(lines, counts, strict=True):
        assert f"true {count:g}" in said
        assert f"predicted {line.split('predicted ')[1]}" in said
    again = script(DRAW, "ckpt=best_mae.pt", "--images", "3", *CPU, "--output", "f.pdf")
    assert again == (status, out, err)


@pytest.mark.slow
def test_named_images_in_their_order_and_other_settings(script: Script, modes: list[Any], tmp_path: Path) -> None:
    write_checkpoint(tmp_path, *SMALL)
    status, out, err = script(
        "scripts/draw_figure.py",
        *("ckpt=best_mae.pt", "--output", "new/f.png", "split=val", "--names", "val_0003", "val_0001"),
        *("eval=sliding_window", "eval.window=32", *CPU),
    )
    assert status == 0, err
    assert [line.split(":")[0] for line in out.splitlines() if ": true" in line] == ["val_0003", "val_0001"]
    assert [(type(mode), mode.window) for mode in modes] == [(SlidingWindowConfig, 32)] * 2
    assert (tmp_path / "new" / "f.png").read_bytes().startswith(b"\x89PNG")
    assert "new/f.png" in out


@pytest.mark.slow
def test_another_dataset_than_the_counter_was_trained_on(script: Script, tmp_path: Path) -> None:
    heads = {"IMG_1": [(3.0, 4.0)], "IMG_2": [(5.0, 5.0)] * 2}
    make_shanghaitech(tmp_path / "data" / "part_B", {"train": heads, "test": heads})
    write_checkpoint(tmp_path, *SMALL)
    typed = ["ckpt=best_mae.pt", "--images", "2", "data_root=data", "dataset=shb", "dataset.min_side=64"]
    status, out, err = script(DRAW, *typed, "dataset.cache_dir=cache", *CPU)
    assert status == 0, err
    assert "IMG_1: true 1" in out
    assert "IMG_2: true 2" in out
    assert (tmp_path / "figure.png").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["ckpt=gone.pt"], "ckpt=gone.pt: no such file; there is best_mae.pt"),
        (["--output", "f.jpg"], "--output f.jpg: a figure's file ends in .png, .pdf, .svg"),
        (["--images", "10"], "--images 10: must be 1 to 9, the number of images in test"),
        (["--images", "0"], "--images 0: must be 1 to 9"),
        (["--names", "IMG_1"], "--names IMG_1: test has no image of this name; it has test_0000"),
        (["split=fold"], "split=fold"),
        (["dataset=shc"], "dataset=shc: no such choice"),
        (["output_dir=x"], "output_dir=x: cannot be set here; type --output"),
        (["runtime.devices=2"], "runtime.devices=2: a few images take 1"),
        (["eval=sliding_window", "eval.window=30"], "eval.window=30: must be a multiple of"),
        (["--output", "best_mae.pt/f.png"], "choose another with --output"),
    ],
)
def test_what_cannot_be_is_refused(typed: list[str], said: str, script: Script, modes: list[Any]) -> None:
    write_checkpoint(Path(), *SMALL)
    status, _, err = script(DRAW, *(["ckpt=best_mae.pt"] if "ckpt=gone.pt" not in typed else []), *typed)
    assert status == 2
    assert said in err
    assert "Traceback" not in err
    assert not modes
    assert not Path("figure.png").exists()


@pytest.mark.slow
def test_a_counter_whose_weights_are_lost_is_named(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(tmp_path, *SMALL)
    counted = Counted(math.nan, torch.full((8, 8), torch.nan), None, WholeImageConfig())
    monkeypatch.setattr(Counter, "count", lambda *_: counted)
    status, _, err = script(DRAW, "ckpt=best_mae.pt", *CPU)
    assert status == 2
    assert "ckpt=best_mae.pt: the predicted count of test_" in err
    assert not (tmp_path / "figure.png").exists()


@pytest.mark.slow
def test_earlier_spellings_still_work(script: Script, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, *SMALL)
    old = ["--ckpt", "best_mae.pt", "--split", "val", "--names", "val_0003"]
    status, out, err = script(DRAW, *old, "eval=whole_image", *CPU)
    assert status == 0, err
    assert "val_0003: true" in out
    assert err == "draw_figure.py: --ckpt, --split are now typed ckpt=best_mae.pt split=val\n"
