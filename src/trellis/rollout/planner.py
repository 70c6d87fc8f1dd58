"""How many labelled rows and days a trial will need, before it is begun."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import NormalDist

from trellis.contract import RolloutPolicy
from trellis.errors import InvalidPlanError
from trellis.rollout.compare import planned_information
from trellis.rollout.stream import least_information, reach
from trellis.rollout.verdict import next_share, pairs_alpha, quality_alpha

# Nobody plans for longer; what is not decided by then is not decided by this trial.
_MOST_DAYS = 3_650
# Beyond any traffic and any loss; what is given as more is a slip of the pen.
_MOST = 1e15


@dataclass(frozen=True)
class Need:
    """What one question asks for.

    A number of -1 rows means that no number is enough.

    Attributes:
        difference: The true difference of the mean losses that is planned for, canary less champion.
        information: Sum of ``π(1 - π)`` over the labelled rows (see ``LossStream``).
        rows: Labelled rows of both variants.
        canary_rows: Those of the canary.
        days: Days of traffic, and the labels' delay; infinite where it is never decided.
        single_look_rows: Rows of a test that may be looked at once only, at the last share, for comparison.
    """

    difference: float
    information: float
    rows: int
    canary_rows: int
    days: float
    single_look_rows: int


@dataclass(frozen=True)
class TrialPlan:
    """Size and duration of a trial.

    Attributes:
        promote: Until a canary as good as the champion is promoted, with the planned power.
        roll_back: Until one that is worse by ``harm`` is rolled back, with the planned power.
        in_time: Whether the promotion comes before the policy's ``max_days``.
    """

    promote: Need
    roll_back: Need
    in_time: bool


def plan_trial(
    policy: RolloutPolicy,
    *,
    variance: float,
    per_day: float,
    power: float = 0.8,
    harm: float | None = None,
    difference: float = 0.0,
    delay_days: float = 0.0,
) -> TrialPlan:
    """Say how long a trial will need.

    A promotion needs ``estimate + reach < margin``. At the information ``I`` the estimate is close to normal around the
    true difference with the variance ``v / I``, so with the planned power it has come where ``margin - difference -
    reach(I) >= z_power · sqrt(v / I)``. The bounds may be looked at any time, which only makes a decision come sooner;
    the plan is thus conservative. A rollback likewise needs ``estimate - reach > 0`` and ``estimate > margin``. Shares
    rise by the policy's steps, at most once a day, when ``min_labels`` are there.

    Assumed are rows independent of each other given the assignment, and a traffic that is the same every day.

    Args:
        policy: The model's rollout policy: steps, margin, alpha, min_labels and max_days.
        variance: Variance of a row's loss.
        per_day: Labelled rows a day.
        power: Chance of the decision within the planned time, in (0.5, 1).
        harm: The true difference that is to be found; three halves of the margin if not given.
        difference: The true difference of a sound canary; below zero if it is better.
        delay_days: How late labels come.

    Raises:
        InvalidPlanError: A number is out of range, or the question cannot be decided by any number of rows.
    """
    worse = 1.5 * policy.margin if harm is None else harm
    _require_sensible(variance=variance, per_day=per_day, harm=worse, difference=difference, delay_days=delay_days)
    if not (variance > 0 and per_day > 0 and 0.5 < power < 1 and delay_days >= 0):
        raise InvalidPlanError(
            f"Cannot plan with a variance of {variance:g}, {per_day:g} rows a day and a power of {power:g}.",
            remedy="Give a variance and a traffic above zero, and a power between 0.5 and 1.",
        )
    if difference >= policy.margin or worse <= policy.margin:
        raise InvalidPlanError(
            f"With a margin of {policy.margin:g} neither a sound difference of {difference:g} nor a harm of {worse:g} "
            "can be told for certain.",
            remedy="Give a sound difference below the margin and a harm above it.",
        )
    alpha, z = quality_alpha(policy), NormalDist().inv_cdf(power)

    def promotes(information: float) -> bool:
        noise = z * math.sqrt(variance / information)
        return policy.margin - difference - reach(information, variance, alpha) >= noise

    def rolls_back(information: float) -> bool:
        noise = z * math.sqrt(variance / information)
        return min(worse - reach(information, variance, alpha), worse - policy.margin) >= noise

    errors = NormalDist().inv_cdf(1 - alpha) + z
    once, found = (variance * (errors / gap) * (errors / gap) for gap in (policy.margin - difference, worse))
    promote = _need(policy, difference, least_information(promotes), once, per_day, delay_days)
    roll_back = _need(policy, worse, least_information(rolls_back), found, per_day, delay_days)
    return TrialPlan(promote, roll_back, promote.days < policy.max_days)


@dataclass(frozen=True)
class PairsNeed:
    """What a comparison on the same rows asks for; -1 rows mean that no number is enough.

    Attributes:
        promote_rows, roll_back_rows: Labelled rows that both have scored, until either decision with the planned power.
        promote_days, roll_back_days: Days of traffic for them, and the labels' delay.
    """

    promote_rows: int
    promote_days: float
    roll_back_rows: int
    roll_back_days: float


def plan_pairs(
    policy: RolloutPolicy,
    *,
    variance: float,
    per_day: float,
    power: float = 0.8,
    harm: float | None = None,
    delay_days: float = 0.0,
) -> PairsNeed:
    """Say how many rows that both versions score a decision will need; the reasoning is ``plan_trial``'s.

    Rows come at ``shadow_rate`` from what the champion keeps at the canary's largest share below one, which is least.
    A promotion further asks the split for ``min_labels`` of the canary.

    Args:
        policy: The model's rollout policy, of a canary with a ``shadow_rate``.
        variance: Variance of the difference of the losses on the same row.
        per_day: Labelled rows a day.
        power: Chance of the decision within the planned time, in (0.5, 1).
        harm: The true difference that is to be found; three halves of the margin if not given.
        delay_days: How late labels come.

    Raises:
        InvalidPlanError: A number is out of range, or the policy compares nothing in pairs.
    """
    worse = 1.5 * policy.margin if harm is None else harm
    if policy.shadow_rate == 0 or policy.strategy != "canary":
        raise InvalidPlanError(
            "The policy compares nothing on the same rows.", remedy="Give a canary's policy a shadow_rate."
        )
    _require_sensible(paired_variance=variance, per_day=per_day, harm=worse, delay_days=delay_days)
    if not (variance > 0 and per_day > 0 and 0.5 < power < 1 and worse > policy.margin):
        raise InvalidPlanError(
            f"Cannot plan pairs with a variance of {variance:g}, {per_day:g} rows a day, a power of {power:g} and a "
            f"harm of {worse:g}.",
            remedy="Give a variance and a traffic above zero, a power between 0.5 and 1, and a harm above the margin.",
        )
    alpha, z = pairs_alpha(policy), NormalDist().inv_cdf(power)

    def clears(gap: float, bounded: float) -> Callable[[float], bool]:
        return lambda n: min(gap, bounded - reach(n, variance, alpha)) >= z * math.sqrt(variance / n)

    good = max(least_information(clears(policy.margin, policy.margin)), policy.min_labels)
    bad = max(least_information(clears(worse - policy.margin, worse)), policy.min_labels)
    share = max((s for s in policy.steps if s < 1), default=policy.steps[0])
    daily = per_day * policy.shadow_rate * (1 - share)
    labels = policy.min_labels / (policy.steps[0] * per_day)
    return PairsNeed(
        _whole(good), max(good / daily, labels) + delay_days if daily else math.inf,
        _whole(bad), bad / daily + delay_days if daily else math.inf,
    )  # fmt: skip


@dataclass(frozen=True)
class ExperimentNeed:
    """What an A/B experiment asks for; -1 rows mean that no number is enough.

    Attributes:
        arms: Versions beside the champion.
        share: Share of each.
        rows: Labelled rows of one arm and the champion at the planned size.
        days: Days of traffic for them, and the labels' delay.
        in_time: Whether that is before the policy's ``max_days``.
    """

    arms: int
    share: float
    rows: int
    days: float
    in_time: bool


def plan_experiment(
    policy: RolloutPolicy, *, variance: float, per_day: float, arms: int = 1, delay_days: float = 0.0
) -> ExperimentNeed:
    """Say how long an A/B experiment takes at most, to its planned size; see ``compare.decide_ab``.

    Args:
        policy: The model's rollout policy; the last of ``steps`` is split evenly among the arms.
        variance: Variance of a row's loss.
        per_day: Labelled rows a day.
        arms: Versions beside the champion.
        delay_days: How late labels come.

    Raises:
        InvalidPlanError: A number is out of range, or the champion keeps nothing to be compared with.
    """
    rest = 1 - policy.steps[-1]
    _require_sensible(variance=variance, per_day=per_day, delay_days=delay_days)
    if not (variance > 0 and per_day > 0 and arms >= 1 and delay_days >= 0 and rest > 0):
        raise InvalidPlanError(
            f"Cannot plan an experiment of {arms} arms with a variance of {variance:g}, {per_day:g} rows a day and "
            f"{rest:.0%} of them left to the champion.",
            remedy="Give a variance, a traffic and arms above zero, and a last step below 1.",
        )
    share = policy.steps[-1] / arms
    alpha = quality_alpha(replace(policy, alpha=policy.alpha / arms))
    ours = share / (share + rest)
    rows = planned_information(variance, alpha, policy.margin) / (ours * (1 - ours))
    rows = max(rows, policy.min_labels / min(ours, 1 - ours))
    days = rows / (per_day * (share + rest)) + delay_days
    return ExperimentNeed(arms, share, _whole(rows), days, days < policy.max_days)


def _require_sensible(**given: float) -> None:
    """Refuse a number that is not finite, or beyond anything that is ever counted, by its option's name."""
    for name, value in given.items():
        if not abs(value) <= _MOST:
            raise InvalidPlanError(
                f"Cannot plan with a {name.replace('_', ' ')} of {value:g}.",
                where=f"--{name.replace('_', '-')}",
                remedy=f"Give a finite number of at most {_MOST:g}.",
            )


def _whole(rows: float) -> int:
    return math.ceil(rows) if math.isfinite(rows) else -1


def _need(
    policy: RolloutPolicy, difference: float, information: float, once: float, per_day: float, delay: float
) -> Need:
    share, seen, rows, canary, days = policy.steps[0], 0.0, 0.0, 0.0, 0.0
    while days < _MOST_DAYS:
        rate = per_day * share * (1 - share)
        fewest = min(share, 1 - share) * per_day
        left = max((information - seen) / rate, (policy.min_labels - canary) / fewest) if rate else math.inf
        if left <= 1:
            break
        seen, rows, canary, days = seen + rate, rows + per_day, canary + share * per_day, days + 1
        if canary >= policy.min_labels:
            share = next_share(policy, share) or share
    else:
        left = math.inf
    last = policy.steps[-1] if policy.steps[-1] < 1 else policy.steps[0]
    whole = rows + left * per_day
    return Need(
        difference,
        information,
        _whole(whole),
        _whole(canary + left * share * per_day),
        days + left + delay,
        _whole(once / (last * (1 - last))) if last < 1 else -1,
    )
