"""Regions on the page, and how long results are remembered."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from headcount.config import ConfigError
from headcount.data.regions import parse_region
from headcount.engine.predict import PhotoCounter
from headcount.page import downloads, markup
from headcount.page import session as module
from headcount.page.counting import PageCounter, pixels
from headcount.page.session import Session, Sessions
from headcount.types import CountInterval
from page.conftest import save_noise


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return [save_noise(tmp_path / "a.png"), save_noise(tmp_path / "<b>.png", seed=1, width=64, height=64)]


@pytest.fixture
def session(page_counter: PageCounter, files: list[Path]) -> Session:
    counted = page_counter.count(files).session
    assert counted is not None
    return counted


def test_regions_have_the_counts_of_the_api(session: Session, counter: PhotoCounter, files: list[Path]) -> None:
    session.add_corner(60, 100, rectangle=True)
    session.add_corner(0, 20, rectangle=True)
    for corner in ((10, 10), (90, 10), (50, 80)):
        session.add_corner(*corner, rectangle=False)
    session.finish()
    session.add(parse_region("door=5,10,50,72"))  # pixels of the first picture
    assert session.corners == []
    typed = {"region 1": "0%,20%,60%,100%", "region 2": "10%,10%,90%,10%,50%,80%"}
    expected = counter.predict(files[0]).count_regions({**typed, "door": "5,10,50,72"})
    assert session.view.count_regions(session.regions) == pytest.approx(expected, abs=1e-9)
    # They are shares of every picture.
    session.selected = 1
    expected = counter.predict(files[1]).count_regions({**typed, "door": f"5%,{1000 / 72}%,50%,100%"})
    assert session.view.count_regions(session.regions) == pytest.approx(expected, abs=1e-9)


def test_refused_regions(session: Session) -> None:
    session.add_corner(10, 10, rectangle=True)
    with pytest.raises(ConfigError, match="encloses no area"):
        session.add_corner(10, 90, rectangle=True)
    assert session.corners == [(10, 10)]
    session.corners = [(0, 0), (90, 90), (90, 0), (0, 90)]
    with pytest.raises(ConfigError, match="crosses or touches itself"):
        session.finish()
    session.corners = [(0, 0), (90, 90)]
    with pytest.raises(ConfigError, match="at least three corners"):
        session.finish()
    session.corners = [(k, k) for k in range(100)]
    with pytest.raises(ConfigError, match="at most 100 corners"):
        session.add_corner(0, 0, rectangle=False)
    with pytest.raises(ConfigError, match="beyond the right border"):
        session.add(parse_region("door=0,0,200,50"))
    session.add(parse_region("door=0,0,50,50"))
    with pytest.raises(ConfigError, match="door: is given 2 times"):
        session.add(parse_region("door=0,0,50,50"))
    for _ in range(module.MAX_REGIONS - 1):
        session.finish([(0, 0), (50, 50)])
    with pytest.raises(ConfigError, match="At most 20 regions"):
        session.finish([(0, 0), (50, 50)])
    assert len({region.name for region in session.regions}) == module.MAX_REGIONS


def test_undo(session: Session) -> None:
    session.undo()
    session.finish([(0, 0), (50, 50)])
    session.add_corner(10, 10, rectangle=True)
    session.undo()
    assert (len(session.regions), session.corners) == (1, [])
    session.undo()
    assert session.regions == []
    session.finish([(0, 0), (50, 50)])
    assert session.regions[0].name == "region 1"


def test_sessions_are_forgotten(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    sessions = Sessions()
    sessions.put("window", session)
    assert sessions.get("window") is session
    assert sessions.of_token(session.token) is session
    assert sessions.get("another") is None
    assert sessions.of_token("") is None
    assert len(session.token) > 20
    session.used -= module.SECONDS_KEPT + 1
    assert sessions.of_token(session.token) is None
    sessions.put("window", session)
    sessions.drop("window")
    sessions.drop("window")
    assert sessions.get("window") is None
    monkeypatch.setattr(module, "MAX_SESSIONS", 2)
    for k in range(3):
        sessions.put(str(k), Session(session.views))
    assert [sessions.get(str(k)) is not None for k in range(3)] == [False, True, True]


def test_downloads(session: Session, counter: PhotoCounter, files: list[Path]) -> None:
    session.add(parse_region("left=0%,0%,50%,100%"))
    head, *rows = downloads.counts_csv(session).decode().splitlines()
    assert head.startswith("file,count,region left,width,height")
    counts = [counter.predict(file) for file in files]
    for row, name, counted in zip(rows, ("a.png", "<b>.png"), counts, strict=True):
        cells = row.split(",")
        assert cells[0] == name
        assert float(cells[1]) == pytest.approx(counted.count, abs=1e-4)
        assert float(cells[2]) == pytest.approx(counted.count_regions({"x": "0%,0%,50%,100%"})["x"], abs=1e-4)
    density = downloads.density_npy(session)
    assert density is not None
    assert counts[0].block_counts is not None
    np.testing.assert_array_equal(np.load(io.BytesIO(density)), counts[0].block_counts.numpy())
    picture = downloads.picture_png(session)
    assert picture is not None
    assert picture.startswith(b"\x89PNG")
    assert set(downloads.FILES) == {"counts.csv", "density.npy", "picture.png", "curve.png"}


def test_the_slider_goes_from_the_picture_to_the_density(session: Session) -> None:
    view = session.view
    np.testing.assert_array_equal(downloads.overlay(session, strength=0.0), pixels(view.photo))
    np.testing.assert_array_equal(downloads.overlay(session, strength=1.0), pixels(view.heat))
    half = downloads.overlay(session, strength=0.5).astype(int)
    assert np.abs(half - (pixels(view.photo).astype(int) + pixels(view.heat)) / 2).max() <= 1
    session.corners = [(50, 50)]
    marked = downloads.overlay(session, strength=0.0) != pixels(view.photo)
    rows, cols = np.nonzero(marked.any(2))
    height, width = marked.shape[:2]
    assert (rows.mean() / height, cols.mean() / width) == pytest.approx((0.5, 0.5), abs=0.01)


def test_the_words_of_a_result(session: Session) -> None:
    view = session.view
    assert f"<strong>{view.result.count:,.1f}</strong>" in markup.headline(session)
    view.result.interval = CountInterval(100.4, 1250.6, 0.9, calibrated=True)
    assert "100 to 1,251 people (90% interval)" in markup.headline(session)
    assert "not calibrated" in markup.interval_text(replace(view.result.interval, calibrated=False))
    view.result.interval = None
    assert "interval" not in markup.headline(session)
    view.result.note = "in <windows>"
    assert "In &lt;windows&gt;." in markup.headline(session)
    session.selected = 1
    assert "&lt;b&gt;.png, 64 × 64 pixels" in markup.headline(session)
    assert "All 2 pictures" in markup.headline(session)
    assert markup.region_table(session) == ""
    session.add(parse_region("<i>=0%,0%,100%,100%"))
    assert "&lt;i&gt;" in markup.region_table(session)
    assert "100%" in markup.region_table(session)
    assert 'role="alert"' in markup.problems(["<script>"])
    assert "<script>" not in markup.problems(["<script>"])
    assert markup.problems([]) == ""


def test_the_legend_of_bins(session: Session, counter: PhotoCounter) -> None:
    assert counter.bins is not None
    names = markup.readable_bins(counter.bins.edges, smoothed=False)
    assert (names[0], names[-1]) == ("0", f"{counter.bins.edges[-1][0]:g} or more")
    assert markup.readable_bins([(0, 0), (1, 2), (3, float("inf"))], smoothed=False) == ["0", "1 to 2", "3 or more"]
    assert markup.readable_bins([(0, 0), (0, 0.5), (0.5, float("inf"))], smoothed=True)[-1] == "more than 0.5"
    legend = markup.bin_legend(session.view, names)
    assert legend.count("<li>") == len(names)
    drawn = downloads.bins(session.view, len(names))
    assert drawn is not None
    assert drawn.shape == pixels(session.view.photo).shape


def test_a_counter_of_one_number_per_picture(session: Session) -> None:
    view = session.view
    view.blocks = view.bins = None
    assert "no map" in markup.density_legend(view)
    assert "no bins" in markup.bin_legend(view, ["0"])
    assert downloads.bins(view, 1) is None
    assert downloads.density_npy(session) is None
    assert downloads.picture_png(session) is None
    assert "counts.csv" in markup.downloads(session)
    assert "density.npy" not in markup.downloads(session)
    assert downloads.counts_csv(session)
