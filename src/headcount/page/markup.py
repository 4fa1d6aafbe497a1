"""The parts of the page that are text: headline, legends, tables and links, as HTML."""

from collections.abc import Sequence
from html import escape

import numpy as np
from jaxtyping import Float

from headcount.page.session import Session, View
from headcount.report.bin_map import bin_colors
from headcount.report.overlay import color_scale
from headcount.types import CountInterval
from headcount.wording import printable

TITLE = "headcount"
_STOPS = 9  # of the color bar


def header(model: str, dataset: str) -> str:
    """The title, and which counter is used."""
    trained = "generated crowds; it knows no real photographs" if dataset == "synthetic" else dataset
    return (
        f'<header class="hc-header"><h1>{TITLE}</h1>'
        "<p>How many people are in the picture, and where?</p>"
        f'<p class="hc-quiet">Counter: {_text(model)}, trained on {_text(trained)}.</p></header>'
    )


def welcome() -> str:
    """Shown as long as nothing was counted."""
    return (
        '<div class="hc-welcome"><p>Drop a picture or a video, or choose an example.</p>'
        '<p class="hc-quiet">The count, a map of the crowd, and the counts of regions appear here.</p></div>'
    )


def headline(session: Session) -> str:
    """The count of the picture that is shown, its interval and what is odd about it."""
    view = session.view
    result = view.result
    lines = [f'<p class="hc-number"><strong>{view.count:,.1f}</strong> <span>people</span></p>']
    if result.interval is not None:
        lines.append(f'<p class="hc-interval">{_text(interval_text(result.interval))}</p>')
    lines.append(f'<p class="hc-quiet">{_text(result.file)}, {view.photo_size[0]} × {view.photo_size[1]} pixels</p>')
    if result.note:
        lines.append(f'<p class="hc-note">{_text(result.note[0].upper() + result.note[1:])}.</p>')
    if len(session.views) > 1 and session.curve is None:
        total = sum(view.count for view in session.views)
        lines.append(f'<p class="hc-quiet">All {len(session.views)} pictures: {total:,.1f} people</p>')
    return f'<section class="hc-headline" aria-label="Count" aria-live="polite">{"".join(lines)}</section>'


def interval_text(interval: CountInterval) -> str:
    """An interval in words."""
    kind = "" if interval.calibrated else ", not calibrated"
    return f"{interval.low:,.0f} to {interval.high:,.0f} people ({interval.level:.0%} interval{kind})"


def density_legend(view: View) -> str:
    """The color bar of the density map."""
    if view.blocks is None:
        return '<p class="hc-quiet">This counter predicts one number per picture, and no map.</p>'
    stops = ", ".join(_rgb(color) for color in color_scale(_STOPS))
    size = view.block_size
    return (
        f'<div class="hc-bar"><span>0</span><i style="background: linear-gradient(to right, {stops})"></i>'
        f"<span>{view.scale:.2g} people per block of {size} × {size} pixels</span></div>"
    )


def bin_legend(view: View, names: Sequence[str]) -> str:
    """The color and meaning of each bin, with the number of blocks in which it is the most probable one."""
    if view.bins is None:
        return '<p class="hc-quiet">This counter has no bins.</p>'
    found = np.bincount(view.bins.ravel(), minlength=len(names))
    entries = [
        f'<li><i style="background: {_rgb(color)}"></i><b>{_text(name)}</b> '
        f'<span class="hc-quiet">{blocks:,} {"block" if blocks == 1 else "blocks"}</span></li>'
        for name, color, blocks in zip(names, bin_colors(len(names)), found.tolist(), strict=True)
    ]
    return (
        '<p class="hc-quiet">Most probable number of people in each block; gray: none</p>'
        f'<ul class="hc-legend">{"".join(entries)}</ul>'
    )


def readable_bins(edges: Sequence[tuple[float, float]], *, smoothed: bool) -> list[str]:
    """The bins as a reader expects them: 0, 1, 2 to 3, 4 or more."""
    words = []
    for low, high in edges:
        if high == float("inf"):
            words.append(f"more than {low:g}" if smoothed else f"{low:g} or more")
        else:
            words.append(f"{low:g}" if low == high else f"{low:g} to {high:g}")
    return words


def region_table(session: Session) -> str:
    """The count of each region of the picture that is shown."""
    counts = session.view.count_regions(session.regions)
    if not counts:
        return ""
    total = session.view.count
    rows = [
        f'<tr><th scope="row">{_text(name)}</th><td>{count:,.1f}</td>'
        f"<td>{count / total if total > 0 else 0:.0%}</td></tr>"
        for name, count in counts.items()
    ]
    return (
        '<table class="hc-table"><caption>People in each region</caption><thead><tr><th scope="col">region</th>'
        '<th scope="col">people</th><th scope="col">of the picture</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def downloads(session: Session) -> str:
    """Links to the files of the results."""
    links = [("counts.csv", "Counts (CSV)")]
    if session.view.blocks is not None:
        links += [("density.npy", "Density (npy)"), ("picture.png", "Picture (PNG)")]
    listed = [
        f'<a class="hc-download" href="results/{session.token}/{name}" download="{name}">{label}</a>'
        for name, label in links
    ]
    return f'<nav class="hc-downloads" aria-label="Downloads">{"".join(listed)}</nav>'


def curve(session: Session) -> str:
    """The counts of a video over time; empty without one."""
    if session.curve is None:
        return ""
    return f'<img class="hc-curve" src="results/{session.token}/curve.png" alt="People over time in the video">'


def problems(sentences: Sequence[str]) -> str:
    """What could not be done; empty if nothing went wrong."""
    if not sentences:
        return ""
    return f'<div class="hc-problem" role="alert">{"".join(f"<p>{_text(words)}</p>" for words in sentences)}</div>'


def heading(text: str) -> str:
    """The title of a part of the page."""
    return f'<h2 class="hc-heading">{_text(text)}</h2>'


def quiet(text: str) -> str:
    """A remark."""
    return f'<p class="hc-quiet">{_text(text)}</p>'


def _text(text: str) -> str:
    return escape(printable(text))


def _rgb(color: Float[np.ndarray, "3"]) -> str:
    return f"rgb({', '.join(str(round(255 * value)) for value in color)})"
