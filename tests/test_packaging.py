"""The wheel holds all that is needed to count with a checkpoint, away from the checkout."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from PIL import Image

from engine.test_stored import stored_pair
from headcount.published import DEFAULT

ROOT = Path(__file__).resolve().parent.parent
WITHOUT_CHECKOUT = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "HEADCOUNT_DATA")}


@pytest.mark.slow
def test_the_wheel_counts_outside_the_checkout(tmp_path: Path) -> None:
    built = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)],
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("headcount-*.whl")
    site = tmp_path / "site"
    link_dependencies(site)
    zipfile.ZipFile(wheel).extractall(site)
    trained = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "scale=smoke", "runtime=cpu", "epochs=1"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert trained.returncode == 0, trained.stderr
    (checkpoint,) = tmp_path.rglob("best_mae.pt")
    code = (
        f"import sys; sys.path.insert(0, {str(site)!r})\n"
        "import importlib.util\n"
        f"found = [name for name in {DEVELOPMENT} if importlib.util.find_spec(name)]\n"
        "assert not found, found\n"
        "import headcount, numpy\n"
        f"assert headcount.__file__.startswith({str(tmp_path)!r}), headcount.__file__\n"
        f"counter = headcount.load({str(checkpoint)!r})\n"
        "print(counter.count(numpy.zeros((50, 70, 3), dtype=numpy.uint8)))\n"
        f"print(counter.count({str(tmp_path / 'photo.jpg')!r}))\n"
    )
    Image.new("RGB", (70, 50)).save(tmp_path / "photo.jpg")
    empty = tmp_path / "empty"
    empty.mkdir()
    # Neither the environment's packages nor its variables: only what the wheel asks for.
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], cwd=empty, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    of_array, of_file = map(float, done.stdout.split())
    assert of_array == of_file >= 0  # both black
    assert not list(empty.iterdir())


@pytest.mark.slow
def test_published_counters_travel_in_the_wheel(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for name in ("src", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    stored = source / "checkpoints" / "published"
    (stored / "any" / "eval").mkdir(parents=True)
    (stored / "any" / "eval" / "metrics.json").touch()
    stored_pair(stored, "model.width=8", name=DEFAULT)
    (stored / f"{DEFAULT}.md").write_text("# card")
    (stored / "best_mae.pt").unlink()
    built = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(source)],
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("headcount-*.whl")
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    assert {path.name for path in (site / "headcount" / "counters").rglob("*")} == {
        f"{DEFAULT}.{ending}" for ending in ("safetensors", "json", "md")
    }
    code = (
        "import headcount, numpy\n"
        "(counter,) = headcount.available()\n"
        f"assert counter.file.is_relative_to({str(site)!r}), counter.file\n"
        "print(headcount.load().count(numpy.zeros((50, 70, 3), dtype=numpy.uint8)))\n"
    )
    environment = {**WITHOUT_CHECKOUT, "PYTHONPATH": str(site)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) >= 0


DEVELOPMENT = ("pytest", "hypothesis", "beartype", "ruff", "mypy", "ot", "mkdocs", "coverage", "submitit")


def link_dependencies(site: Path) -> None:
    """Link into a folder the packages that an installation of headcount brings with it, and no others."""
    site.mkdir()
    requirements = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    waiting, seen = [Requirement(text) for text in requirements], set()
    while waiting:
        requirement = waiting.pop()
        extras = requirement.extras or {""}
        if requirement.name.lower() in seen:
            continue
        seen.add(requirement.name.lower())
        package = metadata.distribution(requirement.name)
        for text in package.requires or ():
            needed = Requirement(text)
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(needed)
        for top in {file.parts[0] for file in package.files or ()} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(package.locate_file(top))  # type: ignore[arg-type]


def test_the_version_agrees_with_the_project_file() -> None:
    import headcount

    assert f'version = "{headcount.__version__}"' in (ROOT / "pyproject.toml").read_text()


def test_the_version_is_in_the_changelog_and_the_citation() -> None:
    import headcount

    (newest, *_) = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert newest == headcount.__version__
    assert f"\nversion: {headcount.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def files_of(page: str) -> dict[str, str]:
    """The files that a page shows in fenced blocks with titles, by path."""
    found = re.findall(r'^```\w+ title="([^"]+)"\n(.*?)^```', page, re.S | re.M)
    return dict(found)


@pytest.mark.slow
def test_a_package_of_a_user_adds_choices_to_an_installed_headcount(tmp_path: Path) -> None:
    """The example of docs/extending.md: two wheels in an environment of their own, run from an empty folder."""
    package, own = tmp_path / "package", tmp_path / "work"
    for name, text in files_of((ROOT / "docs" / "extending.md").read_text()).items():
        file = (own if name.startswith("configs") else package) / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    for folder in (ROOT, package):
        built = subprocess.run(
            [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(folder)],
            capture_output=True,
            text=True,
        )
        assert built.returncode == 0, built.stderr
    python = new_environment(tmp_path / "env", *tmp_path.glob("*.whl"))
    pictures = own / "my_pictures"
    pictures.mkdir()
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for k in range(4):
            Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(pictures / f"{split}_{k}.png")
        rows = [f"{split}_{k}.png,{10 + k},{20 + k}" for k in range(4)]
        (pictures / f"{split}.csv").write_text("\n".join(rows) + "\n")

    def headcount(*arguments: str) -> str:
        done = subprocess.run(
            [python.with_name("headcount"), *arguments],
            cwd=own,
            capture_output=True,
            text=True,
            env=WITHOUT_CHECKOUT,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    assert "Convolutions with stride 2" in headcount("explain", "model=plain")
    assert "plain" in headcount("train", "--help")
    small = ["scale=smoke", "epochs=1", "augment.crop_size=64", "batch_size=2", "runtime=cpu", "run_name=own"]
    places = ["dataset.root=my_pictures", "dataset.min_side=64", "dataset.cache_dir=cache"]
    headcount(
        "train", "model=plain", "loss=mae", "dataset=listed", "bins=none", "model.head=regression", *small, *places
    )
    checkpoint = "checkpoints/listed/own/seed1/best_mae.pt"
    assert "MAE" in headcount("eval", f"ckpt={checkpoint}", "runtime=cpu")
    assert "test_0" in headcount("predict", "my_pictures", f"ckpt={checkpoint}")
    assert "epochs: 100" in headcount("train", "experiment=mine", "model.weights=none", "--cfg", "job")


def new_environment(folder: Path, *wheels: Path) -> Path:
    """A virtual environment with these wheels, which finds their dependencies in this one; returns its Python."""
    venv.create(folder, symlinks=True, with_pip=False)
    python = folder / "bin" / "python"
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", *map(str, wheels)],
        capture_output=True,
        text=True,
        env=WITHOUT_CHECKOUT,
    )
    assert done.returncode == 0, done.stderr
    # Read after its own packages; the editable install of this checkout is found by a .pth file, which is not read.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python
