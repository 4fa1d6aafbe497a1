"""Images drawn by several processes are those drawn by one, whatever happens to the others."""

import multiprocessing
import os
import signal
import subprocess
import sys

import pytest
import torch

from headcount.config import SyntheticConfig
from headcount.data import drawing
from headcount.data.synthetic import draw_crowd
from headcount.types import Sample

CONFIG = SyntheticConfig(width=64, height=48, max_people=20)
INDICES = [5, 0, 3, 8, 2, 9, 7]

pytestmark = pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="draws in one process")


@pytest.fixture
def three_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "_PIXELS_PER_PROCESS", 64 * 48)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2})


def draw() -> list[Sample]:
    return drawing.draw_crowds(INDICES, config=CONFIG, split="val", label="drawing")


def assert_drawn(samples: list[Sample]) -> None:
    assert len(samples) == len(INDICES)
    for index, sample in zip(INDICES, samples, strict=True):
        expected = draw_crowd(index, config=CONFIG, split="val")
        assert sample.name == expected.name
        assert torch.equal(sample.image, expected.image)
        assert torch.equal(sample.points, expected.points)


WITH_THREADS = """
import torch
from headcount.config import SyntheticConfig
from headcount.data import drawing
torch.set_num_threads(2)
torch.ones(1_000_000).add_(1)  # starts the threads, which a forked process does not have
drawing._processes = lambda pixels: 3
print(len(drawing.draw_crowds(range(6), config=SyntheticConfig(), split="train", label="")))
"""


@pytest.mark.slow
def test_threads_of_the_first_process_are_not_waited_for() -> None:
    """Images of the default size are large enough for torch to copy each on several threads."""
    ended = subprocess.run([sys.executable, "-c", WITH_THREADS], capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stdout) == (0, "6\n"), ended.stderr


@pytest.mark.usefixtures("three_processes")
def test_processes_share_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    here = []

    def counted(index: int, **settings: object) -> Sample:
        here.append(index)
        return draw_crowd(index, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(drawing, "draw_crowd", counted)
    before = multiprocessing.active_children()  # another test may have left some
    assert_drawn(draw())
    assert here == INDICES[::3]
    assert set(multiprocessing.active_children()) <= set(before)


@pytest.mark.usefixtures("three_processes")
def test_the_part_of_a_killed_process_is_drawn_by_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    parent = os.getpid()

    def killed(index: int, **settings: object) -> Sample:
        if os.getpid() != parent and index == 9:
            os.kill(os.getpid(), signal.SIGKILL)
        return draw_crowd(index, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(drawing, "draw_crowd", killed)
    assert_drawn(draw())


@pytest.mark.usefixtures("three_processes")
def test_an_interrupted_drawing_leaves_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(index: int, **settings: object) -> Sample:
        if index == INDICES[3]:  # the second that the first of three processes draws
            raise KeyboardInterrupt
        return draw_crowd(index, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(drawing, "draw_crowd", interrupted)
    before = multiprocessing.active_children()
    with pytest.raises(KeyboardInterrupt):
        draw()
    assert set(multiprocessing.active_children()) <= set(before)


@pytest.mark.usefixtures("three_processes")
def test_a_daemon_draws_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", True)  # type: ignore[attr-defined]
    monkeypatch.delattr(drawing, "_Helper")
    assert_drawn(draw())


def test_few_pixels_are_drawn_alone_and_many_by_at_most_eight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)))
    assert [drawing._processes(n * 384 * 288) for n in (1, 23, 24, 160)] == [1, 1, 2, 8]
    assert drawing.draw_crowds([], config=CONFIG, split="val", label="drawing") == []
