"""One self-contained HTML page: pictures, videos that play, curves, figures.

What is here makes HTML of plain values and escapes all of them; ``page.css`` and ``page.js`` beside
it are its looks and what moves. A page refers to nothing outside itself, and its own policy forbids
it to: only the script of this package runs, whatever a name or a caption holds.
"""

import base64
import hashlib
import io
import json
import math
import re
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

from PIL import Image

from tatscli.app.report.curves import Chart
from tatscli.core.data.video import VideoInfo, probe, read_frames
from tatscli.core.diagnosis import Verdict
from tatscli.errors import DataError

KINDS = {".png": "image/png", ".mp4": "video/mp4"}
"""What a page can hold, by suffix."""
LEVELS = {"bad": "Bad", "watch": "Watch", "early": "Too early", "good": "Good"}
"""Of verdicts, worst first, and what they are called."""
MARK = '<p class="kicker">tats</p>'
"""What every page has, and others hardly do."""
POSTER = 128
"""Longest side of the picture that stands for a video until it plays."""
POSTER_QUALITY = 40
"""Of its JPEG: some 3 % of the bytes of a video, and enough to be told from others."""
COLOURS = 8
"""Of runs, told apart by the colour-blind too; then they repeat."""


@dataclass(frozen=True)
class Section:
    """A part of a page.

    Attributes:
        title: Heading.
        text: A paragraph below it.
        body: HTML.
    """

    title: str
    text: str
    body: str

    @property
    def anchor(self) -> str:
        """Its name in links."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


def page(title: str, text: str, sections: Sequence[Section]) -> str:
    """The whole page."""
    script = _part("page.js")
    digest = base64.b64encode(hashlib.sha256(f"\n{script}\n".encode()).digest()).decode()
    policy = (
        "default-src 'none'; img-src data:; media-src data: blob:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'"
    )
    return Template(_part("page.html")).substitute(
        mark=MARK,
        title=escape(title),
        text=escape(text),
        policy=escape(policy),
        style=_part("page.css"),
        script=script,
        links="\n".join(f'<a href="#{s.anchor}">{escape(s.title)}</a>' for s in sections),
        body="\n".join(_section(section) for section in sections),
    )


def is_page(file: Path) -> bool:
    """Whether a file is such a page, which a new one may replace."""
    try:
        return MARK.encode() in file.read_bytes()
    except OSError:
        return False


def part(title: str, body: str, text: str = "") -> str:
    """A part of a section, with a heading of its own."""
    return f'<div class="part">\n<h3>{escape(title)}</h3>\n{_paragraph(text)}{body}\n</div>'


def row(*figures: str, small: bool = False) -> str:
    """Figures beside each other where there is room."""
    return f'<div class="row{" small" if small else ""}">\n' + "\n".join(figures) + "\n</div>"


def card(title: str, body: str, pill: str = "", colour: int | None = None) -> str:
    """A box with a heading.

    Args:
        title: Heading.
        body: HTML.
        pill: HTML beside the heading, see ``pill``.
        colour: Number of the run whose colour it shows.
    """
    head = f"{_chip(colour)}<h3>{escape(title)}</h3>{pill}"
    return f'<div class="card run">\n<header>{head}</header>\n{body}\n</div>'


def pill(word: str, level: str = "") -> str:
    """A word that stands out; level is ``good``, ``watch``, ``bad`` or nothing."""
    return f'<span class="pill {escape(level)}">{escape(word)}</span>'


def media(file: Path, caption: str, info: VideoInfo | None = None) -> str:
    """A picture, or a video that plays by itself in a loop while it is seen, inside the page.

    Args:
        file: PNG or MP4.
        caption: Below it, and for those who do not see it.
        info: What is known about the file, where it was looked at before.

    Raises:
        DataError: It cannot be read.
    """
    info = info or probe(file)
    kind, label = KINDS[file.suffix], escape(caption)
    source = _inline(kind, file.read_bytes())
    size = f'width="{info.width}" height="{info.height}"'
    if kind.startswith("video"):
        # Muted, since nothing else may play by itself; what has sound keeps the browser's controls.
        shown = (
            f'<video {size} title="{label}" aria-label="{label}" preload="none" loop muted '
            f"playsinline controls{' data-sound' if info.sound else ''}{_poster(file, info)} "
            f'src="{source}"></video>'
        )
    else:
        shown = f'<img {size} alt="{label}" src="{source}">'
    return (
        f'<figure class="media"><div class="screen">{shown}</div>'
        f"<figcaption>{label}</figcaption></figure>"
    )


def _inline(kind: str, content: bytes) -> str:
    """Content as an address that a page can hold."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _poster(file: Path, info: VideoInfo) -> str:
    """The first frame of a video, small: phones show none before it plays."""
    try:
        picture = Image.fromarray(read_frames(file, info, [0])[0])
    except DataError:
        return ""  # the browser may know better
    picture.thumbnail((POSTER, POSTER))
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=POSTER_QUALITY, optimize=True)
    return f' poster="{_inline("image/jpeg", content.getvalue())}"'


def slider(steps: Mapping[int, str]) -> str:
    """What was drawn at each step, of which a slider chooses one; the last at first."""
    *_, newest = steps
    shown = [
        f'<div data-step="{step}"{"" if step == newest else " hidden"}>\n{body}\n</div>'
        for step, body in steps.items()
    ]
    chosen = len(steps) - 1
    tools = (
        f'<div class="tools"><label>Step <input type="range" min="0" max="{chosen}" '
        f'value="{chosen}" aria-valuetext="step {newest}"><output>{newest}</output></label></div>'
    )
    return '<div class="steps">\n' + (tools if chosen else "") + "\n".join(shown) + "\n</div>"


def facts(values: Mapping[str, str], marked: Container[str] = ()) -> str:
    """Names and values, as a list; some names stand out."""
    lines = (
        f"<dt>{_marked(name) if name in marked else escape(name)}</dt><dd>{escape(value)}</dd>"
        for name, value in values.items()
    )
    return "<dl>\n" + "\n".join(lines) + "\n</dl>"


def settings(values: Mapping[str, str], marked: Container[str] = ()) -> str:
    """Settings by dotted key; those that differ from other runs stand out."""
    return f'<div class="card settings">{facts(values, marked)}</div>'


def hero(value: str, name: str) -> str:
    """A figure that is read first."""
    return f'<p>{escape(name)}</p><p class="hero">{escape(value)}</p>'


def bar(share: float, text: str) -> str:
    """A share from 0 to 1, drawn and said."""
    return (
        f'<p>{escape(text)}</p><div class="bar"><svg viewBox="0 0 100 1" '
        f'preserveAspectRatio="none" aria-hidden="true"><rect width="{100 * share:.2f}" '
        'height="1"/></svg></div>'
    )


def note(text: str) -> str:
    """A paragraph."""
    return _paragraph(text)


def failure(text: str) -> str:
    """What went wrong."""
    return f'<p class="error">{escape(text)}</p>'


def boxed(body: str) -> str:
    """HTML in a box without a heading."""
    return f'<div class="card">{body}</div>'


def verdicts(found: Sequence[Verdict]) -> str:
    """A list of them."""
    items = [
        f'<li class="card">{pill(LEVELS[v.level], v.level)}<h3>{escape(v.subject)}</h3>'
        + "".join(
            f'<p class="{name}">{escape(text)}</p>'
            for name, text in (("text", v.text), ("advice", v.advice))
            if text
        )
        + "</li>"
        for v in found
    ]
    return '<ul class="verdicts">\n' + "\n".join(items) + "\n</ul>"


def figures_table(figures: Mapping[str, str]) -> str:
    """Names and numbers, as a table."""
    lines = (
        f'<tr><th scope="row">{escape(k)}</th><td>{escape(v)}</td></tr>' for k, v in figures.items()
    )
    return boxed('<table class="numbers"><tbody>\n' + "\n".join(lines) + "\n</tbody></table>")


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: bool = False) -> str:
    """A table whose first column names its rows.

    Args:
        head: Names of the columns.
        rows: Cells, as text.
        numbers: Whether the other columns are numbers; if not, they stack on a narrow screen.
    """
    titles = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    lines = (
        f'<tr><th scope="row">{escape(first)}</th>'
        + "".join(
            f'<td data-of="{escape(of)}">{escape(cell)}</td>'
            for of, cell in zip(head[1:], rest, strict=True)
        )
        + "</tr>"
        for first, *rest in rows
    )
    return (
        f'<table class="{"numbers" if numbers else "stack"}"><thead><tr>{titles}</tr></thead>'
        "<tbody>\n" + "\n".join(lines) + "\n</tbody></table>"
    )


def folded(summary: str, body: str) -> str:
    """HTML that is seen only once it is asked for."""
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"


def commands(lines: Sequence[str]) -> str:
    """Command lines to copy."""
    return f"<pre>{escape(chr(10).join(lines))}</pre>"


def curves(runs: Sequence[str], charts: Sequence[Chart]) -> str:
    """Charts over steps to zoom into, smooth and read, all at the same steps.

    Args:
        runs: Their names.
        charts: Each with curves of some of the runs.
    """
    data = {
        "runs": list(runs),
        "charts": [
            {
                "series": [
                    {
                        "run": curve.run,
                        "part": curve.part,
                        "x": [step for step, _ in curve.points],
                        "y": [value if math.isfinite(value) else None for _, value in curve.points],
                    }
                    for curve in chart.curves
                ]
            }
            for chart in charts
        ],
    }
    legend = "".join(
        f'<button type="button" class="c{number % COLOURS}" aria-pressed="true">'
        f'<span class="chip"></span>{escape(name)}</button>'
        for number, name in enumerate(runs)
    )
    return (
        '<div class="curves">\n'
        f'<script type="application/json">{_inert(data)}</script>\n'
        '<div class="tools">\n'
        '<label>Smoothing <input type="range" name="smoothing" min="0" max="0.98" step="0.02" '
        'value="0"><output>0.00</output></label>\n'
        '<label><input type="checkbox" name="log"> Log scale</label>\n'
        '<button type="button" name="reset" disabled>Reset zoom</button>\n'
        + (
            f'<div class="legend" role="group" aria-label="Runs shown">{legend}</div>\n'
            if len(runs) > 1
            else ""
        )
        + '</div>\n<div class="charts">\n'
        + "\n".join(_chart(chart) for chart in charts)
        + "\n</div>\n</div>"
    )


def _chart(chart: Chart) -> str:
    label = (
        f"{chart.name} over steps. Arrow keys read values, plus and minus zoom, Shift and arrow "
        "keys move, Escape shows all."
    )
    return (
        f'<figure class="card chart"><h4>{escape(chart.name)} <span class="at"></span></h4>'
        f'<p class="readout"></p>'
        f'<svg tabindex="0" role="img" aria-label="{escape(label)}"></svg></figure>'
    )


def _section(section: Section) -> str:
    return (
        f'<section id="{section.anchor}">\n<h2>{escape(section.title)}</h2>\n'
        f"{_paragraph(section.text)}{section.body}\n</section>"
    )


def _paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>\n" if text else ""


def _marked(text: str) -> str:
    return f"<mark>{escape(text)}</mark>"


def _chip(colour: int | None) -> str:
    return "" if colour is None else f'<span class="chip c{colour % COLOURS}"></span>'


def _inert(data: object) -> str:
    """JSON that cannot end the element it stands in."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


def _part(name: str) -> str:
    return (files(__package__) / name).read_text(encoding="utf-8").strip()
