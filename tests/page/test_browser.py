"""The page in headless Chromium, and with ten clients at once; every test is slow."""

import csv
import gc
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from engine.videos import make_video
from headcount.engine.predict import PhotoCounter
from headcount.page.counting import PageCounter
from headcount.page.limits import Limits
from page.conftest import save_noise

pytestmark = [
    pytest.mark.slow,
    # Gradio leaves closing a photo of the camera, and its event loops with their sockets, to Python.
    pytest.mark.filterwarnings("ignore:unclosed file .*headcount_page_:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:unclosed event loop:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:unclosed <socket.socket .*family=1,:ResourceWarning"),
    # It sums up its queue with pandas, in an old way.
    pytest.mark.filterwarnings("ignore:('future.no_silent_downcasting' is|The copy keyword is) deprecated"),
]

ROOT = Path(__file__).resolve().parents[2]
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
CONTROLS = {"button", "link", "textbox", "slider", "spinbutton", "radio", "checkbox", "combobox", "tab"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pictures")


@contextmanager
def serving(counter: PhotoCounter) -> Iterator[str]:
    """The address of the page, served by a thread."""
    from headcount.page import server

    limits = Limits(megabytes=1, megapixels=4, pictures=3, frames=4, minutes=1)
    with server.open_port("127.0.0.1", 0) as listening, pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", "")
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "")
        with server.page_app(PageCounter(counter, limits)) as app:
            web_server = server.web_server(app)
            thread = threading.Thread(target=web_server.run, kwargs={"sockets": [listening]})
            thread.start()
            while not web_server.started:
                assert thread.is_alive()
                time.sleep(0.05)
            yield "http://{}:{}/".format(*listening.getsockname())
            web_server.should_exit = True
            thread.join()
    with warnings.catch_warnings(action="ignore", category=ResourceWarning):
        gc.collect()  # here, and not in a test of something else


@pytest.fixture(scope="module")
def address(counter: PhotoCounter) -> Iterator[str]:
    with serving(counter) as address:
        yield address


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium")
    if program is None:
        pytest.skip("needs the program chromium")
    fake_camera = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", *fake_camera])
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium: Any, address: str) -> Iterator[Callable[..., Any]]:
    """Open the page in a window of its own; whatever it requests must be on its own server."""
    contexts = []
    requested: list[str] = []

    def open_window(**options: Any) -> Any:
        context = chromium.new_context(**options)
        context.set_default_timeout(60_000)
        contexts.append(context)
        window = context.new_page()
        window.on("request", lambda request: requested.append(request.url))
        window.goto(address)
        window.get_by_text("Drop a picture or a video").wait_for()
        window.get_by_role("button", name="Thumbnail 6 of 6").wait_for()
        return window

    yield open_window
    for context in contexts:
        context.close()
    assert any("/assets/" in url for url in requested)
    assert [url for url in requested if not url.startswith((address, "data:", f"blob:{address}"))] == []


def upload(window: Any, *files: Path) -> None:
    window.locator("#hc-files input[type=file]").set_input_files(files)


def shown_count(window: Any) -> float:
    return float(window.locator(".hc-number strong").inner_text().replace(",", ""))


def region_counts(window: Any, regions: int) -> dict[str, float]:
    """What the table of regions says, once it has that many."""
    window.locator(".hc-table tbody tr").nth(regions - 1).wait_for()
    rows = window.locator(".hc-table tbody tr").all()
    assert len(rows) == regions
    cells = [(row.locator("th").inner_text(), row.locator("td").first.inner_text()) for row in rows]
    return {name: float(count.replace(",", "")) for name, count in cells}


def click_in_picture(window: Any, x: float, y: float, *, enables: str) -> None:
    """Click at shares of the picture's width and height; wait until that enables a button."""
    picture = window.locator("#hc-overlay img")
    box = picture.bounding_box()
    picture.click(position={"x": x * box["width"], "y": y * box["height"]})
    window.wait_for_function(
        "name => [...document.querySelectorAll('button')].some(b => b.innerText == name && !b.disabled)", arg=enables
    )


def download(window: Any, label: str) -> bytes:
    with window.expect_download() as loading:
        window.get_by_role("link", name=label).click()
    return Path(loading.value.path()).read_bytes()


def nameless(window: Any) -> list[str]:
    """Roles of the controls, and pictures, that have no name for those who do not see them."""
    nodes = window.context.new_cdp_session(window).send("Accessibility.getFullAXTree")["nodes"]
    seen = [node for node in nodes if not node["ignored"] and node["role"]["value"] in CONTROLS]
    assert len(seen) > 5
    pictures = window.locator("img:not([alt]), img[alt='']").evaluate_all(
        "images => images.filter(i => i.checkVisibility()).map(i => i.outerHTML)"
    )
    return [node["role"]["value"] for node in seen if not node.get("name", {}).get("value", "").strip()] + pictures


def test_a_picture_is_counted_like_by_the_api(visit: Callable[..., Any], counter: PhotoCounter, folder: Path) -> None:
    files = [save_noise(folder / f"{k}.png", seed=k, width=160 + 40 * k, height=120) for k in range(2)]
    expected = [counter.predict(file) for file in files]
    window = visit()
    upload(window, *files)
    window.locator(".hc-number").wait_for()
    assert shown_count(window) == pytest.approx(expected[0].count, abs=0.051)
    window.get_by_label("Or type a region").fill("left=0%,0%,50%,100%")
    window.get_by_role("button", name="Add", exact=True).click()
    left = [one.count_regions({"left": "0%,0%,50%,100%"})["left"] for one in expected]
    assert region_counts(window, 1) == pytest.approx({"left": left[0]}, abs=0.051)

    rows = list(csv.DictReader(io.StringIO(download(window, "Counts (CSV)").decode())))
    assert [row["file"] for row in rows] == ["0.png", "1.png"]
    assert [float(row["count"]) for row in rows] == pytest.approx([one.count for one in expected], abs=1e-4)
    assert [float(row["region left"]) for row in rows] == pytest.approx(left, abs=1e-4)
    blocks = np.load(io.BytesIO(download(window, "Density (npy)")))
    np.testing.assert_array_equal(blocks, expected[0].block_counts)
    with Image.open(io.BytesIO(download(window, "Picture (PNG)"))) as picture:
        assert picture.width > 800

    window.get_by_role("listbox", name="Picture").or_(window.get_by_label("Picture", exact=True)).first.click()
    window.get_by_role("option", name=re.compile("2. 1.png")).click()
    window.get_by_text("1.png, 200 × 120 pixels").wait_for()
    assert shown_count(window) == pytest.approx(expected[1].count, abs=0.051)
    assert region_counts(window, 1) == pytest.approx({"left": left[1]}, abs=0.051)
    window.get_by_role("tab", name="Bins").click()
    window.get_by_text("Most probable number of people in each block").wait_for()
    assert window.locator(".hc-legend li").count() == len(counter.bins or [])

    link = window.get_by_role("link", name="Counts (CSV)").evaluate("link => link.href")
    assert httpx.get(link).status_code == 200
    window.close()
    for _ in range(300):
        if httpx.get(link).status_code == 404:
            break
        time.sleep(0.1)
    assert httpx.get(link).text == "These results were deleted."


def test_regions_are_drawn_by_clicks(visit: Callable[..., Any], counter: PhotoCounter, folder: Path) -> None:
    file = save_noise(folder / "drawn.png", width=384, height=288)
    prediction = counter.predict(file)
    window = visit()
    upload(window, file)
    window.locator("#hc-overlay img").wait_for()
    window.get_by_role("radio", name="Rectangle").check()
    window.get_by_text("Click two opposite corners").wait_for()
    click_in_picture(window, 0.25, 0.25, enables="Undo")
    click_in_picture(window, 0.75, 0.5, enables="Remove all")
    expected = prediction.count_regions({"region 1": "25%,25%,75%,50%"})
    assert region_counts(window, 1) == pytest.approx(expected, rel=0.02)
    window.get_by_role("radio", name="Polygon").check()
    window.get_by_text("Click the corners").wait_for()
    for k, (x, y) in enumerate(((0.1, 0.1), (0.9, 0.1), (0.5, 0.9))):
        click_in_picture(window, x, y, enables="Finish polygon" if k == 2 else "Undo")
        window.wait_for_timeout(1500)
    window.get_by_role("button", name="Finish polygon").click()
    expected |= prediction.count_regions({"region 2": "10%,10%,90%,10%,50%,90%"})
    assert region_counts(window, 2) == pytest.approx(expected, rel=0.02)
    window.get_by_role("button", name="Undo").click()
    window.locator(".hc-table tbody tr").nth(1).wait_for(state="detached")
    window.get_by_role("button", name="Remove all").click()
    window.locator(".hc-table").wait_for(state="detached")
    window.get_by_label("Or type a region").fill("bow=0,0,50,50,50,0,0,50")
    window.get_by_label("Or type a region").press("Enter")
    assert "crosses or touches itself" in window.get_by_role("alert").inner_text()


def test_what_cannot_be_counted_gets_a_sentence(visit: Callable[..., Any], folder: Path) -> None:
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0broken")
    Image.new("1", (2100, 2000)).save(folder / "many_pixels.png")
    (folder / "big.jpg").write_bytes(b"\xff" * (2**20 + 1))
    window = visit()
    upload(window, folder / "broken.jpg", folder / "many_pixels.png")
    window.locator(".hc-problem").wait_for()
    said = window.get_by_role("alert").inner_text()
    assert "broken.jpg cannot be read as an image" in said
    assert "many_pixels.png has too many pixels, 2100 x 2000: at most 4 megapixels are accepted." in said
    assert "Traceback" not in window.content()
    assert str(folder) not in window.content()
    assert window.get_by_text("Drop a picture or a video").is_visible()
    window.get_by_text("at most 1 MB").wait_for()
    upload(window, folder / "big.jpg")
    window.get_by_text(re.compile(r'exceed the maximum allowed size of 1(\.0)? Mb: "big.jpg"', re.I)).wait_for()


def test_a_video_and_the_camera(visit: Callable[..., Any], folder: Path) -> None:
    window = visit(permissions=["camera"])
    upload(window, make_video(folder / "clip.mp4"))
    window.locator("img.hc-curve").wait_for()
    assert window.locator("img.hc-curve").evaluate("image => image.naturalWidth") > 500
    window.get_by_text("clip.mp4 at 0:00.0, 96 × 64 pixels").wait_for()
    window.get_by_role("tab", name="Camera").click()
    window.get_by_role("button", name="Click to Access Webcam").click()
    assert nameless(window) == []
    window.wait_for_function("(document.querySelector('video') || {}).readyState >= 2")  # the camera shows something
    window.get_by_role("button", name=re.compile("capture", re.I)).click()
    window.locator("img.hc-curve").wait_for(state="detached")
    assert not window.get_by_role("alert").filter(has_text=".").is_visible()
    assert "pixels" in window.locator(".hc-headline").inner_text()


def test_a_phone_and_names_for_those_who_do_not_see(visit: Callable[..., Any]) -> None:
    window = visit(**PHONE)
    assert nameless(window) == []
    window.get_by_role("button", name="Thumbnail 4 of 6").click()
    window.locator("#hc-overlay img").wait_for()
    window.wait_for_function("() => document.querySelector('.hc-headline').getBoundingClientRect().top < 400")
    assert nameless(window) == []
    assert window.evaluate("document.documentElement.scrollWidth") == 390
    for control in window.locator("button:visible, a:visible, input:visible").all():
        box = control.bounding_box()
        assert box is None or (box["x"] >= 0 and box["x"] + box["width"] <= 390), control.inner_html()
    window.get_by_role("tab", name="Bins").click()
    assert nameless(window) == []


def test_ten_clients_at_once(address: str, counter: PhotoCounter, folder: Path) -> None:
    """Each with a picture of its own, and two with the same; each gets the count of its picture."""
    from gradio_client import Client, handle_file

    files = [save_noise(folder / f"client_{k}.png", seed=k % 9, width=96 + 16 * (k % 9)) for k in range(10)]

    def count(file: Path) -> str:
        with_files = Client(address, verbose=False, download_files=False, analytics_enabled=False)
        results = with_files.predict([handle_file(file)], 80, "Off", api_name="/count")
        return " ".join(part for part in results if isinstance(part, str))

    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(count, files))
    for file, answer in zip(files, answers, strict=True):
        assert f"<strong>{counter.count(file):,.1f}</strong>" in answer
        assert file.name in answer


def test_no_file_of_the_server_can_be_read(address: str, checkpoint: Path) -> None:
    from gradio_client import Client

    paths = [
        "/etc/passwd",
        str(checkpoint),
        str(ROOT / "README.md"),
        "../../../../etc/passwd",
        "..%2f..%2fetc%2fpasswd",
    ]
    for path in paths:
        assert httpx.get(f"{address}gradio_api/file={path}").status_code in (403, 404)
    assert str(checkpoint.parent) not in httpx.get(f"{address}config").text
    client = Client(address, verbose=False, download_files=False, analytics_enabled=False)
    for path in paths[:3]:
        with pytest.raises(Exception, match=r"error|upload"):
            client.predict([{"path": path, "meta": {"_type": "gradio.FileData"}}], 80, "Off", api_name="/count")


def test_uploads_are_deleted_and_examples_stay(
    counter: PhotoCounter, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from headcount.page import layout

    monkeypatch.setattr(layout, "_KEPT_SECONDS", 2)
    monkeypatch.setattr(layout, "_CHECK_SECONDS", 1)
    with serving(counter) as address:
        picture = save_noise(folder / "deleted.png")
        (stored,) = httpx.post(
            f"{address}gradio_api/upload", files={"files": ("deleted.png", picture.read_bytes())}
        ).json()
        assert Path(stored).read_bytes() == picture.read_bytes()
        for _ in range(300):
            if not Path(stored).exists():
                break
            time.sleep(0.1)
        assert not Path(stored).exists()
        thumbnails = set(re.findall(r'"path": ?"([^"]+\.webp)"', httpx.get(f"{address}config").text))
        assert len(thumbnails) == 6
        assert all(Path(thumbnail).exists() for thumbnail in thumbnails)


def test_the_command_ends_with_ctrl_c_and_leaves_no_file(checkpoint: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "demo.py"), f"ckpt={checkpoint}", "--port", "0"]
    with subprocess.Popen(
        [*command, "--device", "cpu"], stdout=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(tmp_path)}
    ) as process:
        assert process.stdout is not None
        address = process.stdout.readline().split()[0]
        for _ in range(600):
            try:
                assert httpx.get(address).status_code == 200
                break
            except httpx.TransportError:
                time.sleep(0.1)
        assert list(tmp_path.glob("headcount_page_*/*"))
        process.send_signal(signal.SIGINT)
        assert process.wait(60) in (0, 130, -signal.SIGINT)
    assert list(tmp_path.glob("headcount_page_*")) == []
