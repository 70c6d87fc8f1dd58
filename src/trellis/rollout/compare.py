"""The verdict of an A/B(/n) experiment: is any arm better than the champion, read at any time, up to a planned size?"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from statistics import NormalDist

from trellis.contract import RolloutPolicy
from trellis.decision import Check, Verdict
from trellis.rollout.stream import least_information, reach
from trellis.rollout.verdict import TRIPWIRES, CanaryInputs, decide, quality_alpha

POWER = 0.8


@dataclass(frozen=True)
class Arm:
    """One arm beside the champion.

    Attributes:
        version: Its version.
        inputs: Its evidence; shares are among this arm's requests and the champion's only.
    """

    version: str
    inputs: CanaryInputs


@dataclass(frozen=True)
class AbInputs:
    """All that an experiment's verdict depends on, beside the policy.

    Attributes:
        arms: The arms beside the champion, in the plan's order.
    """

    arms: tuple[Arm, ...]


def decide_ab(inputs: AbInputs, policy: RolloutPolicy) -> Verdict:
    """Say which arm wins.

    PROMOTE the arm whose loss is lower than the champion's beyond doubt (upper bound of the difference below 0) and
    none of whose guards is in doubt; of several the one with the lowest estimate. ROLL_BACK as soon as any arm does
    harm, as ``verdict.decide`` defines it: the split is fixed, so a harmful arm cannot be turned down. INCONCLUSIVE if
    the split is wrong, at the planned size, or after ``max_days``; then the champion stays, which costs nothing. Else
    HOLD, with the labels and days that are missing.

    The planned size is the information at which a true improvement by the policy's margin has been found with a power
    of 80 %; it follows from the variance over both arms seen so far, which tells nothing about the difference (blinded
    re-estimation; Friede & Kieser 2006, Biometrical Journal 48). The bounds hold at any time and under any rule of
    stopping, so neither looking early nor a planned size that moves spoils them. ``alpha`` is divided by the number of
    arms (Bonferroni).
    """
    arms = len(inputs.arms)
    each = replace(policy, alpha=policy.alpha / arms)
    alpha = quality_alpha(each)
    verdicts = {arm.version: decide(arm.inputs, each) for arm in inputs.arms}
    checks: list[Check] = []
    better: list[tuple[float, Check]] = []
    harmful: list[Check] = []
    void: list[Check] = []
    doubts: list[Check] = []
    full = True
    needs: dict[str, float] = {}
    for arm in inputs.arms:
        stream, found = arm.inputs.stream, verdicts[arm.version]
        first = found.checks[0]
        if found.outcome == "ROLL_BACK":
            harmful.append(replace(first, text=f"Version {arm.version}: {first.text}"))
        elif found.outcome == "INCONCLUSIVE" and first.name in ("sample_ratio", "label_split"):
            void.append(replace(first, text=f"Version {arm.version}: {first.text}"))
        enough = min(stream.canary_rows, stream.champion_rows) >= policy.min_labels
        variance = stream.square / stream.information if stream.information else 0.0
        upper = stream.bounds(alpha)[1]
        better_yet = enough and upper < 0
        doubt = [c for c in found.checks if c.name in TRIPWIRES and c.passed is None]
        if better_yet and doubt:
            doubts.append(replace(doubt[0], text=f"Version {arm.version}: {doubt[0].text}"))
        won = better_yet and not doubt
        planned = planned_information(variance, alpha, policy.margin) if variance else math.inf
        if math.isfinite(upper):
            text = (
                f"Version {arm.version}: mean loss less the champion's {stream.difference:+.4f} on {stream.rows} rows, "
                f"upper bound {upper:+.4f} {'<' if upper < 0 else '>='} 0"
            )
            few = min(stream.canary_rows, stream.champion_rows)
            text += "." if enough else f", {few} labels on a side are too few."
            check = Check(f"winner/{arm.version}", True if won else None, text, upper, 0.0)
            size = f"Version {arm.version}: {stream.information:.0f} of {planned:.0f} units of information are there."
            checks.append(check)
            if planned < math.inf:  # losses that never differ, or beyond all measure, ask for no size that can be told
                checks.append(Check(f"size/{arm.version}", None, size, stream.information, round(planned, 3)))
            better += [(stream.difference, check)] if won else []
            if stream.information < planned < math.inf:
                rate = stream.information / stream.rows
                labels = math.ceil((planned - stream.information) / rate)
                needs["labels"] = max(needs.get("labels", 0.0), labels)
                if arm.inputs.days > 0:
                    days_more = labels / (stream.rows / arm.inputs.days)
                    needs["days"] = max(needs.get("days", 0.0), round(days_more, 1))
        full = full and enough and stream.information >= planned

    def say(outcome: str, *first: Check, needs: dict[str, float] | None = None) -> Verdict:
        rest = [c for c in checks if c not in first]
        rest += [replace(c, name=f"{c.name}/{v}") for v, found in verdicts.items() for c in found.checks]
        return Verdict(outcome, " ".join(c.text for c in first), (*first, *rest), needs or {})

    if harmful:
        return say("ROLL_BACK", *harmful)
    if void:
        return say("INCONCLUSIVE", *void)
    if better:
        # Only the winner passes; the others that beat the champion as well stay told, but undecided.
        chosen = min(better, key=lambda pair: pair[0])[1]
        checks = [replace(c, passed=None) if c.name.startswith("winner/") and c is not chosen else c for c in checks]
        return say("PROMOTE", chosen)
    if full and not doubts:
        text = f"No arm is better beyond doubt at the planned size, made for an improvement of {policy.margin:g}."
        return say("INCONCLUSIVE", Check("size", False, text))
    days = max(arm.inputs.days for arm in inputs.arms)
    if days >= policy.max_days:
        late = f"{days:.1f} of at most {policy.max_days:g} days have passed without a winner."
        return say("INCONCLUSIVE", Check("time", False, late, days, policy.max_days))
    told = doubts[:1] or checks[:1] or [Check("labels", None, "No labelled row compares the arms yet.")]
    return say("HOLD", *told, needs=needs or {"labels": float(policy.min_labels)})


def planned_information(variance: float, alpha: float, effect: float) -> float:
    """Return the information at which a true difference ``effect`` has been found with the planned power.

    It is infinite where no sensible amount of rows is enough.
    """
    z = NormalDist().inv_cdf(POWER)

    def enough(information: float) -> bool:
        return effect - reach(information, variance, alpha) >= z * math.sqrt(variance / information)

    return least_information(enough)
