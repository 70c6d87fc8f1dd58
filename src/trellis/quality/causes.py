"""Why a served value differs from the recomputed one: a cast, another time zone, another formula, or a value lost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

EXPLAINED = 0.9
_FEWEST_DISTINCT = 3

_CASTS: Mapping[str, Callable[[Floats], Floats]] = {
    "cut to an integer": np.trunc,
    "rounded to an integer": np.round,
    "rounded to one decimal": lambda v: np.asarray(np.round(v, 1)),
    "rounded to two decimals": lambda v: np.asarray(np.round(v, 2)),
    "held as float16": lambda v: v.astype(np.float16).astype(np.float64),
    "held as int8": lambda v: np.trunc(v).astype(np.int64).astype(np.int8).astype(np.float64),
    "held as uint8": lambda v: np.trunc(v).astype(np.int64).astype(np.uint8).astype(np.float64),
}


@dataclass(frozen=True)
class Cause:
    """What explains the differences of a feature.

    Attributes:
        kind: ``dtype``, ``time_zone``, ``changed_transform``, ``missing_online`` or ``missing_offline``.
        text: The explanation with its numbers.
        share: Share of the differing rows that it explains.
    """

    kind: str
    text: str
    share: float


def same(one: NDArray[Any], other: NDArray[Any], tolerance: float) -> NDArray[np.bool_]:
    """Tell which values agree: both missing, or numbers within a relative tolerance, or equal otherwise."""
    a, b = numbers_of(one), numbers_of(other)
    if a is None or b is None:
        left = np.array(["" if _missing(v) else str(v) for v in one])
        right = np.array(["" if _missing(v) else str(v) for v in other])
        return np.asarray(left == right)
    both = np.isnan(a) & np.isnan(b)
    with np.errstate(invalid="ignore"):
        near = np.abs(a - b) <= tolerance * np.maximum(np.maximum(np.abs(a), np.abs(b)), 1e-3)
    return np.asarray(both | near | (a == b))


def numbers_of(values: NDArray[Any]) -> Floats | None:
    """Return a column as float64, None where it holds anything but numbers and nulls."""
    array = np.asarray(values)
    if array.dtype.kind in "fiub":
        return array.astype(np.float64)
    if array.dtype.kind != "O":
        return None
    if not all(_missing(v) or isinstance(v, int | float | np.number) for v in array):
        return None
    return np.array([np.nan if _missing(v) else float(v) for v in array], dtype=np.float64)


def by_null(served: NDArray[Any], offline: NDArray[Any]) -> Cause | None:
    """Explain differences by values that only one side has."""
    gone = np.array([_missing(v) for v in served])
    lacking = np.array([_missing(v) for v in offline])
    if gone.mean() >= EXPLAINED:
        return Cause(
            "missing_online", "was served as missing, though the offline store has a value", float(gone.mean())
        )
    if lacking.mean() >= EXPLAINED:
        text = "was served, though the offline store has no value for that moment"
        return Cause("missing_offline", text, float(lacking.mean()))
    return None


def by_cast(served: NDArray[Any], offline: NDArray[Any], tolerance: float) -> Cause | None:
    """Explain differences by a cast of the offline value to a narrower type, or by text in place of a number."""
    v = numbers_of(offline)
    if v is None:
        return None
    texts = sum(isinstance(s, str) for s in served)
    if texts >= EXPLAINED * len(served):
        return Cause("dtype", "was served as text", texts / len(served))
    s = numbers_of(served)
    if s is None or not np.isfinite(v).all():
        return None
    best: Cause | None = None
    for name, cast in _CASTS.items():
        with np.errstate(over="ignore", invalid="ignore"):
            share = float(same(s, cast(v), tolerance / 10).mean())
        if share >= EXPLAINED and (best is None or share > best.share):
            best = Cause("dtype", f"was served {name}", share)
    return best


def by_shift(served: NDArray[Any], shifted: Mapping[int, NDArray[Any]], tolerance: float) -> Cause | None:
    """Explain differences by the value of another hour.

    Args:
        served: The served values that differ.
        shifted: What the offline store gives for the same rows so many hours later.
        tolerance: Relative difference that counts as none.

    Returns:
        One shift, or two that are an hour apart (clocks change), that explain nine differences in ten.
    """
    fits = {hours: same(served, values, tolerance) for hours, values in shifted.items()}
    choices: list[tuple[float, int, tuple[int, ...]]] = []
    for hours, fit in fits.items():
        choices.append((float(fit.mean()), -1, (hours,)))
        if hours + 1 in fits:
            choices.append((float((fit | fits[hours + 1]).mean()), -2, (hours, hours + 1)))
    if not choices:
        return None
    share, _, hours_found = max(choices, key=lambda c: (round(c[0], 2), c[1], -abs(c[2][0])))
    if share < EXPLAINED:
        return None
    told = " or ".join(f"{h:+d} h" for h in hours_found)
    return Cause("time_zone", f"is the value of {told} from the request's time: a time zone", share)


def by_formula(served: NDArray[Any], offline: NDArray[Any], tolerance: float) -> Cause:
    """Explain differences by another formula, a linear one where it is."""
    plain = Cause("changed_transform", "is computed otherwise than offline", 1.0)
    s, v = numbers_of(served), numbers_of(offline)
    if s is None or v is None:
        return plain
    known = np.isfinite(s) & np.isfinite(v)
    if known.sum() < 3 or len(np.unique(v[known])) < _FEWEST_DISTINCT:
        return plain
    x, y = v[known], s[known]
    slope, level = np.polyfit(x, y, 1)
    fit = same(y, slope * x + level, max(tolerance, 1e-3)).mean()
    if fit < EXPLAINED:
        return plain
    return Cause("changed_transform", f"is {slope:.4g} x the offline value {level:+.4g}", float(fit))


def _missing(value: Any) -> bool:
    return value is None or value != value


def first_of(names: Sequence[str], differs: Mapping[str, NDArray[np.bool_]]) -> NDArray[np.int64]:
    """Return for every row the place in ``names`` of its first differing feature, -1 where none differs."""
    table = np.array([differs[name] for name in names])
    return np.where(table.any(axis=0), table.argmax(axis=0), -1).astype(np.int64)
