"""Checkpoints exported from the command line, and the programs of docs/export.md that count with the files."""

import json
import re
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

import headcount
from engine.test_checkpoint import write_checkpoint
from engine.test_stored import stored_pair
from headcount import published
from headcount.cli import export as command
from headcount.cli import publish_counter
from headcount.engine.exported import load_exported
from headcount.files import quoted
from headcount.published import DEFAULT
from test_packaging import WITHOUT_CHECKOUT, files_of

Export = Callable[..., tuple[int, str, str]]
ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = files_of((ROOT / "docs" / "export.md").read_text())


@pytest.fixture(scope="module")
def best(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_checkpoint(tmp_path_factory.mktemp("checkpoint"), "model.width=8"))


@pytest.fixture
def export(best: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Export:
    """Run the command in this process, from ``tmp_path``: status, output, errors."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, ckpt: str = best) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["export.py", *arguments, *([f"ckpt={quoted(ckpt)}"] if ckpt else [])])
        status = 0
        try:
            command.main()
        except SystemExit as end:
            status = int(end.code or 0)
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


def photo(path: Path, width: int = 90, height: int = 60, seed: int = 0) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.mark.slow
def test_export_and_check_both_formats(export: Export, best: str, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for k in range(3):
        photo(tmp_path / "pictures" / f"{k}.png", seed=k, width=70 + k)
    counter = headcount.load(best)
    for name in ("new/a.onnx", "new/a.pt2"):
        status, out, err = export("--output", name, "--check", "pictures", "--license", "mine")
        assert status == 0, err
        assert re.match(rf"{name}: tiny, whole images, blocks of 8 px, 0\.\d+ MB\n", out)
        rows = re.findall(r"^pictures/(\d)\.png +([\d.]+) +([\d.]+) +([+-][\d.]+)$", out, re.M)
        assert [row[0] for row in rows] == ["0", "1", "2"]
        for number, ours, theirs, difference in rows:
            assert float(ours) == pytest.approx(counter.count(tmp_path / f"pictures/{number}.png"), abs=1e-3)
            assert float(theirs) == pytest.approx(float(ours), abs=2e-3)
            assert abs(float(difference)) < 1e-3
    assert [entry.value for entry in onnx.load(tmp_path / "new/a.onnx").metadata_props if entry.key == "license"] == [
        "mine"
    ]
    status, out, err = export(
        *("--output", "small.onnx", "--int8", "--calibrate", "pictures", "--check", "pictures/0.png")
    )
    assert status == 0, err
    assert (tmp_path / "small.onnx").stat().st_size < 0.8 * (tmp_path / "new/a.onnx").stat().st_size
    assert 0 < float(re.search(r"largest (\S+) people$", out)[1]) < 5  # type: ignore[index]


@pytest.mark.slow
def test_the_license_is_the_typed_one_or_the_stated_one(export: Export, tmp_path: Path) -> None:
    def exported(name: str, *typed: str, ckpt: str) -> str:
        status, _, err = export("--output", name, *typed, ckpt=ckpt)
        assert status == 0, err
        if name.endswith(".safetensors"):
            return str(json.loads((tmp_path / name).with_suffix(".json").read_text())["license"])
        return str(load_exported(tmp_path / name).description["license"])

    stated = str(write_checkpoint(tmp_path, "model.width=8"))
    usual = exported("usual.safetensors", ckpt=stated)
    assert "synthetic" in usual
    assert exported("mine.safetensors", "--license", "mine", ckpt=stated) == "mine"
    for ending in ("safetensors", "onnx", "pt2"):
        assert exported(f"stated.{ending}", ckpt="mine.safetensors") == "mine"
        assert exported(f"typed.{ending}", "--license", "yours", ckpt="mine.safetensors") == "yours"


def test_a_safetensors_file_is_what_publish_writes(
    export: Export, best: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = photo(tmp_path / "photo.png")
    status, out, err = export("--output", "exported/a.safetensors", "--check", file.name)
    assert status == 0, err
    assert abs(float(re.search(r"largest (\S+) people$", out)[1])) < 0.01  # type: ignore[index]
    monkeypatch.setattr(sys, "argv", ["publish_counter.py", f"ckpt={quoted(best)}", "--output", "published/a"])
    publish_counter.main()
    names = ["a.json", "a.md", "a.safetensors"]
    for folder in ("exported", "published"):
        assert sorted(path.name for path in (tmp_path / folder).iterdir()) == names
    for name in names:
        assert (tmp_path / "exported" / name).read_bytes() == (tmp_path / "published" / name).read_bytes()
    card = (tmp_path / "exported" / "a.md").read_text()
    assert "License of the weights: MIT, as the dataset synthetic" in card
    assert export("--output", "exported/a.safetensors")[0] == 2  # exists
    monkeypatch.chdir(tmp_path / "exported")
    code = card.split("```python\n")[1].split("```")[0].replace("photo.jpg", str(file))
    exec(code)  # what the card says loads the files beside it


@pytest.mark.slow
def test_the_counter_in_the_box_counts_photos_as_predict_does(export: Export, tmp_path: Path) -> None:
    file = photo(tmp_path / "photo.png", 130, 90)
    for name in ("box.onnx", "box.pt2"):
        status, out, err = export("--output", name, "--check", file.name, ckpt=DEFAULT)
        assert status == 0, err
        assert abs(float(re.search(r"largest (\S+) people$", out)[1])) < 1e-3  # type: ignore[index]
        assert load_exported(tmp_path / name).description["resize"]["min_side"] == 448


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (
            ["--output", "a.pt"],
            "--output a.pt: the name must end in .onnx or .pt2 or .safetensors, which chooses the format",
        ),
        (["--output", "there.onnx"], "there.onnx: exists; name another file, or remove it"),
        ([], "--output"),
        (["--output", "a.pt2", "--int8"], "--int8: only ONNX files are quantized; name a file.onnx instead of a.pt2"),
        (["--output", "a.onnx", "--calibrate", "p.png"], "--calibrate needs --int8"),
        (
            ["--output", "b/a.safetensors", "--float32"],
            "type python scripts/publish_counter.py ckpt=... --output b/a --float32",
        ),
        (["--output", "a.onnx", "--check", "half.png"], "half.png"),
        (["--output", "a.onnx", "--int8", "--calibrate", "half.png"], "half.png"),
        (["--output", "a.onnx", "--check", "gone"], "there is nothing to count: gone: no such file"),
        (["--output", "a.onnx", "--check", "there.onnx"], "there.onnx cannot be read as an image"),
        (["--output", "a.onnx", "--int8", "--calibrate", "gone"], "there is nothing to count: gone: no such file"),
        (["--output", "a.onnx", "bins=fine"], "bins=fine: there is no setting bins; allowed are ckpt"),
        (["--output", "there.onnx/a.onnx"], "there.onnx cannot be created"),
        (["--output", "https://example.com/a.onnx"], "is a URL"),
    ],
)
def test_what_cannot_be_done_is_refused(typed: list[str], message: str, export: Export, tmp_path: Path) -> None:
    (tmp_path / "there.onnx").write_text("mine")
    whole = photo(tmp_path / "half.png").read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    status, out, err = export(*typed)
    assert (status, out) == (2, "")
    assert message in err
    assert "Traceback" not in err
    assert "recording the operations" not in err  # before the work
    assert sorted(path.name for path in tmp_path.iterdir()) == ["half.png", "there.onnx"]


def test_without_a_checkpoint_the_default_counter_is_exported(
    export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(published, "published_folder", lambda: tmp_path)
    status, _, err = export("--output", "a.safetensors", ckpt="")
    assert (status, "no counter is named" in err) == (2, True)
    stored_pair(tmp_path, "model.width=8", name=DEFAULT, license="research")
    status, _, err = export("--output", "a.safetensors", ckpt="")
    assert status == 0, err
    assert err.startswith(f"exporting {DEFAULT}: no errors were measured; license: research\n")
    assert json.loads((tmp_path / "a.json").read_text())["license"] == "research"


def test_a_checkpoint_must_exist(export: Export, tmp_path: Path) -> None:
    status, _, err = export("--output", "a.onnx", ckpt="gone.pt")
    assert (status, "gone.pt: no such file" in err) == (2, True)
    (tmp_path / "broken.pt").write_bytes(b"broken")
    status, _, err = export("--output", "a.onnx", ckpt="broken.pt")
    assert (status, "ckpt=broken.pt" in err) == (2, True)


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named_before_any_work(
    package: str, export: Export, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    status, out, err = export("--output", "a.onnx")
    assert (status, out) == (2, "")
    assert err == (
        f"export.py: exporting to ONNX needs {package}, which is not installed: pip install 'headcount[export]'\n"
    )
    assert not (tmp_path / "a.onnx").exists()


@pytest.mark.slow
def test_the_programs_of_the_documentation_count_without_torch(export: Export, tmp_path: Path) -> None:
    """In an environment that has what the page says and nothing else."""
    python = tmp_path / "env" / "bin" / "python"
    venv.create(tmp_path / "env", symlinks=True, with_pip=False)
    installed = subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(python), "install", "onnxruntime", "pillow", "numpy"],
        capture_output=True,
        text=True,
    )
    if installed.returncode:
        pytest.skip(f"pip cannot install onnxruntime: {installed.stderr.splitlines()[-1:]}")
    own = ["dataset=custom", "dataset.root=nowhere", "dataset.min_side=96", "dataset.max_side=256", "model.width=8"]
    checkpoints = {}
    for name, settings in {"whole": own, "windows": [*own, "eval=sliding_window", "eval.window=64"]}.items():
        (tmp_path / name).mkdir()
        checkpoints[name] = str(write_checkpoint(tmp_path / name, *settings))
        status, _, err = export("--output", f"{name}.onnx", ckpt=checkpoints[name])
        assert status == 0, err
    program = PROGRAMS["count_people.py"]
    lines = program.splitlines()
    assert len([line for line in lines if line]) <= 15
    (tmp_path / "whole.py").write_text(program)
    (tmp_path / "windows.py").write_text(program.partition("count, blocks =")[0] + PROGRAMS["windows.py"])
    for size in ((70, 50), (300, 200), (900, 100)):  # enlarged, unchanged or reduced, too long for both limits
        file = photo(tmp_path / "photo.png", *size)
        for name, ckpt in checkpoints.items():
            done = subprocess.run(
                [python, f"{name}.py", f"{name}.onnx", str(file)],
                cwd=tmp_path,
                capture_output=True,
                text=True,
                env=WITHOUT_CHECKOUT,
            )
            assert done.returncode == 0, done.stderr
            assert float(done.stdout.split()[0]) == pytest.approx(headcount.load(ckpt).count(file), abs=0.0051)
    without = subprocess.run([python, "-c", "import torch"], capture_output=True, env=WITHOUT_CHECKOUT)
    assert without.returncode == 1
