"""Live losses of two variants as running sums, and bounds of their difference that hold however often one looks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trellis.errors import DataError

# The information (see LossStream) at which the bounds are made tightest: about 11,000 rows at a share of 10 %, 4,000 at
# 50 %. It must not depend on the data; elsewhere the bounds are valid too, and a little wider.
TUNED_AT = 1_000.0
_MOST_INFORMATION = 1e12
# Below so many rows a regression adds more noise than it takes away; below so much spread, relative to the mean, the
# covariate is a constant but for rounding.
_FEWEST_FOR_SLOPE = 100
_LEAST_SPREAD = 1e-9


@dataclass(frozen=True)
class LossStream:
    """What a rollout remembers of its labelled rows.

    A row goes to the canary (``A = 1``) with the known probability ``π``, its share at that time. With ``m`` the mean
    loss of the rows before, ``y = (A - π)(loss - m)`` has the expectation ``π(1 - π)`` times this very row's loss under
    the canary less that under the champion, because only the assignment is random. So ``Σ y / Σ π(1 - π)`` estimates
    the mean difference over the rows seen, weighted by ``π(1 - π)`` (overlap weights, Li, Morgan & Zaslavsky 2018,
    JASA 113): a share that changes on the way, a season, or flights that share a day's weather bias neither it nor its
    error. The champion's and the canary's plain means, which a changed share does bias, are kept for display only.

    Attributes:
        rows: Labelled rows.
        canary_rows: Those that the canary answered.
        canary_loss, champion_loss: Sums of the losses.
        score: Sum of ``y``.
        square: Sum of ``y²``; where units were drawn, of the squares of their sums of ``y``.
        information: Sum of ``π(1 - π)``.
        surplus: Sum of ``A - π``: canary rows beyond what the shares lead one to expect.
        surplus_variance: Its variance; 0 in decisions older than it, where it is ``information``.
        covariate, covariate_square, covariate_loss: Sums of the covariate ``x``, ``x²`` and ``x · loss``; zero without.
    """

    rows: int = 0
    canary_rows: int = 0
    canary_loss: float = 0.0
    champion_loss: float = 0.0
    score: float = 0.0
    square: float = 0.0
    information: float = 0.0
    surplus: float = 0.0
    surplus_variance: float = 0.0
    covariate: float = 0.0
    covariate_square: float = 0.0
    covariate_loss: float = 0.0

    def update(
        self,
        canary: NDArray[Any],
        loss: NDArray[Any],
        share: ArrayLike,
        covariate: NDArray[Any] | None = None,
        unit: NDArray[Any] | None = None,
    ) -> LossStream:
        """Return the state after more rows, in the order in which their labels became known.

        Args:
            canary: Whether the canary answered, ``(n,)``.
            loss: Loss of every row, ``(n,)``, as ``trellis.metrics.row_loss`` returns.
            share: The canary's share when the row was assigned, in [0, 1], one number or ``(n,)``.
            covariate: What lets one expect the loss and was known before the assignment, ``(n,)``, for example the mean
                loss of the row's segment before the rollout. ``y`` then centres on the regression of the loss on it
                over the rows *before*, and not on their mean alone: CUPED (Deng, Xu, Kohavi & Walker 2013, WSDM) with a
                coefficient that is predictable, so that all that is said about ``y`` still holds and only its square
                gets smaller. Give it always or never.
            unit: What was drawn for the variant, ``(n,)``, for example the caller; None where every row was by itself.
                All rows of a unit count as one draw then, so give them in one go.

        Raises:
            DataError: The parts do not line up, a number is not finite, a share lies outside [0, 1], or units come on
                top of earlier rows.
        """
        arm, losses = np.asarray(canary, dtype=np.float64), np.asarray(loss, dtype=np.float64)
        if arm.ndim != 1 or arm.shape != losses.shape or not np.isin(arm, (0.0, 1.0)).all():
            raise DataError(
                f"Variants of the shape {arm.shape} and losses of the shape {losses.shape} do not line up.",
                remedy="Give one truth value and one loss per row.",
            )
        if not len(arm):
            return self
        shares = np.broadcast_to(np.asarray(share, dtype=np.float64), arm.shape)
        if not np.isfinite(losses).all() or not ((shares >= 0) & (shares <= 1)).all():
            raise DataError("A loss is not finite, or a share lies outside [0, 1].", remedy="Mend these rows.")
        before = self.canary_loss + self.champion_loss + np.concatenate([[0.0], np.cumsum(losses)[:-1]])
        seen = self.rows + np.arange(len(arm))
        told = seen > 0  # the very first row has no rows before it
        centre = before / np.maximum(seen, 1)
        expected, x = self._expected(losses, covariate, seen, centre)
        y = np.where(told, (arm - shares) * (losses - expected), 0.0)
        chance = np.where(told, shares * (1 - shares), 0.0)
        square, surplus_variance = float(y @ y), float(chance.sum())
        if unit is not None:
            square, surplus_variance = self._by_unit(unit, y, chance)
        return LossStream(
            rows=self.rows + len(arm),
            canary_rows=self.canary_rows + int(arm.sum()),
            canary_loss=self.canary_loss + float(losses @ arm),
            champion_loss=self.champion_loss + float(losses @ (1 - arm)),
            score=self.score + float(y.sum()),
            square=self.square + square,
            information=self.information + float(chance.sum()),
            surplus=self.surplus + float(np.where(told, arm - shares, 0.0).sum()),
            surplus_variance=self.surplus_variance + surplus_variance,
            covariate=self.covariate + float(x.sum()),
            covariate_square=self.covariate_square + float(x @ x),
            covariate_loss=self.covariate_loss + float(x @ losses),
        )

    def _by_unit(self, unit: NDArray[Any], y: NDArray[Any], chance: NDArray[Any]) -> tuple[float, float]:
        """Return the sum of squares of ``y``, and the variance of the surplus, summed up by unit first."""
        names = np.asarray(unit, dtype=str)
        if names.shape != y.shape or self.rows:
            raise DataError(
                f"{names.size} units for {len(y)} rows on top of {self.rows} do not line up.",
                remedy="Give one unit per row, and all rows in one go.",
            )
        code = np.unique(names, return_inverse=True)[1]
        each, deviation = np.bincount(code, y), np.bincount(code, np.sqrt(chance))
        return float(each @ each), float(deviation @ deviation)

    def _expected(
        self, losses: NDArray[Any], covariate: NDArray[Any] | None, seen: NDArray[Any], centre: NDArray[Any]
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return what each row's loss was expected to be from the rows before it, and the covariate."""
        if covariate is None:
            return centre, np.zeros(len(losses))
        x = np.asarray(covariate, dtype=np.float64)
        if x.shape != losses.shape or not np.isfinite(x).all():
            raise DataError("A covariate is missing or not finite.", remedy="Give one number per row.")

        def before(start: float, values: NDArray[Any]) -> NDArray[Any]:
            return start + np.concatenate([[0.0], np.cumsum(values)[:-1]])

        count = np.maximum(seen, 1)
        mean = before(self.covariate, x) / count
        spread = before(self.covariate_square, x * x) / count - mean**2
        shared = before(self.covariate_loss, x * losses) / count - mean * centre
        known = (seen >= _FEWEST_FOR_SLOPE) & (spread > _LEAST_SPREAD * np.maximum(mean**2, 1e-300))
        slope = np.where(known, shared / np.where(known, spread, 1.0), 0.0)
        return centre + slope * (x - mean), x

    def merge(self, other: LossStream) -> LossStream:
        """Return the sum of two states, for example of two days; each centres on its own rows, which is valid too."""
        names = self.__dataclass_fields__
        return LossStream(**{name: getattr(self, name) + getattr(other, name) for name in names})

    @property
    def champion_rows(self) -> int:
        """Labelled rows that the champion answered."""
        return self.rows - self.canary_rows

    @property
    def difference(self) -> float:
        """Mean loss of the canary less the champion's, on the same rows; above zero the canary is worse."""
        return self.score / self.information if self.information else 0.0

    def reach(self, alpha: float) -> float:
        """Return how far a one-sided bound lies from ``difference``; see ``bounds``."""
        if self.information <= 0:
            return math.inf
        return reach(self.information, self.square / self.information, alpha)

    def bounds(self, alpha: float) -> tuple[float, float]:
        """Return a lower and an upper bound of the difference, each wrong *at any time* with probability ``alpha``.

        Robbins' normal mixture in its one-sided, asymptotic form, for means and variances that may change from row to
        row (Waudby-Smith, Arbour, Sinha, Kennedy & Ramdas 2024, "Time-uniform central limit theory and asymptotic
        confidence sequences", Annals of Statistics 52). That only the assignment is random follows Ham, Bojinov, Lindon
        & Tingley 2022, "Design-based confidence sequences".

        Assumed are rows assigned independently of each other and of their losses with the stated shares, and labels
        that do not go missing by variant; nothing about the rows themselves.

        Where units are drawn, these are independent and ``square`` is summed over them. The sums of ``y`` over the
        days are no martingale then, since a unit stays where it is. They have the variances of one and larger
        covariances, as long as a unit's losses are alike rather than opposite from day to day, and of two Gaussian
        processes with the same variances the one with the larger covariances exceeds a boundary less often (Slepian
        1962, "The one-sided barrier problem for Gaussian noise", Bell System Technical Journal 41). Many units are
        assumed, too; a few that make up most rows let the bounds stay wide.
        """
        distance = self.reach(alpha)
        return self.difference - distance, self.difference + distance


def reach(information: float, variance: float, alpha: float) -> float:
    """Return the distance of a one-sided bound at ``information``, with a loss variance of ``variance`` per row."""
    tuned = -2 * math.log(2 * alpha)
    start = TUNED_AT / (tuned + math.log(1 + tuned))
    grown = information + start
    return math.sqrt(variance * 2 * grown * math.log1p(math.sqrt(grown / start) / (2 * alpha))) / information


def information_for(distance: float, variance: float, alpha: float) -> float:
    """Return the information at which the reach falls to ``distance``, by bisection."""
    low, high = 1e-9, 1.0
    while reach(high, variance, alpha) > distance and high < _MOST_INFORMATION:
        low, high = high, high * 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if reach(middle, variance, alpha) > distance else (low, middle)
    return high


def least_information(enough: Callable[[float], bool]) -> float:
    """Return the least information that is enough, by bisection, or infinity where no sensible one is.

    Args:
        enough: Whether an information is enough; must stay true once it is.
    """
    low, high = 0.0, 1.0
    while not enough(high):
        if high >= _MOST_INFORMATION:
            return math.inf
        low, high = high, high * 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
