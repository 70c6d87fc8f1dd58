"""How labelled rows stand for the others: weights that even the two out, and the doubt where they cannot.

What the labelled rows lost beyond expectation is carried over to the rows without a label. That takes no care as long
as expectations are right, or labels come by chance. Where both fail (the concept has turned, and labels were chosen by
the score) it depends on how the surprise changes with the score, and nobody has seen it where no label is.

So the surprise is taken to be a level, unknown, plus a curve of unknown roughness over the score and another over the
expected loss: straight lines and random walks between knots (a spline in its form as a mixed model: Ruppert, Wand &
Carroll 2003, Semiparametric Regression, chapter 4). Given the roughness its mean over the other rows is a weighted mean
of the labelled surprises, the weights being those of ridge calibration (Chambers 1996, Journal of Official Statistics
12; Guggemos & Tillé 2010, Journal of Statistical Planning and Inference 140), and what the curve may do beyond them has
a variance. Roughness is averaged over by its restricted likelihood. Where the labels show no curve the weights are
nearly equal and the doubt is small; where they show one it grows with the distance from the labels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from trellis.ledger.basis import Floats

_KNOTS = 10
_REACH = 2.5
_SLOPE_PRIOR = 2.0
_ROUGHNESS = np.geomspace(3e-4, 3.0, 9)  # curve's variance over the noise's
_FLAT = 0.3  # prior weight of no curve at all
_FEW = 5
_SURE = 1e-3

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Representation:
    """Weights of labelled rows.

    Attributes:
        weight: One per labelled row, of mean 1; their weighted mean surprise is that expected of the other rows.
        doubt: Variance that the curve adds beyond the noise of the labels.
        used: Degrees of freedom that the curve took.
    """

    weight: Floats
    doubt: float
    used: float


def represent(surprise: Floats, by: list[Floats], lab: Mask, rest: Mask) -> Representation:
    """Weigh labelled rows so that they stand for the others.

    Args:
        surprise: Loss beyond expectation of the labelled rows, in their order.
        by: What the surprise may change with, a number for every row; best the score and the expected loss.
        lab: Labelled rows.
        rest: Rows to be spoken for.
    """
    count = int(lab.sum())
    if count < 3 or not rest.any():
        return Representation(np.ones(count), 0.0, 1.0)
    place = np.flatnonzero(lab | rest)
    table = np.column_stack([_curve(values[place]) for values in by])
    mine, theirs = lab[place], rest[place]
    centre = table[mine].mean(axis=0)
    own = table[mine] - centre
    apart = table[theirs].mean(axis=0) - centre
    level = float(surprise.mean())
    loading = own.T @ (surprise - level)
    power = float(((surprise - level) ** 2).sum())
    values, vectors = np.linalg.eigh(own.T @ own)
    values = np.maximum(values, 0.0)
    turned, away = vectors.T @ loading, vectors.T @ apart
    if power <= 0:
        return Representation(np.ones(count), 0.0, 1.0)
    # One line per roughness; the first is none at all.
    ratio = np.concatenate([[0.0], _ROUGHNESS])[:, None]
    shrunk = ratio / (1 + ratio * values)
    noise = np.maximum(power - (turned**2 * shrunk).sum(axis=1), 1e-12 * power) / (count - 1)
    support = -0.5 * ((count - 1) * np.log(noise) + np.log1p(ratio * values).sum(axis=1))
    support += np.log(np.concatenate([[_FLAT], np.full(len(_ROUGHNESS), (1 - _FLAT) / len(_ROUGHNESS))]))
    chance = np.exp(support - support.max())
    chance /= chance.sum()
    moved = (shrunk * turned * away).sum(axis=1)
    doubt = noise * (ratio * (away / (1 + ratio * values)) ** 2).sum(axis=1)
    mean = float(chance @ moved)
    slope = vectors @ (away * (chance @ shrunk))
    return Representation(
        1 + count * own @ slope,
        float(chance @ (doubt + (moved - mean) ** 2)),
        1 + float(chance @ (shrunk * values).sum(axis=1)),
    )


def _curve(values: Floats) -> Floats:
    """Return a line and the steps of a random walk over the normal scores of the values' ranks, ``(n, knots + 1)``."""
    order = np.unique(values, return_inverse=True)[1]
    counts = np.bincount(order)
    middle = (np.cumsum(counts) - counts / 2) / len(values)
    score = _normal_scores(middle)[order]
    knots = np.linspace(-_REACH, _REACH, _KNOTS + 1)
    width = knots[1] - knots[0]
    steps = np.clip((score[:, None] - knots[:-1]) / width, 0, 1) * math.sqrt(width)
    return np.column_stack([_SLOPE_PRIOR * score, steps])


def _normal_scores(share: Floats) -> Floats:
    """Return normal quantiles of shares in (0, 1), read off a table to three digits."""
    return np.asarray(np.interp(share, _TABLE[0], _TABLE[1]), dtype=np.float64)


_GRID = np.linspace(-4, 4, 801)
_TABLE = (np.array([NormalDist().cdf(float(z)) for z in _GRID]), _GRID)


@dataclass(frozen=True)
class Covered:
    """Which scores the labels speak of, where they leave out others by choice.

    Attributes:
        low, high: Ends of the range of scores in which labels are.
        beyond: Share of the window's rows outside it, where only the model speaks; in (0, 1).
    """

    low: float
    high: float
    beyond: float


def covered(score: Floats, lab: Mask, rows: Mask) -> Covered | None:
    """Return the scores that labels cover; None where all are, or chance may be why they are not.

    A side is left out if beyond the fifth outermost label lie so many rows that, had labels come by chance, so few
    would be seen there less than once in a thousand times (Poisson).
    """
    own, mine = np.sort(score[lab]), score[rows]
    if len(own) < 2 * _FEW:
        return None
    low, high = float(own[_FEW - 1]), float(own[-_FEW])
    below, above = mine < low, mine > high
    below &= _too_many(float(below.mean()) * len(own))
    above &= _too_many(float(above.mean()) * len(own))
    if not (below.any() or above.any()):
        return None
    return Covered(
        low if below.any() else float(mine.min()),
        high if above.any() else float(mine.max()),
        float((below | above).mean()),
    )


def _too_many(wanted: float) -> bool:
    """Return whether fewer than five labels are surely too few where so many were to be expected."""
    return sum(math.exp(-wanted) * wanted**k / math.factorial(k) for k in range(_FEW)) < _SURE
