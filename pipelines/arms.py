"""The evidence of rollouts beyond a single canary, read from the logs: shadows, A/B experiments and bandits."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import datetime

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipelines.evidence import guard_counts, unit_counts
from trellis.adapters.plan_store import Change
from trellis.contract import ModelSpec, RolloutPolicy
from trellis.ledger import Labelled, labelled, moments
from trellis.rollout import CanaryInputs, LossStream, RolloutPlan
from trellis.rollout.bandit import BanditInputs, RewardBatch
from trellis.rollout.compare import AbInputs, Arm
from trellis.rollout.shadowing import ShadowInputs

# Below so many labelled rows from before the experiment a segment's mean loss is noise.
_FEWEST_BEFORE = 500
# As many rows of the overall mean are mixed into each segment's.
_PRIOR_ROWS = 50.0


def plans_of_trial(history: Sequence[Change]) -> dict[int, RolloutPlan]:
    """Return the newest plans, by revision, that have the same champion and the same canaries, oldest first."""
    found: dict[int, RolloutPlan] = {}
    wanted = [v.version for v in history[-1].plan.canaries]
    champion = history[-1].plan.champion.version
    for change in reversed(history):
        plan = change.plan
        if [v.version for v in plan.canaries] != wanted or plan.champion.version != champion:
            break
        found[plan.revision] = plan
    return dict(sorted(found.items()))


def ab_inputs(
    spec: ModelSpec, plans: dict[int, RolloutPlan], predictions: pd.DataFrame, labels: pd.DataFrame, now: datetime
) -> AbInputs:
    """Return an experiment's evidence; each arm is compared with the champion on the rows drawn for these two.

    ``predictions`` is what ``read_assigned`` gives, here and below.
    """
    newest = plans[max(plans)]
    found = labelled(spec, predictions[predictions["revision"].isin(list(plans))], labels, _plain(now))
    expected = _expected_before(spec, found, newest, min(plans), predictions, labels)
    champion = (found.rows["assigned"] == newest.champion.version).to_numpy(dtype=bool)
    units = None if newest.unit is None else found.rows["unit"].to_numpy(dtype=str)
    order = np.argsort(found.known.observed_at, kind="stable")
    arms = []
    for variant in newest.canaries:
        ours = (found.rows["assigned"] == variant.version).to_numpy(dtype=bool)
        weights = {r: _pair(plan, variant.version) for r, plan in plans.items()}
        share = found.rows["revision"].map(weights).to_numpy(dtype=float)
        pair = ours | champion
        told = order[(found.told & pair)[order]]
        stream = LossStream().update(
            ours[told],
            found.loss[told],
            share[told],
            None if expected is None else expected[told],
            None if units is None else units[told],
        )
        rows = found.rows[pair].reset_index(drop=True)
        exposures, latencies = guard_counts(spec, rows, share[pair], ours[pair], by_unit=units is not None)
        clusters = None if units is None else unit_counts(spec, rows, share[pair], ours[pair])
        weight, days = weights[newest.revision], days_since_first(found.times, now, spec.rollout)
        inputs = CanaryInputs(stream, exposures, weight, days, latencies=latencies, units=clusters)
        arms.append(Arm(variant.version, inputs))
    return AbInputs(tuple(arms))


def bandit_inputs(
    spec: ModelSpec, plans: dict[int, RolloutPlan], predictions: pd.DataFrame, labels: pd.DataFrame, now: datetime
) -> BanditInputs:
    """Return a bandit's evidence: rewards by the revision that assigned them, so that late labels find their batch.

    A row that its arm failed on has no reward, whatever another version answered in its place. It counts once its label
    is there, as all rows do, or failures would be known before successes; at once where nobody answered.
    """
    newest = plans[max(plans)]
    found = labelled(spec, predictions[predictions["revision"].isin(list(plans))], labels, _plain(now))
    arms = (newest.champion.version, *(v.version for v in newest.canaries))
    version, revision = found.rows["assigned"].to_numpy(str), found.rows["revision"].to_numpy()
    failed, answered = (found.rows[name].to_numpy(dtype=bool) for name in ("failed", "answered"))
    counted = found.told | (failed & ~answered)
    reward = np.where(failed, 0.0, 1 - found.loss)
    batches = []
    for number in plans:
        drawn = [(revision == number) & (version == arm) for arm in arms]
        here = [rows & counted for rows in drawn]
        batches.append(
            RewardBatch(
                tuple(int(rows.sum()) for rows in here),
                tuple(float(reward[rows].sum()) for rows in here),
                tuple({v.version: v.weight for v in plans[number].variants}[arm] for arm in arms),
                tuple(int(rows.sum()) for rows in drawn),
            )
        )
    seed = int(hashlib.sha256(f"{newest.salt} {newest.revision} {now.isoformat()}".encode()).hexdigest()[:8], 16)
    return BanditInputs(arms, tuple(batches), days_since_first(found.times, now, spec.rollout), seed)


def shadow_inputs(
    spec: ModelSpec,
    version: str,
    history: Sequence[Change],
    shadows: pd.DataFrame,
    labels: pd.DataFrame,
    now: datetime,
) -> ShadowInputs:
    """Return a shadow's evidence: labelled predictions that it has scored and the champion answered."""
    since = 0
    for change in reversed(history):
        if version not in {s.version for s in change.plan.shadows}:
            break
        since = change.plan.revision
    ours = (shadows["version"] == version) & (shadows["primary_version"] == history[-1].plan.champion.version)
    rows = shadows[ours & (shadows["revision"] >= since)].reset_index(drop=True)
    if len(rows):
        rows = rows[moments(rows["time"]) <= _plain(now)].reset_index(drop=True)
    if not len(rows):
        return ShadowInputs(0, 0, 0, 0.0, 0.0, 0.0)
    name, primary = f"outputs.{spec.score.name}", f"primary.{spec.score.name}"
    scored = rows["error"].isna() & (rows[name].notna() if name in rows else False)
    pairs = rows[scored].reset_index(drop=True)
    days = days_since_first(moments(rows["time"]), now, spec.rollout)
    if not len(pairs):
        return ShadowInputs(len(rows), len(rows), 0, 0.0, 0.0, days)
    mine = labelled(spec, pairs, labels, _plain(now))
    theirs = labelled(spec, pairs.assign(**{name: pairs[primary]}), labels, _plain(now))
    told = mine.told & theirs.told
    gap = mine.loss[told] - theirs.loss[told]
    bound = float(np.abs(gap).max(initial=0.0)) if spec.task == "regression" else 1.0
    return ShadowInputs(
        len(rows), int((~scored).sum()), int(told.sum()), float(gap.sum()), float((gap * gap).sum()), days, bound
    )


def _expected_before(
    spec: ModelSpec,
    trial: Labelled,
    plan: RolloutPlan,
    since: int,
    predictions: pd.DataFrame,
    labels: pd.DataFrame,
) -> NDArray[np.float64] | None:
    """Return the champion's mean loss in each row's segment before the experiment, or None where too little is known.

    Only labels that were known when the experiment began count, so that what is expected of a row never changes.
    """
    names = [
        name
        for segment in spec.segments
        for name in (f"request.{segment}", f"features.{segment}")
        if name in predictions
    ]
    earlier = predictions[(predictions["revision"] < since) & (predictions["version"] == plan.champion.version)]
    if not names or not len(earlier) or not len(trial.rows):
        return None
    before = labelled(spec, earlier, labels, trial.times.min())
    told = before.told
    if told.sum() < _FEWEST_BEFORE:
        return None
    overall = float(before.loss[told].mean())
    frame = before.rows.loc[told, names].astype(str).assign(loss=before.loss[told])
    sums = frame.groupby(names)["loss"].agg(["sum", "count"])
    means = (sums["sum"] + _PRIOR_ROWS * overall) / (sums["count"] + _PRIOR_ROWS)
    keys = pd.MultiIndex.from_frame(trial.rows[names].astype(str))
    index = means.index if isinstance(means.index, pd.MultiIndex) else pd.MultiIndex.from_arrays([means.index])
    at = index.get_indexer(keys)
    return np.where(at >= 0, means.to_numpy()[at], overall)


def _pair(plan: RolloutPlan, version: str) -> float:
    weight = next(v.weight for v in plan.canaries if v.version == version)
    both = weight + plan.champion.weight
    return weight / both if both else 0.0


def _plain(now: datetime) -> np.datetime64:
    return np.datetime64(now.replace(tzinfo=None), "us")


def days_since_first(times: NDArray[np.datetime64], now: datetime, policy: RolloutPolicy) -> float:
    """Return the days of event time since the first row, not counting rows older than the policy's ``max_days``.

    Callers say when a row happened: one of 1900 must not make a trial a century old. The rollout's own clock ends it.
    """
    ages = (_plain(now) - times) / np.timedelta64(1, "D")
    return round(float(ages[ages <= policy.max_days].max(initial=0.0)), 6)
