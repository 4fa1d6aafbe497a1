"""The page itself: its parts, and what happens when they are used.

Imported by ``server`` only, once Gradio is set up.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from headcount.data.regions import parse_region
from headcount.errors import HeadcountError
from headcount.page import downloads, markup
from headcount.page.counting import Example, PageCounter
from headcount.page.session import Session, Sessions
from headcount.wording import printable

# Uploaded files are deleted at this age; the check is repeated every so many seconds.
_KEPT_SECONDS, _CHECK_SECONDS = 600, 30
_WAITING = 30  # uploads that may wait; the next person is asked to try again
_OFF, _RECTANGLE, _POLYGON = "Off", "Rectangle", "Polygon"
_NETWORK: dict[str, Any] = {"concurrency_id": "network", "concurrency_limit": 1}
# Nobody waits for these: they need milliseconds.
_QUICK: dict[str, Any] = {
    "concurrency_id": "quick",
    "concurrency_limit": 10,
    "show_progress": "hidden",
    "api_visibility": "private",
}
_HELP = {
    _OFF: "Choose a shape to count a part of the picture.",
    _RECTANGLE: "Click two opposite corners in the density map.",
    _POLYGON: "Click the corners in the density map, one after the other, then finish.",
}
# In a narrow window, the results are below what was clicked.
_SCROLL = "() => { document.getElementById('hc-output').scrollIntoView({behavior: 'smooth', block: 'nearest'}); }"
_EXPIRED = "These results were deleted. Upload the picture again."


def theme() -> gr.Theme:
    """Calm colors, and fonts of the visitor's own system: none is downloaded."""
    return gr.themes.Soft(
        primary_hue="teal",
        neutral_hue="slate",
        font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"],
        font_mono=["ui-monospace", "Consolas", "monospace"],
    ).set(
        block_label_background_fill="none",
        block_title_background_fill="none",
        block_title_text_color="*body_text_color",
        block_title_padding="0",
        block_title_text_weight="600",
        block_shadow="none",
    )


class Page:
    """The parts of the page; ``blocks`` is what Gradio serves."""

    def __init__(self, counter: PageCounter, sessions: Sessions, examples: Sequence[Example]) -> None:
        """Lay out the page.

        Args:
            counter: counts what is uploaded.
            sessions: the results of each open window.
            examples: pictures to begin with.
        """
        self._counter, self._sessions, self._examples = counter, sessions, examples
        loaded = counter.counter
        bins = loaded.bins
        self._bins = [] if bins is None else markup.readable_bins(bins.edges, smoothed=bins.smoothed)
        self._has_blocks = "blocks" in loaded.config.model.head.predicts
        self.blocks = gr.Blocks(
            title=markup.TITLE, analytics_enabled=False, delete_cache=(_CHECK_SECONDS, _KEPT_SECONDS)
        )
        with self.blocks:
            gr.HTML(markup.header(loaded.config.model.name, loaded.config.dataset.name))
            with gr.Row(elem_id="hc-columns"):
                with gr.Column(scale=3, min_width=280):
                    self._lay_out_input()
                with gr.Column(scale=7, min_width=280, elem_id="hc-output"):
                    self._lay_out_results()
            self._connect()
            self.blocks.unload(self._forget)
        self.blocks.queue(max_size=_WAITING, default_concurrency_limit=10)

    def _lay_out_input(self) -> None:
        with gr.Tabs():
            with gr.Tab("Pictures or video"):
                self.files = gr.File(
                    label="Pictures or a video",
                    show_label=False,
                    file_count="multiple",
                    file_types=["image", "video"],
                    height=180,
                    elem_id="hc-files",
                )
            with gr.Tab("Camera"):
                self.camera = gr.Image(
                    label="Camera",
                    show_label=False,
                    sources=["webcam"],
                    type="filepath",
                    image_mode=None,
                    format="png",
                    webcam_options=gr.WebcamOptions(mirror=False),
                    buttons=[],
                    height=240,
                )
        gr.HTML(markup.heading("Or choose an example"))
        self.gallery = gr.Gallery(
            [(example.thumbnail, example.name) for example in self._examples],
            label="Examples",
            show_label=False,
            columns=3,
            object_fit="cover",
            allow_preview=False,
            interactive=False,
            buttons=[],
            elem_id="hc-examples",
        )
        deleted = f"Files are deleted after {_KEPT_SECONDS // 60} minutes, results when you close this window."
        gr.HTML(markup.quiet(self._counter.limits.sentence()) + markup.quiet(deleted))

    def _lay_out_results(self) -> None:
        self.problems = gr.HTML(elem_classes="hc-slot")
        self.headline = gr.HTML(markup.welcome(), elem_id="hc-result")
        with gr.Column(visible=False, min_width=0) as self.results:
            self.picker = gr.Dropdown(label="Picture", type="index", visible=False, elem_id="hc-picker")
            self.curve = gr.HTML(elem_classes="hc-slot")
            with gr.Tabs():
                with gr.Tab("Density"):
                    self.overlay = _picture("Density over the picture", "hc-overlay")
                    self.legend = gr.HTML()
                    self.strength = gr.Slider(
                        0, 100, 80, step=5, label="Strength of the density map, in percent", buttons=[]
                    )
                if self._bins:
                    with gr.Tab("Bins"):
                        self.bins = _picture("Most probable bin of each block", "hc-bins")
                        self.bin_legend = gr.HTML()
            with gr.Column(visible=self._has_blocks, min_width=0):
                self.shape = gr.Radio([_OFF, _RECTANGLE, _POLYGON], value=_OFF, label="Draw a region", info=_HELP[_OFF])
                with gr.Row():
                    self.finish = gr.Button("Finish polygon", size="sm", min_width=80, interactive=False)
                    self.undo = gr.Button("Undo", size="sm", min_width=80, interactive=False)
                    self.clear = gr.Button("Remove all", size="sm", min_width=80, interactive=False)
                with gr.Row(elem_id="hc-typed"):
                    self.typed = gr.Textbox(
                        label="Or type a region",
                        placeholder="door=0%,50%,30%,100%",
                        info="NAME=x1,y1,x2,y2 is a rectangle, more corners a polygon; pixels or percent",
                        max_lines=1,
                        max_length=2000,
                        scale=4,
                    )
                    self.add = gr.Button("Add", size="md", scale=1, min_width=80)
            self.regions = gr.HTML(elem_classes="hc-slot")
            self.links = gr.HTML()

    def _connect(self) -> None:
        shown = [self.problems, self.headline, self.results, self.picker, self.curve, *self._changing()]
        inputs = [self.strength, self.shape]
        uploaded = self.files.upload(
            self._count_files,
            [self.files, *inputs],
            [self.files, *shown],
            api_name="count",
            api_visibility="undocumented",
            show_progress_on=self.headline,
            **_NETWORK,
        )
        private: dict[str, Any] = {"api_visibility": "private", "show_progress_on": self.headline, **_NETWORK}
        taken = self.camera.input(self._count_photo, [self.camera, *inputs], [self.camera, *shown], **private)
        chosen = self.gallery.select(self._count_example, inputs, shown, **private)
        for counted in (uploaded, taken, chosen):
            counted.then(None, js=_SCROLL, queue=False, api_visibility="private")
        redrawn = [self.problems, *self._changing()]
        self.picker.input(
            self._pick, [self.picker, *inputs], [self.problems, self.headline, *self._changing()], **_QUICK
        )
        self.strength.change(self._redraw, inputs, self.overlay, trigger_mode="always_last", **_QUICK)
        self.shape.input(self._choose_shape, inputs, [self.shape, *redrawn], **_QUICK)
        self.overlay.select(self._click, inputs, redrawn, trigger_mode="multiple", **_QUICK)
        for button, change in ((self.finish, Session.finish), (self.undo, Session.undo), (self.clear, _clear)):
            button.click(self._changes_by(change), inputs, redrawn, **_QUICK)
        for event in (self.add.click, self.typed.submit):
            event(self._add_typed, [self.typed, *inputs], [self.typed, *redrawn], **_QUICK)

    def _changing(self) -> list[Any]:
        """The parts that depend on the picture that is shown, in the order of :meth:`_show`."""
        bins = [self.bins, self.bin_legend] if self._bins else []
        return [self.overlay, self.legend, *bins, self.regions, self.links, self.finish, self.undo, self.clear]

    # ------------------------------------------------------------------------------------- counting

    def _count_files(
        self,
        files: list[str] | None,
        strength: float,
        shape: str,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008  (how Gradio passes it)
    ) -> list[Any]:
        def report(share: float, what: str) -> None:
            progress(share, desc=printable(what))

        return [None, *self._count(files or [], strength, shape, request, report)]

    def _count_photo(self, file: str | None, strength: float, shape: str, request: gr.Request) -> list[Any]:
        return [None, *self._count([file] if file else [], strength, shape, request)]

    def _count_example(self, strength: float, shape: str, event: gr.SelectData, request: gr.Request) -> list[Any]:
        chosen = event.index if isinstance(event.index, int) and 0 <= event.index < len(self._examples) else 0
        return self._count([str(self._examples[chosen].file)], strength, shape, request)

    def _count(
        self,
        files: Sequence[str],
        strength: float,
        shape: str,
        request: gr.Request,
        report: Callable[[float, str], object] = lambda share, what: None,
    ) -> list[Any]:
        """Count files and show the first."""
        outcome = self._counter.count([Path(file) for file in files], report)
        problems = markup.problems(outcome.problems)
        session = outcome.session
        if session is None:
            unchanged = [gr.skip()] * (4 + len(self._changing()))
            return [problems, *unchanged]
        self._sessions.put(_window(request), session)
        several = len(session.views) > 1
        label = "Picture" if session.curve is None else "Frame"
        names = [printable(f"{k}. {v.result.file}: {v.count:.1f}") for k, v in enumerate(session.views, start=1)]
        picker = gr.Dropdown(names, value=names[0], label=label, visible=several)
        start = [problems, markup.headline(session), gr.Column(visible=True), picker, markup.curve(session)]
        return [*start, *self._show(session, strength, shape)]

    # -------------------------------------------------------------------------------------- showing

    def _show(self, session: Session, strength: float, shape: str) -> list[Any]:
        """The parts of :meth:`_changing`."""
        view = session.view
        bins = [downloads.bins(view, len(self._bins)), markup.bin_legend(view, self._bins)] if self._bins else []
        return [
            downloads.overlay(session, strength=_share(strength)),
            markup.density_legend(view),
            *bins,
            markup.region_table(session),
            markup.downloads(session),
            gr.Button(interactive=shape == _POLYGON and len(session.corners) > 2),
            gr.Button(interactive=bool(session.corners or session.regions)),
            gr.Button(interactive=bool(session.regions)),
        ]

    def _redraw(self, strength: float, shape: str, request: gr.Request) -> Any:
        session = self._sessions.get(_window(request))
        return gr.skip() if session is None else downloads.overlay(session, strength=_share(strength))

    def _pick(self, index: int | None, strength: float, shape: str, request: gr.Request) -> list[Any]:
        def pick(session: Session) -> None:
            session.selected = min(max(index or 0, 0), len(session.views) - 1)

        problems, *shown = self._changed(pick, strength, shape, request)
        session = self._sessions.get(_window(request))
        return [problems, gr.skip() if session is None else markup.headline(session), *shown]

    # -------------------------------------------------------------------------------------- regions

    def _choose_shape(self, strength: float, shape: str, request: gr.Request) -> list[Any]:
        return [gr.Radio(info=_HELP[shape]), *self._changed(_drop_corners, strength, shape, request)]

    def _click(self, strength: float, shape: str, event: gr.SelectData, request: gr.Request) -> list[Any]:
        def add(session: Session) -> None:
            height, width = downloads.pixels(session.view.photo).shape[:2]
            x, y = event.index
            corner = (100 * min(max((x + 0.5) / width, 0), 1), 100 * min(max((y + 0.5) / height, 0), 1))
            session.add_corner(*corner, rectangle=shape == _RECTANGLE)

        return self._changed(add if shape != _OFF else None, strength, shape, request)

    def _changes_by(self, change: Callable[[Session], None]) -> Callable[..., list[Any]]:
        def handler(strength: float, shape: str, request: gr.Request) -> list[Any]:
            return self._changed(change, strength, shape, request)

        return handler

    def _add_typed(self, text: str, strength: float, shape: str, request: gr.Request) -> list[Any]:
        problems, *shown = self._changed(lambda s: s.add(parse_region(text)), strength, shape, request)
        return [text if problems else "", problems, *shown]

    def _changed(
        self, change: Callable[[Session], None] | None, strength: float, shape: str, request: gr.Request
    ) -> list[Any]:
        """Change the session of a window and show it; a change that is refused is explained."""
        session = self._sessions.get(_window(request))
        if session is None:
            return [markup.problems([_EXPIRED]), *[gr.skip()] * len(self._changing())]
        problems = []
        try:
            if change is not None:
                change(session)
        except HeadcountError as error:
            problems.append(str(error))
        return [markup.problems(problems), *self._show(session, strength, shape)]

    def _forget(self, request: gr.Request) -> None:
        self._sessions.drop(_window(request))


def _picture(label: str, name: str) -> gr.Image:
    return gr.Image(
        label=label,
        show_label=False,
        alt_text=label,
        format="webp",
        interactive=False,
        buttons=["fullscreen"],
        elem_id=name,
        container=False,
    )


def _clear(session: Session) -> None:
    session.regions, session.corners = [], []


def _drop_corners(session: Session) -> None:
    session.corners = []


def _window(request: gr.Request) -> str:
    return str(request.session_hash)


def _share(percent: float) -> float:
    return min(max(float(percent), 0.0), 100.0) / 100
