"""Unit changes: is the current distribution the healthy one, in another unit?

A feed that silently changes its unit (Fahrenheit to Celsius, miles per hour to metres per second) moves every value by
one affine map. So each known conversion is undone on the current quantiles: if what is left lies as close to the last
healthy window as healthy windows lie to each other, the conversion is named. A window in which the change fell in the
middle is a mixture of both units, and its share is estimated.

Sensors report on a grid (whole knots, tenths of a degree). Where the healthy values lie on one, the grid is the sharper
witness: values still on it speak against a conversion however far they moved, values that return to it once undone
speak for it even where a factor is as small as the knot's 0.87.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from trellis.drift.statistics import quantile_distance
from trellis.drift.summary import GRID

Array = NDArray[np.float64]

_MIN_SHARE, _FULL_SHARE = 0.25, 0.85
_ON_GRID, _OFF_GRID = 0.7, 0.4
_A_GRID = 0.3  # a share of values that recur by which a column is one of a grid at all: continuous ones never do


@dataclass(frozen=True)
class Conversion:
    """``y = factor * x + offset`` turns a number in unit ``before`` into ``after``."""

    before: str
    after: str
    factor: float
    offset: float = 0.0

    @property
    def reverse(self) -> Conversion:
        """The way back."""
        return Conversion(self.after, self.before, 1 / self.factor, -self.offset / self.factor)

    @property
    def whole(self) -> bool:
        """Whether it multiplies or divides by a whole number: such a factor takes whole numbers to whole numbers."""
        return any(abs(f - round(f)) < 1e-9 for f in (self.factor, 1 / self.factor))

    def __str__(self) -> str:
        return f"{self.before} to {self.after}"


# NIST SP 811 (2008), appendix B.8; the international mile and foot, the knot of 1852 m/h.
_ONE_WAY = (
    Conversion("degF", "degC", 5 / 9, -160 / 9),
    Conversion("degC", "K", 1.0, 273.15),
    Conversion("degF", "K", 5 / 9, 273.15 - 160 / 9),
    Conversion("mph", "km/h", 1.609344),
    Conversion("mph", "m/s", 0.44704),
    Conversion("mph", "knots", 0.44704 * 3.6 / 1.852),
    Conversion("km/h", "m/s", 1 / 3.6),
    Conversion("km/h", "knots", 1 / 1.852),
    Conversion("knots", "m/s", 1.852 / 3.6),
    Conversion("in", "mm", 25.4),
    Conversion("in", "cm", 2.54),
    Conversion("ft", "m", 0.3048),
    Conversion("miles", "km", 1.609344),
    Conversion("miles", "m", 1609.344),
    Conversion("miles", "nautical miles", 1.609344 / 1.852),
    Conversion("km", "m", 1000.0),
    Conversion("hPa", "inHg", 0.029529983),
    Conversion("hPa", "mmHg", 0.75006158),
    Conversion("hPa", "kPa", 0.1),
    Conversion("hPa", "Pa", 100.0),
    Conversion("fraction", "percent", 100.0),
    Conversion("minutes", "seconds", 60.0),
    Conversion("hours", "minutes", 60.0),
    Conversion("hours", "seconds", 3600.0),
    Conversion("lb", "kg", 0.45359237),
)
CONVERSIONS = (*_ONE_WAY, *(c.reverse for c in _ONE_WAY))

# How people write a unit in a field's description; the first that is found counts.
_SPELLINGS = (
    ("mph", r"\bmph\b|miles? (per|an) hour"),
    ("km/h", r"\bkm/h\b|\bkph\b|kilomet(re|er)s? (per|an) hour"),
    ("m/s", r"\bm/s\b|met(re|er)s? per second"),
    ("knots", r"\bknots?\b|\bkts?\b"),
    ("degF", r"\bdegf\b|°\s?f\b|fahrenheit|degrees? f\b"),
    ("degC", r"\bdegc\b|°\s?c\b|celsius|degrees? c\b"),
    ("K", r"\bkelvin\b"),
    ("hPa", r"\bhpa\b|hectopascal|milli-?bar|\bmbar\b"),
    ("inHg", r"\binhg\b|inch(es)? of mercury"),
    ("nautical miles", r"nautical miles?"),
    ("miles", r"\bmiles?\b"),
    ("km", r"\bkm\b|kilomet(re|er)s?"),
    ("mm", r"\bmm\b|millimet(re|er)s?"),
    ("cm", r"\bcm\b|centimet(re|er)s?"),
    ("in", r"\binch(es)?\b"),
    ("ft", r"\bfeet\b|\bft\b"),
    ("percent", r"\bpercent\b|%"),
    ("fraction", r"\bfraction\b|\bshare\b|\bin \[?0[-–, ]+1\b"),
    ("seconds", r"\bseconds?\b"),
    ("minutes", r"\bminutes?\b"),
    ("hours", r"\bin hours\b"),
)


def declared_unit(description: str) -> str | None:
    """Find the unit that a field's description names, or None."""
    text = description.lower()
    return next((unit for unit, pattern in _SPELLINGS if re.search(pattern, text)), None)


@dataclass(frozen=True)
class UnitMatch:
    """A conversion that explains a change.

    Attributes:
        conversion: From the healthy unit to the current one; the closest where several fit.
        share: Estimated share of rows in the new unit, in (0, 1].
        residual: Distance that is left once it is undone, in reference spreads.
        before: Distance before undoing it, in the same unit.
        alternatives: Other conversions that these numbers cannot tell from it.
        exact: Whether undoing it puts the values back on the grid of the healthy ones.
    """

    conversion: Conversion
    share: float
    residual: float
    before: float
    alternatives: tuple[str, ...] = ()
    exact: bool = False


def find_conversion(
    healthy: Array,
    current: Array,
    scale: float,
    *,
    known: Array | None = None,
    unit: str | None = None,
    tolerance: float = 0.5,
    exact_only: bool = False,
) -> UnitMatch | None:
    """Return the conversion that explains ``current`` from ``healthy``, if one does.

    Undoing it must leave at most ``tolerance`` and a third of the distance, or, where the values' grid speaks for it,
    twice ``tolerance``.

    Args:
        healthy: Quantiles on ``GRID`` of the last healthy window.
        current: The same of the window in question.
        scale: Spread of the column in training.
        known: Values seen in training and in healthy windows, as far as kept; None uses ``healthy``.
        unit: The column's declared unit; only conversions from it are tried. None tries all.
        tolerance: Largest distance left, in ``scale``: what a healthy column moves between windows.
        exact_only: Whether only a conversion counts that the values' grid speaks for.
    """
    if not len(healthy) or not len(current) or scale <= 0:
        return None
    grid = np.unique(healthy if known is None else known)
    here = on_grid(current, grid, scale)
    before = quantile_distance(healthy, current, trim=1) / scale
    tried = [c for c in CONVERSIONS if unit is None or c.before == unit] or list(CONVERSIONS)
    found: list[UnitMatch] = []
    for conversion in tried:
        residual = _undone(conversion, healthy, current) / scale
        back = conversion.reverse
        there = on_grid(back.factor * current + back.offset, grid, scale)
        exact = here is not None and there is not None and there >= _ON_GRID and here <= _OFF_GRID
        exact = exact and not conversion.whole
        refuted = here is not None and here >= _ON_GRID and (there is None or there <= here)
        near_enough = residual <= (2 * tolerance if exact else min(tolerance, before / 3))
        if near_enough and not refuted:
            found.append(UnitMatch(conversion, 1.0, residual, before, exact=exact))
    if exact_only or any(m.exact for m in found):
        found = [m for m in found if m.exact]
    if not found and not exact_only:
        mixed = [UnitMatch(c, *_mixture(c, healthy, current, scale), before) for c in tried]
        limit = min(tolerance, before / 3)
        found = [m for m in mixed if _MIN_SHARE <= m.share < _FULL_SHARE and m.residual <= limit]
    if not found:
        return None
    best, *others = sorted(found, key=lambda m: m.residual)
    near = tuple(str(m.conversion) for m in others if m.residual <= best.residual + 0.2)
    return replace(best, alternatives=near)


def returns_to_grid(healthy: Array, current: Array, earlier: Array, scale: float) -> bool:
    """Whether the grid could prove a conversion: healthy values have one, and the current ones have left it.

    Args:
        healthy: Quantiles of the last healthy window.
        current: Of the window in question.
        earlier: Values seen in training and in the healthy windows before.
        scale: Spread of the column in training.
    """
    grid = np.unique(earlier)
    usual = on_grid(healthy, grid, scale)
    if usual is None or usual < _A_GRID:
        return False
    here = on_grid(current, np.unique(np.concatenate([earlier, healthy])), scale)
    return here is not None and here <= _OFF_GRID


def on_grid(values: Array, grid: Array, scale: float) -> float | None:
    """Share of the distinct values, zero aside, that are among ``grid``; None below four such values on either side.

    Values are compared at the precision of float32 numbers written with seven digits.
    """
    seen = np.unique(values)
    seen = seen[np.abs(seen) > 1e-6 * scale]
    if len(seen) < 4 or len(grid) < 4:
        return None
    place = np.clip(np.searchsorted(grid, seen), 1, len(grid) - 1)
    gap = np.minimum(np.abs(seen - grid[place - 1]), np.abs(seen - grid[place]))
    return float((gap <= 1e-5 * scale + 2e-6 * np.abs(seen)).mean())


def _undone(conversion: Conversion, healthy: Array, current: Array) -> float:
    back = conversion.reverse
    return quantile_distance(healthy, back.factor * current + back.offset, trim=1)


def _mixture(conversion: Conversion, healthy: Array, current: Array, scale: float) -> tuple[float, float]:
    """Best share of the converted distribution in a mixture with the healthy one, and the distance left.

    Least squares between distribution functions, which is linear in the share.
    """
    converted = conversion.factor * healthy + conversion.offset
    points = np.unique(np.concatenate([healthy, converted, current]))
    old, new, now = (np.interp(points, q, GRID, left=0.0, right=1.0) for q in (healthy, converted, current))
    width = np.diff(points)
    change, seen = (new - old)[:-1], (now - old)[:-1]
    power = float((width * change * change).sum())
    if power <= 0:
        return 0.0, float("inf")
    share = float(np.clip((width * change * seen).sum() / power, 0.0, 1.0))
    left = np.abs(now - ((1 - share) * old + share * new))[:-1]
    return share, float((width * left).sum()) / scale
