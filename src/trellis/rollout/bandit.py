"""The bandit: traffic follows the probability of being best, by batches of delayed rewards, with a floor per arm."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trellis.contract import RolloutPolicy
from trellis.decision import Check, Verdict
from trellis.rollout.guards import log_evidence_shares
from trellis.rollout.verdict import SPLIT

DRAWS = 20_000
_DIGITS = 4


@dataclass(frozen=True)
class RewardBatch:
    """Labelled rows that were assigned under one set of weights, by arm, the champion first.

    Attributes:
        rows: Labelled rows.
        rewards: Sums of their rewards, each in [0, 1]: 1 less the loss.
        shares: The weights; empty in decisions older than them.
        drawn: Rows that were assigned, labelled or not.
    """

    rows: tuple[int, ...]
    rewards: tuple[float, ...]
    shares: tuple[float, ...] = ()
    drawn: tuple[int, ...] = ()


@dataclass(frozen=True)
class BanditInputs:
    """All that a bandit's next weights depend on, beside the policy.

    Attributes:
        arms: Versions, the champion first.
        batches: One for every set of weights, oldest first; labels that come late change old ones.
        days: Event time since it began, in days.
        seed: Seeds the draws from the posterior.
    """

    arms: tuple[str, ...]
    batches: tuple[RewardBatch, ...]
    days: float
    seed: int


def decide_bandit(inputs: BanditInputs, policy: RolloutPolicy) -> Verdict:
    """Say how the traffic is split next, or that the search is over.

    Thompson sampling (Thompson 1933, Biometrika 25) in batches: each arm's next weight is the posterior probability
    that it is the best one, which is Thompson sampling's chance of choosing it (Scott 2010, "A modern Bayesian look at
    the multi-armed bandit", Applied Stochastic Models in Business and Industry 26), mixed with a floor for each arm.
    The weights go into the plan, so the router stays deterministic. Equal weights until each arm has ``min_labels``.

    PROMOTE an arm, or ROLL_BACK to the champion, when it is the best one with a probability of ``1 - alpha`` and what
    another could still be better by is less than the margin in 95 % of the posterior (Scott's value remaining).
    INCONCLUSIVE if the requests were not split by the weights beyond doubt (the sequential test of
    ``guards.log_evidence_shares``), and after ``max_days``. This is a Bayesian rule: it bounds what is lost, not the
    chance of a wrong verdict over all looks. Where that is asked for, use ``ab``.

    Labels that come late are taken as missing for now; how late they come must not depend on the arm.
    """
    arms = inputs.arms
    first, second = posterior(inputs)
    draws = np.random.default_rng(inputs.seed).beta(first, second, size=(DRAWS, len(arms)))
    best = np.bincount(draws.argmax(axis=1), minlength=len(arms)) / DRAWS
    rows = np.sum([b.rows for b in inputs.batches], axis=0) if inputs.batches else np.zeros(len(arms))
    learning = bool(rows.min() < policy.min_labels)
    weights = weights_of(np.full(len(arms), 1 / len(arms)) if learning else best, policy.floor)
    leader = int(best.argmax())
    remaining = round(float(np.quantile(draws.max(axis=1) - draws[:, leader], 0.95)), _DIGITS)
    mean = first / (first + second)
    checks = [
        Check(
            f"weight/{version}",
            None,
            f"Version {version}: mean reward {mean[i]:.4f} on {int(rows[i])} labelled rows, the best with probability "
            f"{best[i]:.3f}: {weights[i]:.1%} of the traffic.",
            weights[i],
            policy.floor,
        )
        for i, version in enumerate(arms)
    ]
    sure = not learning and best[leader] >= 1 - policy.alpha and remaining < policy.margin
    value = Check(
        f"winner/{arms[leader]}",
        True if sure else None,
        f"Version {arms[leader]} is the best with probability {best[leader]:.3f}; what is left to gain is "
        f"{remaining:.4f} {'<' if remaining < policy.margin else '>='} margin {policy.margin:g}.",
        remaining,
        policy.margin,
    )
    split = _split(inputs, policy)
    checks.append(split)
    if split.passed is False:
        return Verdict("INCONCLUSIVE", split.text, (split, value, *checks[:-1]))
    if sure:
        return Verdict("PROMOTE" if leader else "ROLL_BACK", value.text, (value, *checks))
    if inputs.days >= policy.max_days:
        text = f"{inputs.days:.1f} of at most {policy.max_days:g} days have passed without a winner."
        late = Check("time", False, text, inputs.days, policy.max_days)
        return Verdict("INCONCLUSIVE", text, (late, value, *checks))
    few = f"Equal weights until each arm has {policy.min_labels} labels; the fewest are {int(rows.min())}."
    needs = {"labels": float(policy.min_labels - rows.min())} if learning else {}
    if needs and rows.min() > 0 and inputs.days > 0:
        needs["days"] = round(needs["labels"] * inputs.days / float(rows.min()), 1)
    return Verdict("HOLD", few if learning else value.text, (value, *checks), needs)


def _split(inputs: BanditInputs, policy: RolloutPolicy) -> Check:
    draws = [(b.shares, b.drawn) for b in inputs.batches if b.shares and min(b.shares) > 0]
    found, limit = log_evidence_shares(draws) / math.log(10), -math.log10(policy.alpha * SPLIT)
    text = f"{sum(sum(drawn) for _, drawn in draws)} requests were split by {len(draws)} sets of weights: evidence of "
    text += f"another split 10^{found:.1f}"
    if found >= limit:
        return Check("sample_ratio", False, f"{text} >= 10^{limit:.1f}; the comparison is void.", found, limit)
    return Check("sample_ratio", True, f"{text} < 10^{limit:.1f}.", found, limit)


def posterior(inputs: BanditInputs) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the Beta posterior's two parameters per arm, from a uniform prior.

    Weights that follow the rewards would compare an arm's good days with another's bad ones. So each arm's mean is
    taken per batch and weighted by the batch's rows over all arms (post-stratification; Holt & Smith 1979, JRSS A 142),
    and counts as many rows as that mean's variance is worth. A batch in which an arm has no row is joined to the next.
    Rewards in [0, 1] vary no more than coins of the same mean, so Beta is on the safe side (Agrawal & Goyal 2012, COLT,
    toss such coins).
    """
    arms = len(inputs.arms)
    strata: list[tuple[NDArray[Any], NDArray[Any]]] = []
    rows, rewards = np.zeros(arms), np.zeros(arms)
    for batch in inputs.batches:
        rows, rewards = rows + np.asarray(batch.rows), rewards + np.asarray(batch.rewards)
        if rows.min() > 0:
            strata.append((rows, rewards))
            rows, rewards = np.zeros(arms), np.zeros(arms)
    if rows.any() and strata:
        strata[-1] = (strata[-1][0] + rows, strata[-1][1] + rewards)
    if not strata:
        return np.ones(arms), np.ones(arms)
    weight = np.array([r.sum() for r, _ in strata])
    weight = weight / weight.sum()
    mean = sum(w * (s / r) for w, (r, s) in zip(weight, strata, strict=True))
    worth = 1 / sum(w * w / r for w, (r, _) in zip(weight, strata, strict=True))
    return 1 + worth * mean, 1 + worth * np.maximum(1 - mean, 0.0)


def weights_of(best: NDArray[Any], floor: float) -> tuple[float, ...]:
    """Return the shares that follow from the probabilities of being best, each at least ``floor``, with a sum of 1."""
    mixed = floor + (1 - len(best) * floor) * np.asarray(best, dtype=np.float64)
    rounded = [math.floor(share * 10**_DIGITS) / 10**_DIGITS for share in mixed[1:]]
    rounded = [max(share, floor) for share in rounded]
    return (1 - sum(rounded), *rounded)
