"""Uploaded files are counted as the API counts them; what cannot be counted gets a sentence."""

import struct
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from engine.videos import make_video
from headcount.engine.predict import PhotoCounter
from headcount.errors import DataError
from headcount.page.counting import PageCounter, find_examples, pixels, sentence
from headcount.page.limits import Limits
from page.conftest import save_noise


def test_a_picture_has_the_count_of_the_api(page_counter: PageCounter, counter: PhotoCounter, tmp_path: Path) -> None:
    file = save_noise(tmp_path / "a.png")
    outcome = page_counter.count([file])
    assert outcome.problems == []
    assert outcome.session is not None
    (view,) = outcome.session.views
    expected = counter.predict(file)
    assert view.result.count == expected.count
    assert (view.result.file, view.result.width, view.result.height) == ("a.png", 100, 72)
    assert expected.block_counts is not None
    assert expected.probabilities is not None
    assert view.blocks is not None
    assert view.bins is not None
    np.testing.assert_array_equal(view.blocks, expected.block_counts.numpy())
    np.testing.assert_array_equal(view.bins, expected.probabilities.numpy().argmax(0))
    assert pixels(view.photo).shape == pixels(view.heat).shape == (576, 800, 3)  # enlarged, so that text is readable


def test_a_large_picture_is_kept_small(page_counter: PageCounter, tmp_path: Path) -> None:
    outcome = page_counter.count([save_noise(tmp_path / "a.jpg", width=1500, height=500)])
    assert outcome.session is not None
    assert pixels(outcome.session.view.photo).shape == (400, 1200, 3)


def test_one_bad_file_never_stops_the_others(page_counter: PageCounter, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0broken")
    (tmp_path / "huge.png").write_bytes(b"0" * (2**20 + 1))
    good = save_noise(tmp_path / "good.png")
    seen = []
    outcome = page_counter.count(
        [tmp_path / "broken.jpg", tmp_path / "huge.png", good, good], lambda share, what: seen.append((share, what))
    )
    assert outcome.session is not None
    assert [view.result.file for view in outcome.session.views] == ["good.png"]
    assert outcome.problems[0] == "Only the first 3 of 4 files were counted."
    assert outcome.problems[1].startswith("broken.jpg cannot be read as an image")
    assert outcome.problems[2] == "huge.png has 1.0 MB, and at most 1 MB are accepted."
    assert str(tmp_path) not in "".join(outcome.problems)
    assert seen == [(0.0, "broken.jpg"), (0.25, "huge.png"), (0.5, "good.png")]


def test_nothing_can_be_counted(page_counter: PageCounter, tmp_path: Path) -> None:
    outcome = page_counter.count([tmp_path / "gone.png"])
    assert outcome.session is None
    (words,) = outcome.problems
    assert words.startswith("gone.png")
    assert str(tmp_path) not in words


def test_a_video_is_counted_in_evenly_spread_frames(
    page_counter: PageCounter, counter: PhotoCounter, tmp_path: Path
) -> None:
    file = make_video(tmp_path / "clip.mp4", times=[k / 10 for k in range(12)])
    outcome = page_counter.count([file, file])
    session = outcome.session
    assert session is not None
    assert outcome.problems == ["clip.mp4: one video is counted at a time."]
    assert len(session.views) == 5
    assert session.view.result.file == "clip.mp4 at 0:00.0"
    assert session.curve is not None
    assert session.curve.startswith(b"\x89PNG")
    with av.open(str(file)) as container:
        frames = {round(float(frame.time), 1): frame.to_image() for frame in container.decode(video=0)}
    times = [view.seconds for view in session.views]
    assert max(np.diff(times)) < 0.4  # type: ignore[arg-type]
    for view in session.views:
        assert view.seconds is not None
        assert view.result.count == pytest.approx(counter.count(frames[round(view.seconds, 1)]), abs=1e-4)


def test_refused_videos(page_counter: PageCounter, tmp_path: Path) -> None:
    long = make_video(tmp_path / "long.mp4", times=[0, 90])
    (words,) = page_counter.count([long]).problems
    assert words.startswith("long.mp4 has 1.5 minutes, and at most 1 minute")
    large = make_video(tmp_path / "large.mp4", picture=lambda k: np.zeros((1024, 1024, 3), np.uint8), times=[0, 1])
    (words,) = page_counter.count([large]).problems
    assert words == "large.mp4 has too many pixels, 1024 x 1024: at most 1 megapixels are accepted."
    (tmp_path / "damaged.mp4").write_bytes(struct.pack(">I", 32) + b"ftypisom" + b"\0" * 100)
    (words,) = page_counter.count([tmp_path / "damaged.mp4"]).problems
    assert words.startswith("damaged.mp4")
    assert str(tmp_path) not in words


def test_the_place_of_a_file_stays_secret(tmp_path: Path) -> None:
    file = tmp_path / "a\u202eb.png"
    assert sentence(file, DataError(f"{file} cannot be read")) == "a\\u202eb.png cannot be read."
    assert str(tmp_path) not in sentence(file, OSError(2, "No such file", str(file)))


def test_examples(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    save_noise(folder / "b.png")
    Image.new("RGB", (1600, 1000)).save(folder / "too_large.png")
    (folder / "broken.jpg").write_bytes(b"no picture")
    (found,) = find_examples(folder, Limits(megapixels=1), tmp_path)
    assert (found.name, found.file) == ("b", folder / "b.png")
    (folder / "b.png").unlink()
    with pytest.raises(DataError, match=r"--examples .*: no picture there can be read"):
        find_examples(folder, Limits(megapixels=1), tmp_path)
    drawn = find_examples(None, Limits(), tmp_path)
    assert len(drawn) == 6
    assert all(example.file.parent == tmp_path and example.file.is_file() for example in drawn)
