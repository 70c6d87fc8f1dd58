"""What past windows teach of the estimate: how far it was off, beyond what it knew itself to be unsure of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

HALF_LIFE = 8.0
_PRIOR = 1.0
_OWN = 4


@dataclass(frozen=True)
class Past:
    """A window that was estimated and has been realised.

    Attributes:
        end: Its end, a number on any rising scale whose unit is a window's length.
        off: Realised mean loss minus the estimated one.
        deviation: The estimate's own standard deviation.
    """

    end: float
    off: float
    deviation: float


@dataclass(frozen=True)
class Lesson:
    """What a realised window teaches.

    Attributes:
        version: Whose estimate it was.
        ready: From when on its truth was known.
        past: How far off the estimate was.
    """

    version: str
    ready: np.datetime64
    past: Past


def learnt_by(lessons: Sequence[Lesson], version: str, by: np.datetime64) -> list[Past]:
    """Return what had been learnt by a moment: of the version itself, or of all where it has little past."""
    known = [lesson for lesson in lessons if lesson.ready <= by]
    own = [lesson.past for lesson in known if lesson.version == version]
    return own if len(own) >= _OWN else [lesson.past for lesson in known]


@dataclass(frozen=True)
class Between:
    """How windows differ from their estimates.

    Attributes:
        variance: Variance of what the estimate does not know of, such as a season's own rate; 0 where past errors are
            within its deviation.
        windows: How many windows say so, recent ones more; at least 1.
    """

    variance: float
    windows: float


def between_windows(past: Sequence[Past], now: float) -> Between | None:
    """Return the variance between windows by which the next estimate has to be widened; None without a past.

    A random-effects model about zero: ``off ~ N(0, deviation² + variance)``, the variance by the method of Paule and
    Mandel (1982, Journal of Research of the National Bureau of Standards 87), for a prediction interval as in Higgins,
    Thompson & Spiegelhalter (2009, Journal of the Royal Statistical Society A 172). Weights halve every eight windows,
    as seasons pass; one further window that was off as far as its own deviation keeps the first from speaking alone.
    About zero and not about their mean: an estimate that errs to one side stays where it is and says that it is unsure.

    Args:
        past: Windows that were realised by then.
        now: End of the window that is estimated, on the same scale.
    """
    if not past:
        return None
    weight = np.array([0.5 ** ((now - p.end) / HALF_LIFE) for p in past])
    off = np.array([p.off for p in past]) ** 2
    own = np.maximum(np.array([p.deviation for p in past]) ** 2, 1e-18)
    usual = float(weight @ own / weight.sum())
    windows = float(weight.sum() ** 2 / (weight**2).sum()) + _PRIOR

    def surplus(variance: float) -> float:
        """Return by how much squared errors exceed what a variance lets expect; falls with it."""
        told = float((weight * off / (own + variance)).sum())
        return told - float(weight.sum()) - _PRIOR * variance / (usual + variance)

    low, high = 0.0, float(off.max()) + usual
    if surplus(low) <= 0:
        return Between(0.0, windows)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if surplus(middle) > 0 else (low, middle)
    return Between(low, windows)
