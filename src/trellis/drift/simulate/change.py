"""What is injected, and when: a change with its shape over time.

The shapes are those of Gama et al. (2014), A survey on concept drift adaptation, ACM Computing Surveys 46(4), fig. 2.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from trellis.drift.units import CONVERSIONS, Conversion
from trellis.errors import ConfigError

Kind = Literal["covariate", "concept", "label", "unit", "nulls", "stale", "recode", "time_zone"]
Shape = Literal["sudden", "gradual", "incremental", "recurring", "seasonal"]
Array = NDArray[np.float64]

# What a monitor should call each kind.
FAMILIES: dict[Kind, str] = {
    "covariate": "data",
    "concept": "concept",
    "label": "label",
    "unit": "upstream",
    "nulls": "upstream",
    "stale": "upstream",
    "recode": "upstream",
    "time_zone": "upstream",
}
_NEEDS_TARGET = ("concept", "label")


@dataclass(frozen=True)
class Change:
    """One change to inject.

    Attributes:
        kind: ``covariate``: P(x) moves. ``concept``: P(y|x) moves, P(x) and P(y) stay. ``label``: P(y) moves, P(x|y)
            stays. ``unit``: numbers arrive in another unit. ``nulls``: values get lost. ``stale``: values stop being
            refreshed. ``recode``: categories get other codes. ``time_zone``: times, or hours of a day, are shifted.
        columns: Where. ``concept`` reverses the order of the labels along the sum of them (the first of the dataset if
            none is named); ``label`` needs none.
        start: First moment concerned: a time (anything numpy reads as one) or, in data without times, a row number.
        shape: ``sudden``; ``gradual``, a rising share of rows is changed; ``incremental``, all rows are, by a rising
            amount (upstream faults have no half measures, there it is as ``gradual``); ``recurring``, on and off for
            ``span`` each; ``seasonal``, an amount that comes and goes with a cosine of period ``span``.
        span: Length of the rise, or the period: ``"14D"``, a ``timedelta64``, or a number of rows.
        end: First moment no longer concerned; None lasts for ever.
        size: ``covariate``: with ``by="resample"`` the exponential tilt per spread (at 1 a normal column's mean moves
            by one spread), with ``by="move"`` the spreads a number is moved by, and the share of categories drawn anew.
            ``concept``: share of labels exchanged. ``label``: what is added to the log-odds of ``value``, or the tilt
            per spread of a number. ``nulls`` and ``recode``: share of rows, or of the vocabulary. ``time_zone``: hours.
        by: How a ``covariate`` changes. ``resample`` repeats rows and drops others, so P(y|x) and the ties between
            columns hold exactly; ``move`` moves values and leaves labels, for rows that come one by one.
        conversion: ``unit`` only: one of ``trellis.drift.CONVERSIONS`` as text, for example ``degF to degC``.
        value: ``label`` only: the class that becomes more frequent; None takes the last in order.
        key: ``stale`` only: the entity's column; without one all rows see one last value.
        mapping: ``recode`` only: new code by old one; None gives every value concerned a new code.
    """

    kind: Kind
    columns: tuple[str, ...] = ()
    start: Any = 0
    shape: Shape = "sudden"
    span: Any = None
    end: Any = None
    size: float = 1.0
    by: Literal["resample", "move"] = "resample"
    conversion: str = ""
    value: Any = None
    key: str | None = None
    mapping: dict[Any, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse a change that means nothing."""
        self._require(self.kind in get_args(Kind), f"is none of {get_args(Kind)}")
        self._require(self.shape in get_args(Shape), f"knows no shape {self.shape!r}, only {get_args(Shape)}")
        self._require(self.shape == "sudden" or self.span is not None, f"needs a span to be {self.shape}")
        self._require(bool(self.columns) or self.kind in _NEEDS_TARGET, "needs columns")
        if self.kind in ("nulls", "recode", "concept") or (self.kind == "covariate" and self.by == "move"):
            self._require(self.size > 0, f"needs a size above 0, not {self.size}")
        if self.kind in ("nulls", "recode", "concept"):
            self._require(self.size <= 1, f"takes a share in (0, 1] as its size, not {self.size}")
        if self.kind == "unit":
            self._require(self.conversion in _CONVERSIONS, f"knows no conversion {self.conversion!r}")

    @property
    def family(self) -> str:
        """``data``, ``concept``, ``label`` or ``upstream``."""
        return FAMILIES[self.kind]

    @property
    def needs_target(self) -> bool:
        """Whether it changes labels, or rows by their label."""
        return self.kind in _NEEDS_TARGET

    @property
    def unit(self) -> Conversion:
        """The conversion of a ``unit`` change."""
        return _CONVERSIONS[self.conversion]

    def dose(self, time: NDArray[Any], rng: np.random.Generator) -> Array:
        """Return how much of the change each row gets, in [0, 1].

        Args:
            time: ``datetime64`` or row numbers, shape ``(n,)``.
            rng: Decides which rows a gradual change takes.
        """
        at = positions(time)
        start = self._position(self.start, time)
        since = at - start
        active = since >= 0
        if self.end is not None:
            active &= at < self._position(self.end, time)
        if self.shape == "sudden":
            return active.astype(np.float64)
        span = self._span(time)
        if self.shape == "recurring":
            on = np.floor(since / span) % 2 == 0
            return np.where(active & on, 1.0, 0.0)
        if self.shape == "seasonal":
            return np.where(active, (1 - np.cos(2 * np.pi * since / span)) / 2, 0.0)
        ramp = np.where(active, np.clip(since / span, 0, 1), 0.0)
        if self.shape == "gradual" or (self.family == "upstream"):
            return (rng.random(len(ramp)) < ramp).astype(np.float64)
        return ramp

    def point(self, time: NDArray[Any]) -> Point:
        """Return the known change point, in the form of ``time``."""
        start = self._position(self.start, time)
        full = start + self._span(time) if self.shape in ("gradual", "incremental") else start
        end = None if self.end is None else self._position(self.end, time)
        shown = [_shown(p, time) for p in (start, full, end)]
        return Point(self.kind, self.family, self.columns, self.shape, *shown)

    def _position(self, moment: Any, time: NDArray[Any]) -> float:
        if np.asarray(time).dtype.kind != "M":
            self._require(isinstance(moment, (int, float, np.number)), f"needs row numbers, not {moment!r}")
            return float(moment)
        self._require(not isinstance(moment, (int, float)), f"needs a time, not the number {moment!r}")
        stamp = pd.Timestamp(moment)
        stamp = stamp.tz_convert("UTC").tz_localize(None) if stamp.tzinfo else stamp
        return float(stamp.to_datetime64().astype("datetime64[us]").astype(np.int64)) / 1e6

    def _span(self, time: NDArray[Any]) -> float:
        if np.asarray(time).dtype.kind != "M":
            self._require(isinstance(self.span, (int, float, np.number)), f"needs a number of rows, not {self.span!r}")
            span = float(self.span)
        else:
            self._require(not isinstance(self.span, (int, float)), f"needs a span of time, not {self.span!r}")
            span = pd.Timedelta(self.span).total_seconds()
        self._require(span > 0, "needs a span above zero")
        return span

    def _require(self, holds: bool, story: str) -> None:
        if not holds:
            raise ConfigError(
                f"The simulated change {self.kind!r} {story}.", remedy="See trellis.drift.simulate.Change."
            )


@dataclass(frozen=True)
class Point:
    """A known change point: what a monitor is held against.

    Attributes:
        kind: The change's kind.
        family: ``data``, ``concept``, ``label`` or ``upstream``.
        columns: Columns concerned.
        shape: Its shape over time.
        start: First moment concerned, ``datetime64[us]`` or a row number.
        full: From when on it is there in full (the start, but for gradual and incremental changes).
        end: First moment no longer concerned; None where it lasts.
    """

    kind: Kind
    family: str
    columns: tuple[str, ...]
    shape: Shape
    start: Any
    full: Any
    end: Any = None


def positions(time: NDArray[Any]) -> Array:
    """Return times as seconds since 1970, row numbers as they are."""
    array = np.asarray(time)
    if array.dtype.kind == "M":
        return array.astype("datetime64[us]").astype(np.int64) / 1e6
    return array.astype(np.float64)


def _shown(position: float | None, time: NDArray[Any]) -> Any:
    if position is None or np.asarray(time).dtype.kind != "M":
        return position
    return np.datetime64(round(position * 1e6), "us")


_CONVERSIONS = {str(c): c for c in CONVERSIONS}
