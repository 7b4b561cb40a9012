"""One self-contained HTML page: pictures, videos that play, curves, figures."""

import base64
import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

STYLE = """
:root { color-scheme: light dark; --ink: #1c1f24; --soft: #6b7280; --paper: #fbfbf9;
  --card: #ffffff; --line: #e3e3de; --one: #2563eb; --two: #d97706; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8e3; --soft: #9aa0aa; --paper: #15171a;
  --card: #1d2024; --line: #30343a; --one: #7aa2ff; --two: #f2a541; } }
* { box-sizing: border-box; }
body { margin: 0; padding: 2rem 1rem 4rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 62rem; margin: auto; }
h1 { font-size: 1.7rem; margin: 0 0 .3rem; } h2 { font-size: 1.15rem; margin: 2.4rem 0 .4rem; }
p { margin: .3rem 0 1rem; color: var(--soft); max-width: 46rem; }
figure { margin: 0; padding: .8rem; background: var(--card); border: 1px solid var(--line);
  border-radius: .6rem; overflow-x: auto; }
figure img, figure video { display: block; width: 100%; image-rendering: pixelated; }
figcaption { color: var(--soft); font-size: .9rem; margin-top: .5rem; }
.row { display: grid; gap: 1rem; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr)); }
table { border-collapse: collapse; width: 100%; }
td { padding: .35rem .6rem .35rem 0; border-bottom: 1px solid var(--line); }
td:last-child { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: .6rem;
  padding: .8rem; overflow-x: auto; }
svg text { fill: var(--soft); font: 11px system-ui, sans-serif; }
"""

WIDTH, HEIGHT, MARGIN = 440, 220, 44
"""Of a chart, in its own units."""


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


def page(title: str, text: str, sections: Sequence[Section]) -> str:
    """The whole page; it refers to nothing outside itself."""
    parts = [f"<h2>{escape(s.title)}</h2>\n<p>{escape(s.text)}</p>\n{s.body}" for s in sections]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{escape(title)}</h1>\n<p>{escape(text)}</p>\n" + "\n".join(parts) + "\n</main>\n"
        "</body>\n</html>\n"
    )


def row(*figures: str) -> str:
    """Figures beside each other where there is room."""
    return '<div class="row">\n' + "\n".join(figures) + "\n</div>"


def image(file: Path, caption: str) -> str:
    """A picture inside the page."""
    return _figure(f'<img alt="{escape(caption)}" src="{_inline(file, "image/png")}">', caption)


def video(file: Path, caption: str) -> str:
    """A video inside the page, playing by itself in a loop."""
    source = _inline(file, "video/mp4")
    return _figure(f'<video src="{source}" autoplay loop muted playsinline></video>', caption)


def figures_table(figures: Mapping[str, str]) -> str:
    """Names and values."""
    lines = (f"<tr><td>{escape(k)}</td><td>{escape(v)}</td></tr>" for k, v in figures.items())
    return "<table>\n" + "\n".join(lines) + "\n</table>"


def commands(lines: Sequence[str]) -> str:
    """Command lines to copy."""
    return f"<pre>{escape(chr(10).join(lines))}</pre>"


def chart(curves: Mapping[str, Sequence[tuple[int, float]]], caption: str) -> str:
    """Curves over steps, as an SVG figure.

    Args:
        curves: For each name, its points (step, value).
        caption: Below the chart.
    """
    return _figure(curves_svg(curves), caption)


def curves_svg(curves: Mapping[str, Sequence[tuple[int, float]]]) -> str:
    """Curves over steps as SVG: two colours, values at both ends of each axis."""
    points = [point for curve in curves.values() for point in curve]
    last = max((step for step, _ in points), default=1) or 1
    values = [value for _, value in points] or [0.0]
    low, high = min(values), max(values)
    span = (high - low) or 1.0

    def place(step: int, value: float) -> str:
        x = MARGIN + (WIDTH - MARGIN - 8) * step / last
        y = 8 + (HEIGHT - MARGIN) * (high - value) / span
        return f"{x:.1f},{y:.1f}"

    bottom = HEIGHT - MARGIN + 8
    drawn = []
    for number, (name, curve) in enumerate(curves.items()):
        colour = ("var(--one, #2563eb)", "var(--two, #d97706)")[number % 2]
        line = " ".join(place(step, value) for step, value in curve)
        drawn.append(
            f'<polyline fill="none" stroke="{colour}" stroke-width="1.6" points="{line}"/>'
        )
        drawn.append(
            f'<text x="{MARGIN + 8 + 130 * number}" y="{HEIGHT - 4}" style="fill:{colour}">'
            f"{escape(name)}</text>"
        )
    grey = "var(--line, #bbbbbb)"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="100%">'
        f'<path d="M{MARGIN} 8V{bottom}H{WIDTH - 8}" fill="none" stroke="{grey}"/>'
        f'<text x="{MARGIN - 4}" y="16" text-anchor="end">{high:.3g}</text>'
        f'<text x="{MARGIN - 4}" y="{bottom}" text-anchor="end">{low:.3g}</text>'
        f'<text x="{WIDTH - 8}" y="{bottom + 14}" text-anchor="end">step {last}</text>'
        + "".join(drawn)
        + "</svg>"
    )


def read_curve(metrics: Path, name: str) -> list[tuple[int, float]]:
    """The points of one metric of a run's ``metrics.csv``."""
    with metrics.open(encoding="utf-8", newline="") as stream:
        return [
            (int(line["step"]) + 1, float(line["value"]))
            for line in csv.DictReader(stream)
            if line["metric"] == name
        ]


def _figure(content: str, caption: str) -> str:
    return f"<figure>{content}<figcaption>{escape(caption)}</figcaption></figure>"


def _inline(file: Path, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"
