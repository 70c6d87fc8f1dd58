"""One false-alarm budget per model and month, spent over looks, families of evidence and columns.

*Over looks* by alpha spending in the manner of Lan & DeMets (1983, Biometrika 70): whatever their number, and whenever
they are taken, the chances of all looks of any 30 days add up to no more than the budget. *Over families and columns*
of one look by Holm's procedure with weights: the chance of any false alarm in the look stays below the look's share,
under any dependence. What is merely worth reading along, once there is an alarm, is listed by its false discovery rate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from trellis.contract import DriftPolicy

# How a look's share is divided among what can raise an alarm; what is absent leaves its part to the others.
WEIGHTS: Mapping[str, float] = {"features": 0.5, "harm": 0.2, "prediction": 0.1, "outcome": 0.1, "joint": 0.1}
# Kept back for looks beyond the declared number.
_RESERVE = 0.1
# Share of the listed columns that may be listed in error.
DISCOVERY_RATE = 0.1


def look_alpha(policy: DriftPolicy, looks: int = 0) -> float:
    """Chance of any false alarm that one look may take, in (0, 0.5].

    The declared looks share nine tenths of the budget evenly. A look beyond them, the k-th, gets the rest's part
    ``6 / (pi k)**2``, and never more than a declared one. So the shares of 0, 1, 2, ... looks before never rise, and
    together they are no more than the budget: nine tenths, and a tenth of parts that add up to one.

    That is enough for every 30 days, wherever they begin, in whatever order looks are taken. Of those that end within
    them, the j-th to be taken finds the j - 1 others on record, all less than 30 days from it on either side, and so
    gets no more than the j-th share: what they take together is a sum of different shares at most. (Were only looks
    that end before it counted, as looks newest first would find none, each would take a whole share.) Looking more
    often than declared costs sharpness and never the promise.

    Args:
        policy: The budget and the declared number of looks.
        looks: Looks already taken that end less than 30 days from this one, before it or after.
    """
    planned = max(1, math.ceil(policy.looks_per_month))
    share = (1 - _RESERVE) / planned
    if looks >= planned:
        share = min(share, _RESERVE * 6 / (math.pi * (looks - planned + 1)) ** 2)
    return min(0.5, policy.false_alarms_per_month * share)


def pace_days(policy: DriftPolicy) -> float:
    """Return how many days lie between two declared looks."""
    return 30 / max(policy.looks_per_month, 1e-9)


def former_alpha(policy: DriftPolicy, looks: int = 0) -> float:
    """Return the level of evidence that does not hold it, by the rule of then; for replaying it alone.

    Its first looks beyond the declared number got more than a declared one, so that a steady pace just above the
    declared one overspent.
    """
    planned = max(1.0, policy.looks_per_month)
    if looks < planned:
        share = (1 - _RESERVE) / planned
    else:
        share = _RESERVE * 6 / (math.pi * max(1, looks - math.ceil(planned) + 1)) ** 2
    return min(0.5, policy.false_alarms_per_month * share)


def weighted_holm(p_values: Sequence[float], weights: Sequence[float]) -> list[float]:
    """Adjust p-values so that any error at all stays below the level, under any dependence (Holm 1979, section 3).

    Args:
        p_values: Of all questions of the look.
        weights: Positive; what matters more gets a larger part of the level. Only their ratios count.
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i] / weights[i])
    adjusted, running, left = [0.0] * len(p_values), 0.0, float(sum(weights))
    for index in order:
        running = max(running, min(1.0, p_values[index] * left / weights[index]))
        adjusted[index] = running
        left -= weights[index]
    return adjusted


def spread_weights(families: Sequence[str]) -> list[float]:
    """Return every question's weight: its family's, divided by how many ask in that family's name."""
    return [WEIGHTS[family] / families.count(family) for family in families]
