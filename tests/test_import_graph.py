"""Nothing imports upwards, and packages of one level do not import each other (CONTRIBUTING.md)."""

import ast
import re
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parent.parent / "src" / "headcount"
GROUND = {
    *("types", "bins", "commands", "config", "coverage", "crops", "distribution", "errors", "extensions", "intervals"),
    *("metrics", "published", "quantization", "runs", "files", "processes", "progress", "wording"),
    "zero_inflated",
}
BELOW = GROUND | {"data", "models", "losses", "engine", "report"}
MAY_IMPORT = {
    **dict.fromkeys(GROUND, GROUND),
    **{room: GROUND | {room} for room in ("data", "models", "losses")},
    "engine": GROUND | {"data", "models", "losses", "engine"},
    "report": GROUND | {"data", "models", "losses", "report"},
    "counting": BELOW | {"counting"},
    "page": BELOW | {"counting", "page"},
    **{room: BELOW | {"counting", "page", "cli"} for room in ("cli", "__main__")},
}


def imported_rooms(file: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(file.read_text())):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        if names == ["headcount"]:
            names = [f"headcount.{alias.name}" for alias in node.names]
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        rooms |= {name.split(".")[1] for name in names if name.startswith("headcount.")}
    return rooms


@pytest.mark.parametrize("file", sorted(SOURCE.rglob("*.py")), ids=lambda f: f.relative_to(SOURCE).as_posix())
def test_imports_go_down(file: Path) -> None:
    room = file.relative_to(SOURCE).parts[0].removesuffix(".py")
    if room != "__init__":  # the package's front door, which imports the engine when asked to
        assert imported_rooms(file) <= MAY_IMPORT[room], f"{room} must not import these"


def test_an_upward_import_is_seen(tmp_path: Path) -> None:
    file = tmp_path / "x.py"
    file.write_text(
        "from headcount.engine.train import fit\nfrom headcount import losses\nimport headcount.report.pictures"
    )
    assert imported_rooms(file) == {"engine", "losses", "report"}


def test_only_one_file_knows_of_processes() -> None:
    knowing = [f.name for f in SOURCE.rglob("*.py") if "lightning_fabric" in f.read_text()]
    assert knowing == ["runtime.py"]


def test_only_one_file_uses_private_parts_of_hydra() -> None:
    private = re.compile(
        r"hydra\._internal|hydra\.core\.(global_hydra|override_parser)|\._(metadata|get_node|is_none)\b"
    )
    using = [file.name for file in SOURCE.rglob("*.py") if private.search(file.read_text())]
    assert using == ["hydra_private.py"]
