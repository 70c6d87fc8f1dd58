"""Geometry of the small plots: numbers in, coordinates out; the templates draw them, escaped."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from trellis.adapters.look_store import Figure, Look

WIDTH, HEIGHT = 380.0, 190.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 40.0, 10.0, 12.0, 24.0
COLOURS = 6  # so many versions differ in colour; later ones take turns


@dataclass(frozen=True)
class Dot:
    """A figure in the plot; ``low`` and ``high`` are its interval's ends, None where there is none."""

    x: float
    y: float
    low: float | None
    high: float | None
    stage: str
    text: str


@dataclass(frozen=True)
class Line:
    """One version's series: its name, its colour's number, its dots, and the line between them as SVG points."""

    name: str
    colour: int
    dots: tuple[Dot, ...]
    points: str


@dataclass(frozen=True)
class Tick:
    """A mark on an axis."""

    at: float
    text: str


@dataclass(frozen=True)
class Chart:
    """A plot of one quantity over time."""

    title: str
    lines: tuple[Line, ...]
    x: tuple[Tick, ...]
    y: tuple[Tick, ...]
    rule: Tick | None
    left: float = _LEFT
    right: float = WIDTH - _RIGHT
    bottom: float = HEIGHT - _BOTTOM


def newest_figures(looks: Sequence[Look]) -> list[Figure]:
    """Return every figure as the newest look has it: what was estimated once is realised later."""
    found: dict[tuple[str, ...], Figure] = {}
    for look in looks:
        for f in look.performance:
            found[f.start, f.end, f.version, f.segment, f.value, f.quantity] = f
    return sorted(found.values(), key=lambda f: f.end)


def performance_chart(
    figures: Sequence[Figure],
    quantity: str,
    title: str,
    colours: Mapping[str, int],
    *,
    rule: float | None = None,
    rule_text: str = "",
) -> Chart | None:
    """Plot one quantity by window and version, with intervals; None where there is no figure.

    Windows of looks at odd hours overlap: of those that share a day, the last is shown.
    """
    chosen: dict[tuple[str, str], Figure] = {}
    for f in figures:
        if f.quantity == quantity and not f.segment and math.isfinite(f.point):
            chosen[f.end[:10], f.version] = f
    shown = sorted(chosen.values(), key=lambda f: f.end)
    if not shown:
        return None
    times = sorted({f.end for f in shown})
    # Intervals of a handful of labels span everything; the scale follows the points and the narrower half of them.
    values = [f.point for f in shown] + ([rule] if rule is not None else [])
    widths = sorted((f.high - f.low, f.low, f.high) for f in shown if f.low is not None and f.high is not None)
    for _, low, high in widths[: max(1, math.ceil(len(widths) * 0.75))]:
        values += [low, high]
    ticks = _nice(min(values), max(values))
    bottom, top = ticks[0], ticks[-1]

    def lift(value: float) -> float:
        return _scale(min(max(value, bottom), top), bottom, top, HEIGHT - _BOTTOM, _TOP)

    seconds = [_seconds(t) for t in times]
    versions = sorted({f.version for f in shown}, key=lambda v: colours[v])
    place = {t: _across(_seconds(t), seconds[0], seconds[-1]) for t in times}
    lines = []
    for number, version in enumerate(versions):
        # Versions of one window stand side by side.
        aside = (number - (len(versions) - 1) / 2) * min(7.0, 30.0 / len(versions))
        dots = tuple(
            Dot(
                place[f.end] + aside,
                lift(f.point),
                None if f.low is None else lift(f.low),
                None if f.high is None else lift(f.high),
                f.stage,
                _told(f),
            )
            for f in shown
            if f.version == version
        )
        lines.append(Line(version, colours[version] % COLOURS, dots, " ".join(f"{d.x:.1f},{d.y:.1f}" for d in dots)))
    step = max(1, math.ceil(len(times) / 5))
    return Chart(
        title,
        tuple(lines),
        tuple(Tick(place[t], datetime.fromisoformat(t).strftime("%d %b").lstrip("0")) for t in times[::step]),
        tuple(Tick(lift(v), f"{v:g}") for v in ticks),
        None if rule is None else Tick(lift(rule), rule_text),
    )


def _told(f: Figure) -> str:
    reach = "" if f.low is None or f.high is None else f" (95 % interval {f.low:.3f} to {f.high:.3f})"
    return (
        f"version {f.version}, window to {f.end[:10]}: {f.point:.3f}{reach}, {f.stage} "
        f"on {f.labels:,} labels of {f.predictions:,} predictions"
    )


def _across(value: float, first: float, last: float) -> float:
    inset = 22.0
    if last <= first:
        return (_LEFT + WIDTH - _RIGHT) / 2
    return _scale(value, first, last, _LEFT + inset, WIDTH - _RIGHT - inset)


def _scale(value: float, low: float, high: float, start: float, end: float) -> float:
    return start + (value - low) / (high - low) * (end - start)


def _nice(low: float, high: float) -> list[float]:
    """Return three to six round values that enclose the range."""
    spread = high - low or abs(high) or 1.0
    raw = spread / 3
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw)
    first = math.floor(low / step + 1e-9)
    last = max(first + 1, math.ceil(high / step - 1e-9))
    return [round(step * n, 12) for n in range(first, last + 1)]


def _seconds(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()


def colours_of(versions: Iterable[str]) -> dict[str, int]:
    """Give every version a colour's number by its age, the same one all over a page."""

    def natural(version: str) -> tuple[int, str]:
        return (int(version), "") if version.isdigit() else (1 << 30, version)

    return {version: number for number, version in enumerate(sorted(set(versions), key=natural))}
