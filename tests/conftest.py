"""What every test may use: the folders of golden numbers and of real data, and a way to run commands."""

import dataclasses
import gc
import os
import runpy
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# Libraries and tests are imported without garbage collection: what they create stays.
gc.disable()
# A job in the background of a shell ignores Ctrl-C, and so would the commands that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# No property is about time, and a test may wait for a busy machine.
settings.register_profile("headcount", deadline=None)
settings.load_profile("headcount")

ROOT = Path(__file__).resolve().parent.parent
# Modules whose slow tests take about a minute or more, the longest first.
LONGEST = (
    *("engine/test_process_runs.py", "engine/test_processes.py", "models/test_overfit.py", "engine/test_export.py"),
    *("test_docs.py", "cli/test_kills.py", "benchmarks/test_benchmarks.py", "test_notebook.py", "cli/test_commands.py"),
    *("cli/test_export.py", "test_configs.py", "cli/test_cross_validation.py", "page/test_browser.py"),
)


def _folder(variable: str) -> Path:
    """The folder an environment variable names: skipped where it is unset, failed where it is wrong."""
    if not os.environ.get(variable):
        pytest.skip(f"{variable} is not set")
    folder = Path(os.environ[variable]).expanduser()
    if not folder.is_dir():
        pytest.fail(f"{variable}={folder} is no folder")
    return folder


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Numbers of the released implementation (HEADCOUNT_GOLDEN)."""
    return _folder("HEADCOUNT_GOLDEN")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Real datasets (HEADCOUNT_DATA)."""
    return _folder("HEADCOUNT_DATA")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """A test that has what it needs and skips all the same has failed."""
    report = yield
    for mark, variable in (("golden", "HEADCOUNT_GOLDEN"), ("data", "HEADCOUNT_DATA")):
        if item.get_closest_marker("gpu") and not _has_gpu():
            continue
        if report.skipped and item.get_closest_marker(mark) and os.environ.get(variable):
            report.outcome = "failed"
            report.longrepr = f"{variable} is set, and {item.nodeid} skipped: {report.longrepr}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Generator[None]:
    """A test that asks for golden numbers or real data carries the mark of it; one for a GPU is skipped without.

    Tests that several processes share begin with the modules that take longest, so that no process waits for another.
    """
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skipif(not _has_gpu(), reason="no GPU"))
        for fixture, mark in (("golden_dir", "golden"), ("data_dir", "data")):
            if fixture in getattr(item, "fixturenames", ()):
                item.add_marker(mark)
    yield  # to the choice by marks
    if hasattr(config, "workerinput"):
        numbers = Counter(item.path for item in items)
        items.sort(key=lambda item: (_place(item.path), -numbers[item.path], item.path))


def _has_gpu() -> bool:
    import torch  # not at the top: the process that hands out the tests does without, and starts sooner

    return torch.cuda.is_available()


def _place(module: Path) -> int:
    """Of a module among the longest; all others come after them, those with many tests first."""
    name = module.relative_to(ROOT / "tests").as_posix()
    return LONGEST.index(name) if name in LONGEST else len(LONGEST)


def pytest_collection_finish() -> None:
    """Collect garbage from here on, seldom, and never search what was imported."""
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)
    gc.enable()


@pytest.fixture(scope="module", autouse=True)
def _choices_of_others_are_forgotten() -> Iterator[None]:
    """Remove what the tests of a module registered, such as a head: help pages list every choice."""
    from hydra.core.config_store import ConfigStore

    from headcount.config import SCHEMAS

    before = {group: set(schemas) for group, schemas in SCHEMAS.items()}
    yield
    for group, kinds in before.items():
        for kind in set(SCHEMAS[group]) - kinds:
            del SCHEMAS[group][kind]
            for path in (group, f"schema/{group}"):
                nodes = ConfigStore.instance().repo
                for part in path.split("/"):
                    nodes = nodes[part]
                nodes.pop(f"{kind}.yaml", None)


@pytest.fixture(scope="session", autouse=True)
def _a_crowd_is_drawn_once() -> Iterator[None]:
    """Many tests open the same generated crowds: an image that a process of the tests drew is copied from then on."""
    from headcount.config import DatasetConfig
    from headcount.data import drawing

    draw = drawing.draw_crowd
    drawn: dict[str, Any] = {}

    def draw_once(index: int, *, config: Any, split: str) -> Any:
        own = {name: value for name, value in vars(config).items() if not hasattr(DatasetConfig, name)}
        key = f"{index} {split} {[item for item in own.items() if not item[0].endswith('_images')]}"
        if key not in drawn:
            if len(drawn) == 1000:  # a third of a GB
                drawn.clear()
            drawn[key] = draw(index, config=config, split=split)
        return dataclasses.replace(drawn[key], points=drawn[key].points.clone())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "draw_crowd", draw_once)
        yield


@pytest.fixture(autouse=True)
def _float32_on_a_gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions of the tests for a GPU compute in float32; torch's default is TF32, with 11 significant bits."""
    if request.node.get_closest_marker("gpu"):
        import torch

        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """The CPU, and the GPU in a test of its own, which is marked."""
    return request.param


@pytest.fixture
def run_process(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run train.py, eval.py or a script as a user would; outputs go below ``tmp_path``."""

    def run(script: str, *arguments: str, timeout: float = 300, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(ROOT / script), *arguments],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run


@pytest.fixture
def run_command(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """As ``run_process``, but for how a process starts: as a copy of one that has imported torch."""
    from forked import run_forked

    output = tmp_path_factory.mktemp("output")

    def run(script: str, *arguments: str, timeout: float = 300, **environment: str) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        return run_forked(ROOT / script, [*arguments], cwd=tmp_path, env=env, output=output, timeout=timeout)

    return run


@pytest.fixture
def script(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    """Run a command in this process, from ``tmp_path``: exit status, output, errors.

    Quicker than a process of its own, which starts by loading torch.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HEADCOUNT_DATA", raising=False)

    def run(name: str, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        status = 0
        try:
            runpy.run_path(str(ROOT / name), run_name="__main__")
        except SystemExit as left:
            status = int(left.code or 0)
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


@pytest.fixture
def uploaded(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the client of the hub is asked to create and to upload: the content of each file."""
    from huggingface_hub import HfApi

    from headcount.models import hub

    asked: dict[str, Any] = {}

    def create_repo(self: Any, repo_id: str, **options: Any) -> str:
        asked.update(repository=repo_id, token=self.token, **options)
        return f"https://hub/{repo_id}"

    def upload_folder(self: Any, *, repo_id: str, folder_path: str, commit_message: str) -> None:
        assert repo_id == asked["repository"]
        asked["files"] = {file.name: file.read_bytes() for file in Path(folder_path).iterdir()}

    def file_exists(self: Any, repo_id: str, filename: str) -> bool:
        return asked.get("repository") == repo_id and filename in asked["files"]

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "file_exists", file_exists)
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    monkeypatch.setattr(hub, "_reachable", lambda url: True)
    return asked
