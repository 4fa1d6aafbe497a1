"""Every command of the README runs, at smoke scale; the Python in it counts a photo."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
import torchvision
from PIL import Image

from data.folders import make_qnrf, make_ucf_cc_50
from headcount.bins import build_bins
from headcount.config import BinsConfig, ImageNetConfig
from headcount.models.build import build_model

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = {kind: re.findall(rf"```{kind}\n(.*?)```", README, re.S) for kind in ("sh", "python")}
COMMANDS = [line.split(" #")[0].strip() for block in BLOCKS["sh"] for line in block.splitlines() if line.strip()]
PYTHON_COMMANDS = [c for c in COMMANDS if c.startswith("python ")]
SMOKE = {
    "train.py": ["scale=smoke", "runtime=cpu", "runtime.workers=0"],
    "eval.py": ["runtime=cpu", "max_images=2"],
    "draw_figure.py": ["--images", "2"],
}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a photo, a dataset in ShanghaiTech's layout, and weights where torchvision looks for them."""
    folder = tmp_path_factory.mktemp("readme")
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (90, 120, 3), dtype=np.uint8)).save(folder / "photo.jpg")
    for split in ("train_data", "test_data"):
        base = folder / "data" / "part_A" / split
        (base / "images").mkdir(parents=True)
        (base / "ground-truth").mkdir()
        for k in range(1, 5):
            Image.fromarray(rng.integers(0, 256, (96, 128, 3), dtype=np.uint8)).save(base / "images" / f"IMG_{k}.jpg")
            points = np.empty((1, 1), dtype=object)
            points[0, 0] = {"location": rng.uniform(0, 96, (5 * k, 2)), "number": np.uint8(5 * k)}
            scipy.io.savemat(base / "ground-truth" / f"GT_IMG_{k}.mat", {"image_info": points})
    make_ucf_cc_50(folder / "data" / "UCF_CC_50")
    heads = {f"img_{k:04d}": [(5.0 * j, 7.0) for j in range(k)] for k in range(1, 5)}
    make_qnrf(folder / "data" / "UCF-QNRF", {"Train": heads, "Test": heads})
    for name in ("my_pictures/a.jpg", "more/b.png"):
        (folder / name).parent.mkdir()
        shutil.copy(folder / "photo.jpg", folder / name)
    torch.save(released_csrnet(), folder / "best_mae.pth")
    weights = (
        folder / "torch" / "hub" / "checkpoints" / Path(torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V1.url).name
    )
    weights.parent.mkdir(parents=True)
    torch.save(torchvision.models.mobilenet_v2(weights=None).state_dict(), weights)
    return folder


def released_csrnet() -> dict[str, torch.Tensor]:
    """A checkpoint of the released code, untrained."""
    bins = build_bins(BinsConfig(), {0: 1})
    state = build_model(ImageNetConfig(name="csrnet", weights="none"), bins).state_dict()
    names = {k: k.replace("head.to_logits", "classifier") for k in state if k not in ("mean", "std")}
    return {f"backbone.{n}" if n.startswith("decoder") else n: state[k] for k, n in names.items()}


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    program, script, *arguments = shlex.split(command)
    assert program == "python"
    ours = [] if "--help" in arguments else SMOKE.get(Path(script).name, [])
    if script == "train.py" and any("experiment=" in a for a in arguments):
        ours = [*ours, "model.weights=none"]  # half a GB
    if script != "train.py":
        # At smoke scale the same command leaves its checkpoint in a folder that says so.
        arguments = [re.sub(r"_fine/seed1", "_fine_scale-smoke/seed1", a) for a in arguments]
        arguments = ["scale=smoke" if a == "scale=small" else a for a in arguments]
    return subprocess.run(
        [sys.executable, str(ROOT / script), *arguments, *ours],
        cwd=folder,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "HEADCOUNT_DATA": str(folder / "data"),
            "TORCH_HOME": str(folder / "torch"),
            "XDG_CACHE_HOME": str(folder / "cache"),
            "HOME": str(folder),
        },
        capture_output=True,
        text=True,
        timeout=560,
    )


def test_the_readme_has_commands() -> None:
    assert len(PYTHON_COMMANDS) >= 8
    assert {c for c in COMMANDS if c.startswith("make ")} == {"make quickstart", "make test"}


def test_make_knows_its_targets() -> None:
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.M))
    named = set(re.findall(r"`?make ([a-z-]+)", README))
    assert named <= targets
    for command in (c for c in COMMANDS if c.startswith("make ")):
        dry = subprocess.run([*command.split(), "-n", "-C", str(ROOT)], capture_output=True, text=True)
        assert dry.returncode == 0, dry.stderr


@pytest.mark.slow
def test_commands_run_in_order(workplace: Path) -> None:
    for command in PYTHON_COMMANDS:
        done = run(command, workplace)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
    evaluated = {p.parent.parent.parent.parent.name for p in workplace.rglob("worst.png")}
    assert {"tiny_fine_scale-smoke", "mobilenet_v2_fine_scale-smoke"} <= evaluated
    assert len(list(workplace.rglob("last.pt"))) >= 18
    for made in ("out/counts.csv", "audit/sha/report.md", "tables/table4.tex"):
        assert (workplace / made).is_file()


def test_the_first_commands_run(workplace: Path, tmp_path: Path) -> None:
    shutil.copy(workplace / "photo.jpg", tmp_path)
    train, evaluate = "python train.py", "python eval.py ckpt=checkpoints/synthetic/tiny_fine/seed1/best_mae.pt"
    assert {train, evaluate} <= set(PYTHON_COMMANDS)
    for command in (train, evaluate):
        done = run(command, tmp_path)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
    (code,) = BLOCKS["python"]
    code = code.replace("tiny_fine/", "tiny_fine_scale-smoke/")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) >= 0


def test_every_choice_is_told(workplace: Path) -> None:
    table = README[README.index("## What can be chosen") :]
    for file in (ROOT / "configs").rglob("*.yaml"):
        group = file.parent.name
        if group in ("dataset", "model", "bins", "augment", "loss", "optim", "scale", "runtime"):
            assert f"`{file.stem}`" in table, f"{group}={file.stem} is not in the README's table"


def test_linked_files_exist() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
