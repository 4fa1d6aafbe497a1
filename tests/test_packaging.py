"""The wheel holds all that is needed to count with a checkpoint, away from the checkout."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

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
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    trained = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "scale=smoke", "runtime=cpu", "epochs=1"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert trained.returncode == 0, trained.stderr
    (checkpoint,) = tmp_path.rglob("best_mae.pt")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r})\n"
        "import headcount, numpy\n"
        f"assert headcount.__file__.startswith({str(tmp_path)!r}), headcount.__file__\n"
        f"counter = headcount.load({str(checkpoint)!r})\n"
        "print(counter.count(numpy.zeros((50, 70, 3), dtype=numpy.uint8)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path / "site", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) >= 0


def test_the_version_agrees_with_the_project_file() -> None:
    import headcount

    assert f'version = "{headcount.__version__}"' in (ROOT / "pyproject.toml").read_text()


def test_the_version_is_in_the_changelog_and_the_citation() -> None:
    import headcount

    (newest, *_) = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert newest == headcount.__version__
    assert f"\nversion: {headcount.__version__}\n" in (ROOT / "CITATION.cff").read_text()
