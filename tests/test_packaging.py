"""The wheel holds all that is needed to count with a checkpoint, away from the checkout."""

import re
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent


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
