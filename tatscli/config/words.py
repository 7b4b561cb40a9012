"""How numbers are said to people, for all layers."""

from collections.abc import Collection
from math import floor, isfinite, log10

MOST_DIGITS = 9
"""Behind the point; an error of less is that of rounding."""


def counted(number: int, unit: str) -> str:
    """A number with its unit: ``1 shard``, ``1,200 training clips``.

    Args:
        number: How many.
        unit: The singular of what is counted; words before it stay as they are.
    """
    if number == 1:
        return f"1 {unit}"
    return f"{number:,} {unit}{'es' if unit.endswith('s') else 's'}"


def span(values: Collection[float]) -> str:
    """The least and the largest of some values, ``10.5 to 30``; one of them where both read alike.

    Args:
        values: One at least.
    """
    least, most = (f"{value:.4g}" for value in (min(values), max(values)))
    return least if least == most else f"{least} to {most}"


def with_error(value: float, error: float | None) -> str:
    """A value with its standard error, to the digits that mean something."""
    if error is None or not isfinite(error):
        return f"{value:.6g}"
    if error < 10**-MOST_DIGITS:
        return f"{value:.6g} ± 0"
    digits = max(0, 1 - floor(log10(error)))
    return f"{value:.{digits}f} ± {error:.{digits}f}"
