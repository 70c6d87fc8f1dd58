"""The canary's verdict, valid however often it is asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass

from trellis.contract import RolloutPolicy
from trellis.decision import Check, Verdict
from trellis.rollout.guards import Exposure, log_evidence_split, log_evidence_worse
from trellis.rollout.latency import Latencies, lower_bound, quantile, upper_bound
from trellis.rollout.pairs import Pairs
from trellis.rollout.stream import LossStream, information_for, reach
from trellis.rollout.units import UnitCounts

# How the policy's alpha is spent; the parts sum to 1. Quality's part serves a promotion and a rollback alike, because
# for any one truth only one of the two would be wrong.
QUALITY, ERRORS, SLOW, SPLIT, LABEL_SPLIT = 0.8, 0.05, 0.05, 0.05, 0.05
# What a shadow, where there is one, takes of quality's part: for failing, and for its losses on the same rows. A canary
# stays in its own shadow, so its pairs are one stream from the first day on; for the others they end with the stage.
SHADOW_FAILS, SHADOW_LOSS, PAIRS = 0.05, 0.05, 0.35
# Increases of a rate below these are not worth a rollback even where they are certain. One in twenty slow is what a
# limit on the 95th percentile allows.
WORST_ERRORS, WORST_SLOW = 0.001, 0.05
_PROMISE_ERRORS = 2.0
# Checks that roll a canary back by themselves, and that a promotion waits for while they are in doubt.
TRIPWIRES = ("errors", "slow", "errors_by_request", "slow_by_request", "latency")
# Standard errors above zero from which a rate with callers as clusters is in doubt: one look in twenty where versions
# are alike. One busy caller never gets far beyond one, however much it suffers; so an increase by one request in ten
# needs no more than that.
_DOUBT, _DOUBT_OF_MANY, _MANY = 1.645, 1.0, 0.1


@dataclass(frozen=True)
class CanaryInputs:
    """All that a canary's verdict depends on, beside the policy.

    Attributes:
        stream: Labelled losses of both variants since the rollout began.
        exposures: Requests since then, labelled or not, by share.
        share: The canary's share now, in (0, 1).
        days: Event time since the rollout began, in days.
        expected_difference: The canary's mean loss less the champion's as the gate saw it; None if it saw no champion.
        expected_error: Its standard error.
        latencies: Of the requests in ``exposures``; None where the policy does not ask for them.
        pairs: Labelled rows that the champion answered and the canary scored as well, since its shadow began; None
            where the policy has no shadow.
        units: The requests in ``exposures`` by unit, where the split draws units; None where it draws rows, and in
            decisions older than it.
    """

    stream: LossStream
    exposures: tuple[Exposure, ...]
    share: float
    days: float
    expected_difference: float | None = None
    expected_error: float = 0.0
    latencies: Latencies | None = None
    pairs: Pairs | None = None
    units: UnitCounts | None = None


def quality_alpha(policy: RolloutPolicy) -> float:
    """Return what the losses of the split may spend of the policy's alpha."""
    if policy.shadow_rate == 0:
        return policy.alpha * QUALITY
    return policy.alpha * (QUALITY - SHADOW_FAILS) - pairs_alpha(policy)


def pairs_alpha(policy: RolloutPolicy) -> float:
    """Return what the losses on the same rows may spend of the policy's alpha, over shadow stage and trial."""
    return policy.alpha * (PAIRS if policy.strategy == "canary" else SHADOW_LOSS)


def decide(inputs: CanaryInputs, policy: RolloutPolicy) -> Verdict:
    """Say whether a canary takes over.

    In this order:

    ROLL_BACK if requests fail, or are slow, more often in the canary beyond doubt and by more than a trifle (where a
    split draws callers: if more callers meet it, or more requests with callers as clusters), or if its 95th percentile
    of latency is higher beyond doubt and by more than ``max_slowdown``.
    INCONCLUSIVE if the split of requests, or of labels, is not the planned one beyond doubt: the variants then saw
    different traffic, or labels go missing by variant, and no comparison holds. HOLD below ``min_labels`` on a side.
    ROLL_BACK if the canary's loss is higher beyond doubt (lower bound of the difference above 0) *and* its estimate
    exceeds the margin. Waiting for the lower bound to pass the margin itself would let a canary half as bad again as
    allowed answer for weeks. One that is worse by less than the margin may thus be rolled back, which errs on the
    champion's side; one that is no worse is rolled back with probability at most ``alpha``.
    The same is asked of the rows that both have scored, where there are ``min_labels`` of them, and either is enough;
    they are there before the split has its labels, and tell far smaller differences.
    ROLL_BACK if it breaks the gate's promise: the lower bound lies above the offline difference by more than the margin
    and two of its standard errors. That is what a feature that knew the future, or that serving computes otherwise,
    looks like; a season that hits both variants cancels out.
    PROMOTE if the upper bound of the difference, by the split or by the pairs, is below the margin, the split's
    estimate keeps the gate's promise, and no guard is in doubt: evidence of failing or slow requests that leans towards
    harm, by more than a trifle, is waited out.
    INCONCLUSIVE after ``max_days``. Else HOLD, with what is missing.

    The chance that a verdict is ever wrong, over all looks and steps, is at most ``policy.alpha`` (asymptotically for
    the losses and what has clusters, exactly for the other guards), spent as the constants above say. A wrong verdict
    is a PROMOTE of a canary that is worse by the margin or more, or a ROLL_BACK or voided comparison of one that is no
    worse in any of these respects.

    Args:
        inputs: The evidence.
        policy: The model's rollout policy.

    Returns:
        PROMOTE, ROLL_BACK, HOLD or INCONCLUSIVE. A PROMOTE may be followed at any share: it does not ask for more data.
    """
    split = _split(inputs, policy)
    rates = (*_rate(inputs, policy, "errors"), *_rate(inputs, policy, "slow"))
    tripwires = (*rates, *_latency(inputs, policy))
    guards = (*tripwires, split)
    labels, quality, promise = _labels(inputs, policy), _quality(inputs, policy), _promise(inputs, policy)
    labelled, paired = _label_split(inputs, policy), _paired(inputs, policy)
    checks = (*guards, labels, labelled, *quality, *promise, *paired)
    late = Check(
        "time",
        None if inputs.days < policy.max_days else False,
        f"{inputs.days:.1f} of at most {policy.max_days:g} days have passed.",
        inputs.days,
        policy.max_days,
    )

    def say(outcome: str, *first: Check, needs: dict[str, float] | None = None) -> Verdict:
        rest = [c for c in (*checks, late) if c not in first]
        return Verdict(outcome, " ".join(c.text for c in first), (*first, *rest), needs or {})

    tripped = [c for c in tripwires if c.passed is False]
    if tripped:
        return say("ROLL_BACK", *tripped)
    if split.passed is False:
        return say("INCONCLUSIVE", split)
    if labels.passed and labelled.passed is False:
        return say("INCONCLUSIVE", labelled)
    told = (*quality, *promise, *paired) if labels.passed else paired
    harm = [c for c in told if c.passed is False]
    if harm:
        return say("ROLL_BACK", *harm)
    fine = [c for c in (quality[1], *paired[1:]) if c.passed]
    if labels.passed and fine and all(c.passed for c in (*promise, *tripwires)):
        return say("PROMOTE", *fine)
    if late.passed is False:
        return say("INCONCLUSIVE", late, quality[1])
    needs = _needs(inputs, policy)
    missing = labels if labels.passed is None else quality[1]
    if labels.passed and fine:
        missing = next(c for c in (*promise, *tripwires) if c.passed is None)
    return say("HOLD", missing, needs=needs)


def ready_to_step(inputs: CanaryInputs, policy: RolloutPolicy) -> Check:
    """Say whether a canary may take the next share: labels enough, no guard tripped, estimate within the margin.

    This is prudence and no test; raising the share spoils no later verdict, because every row counts by the share it
    was assigned with.
    """
    verdict = decide(inputs, policy)
    mean = inputs.stream.difference
    ready = verdict.outcome in ("HOLD", "PROMOTE") and bool(_labels(inputs, policy).passed) and mean <= policy.margin
    text = (
        f"{verdict.outcome} with {inputs.stream.canary_rows} canary labels and a difference of {mean:+.4f}: "
        f"{'ready' if ready else 'not ready'} for a larger share."
    )
    return Check("ready_to_step", ready, text, mean, policy.margin)


def next_share(policy: RolloutPolicy, current_share: float) -> float | None:
    """Return the first step above ``current_share``; None on the last, after which the canary becomes the champion."""
    return next((step for step in policy.steps if step > current_share + 1e-12), None)


def _rate(inputs: CanaryInputs, policy: RolloutPolicy, kind: str) -> tuple[Check, ...]:
    """Return the checks of failing, or of slow, requests.

    Where units are drawn there are two, with half of alpha's part each: the exact one of units, each told once, speaks
    first; the one of requests, with units as clusters, still speaks when all units have been told.
    """
    if kind == "slow" and any(e.canary_slow is None for e in inputs.exposures):
        return (Check(kind, True, "Slow answers were not counted: some came from the cache, or without a latency."),)
    alpha = policy.alpha * (ERRORS if kind == "errors" else SLOW if policy.max_slowdown is None else SLOW / 2)
    if inputs.units is None:
        return (_guard(inputs, policy, kind, alpha),)
    stream = inputs.units.failures if kind == "errors" else inputs.units.slowness
    clustered = () if stream is None else (_clustered(stream, policy, kind, alpha / 2),)
    return (_guard(inputs, policy, kind, alpha / 2), *clustered)


def _guard(inputs: CanaryInputs, policy: RolloutPolicy, kind: str, alpha: float) -> Check:
    units = inputs.units
    asked = [sum(e.canary for e in inputs.exposures), sum(e.champion for e in inputs.exposures)]
    if kind == "errors":
        trifle, word = WORST_ERRORS, "requests failed" if units is None else "callers failed"
        counts = [(e.share, e.canary_errors, e.champion_errors) for e in inputs.exposures]
        # Drawn again, a caller still fails once.
        asked = asked if units is None else [units.canary, units.champion]
    else:
        trifle, word = WORST_SLOW, "requests were slow" if units is None else "callers' first answers were slow"
        counts = [(e.share, e.canary_slow or 0, e.champion_slow or 0) for e in inputs.exposures]
    events = [sum(c for _, c, _ in counts), sum(h for _, _, h in counts)]
    rates = [e / max(r, 1) for e, r in zip(events, asked, strict=True)]
    found, limit = log_evidence_worse(counts) / math.log(10), -math.log10(alpha)
    grave = rates[0] - rates[1] > trifle
    # Slow requests come in clumps, as after a cold start: a few are no proof, but no reason to promote either.
    sure = found >= limit and not (kind == "slow" and asked[0] < policy.min_labels)
    text = (
        f"{events[0]} of {asked[0]} canary {word} ({rates[0]:.2%}) and {events[1]} of {asked[1]} of "
        f"the champion's ({rates[1]:.2%}): evidence 10^{found:.1f} {'>=' if found >= limit else '<'} 10^{limit:.1f}"
    )
    if grave and found > 0 and not sure:
        return Check(kind, None, f"{text}, in doubt.", found, limit)
    trifling = found >= limit and not grave
    return Check(kind, not (grave and sure), f"{text}{', yet a trifle so far' if trifling else ''}.", found, limit)


def _clustered(stream: LossStream, policy: RolloutPolicy, kind: str, alpha: float) -> Check:
    """Return the check of a rate per request, with the bounds of a loss; a few busy callers cannot make it certain."""
    trifle, word = (WORST_ERRORS, "failed") if kind == "errors" else (WORST_SLOW, "were slow")
    counts = (int(stream.canary_loss), int(stream.champion_loss))
    text = (
        f"By request, {counts[0]} of {stream.canary_rows} of the canary {word} and {counts[1]} of "
        f"{stream.champion_rows} of the champion: {stream.difference:+.2%} at equal shares"
    )
    name, lower = f"{kind}_by_request", stream.bounds(alpha)[0]
    if not math.isfinite(lower):
        return Check(name, True, f"{text}.")
    told = f"{text}, lower bound by callers {lower:+.2%} {'>' if lower > 0 else '<='} 0"
    errors = _DOUBT_OF_MANY if stream.difference > _MANY else _DOUBT
    if stream.difference <= trifle or stream.score <= errors * math.sqrt(stream.square):
        return Check(name, True, f"{told}{', yet a trifle so far' if lower > 0 else ''}.", lower, 0.0)
    sure = lower > 0 and not (kind == "slow" and stream.canary_rows < policy.min_labels)
    return Check(name, False if sure else None, f"{told}{'' if sure else ', in doubt'}.", lower, 0.0)


def _latency(inputs: CanaryInputs, policy: RolloutPolicy) -> tuple[Check, ...]:
    """Return the check of the 95th percentile, if the policy asks for one; it shares ``SLOW`` with the fixed limit."""
    if policy.max_slowdown is None or inputs.latencies is None:
        return ()
    bins, canary, champion = inputs.latencies.bins, inputs.latencies.canary, inputs.latencies.champion
    if min(sum(canary), sum(champion)) < policy.min_labels:
        few = f"{sum(canary)} latencies of the canary are too few."
        if inputs.units is not None:
            few = (
                f"First answers to {sum(canary)} callers of the canary and to {sum(champion)} of the champion: with "
                f"fewer than {policy.min_labels} of each latencies are not compared, and nothing is promoted."
            )
        return (Check("latency", None, few),)
    alpha = policy.alpha * SLOW / 4  # half of SLOW, for two bounds
    ours, theirs = quantile(bins, canary), quantile(bins, champion)
    lower, upper = lower_bound(bins, canary, alpha), upper_bound(bins, champion, alpha)
    sure, grave = lower > upper, ours > theirs * (1 + policy.max_slowdown)
    text = (
        f"95th percentile of latency {ours:.2f} ms (at least {lower:.2f}), {theirs:.2f} ms of the champion's (at most "
        f"{upper:.2f}): {ours / theirs - 1:+.0%}, {policy.max_slowdown:.0%} are allowed."
    )
    passed = (False if sure else None) if grave else True
    return (Check("latency", passed, text, round(ours / theirs - 1, 6), policy.max_slowdown),)


def _split(inputs: CanaryInputs, policy: RolloutPolicy) -> Check:
    counts = [(e.share, e.canary, e.champion) for e in inputs.exposures]
    found, limit = log_evidence_split(counts) / math.log(10), -math.log10(policy.alpha * SPLIT)
    canary, total = sum(c for _, c, _ in counts), sum(c + h for _, c, h in counts)
    planned = sum(p * (c + h) for p, c, h in counts)
    what = "requests" if inputs.units is None else "draws of callers"
    text = (
        f"{canary} of {total} {what} went to the canary, {planned:.0f} were planned: evidence of another split "
        f"10^{found:.1f}"
    )
    if found >= limit:
        return Check("sample_ratio", False, f"{text} >= 10^{limit:.1f}; the comparison is void.", found, limit)
    return Check("sample_ratio", True, f"{text} < 10^{limit:.1f}.", found, limit)


def _label_split(inputs: CanaryInputs, policy: RolloutPolicy) -> Check:
    stream = inputs.stream
    limit, variance = 0.0, stream.surplus_variance or stream.information
    if variance > 0:
        limit = variance * reach(variance, 1.0, policy.alpha * LABEL_SPLIT / 2)
    even = abs(stream.surplus) <= limit
    text = (
        f"{stream.canary_rows} of {stream.rows} labels are the canary's, {stream.canary_rows - stream.surplus:.0f} "
        f"were to be expected: {abs(stream.surplus):.0f} off {'<=' if even else '>'} {limit:.0f}"
    )
    return Check(
        "label_split", even, f"{text}{'.' if even else '; labels go missing by variant.'}", stream.surplus, limit
    )


def _labels(inputs: CanaryInputs, policy: RolloutPolicy) -> Check:
    canary, champion = inputs.stream.canary_rows, inputs.stream.champion_rows
    few = min(canary, champion)
    text = f"{canary} labels of the canary and {champion} of the champion; a verdict needs {policy.min_labels} of each."
    return Check("labels", True if few >= policy.min_labels else None, text, float(few), float(policy.min_labels))


def _quality(inputs: CanaryInputs, policy: RolloutPolicy) -> tuple[Check, Check]:
    """Return the checks for harm and for non-inferiority."""
    mean, margin = inputs.stream.difference, policy.margin
    if not math.isfinite(inputs.stream.reach(policy.alpha)):
        nothing = "No labelled row compares the variants yet."
        return Check("no_harm", None, nothing), Check("non_inferiority", None, nothing)
    lower, upper = inputs.stream.bounds(quality_alpha(policy))
    text = f"Live mean loss of the canary less the champion's {mean:+.4f} on {inputs.stream.rows} labelled rows"
    bad = lower > 0 and mean > margin
    harm = (
        f"{text}: lower bound {lower:+.4f} {'>' if lower > 0 else '<='} 0, estimate {'>' if mean > margin else '<='} "
    )
    fine = f"{text}: upper bound {upper:+.4f} {'<' if upper < margin else '>='} margin {margin:g}."
    no_harm = True if upper < margin else None
    return (
        Check("no_harm", False if bad else no_harm, f"{harm}margin {margin:g}.", lower, 0.0),
        Check("non_inferiority", True if upper < margin else None, fine, upper, margin),
    )


def _paired(inputs: CanaryInputs, policy: RolloutPolicy) -> tuple[Check, ...]:
    """Return the checks for harm and for non-inferiority on the rows that both have scored."""
    pairs, margin = inputs.pairs, policy.margin
    if pairs is None or pairs.rows < policy.min_labels:
        return ()
    lower, upper = pairs.bounds(pairs_alpha(policy))
    text = f"Mean loss of the canary less the champion's {pairs.mean:+.4f} on the same {pairs.rows} rows"
    bad = lower > 0 and pairs.mean > margin
    harm = (
        f"{text}: lower bound {lower:+.4f} {'>' if lower > 0 else '<='} 0, estimate "
        f"{'>' if pairs.mean > margin else '<='} margin {margin:g}."
    )
    fine = f"{text}: upper bound {upper:+.4f} {'<' if upper < margin else '>='} margin {margin:g}."
    good = True if upper < margin else None
    return (
        Check("paired_no_harm", False if bad else good, harm, lower, 0.0),
        Check("paired_non_inferiority", good, fine, upper, margin),
    )


def _promise(inputs: CanaryInputs, policy: RolloutPolicy) -> tuple[Check, ...]:
    if inputs.expected_difference is None or inputs.stream.information <= 0:
        return ()
    lower, _ = inputs.stream.bounds(quality_alpha(policy))
    bound = inputs.expected_difference + _PROMISE_ERRORS * inputs.expected_error + policy.margin
    text = (
        f"Offline the difference was {inputs.expected_difference:+.4f}, live it is {inputs.stream.difference:+.4f} "
        f"with a lower bound of {lower:+.4f}"
    )
    if lower > bound:
        text += f" > {bound:+.4f}: serving sees other features than training did."
        return (Check("offline_promise", False, text, lower, bound),)
    kept = inputs.stream.difference <= bound
    text += f" <= {bound:+.4f}{'' if kept else ', the estimate above it: the promise is in doubt'}."
    return (Check("offline_promise", True if kept else None, text, lower, bound),)


def _needs(inputs: CanaryInputs, policy: RolloutPolicy) -> dict[str, float]:
    """Return the canary labels and the days still missing.

    Planned for a canary as good as the champion; where that many have come already, for the difference that is seen,
    but a quarter of the margin away from it at least.
    """
    stream, share = inputs.stream, inputs.share
    per_day = stream.rows / inputs.days if inputs.days > 0 else 0.0
    labels = float(max(policy.min_labels - stream.canary_rows, 0))
    if stream.square > 0 and share < 1:
        variance, alpha = stream.square / stream.information, quality_alpha(policy)
        more = information_for(policy.margin, variance, alpha) - stream.information
        if more <= 0:
            gap = max(abs(policy.margin - stream.difference), policy.margin / 4)
            more = max(information_for(gap, variance, alpha) - stream.information, 0.1 * stream.information)
        labels = max(labels, more / (1 - share))
    needs = {"labels": float(math.ceil(labels))}
    if per_day > 0 and share > 0:
        needs["days"] = round(labels / (per_day * share), 1)
    return needs
