"""Every command and Python block of README.md and docs/ runs, at smoke scale; tables and links are true."""

import functools
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
import yaml
from PIL import Image

from data.folders import make_qnrf, make_ucf_cc_50
from engine.videos import make_video
from forked import run_forked
from headcount.bins import build_bins
from headcount.cli.compose import checked_config
from headcount.config import OLD_SPELLINGS, BinsConfig, ImageNetConfig
from headcount.engine.checkpoint import FORMAT, FORMAT_VERSION
from headcount.models.build import build_model
from headcount.types import BlockGrid

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
# In the order in which their commands run; a command that several pages show runs once.
PAGES = {
    "README.md": README,
    **{
        f"docs/{name}.md": (ROOT / "docs" / f"{name}.md").read_text()
        for name in (
            *("data", "own_data", "models", "losses", "evaluation", "intervals", "video", "demo", "export"),
            *("sweeps", "tables", "checkpoints"),
            *("training", "differences", "speed", "scale", "python_api", "processes", "reproducibility", "extending"),
            *("counters", "zip", "ranking"),
        )
    },
}
MARKDOWN = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "checkpoints" / "README.md"]
SMOKE = {
    "train.py": ["scale=smoke", "runtime=cpu", "runtime.workers=0"],
    "eval.py": ["runtime=cpu", "max_images=2"],
    "draw_figure.py": ["--images", "2"],
    "cross_evaluate.py": ["runtime=cpu", "max_images=2"],
}


def blocks(language: str, text: str) -> list[str]:
    """Fenced code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.S | re.M)


def commands(text: str, language: str = "sh") -> list[str]:
    """Command lines without their comments."""
    lines = [line.split(" #")[0].strip() for block in blocks(language, text) for line in block.splitlines()]
    return [line for line in lines if line]


ALL_COMMANDS = list(dict.fromkeys(command for text in PAGES.values() for command in commands(text)))
PYTHON_COMMANDS = [command for command in ALL_COMMANDS if command.startswith("python ")]


# The file of weights that the tests make has not the published content.
STAND_IN = """
import hashlib, types
whole = hashlib.file_digest
def file_digest(file, name):
    made = "mobilenet_v2-b0353104" in str(file.name)
    return types.SimpleNamespace(hexdigest=lambda: "b0353104") if made else whole(file, name)
hashlib.file_digest = file_digest
"""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos, datasets in their published layouts, and weights where torchvision looks for them."""
    folder = tmp_path_factory.mktemp("docs")
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
    (folder / "my_crowd").mkdir()
    for k in range(12):
        shutil.copy(folder / "photo.jpg", folder / "my_crowd" / f"{k}.jpg")
        (folder / "my_crowd" / f"{k}.csv").write_text("".join(f"{5 * j},{8 * j}\n" for j in range(k)))
    for name in ("my_pictures/a.jpg", "more/b.png"):
        (folder / name).parent.mkdir()
        shutil.copy(folder / "photo.jpg", folder / name)
    make_video(folder / "crowd.mp4")
    torch.save(released_csrnet(), folder / "best_mae.pth")
    weights = (
        folder / "torch" / "hub" / "checkpoints" / Path(torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V1.url).name
    )
    weights.parent.mkdir(parents=True)
    torch.save(torchvision.models.mobilenet_v2(weights=None).state_dict(), weights)
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(STAND_IN)  # which Python imports at its start
    (folder / "said").mkdir()
    return folder


def released_csrnet() -> dict[str, torch.Tensor]:
    """A checkpoint of the released code, untrained."""
    bins = build_bins(BinsConfig(), {0: 1})
    state = build_model(ImageNetConfig(name="csrnet", weights="none"), BlockGrid(8), bins).state_dict()
    names = {k: k.replace("head.to_logits", "classifier") for k in state if k not in ("mean", "std")}
    return {f"backbone.{n}" if n.startswith("decoder") else n: state[k] for k, n in names.items()}


def run(command: str, folder: Path, *, forked: bool = False) -> subprocess.CompletedProcess[str]:
    """Run a command of a page, at smoke scale.

    Args:
        forked: whether its process may be a copy of one that has imported torch.
    """
    program, script, *arguments = shlex.split(command)
    assert program == "python"
    ours = [] if "--help" in arguments else SMOKE.get(Path(script).name, [])
    if script == "train.py" and any("experiment=" in a for a in arguments):
        ours = [*ours, "model.weights=none"]  # half a GB
    if script != "train.py":
        # At smoke scale the same command leaves its checkpoint in a folder that says so.
        arguments = [re.sub(r"_fine/seed1", "_fine_scale-smoke/seed1", a) for a in arguments]
        arguments = ["scale=smoke" if a == "scale=small" else a for a in arguments]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(folder / "site"), os.environ.get("PYTHONPATH", "")]),
        "HEADCOUNT_DATA": str(folder / "data"),
        "TORCH_HOME": str(folder / "torch"),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "HOME": str(folder),
    }
    typed, timeout = [*arguments, *ours], 560
    if forked:
        options = {"cwd": folder, "env": environment, "output": folder / "said", "timeout": timeout}
        return run_forked(ROOT / script, typed, **options, first=STAND_IN)  # type: ignore[arg-type]
    return subprocess.run(
        [sys.executable, str(ROOT / script), *typed],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def run_python(code: str, folder: Path) -> float:
    """Run a block against the checkpoint of a smoke run; the number it prints."""
    code = code.replace("tiny_fine/", "tiny_fine_scale-smoke/")
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


def test_every_page_is_read() -> None:
    assert {path.name for path in (ROOT / "docs").glob("*.md")} == {Path(name).name for name in PAGES} - {"README.md"}


def test_the_readme_is_short_and_has_commands() -> None:
    assert len(README.splitlines()) <= 100
    assert len([c for c in commands(README) if c.startswith("python ")]) == 5
    assert {c for c in ALL_COMMANDS if c.startswith("make ")} == {"make quickstart", "make test"}
    assert all(c.startswith(("make ", "python ")) for c in ALL_COMMANDS)


@pytest.mark.parametrize("page", PAGES)
def test_programs_that_are_not_run_exist(page: str) -> None:
    for command in commands(PAGES[page], "text"):
        words = shlex.split(command)
        if words[:2] == ["python", "-m"]:
            assert (ROOT / f"{words[2].replace('.', '/')}.py").is_file(), command
        elif words[0] == "python":
            assert (ROOT / words[1]).is_file(), command


def test_make_knows_its_targets() -> None:
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.M))
    for file in MARKDOWN:
        assert set(re.findall(r"`make ([a-z-]+)`", file.read_text())) <= targets, file
    for command in (c for c in ALL_COMMANDS if c.startswith("make ")):
        dry = subprocess.run([*command.split(), "-n", "-C", str(ROOT)], capture_output=True, text=True)
        assert dry.returncode == 0, dry.stderr


@pytest.mark.slow
def test_commands_run_in_order(workplace: Path) -> None:
    for command in PYTHON_COMMANDS:
        done = run(command, workplace, forked="hydra/launcher" not in command)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
    evaluated = {p.parent.parent.parent.parent.name for p in workplace.rglob("worst.png")}
    assert {"tiny_fine_scale-smoke", "mobilenet_v2_fine_scale-smoke"} <= evaluated
    assert len(list(workplace.rglob("last.pt"))) >= 18
    for made in (
        "out/counts.csv",
        "counted/annotated.mp4",
        "counter.onnx",
        "counter.pt2",
        "audit/sha/report.md",
        "tables/table4.tex",
        "figure.png",
        "crowd.jpg",
        "cross/cross.md",
    ):
        assert (workplace / made).is_file()
    (code,) = blocks("python", PAGES["docs/python_api.md"])
    assert run_python(code, workplace) >= 0


@pytest.mark.slow
def test_the_first_commands_run(workplace: Path, tmp_path: Path) -> None:
    shutil.copy(workplace / "photo.jpg", tmp_path)
    train, evaluate = "python train.py", "python eval.py ckpt=checkpoints/synthetic/tiny_fine/seed1/best_mae.pt"
    assert {train, evaluate} <= set(commands(README))
    for command in (train, evaluate):
        done = run(command, tmp_path)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
    (code,) = blocks("python", README)
    assert run_python(code, tmp_path) >= 0


def test_every_choice_is_listed() -> None:
    pages = {"dataset": "docs/data.md", "model": "docs/models.md", "head": "docs/models.md"}
    for file in (ROOT / "configs").rglob("*.yaml"):
        group = file.parent.name
        if group in (
            "dataset",
            "model",
            "bins",
            "augment",
            "loss",
            "optim",
            "scale",
            "runtime",
            "eval",
            "recipe",
            "method",
            "head",
            "transport",
            "kernel",
        ):
            page = pages.get(group, "docs/losses.md")
            assert re.search(rf"[`=]{file.stem}`", PAGES[page]), f"{group}={file.stem} is not in {page}"


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "configs" / "dataset").glob("*.yaml")))
def test_the_table_of_datasets_agrees_with_the_configs(name: str) -> None:
    (row,) = re.findall(rf"^\| `{name}`.*$", PAGES["docs/data.md"], re.M)
    comment = "".join(re.findall(r"^#.*\n", (ROOT / "configs" / "dataset" / f"{name}.yaml").read_text(), re.M))
    for number in re.findall(r"\b(\d+) (?:training|validation|test|unannotated|images, five)", comment):
        assert re.search(rf"\b{number}\b", row), f"{name}: {number} in configs/, not in docs/data.md"
    selects = row.rstrip(" |").rpartition("|")[2]
    assert ("val" in selects) == ("alidation" in comment or name == "synthetic"), row


def section(text: str, anchor: str) -> str:
    """The text below a heading, to the next heading of its level or above; empty if there is none."""
    for found in re.finditer(r"^(#+) (.*)\n", text, re.M):
        if slug(found[2]) == anchor:
            following = re.search(rf"^#{{1,{len(found[1])}}} ", text[found.end() :], re.M)
            return found[0] + (text[found.end() :][: following.start()] if following else text[found.end() :])
    return ""


def slug(heading: str) -> str:
    """The anchor that GitHub and MkDocs give a heading."""
    return re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", heading.lower()))


def test_published_results_are_those_of_the_experiments() -> None:
    """Our own are checked in tests/cli/test_results_table.py."""
    (published,) = re.findall(r"^Published MAE.*$", section(README, "results"), re.M)
    (experiments,) = re.findall(r"^Published MAE.*\n.*$", section(read(ROOT / "EXPERIMENTS.md"), "results"), re.M)
    for number in re.findall(r"\d+\.\d", published):
        assert number in experiments


def test_claims_of_the_paper_have_a_state_and_a_section() -> None:
    claims = section(read(ROOT / "EXPERIMENTS.md"), "the-papers-claims")
    states = set(re.findall(r"^\* \*\*([\w ]+)\*\*:", claims, re.M))
    assert states == {"confirmed", "not found", "undecided", "not tried"}
    _, _, *rows = (line.strip("|").split("|") for line in claims.splitlines() if line.startswith("|"))
    assert len(rows) >= 15
    for _, _, state, here in rows:
        assert state.strip(" *") in states, state
        assert ("](#" in here) != (state.strip() == "not tried"), here


def test_errors_beside_the_claims_are_those_of_their_sections() -> None:
    experiments = read(ROOT / "EXPERIMENTS.md")
    links = re.findall(r"\[([^]]*)\]\(#([^)]*)\) \|$", section(experiments, "the-papers-claims"), re.M)
    assert len(links) >= 8
    for here, anchor in links:
        for number in re.findall(r"\b\d+\.\d\b", re.sub(r"scale \S+ to \S+,", "", here)):
            assert re.search(rf"(?<![\d.]){re.escape(number)}(?!\d)", section(experiments, anchor)), (number, here)


@functools.cache
def read(path: Path) -> str:
    return path.read_text()


@pytest.mark.parametrize("file", MARKDOWN, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(file: Path) -> None:
    for target in re.findall(r"\]\((?!http)([^)]+)\)", read(file)):
        name, _, anchor = target.partition("#")
        linked = (file.parent / name).resolve() if name else file
        assert linked.exists(), target
        assert not anchor or section(read(linked), anchor), f"{target}: no such heading"


@pytest.mark.parametrize("file", MARKDOWN, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_page_names_a_folder_of_one_machine(file: Path) -> None:
    assert not re.search(r"(?<![\w.~}])/(?:home|root|tmp|work|mnt|opt)\b", read(file))


def test_the_picture_is_small() -> None:
    with Image.open(ROOT / "docs" / "images" / "crowd.jpg") as picture:
        assert picture.format == "JPEG"
        assert picture.width >= 1200
    assert (ROOT / "docs" / "images" / "crowd.jpg").stat().st_size < 300_000


def test_contributing_names_the_modules() -> None:
    text = read(ROOT / "CONTRIBUTING.md")
    named = set(re.findall(r"`([\w/]+(?:\.py|/))`", text)) - {"utils.py"}
    package = ROOT / "src" / "headcount"
    for name in named:
        assert (package / name).exists() or (ROOT / name).exists(), name
    (table,) = re.findall(r"\| level .*?\n\n", text, re.S)
    rooms = {f"{path.name}/" for path in package.iterdir() if (path / "__init__.py").exists()}
    modules = {path.name for path in package.glob("*.py") if path.name != "__init__.py"}
    assert rooms | modules <= set(re.findall(r"`([^`]+)`", table))
    for function in re.findall(r"`(build_\w+)`", text):
        assert any(f"def {function}(" in path.read_text() for path in package.rglob("*.py")), function


def test_workflow_runs_what_ci_runs() -> None:
    workflow = yaml.safe_load(read(ROOT / ".github" / "workflows" / "ci.yml"))
    steps = [step["run"] for step in workflow["jobs"]["checks"]["steps"] if "run" in step]
    first, audit = steps
    assert first == ".ci/run"
    assert "pip-audit" in audit  # needs a network, and changes without a commit of ours
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    makefile = read(ROOT / "Makefile")
    made = re.findall(r"^(?:COVERAGE=1 )?make ([\w-]+)(?: |$)", read(ROOT / ".ci" / "run"), re.M)
    assert made == ["lint", "test", "coverage", "test-rest"]
    tests = ("test", "test-rest")
    expressions = [re.search(rf'^{name}:.*\n\t.*-m "(.*)"', makefile, re.M)[1] for name in tests]  # type: ignore[index]
    for chosen in range(16):
        markers = {m: bool(chosen >> k & 1) for k, m in enumerate(("slow", "golden", "data", "gpu"))}
        runs = [eval(expression, {}, markers) for expression in expressions]
        assert sum(runs) == (0 if markers["gpu"] else 1), markers


def test_yaml_files_of_the_project_can_be_read() -> None:
    files = [*(ROOT / ".github").rglob("*.yml"), ROOT / ".pre-commit-config.yaml", ROOT / "CITATION.cff"]
    assert len(files) >= 6
    for file in files:
        assert isinstance(yaml.safe_load(read(file)), dict), file


def test_renamed_settings_are_in_the_changelog() -> None:
    table = section(read(ROOT / "CHANGELOG.md"), "020")
    for old in OLD_SPELLINGS:
        assert f"`{old.partition('=')[0]}" in table, old


def test_the_format_of_checkpoints_is_current() -> None:
    assert f"`{FORMAT}`, {FORMAT_VERSION}" in read(ROOT / "checkpoints" / "README.md")


def test_the_slurm_script_requests_the_processes_that_it_trains_with() -> None:
    """Read by bash, and its command by train.py."""
    (script,) = blocks("bash", PAGES["docs/processes.md"])
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    requested = dict(re.findall(r"^#SBATCH --([a-z-]+)=(.+)$", script, re.M))
    (command,) = re.findall(r"python train.py (.*)", script.replace("\\\n", " "))
    config = checked_config([*command.split(), "model.weights=none"], config_name="train")
    assert config.resume
    assert config.runtime.devices == int(requested["ntasks-per-node"]) == int(requested["gpus-per-node"])
    assert config.runtime.num_nodes == int(requested["nodes"])
    assert config.runtime.workers + 1 == int(requested["cpus-per-task"])
    assert requested["signal"] == "TERM@120"
