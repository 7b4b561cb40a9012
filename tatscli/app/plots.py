"""Plots as SVG files that stand by themselves: how often codes are used, and where."""

import math
from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT = 720, 300
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 40, 44
"""Margins of the axes."""
POINTS = 512
"""Points of a curve at most."""
INK, SOFT, LINE, FILL, MARK = "#1c1f24", "#6b7280", "#d5d5cf", "#2563eb", "#d97706"
# From few to many, readable in grey, too.
_COLOURS = ((247, 251, 255), (158, 202, 225), (49, 130, 189), (8, 48, 107))


def ranked_svg(counts: Sequence[int], title: str) -> str:
    """How often each thing occurs, from the most frequent down, on a logarithmic axis.

    Args:
        counts: Any order, not all 0. What never occurs leaves the right of the plot empty; a dashed
            line shows where all would be if they were used equally.
        title: Above the plot.
    """
    ranked = sorted(counts, reverse=True)
    used = sum(count > 0 for count in ranked)
    # The axis begins below 1, so that a code used once can be seen.
    low, top = math.log10(0.5), math.log10(ranked[0])
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM

    def x(rank: float) -> float:
        return LEFT + (right - LEFT) * rank / len(ranked)

    def y(count: float) -> float:
        return bottom - (bottom - TOP) * (math.log10(count) - low) / (top - low)

    # Steps of a few codes each keep a plot of a large codebook small.
    step = max(1, used // POINTS)
    ranks = [*range(0, used, step), used - 1]
    points = "".join(
        f"L{x(rank):.1f} {y(ranked[rank]):.1f}H{x(min(rank + step, used)):.1f}" for rank in ranks
    )
    even = sum(ranked) / len(ranked)
    parts = [
        f'<path d="M{x(0):.1f} {bottom}{points}V{bottom}Z" fill="{FILL}" fill-opacity=".75"/>',
        _line(LEFT, bottom, right, bottom),
        _line(LEFT, TOP, LEFT, bottom),
    ]
    for power in range(int(top) + 1):
        parts += [
            _line(LEFT - 4, y(10**power), LEFT, y(10**power)),
            _text(LEFT - 8, y(10**power) + 4, f"{10**power:,}", anchor="end"),
        ]
    if even >= 1:
        parts += [
            f'<path d="M{LEFT} {y(even):.1f}H{right}" stroke="{MARK}" stroke-dasharray="5 4"/>',
            _text(right, y(even) - 6, f"all alike: {even:,.4g} times each", "end", MARK),
        ]
    parts += [
        _text(LEFT, bottom + 18, "most used"),
        _text(right, bottom + 18, f"{len(ranked):,} codes", anchor="end"),
        _text((LEFT + right) / 2, bottom + 34, "codes by rank; times used upwards", "middle"),
    ]
    return _svg(title, parts)


def grid_svg(title: str, bars: Sequence[float], cells: Sequence[Sequence[float]]) -> str:
    """A figure of each latent frame as bars, and of each place in it as a map, with their scale.

    Args:
        title: Above the plot.
        bars: One number for each latent frame, at least 0.
        cells: Rows of one number for each place, at least 0.
    """
    bottom, middle = HEIGHT - BOTTOM, WIDTH // 2
    parts = [*_bars(bars, LEFT, middle - 32, bottom)]
    values = [value for row in cells for value in row]
    low, high = min(values), max(values)
    side = min((bottom - TOP) / len(cells), (WIDTH - 96 - middle - 32) / len(cells[0]))
    for row, line in enumerate(cells):
        for column, value in enumerate(line):
            part = (value - low) / (high - low) if high > low else 0.5
            parts.append(
                f'<rect x="{middle + 32 + column * side:.2f}" y="{TOP + row * side:.2f}" '
                f'width="{side:.2f}" height="{side:.2f}" fill="{_colour(part)}">'
                f"<title>row {row}, column {column}: {value:,.4g}</title></rect>"
            )
    scale = middle + 32 + len(cells[0]) * side + 16
    height = len(cells) * side
    steps = 64
    for step in range(steps):
        at = TOP + height * (1 - (step + 1) / steps)
        parts.append(
            f'<rect x="{scale:.1f}" y="{at:.2f}" width="12" height="{height / steps + 0.5:.2f}" '
            f'fill="{_colour(step / (steps - 1))}"/>'
        )
    parts += [
        f'<rect x="{middle + 32}" y="{TOP}" width="{len(cells[0]) * side:.2f}" '
        f'height="{height:.2f}" fill="none" stroke="{LINE}"/>',
        f'<rect x="{scale:.1f}" y="{TOP}" width="12" height="{height:.2f}" fill="none" '
        f'stroke="{LINE}"/>',
        _text(scale + 18, TOP + 10, f"{high:,.4g}"),
        _text(scale + 18, TOP + height, f"{low:,.4g}"),
        _text(middle + 32 + len(cells[0]) * side / 2, bottom + 18, "by place", "middle"),
    ]
    return _svg(title, parts)


def _bars(values: Sequence[float], left: float, right: float, bottom: float) -> list[str]:
    """Bars from zero up, with the number of each where there is room."""
    top = max(values) or 1.0
    wide = (right - left) / len(values)
    parts = []
    for number, value in enumerate(values):
        height = (bottom - TOP - 16) * value / top
        x = left + number * wide
        parts.append(
            f'<rect x="{x + wide * 0.1:.1f}" y="{bottom - height:.1f}" width="{wide * 0.8:.1f}" '
            f'height="{height:.1f}" fill="{FILL}" fill-opacity=".75">'
            f"<title>latent frame {number}: {value:,.4g}</title></rect>"
        )
        if wide >= 40:
            parts.append(_text(x + wide / 2, bottom - height - 5, f"{value:,.4g}", "middle"))
    return [
        *parts,
        _line(left, bottom, right, bottom),
        _text((left + right) / 2, bottom + 18, "by latent frame, first to last", "middle"),
        _text(left - 8, bottom, "0", "end"),
        *([] if wide >= 40 else [_text(left - 8, TOP + 20, f"{top:,.4g}", "end")]),
    ]


def _colour(part: float) -> str:
    """The colour of a number in [0, 1]."""
    place = min(part, 1.0) * (len(_COLOURS) - 1)
    first = min(int(place), len(_COLOURS) - 2)
    pairs = zip(_COLOURS[first], _COLOURS[first + 1], strict=True)
    return "#" + "".join(f"{round(a + (b - a) * (place - first)):02x}" for a, b in pairs)


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" stroke="{LINE}"/>'


def _text(x: float, y: float, text: str, anchor: str = "start", colour: str = SOFT) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">'
        f"{escape(text)}</text>"
    )


def _svg(title: str, parts: Sequence[str]) -> str:
    heading = f'<text x="{LEFT}" y="22" fill="{INK}" font-size="15">{escape(title)}</text>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'font-family="system-ui, sans-serif" font-size="12">\n'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>\n{heading}\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )
