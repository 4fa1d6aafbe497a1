"""The notebook of the first steps runs from its first cell to its last, and is stored without outputs."""

import json
from pathlib import Path

import pytest

FILE = Path(__file__).resolve().parent.parent / "docs" / "first_steps.ipynb"


def test_the_notebook_is_stored_without_outputs() -> None:
    cells = json.loads(FILE.read_text())["cells"]
    assert FILE.stat().st_size < 200_000
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in cells)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Jupyter is migrating:DeprecationWarning")
def test_the_notebook_runs(tmp_path: Path) -> None:
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(FILE, as_version=4)
    client = NotebookClient(
        notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 3
    printed = "".join(output.text for output in outputs if output.get("name") == "stdout")
    assert "synthetic test, 48 images" in printed
    assert "left: " in printed
    (metrics,) = tmp_path.rglob("metrics.json")
    assert json.loads(metrics.read_text())["mae"] < 30  # counting none at all is an error of 70
