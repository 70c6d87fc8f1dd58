"""The verdict of blue-green's rollback window: does the version that was given all traffic answer it at all?"""

from __future__ import annotations

from dataclasses import dataclass

from trellis.contract import RolloutPolicy
from trellis.decision import Check, Verdict

# A version that answers fewer than this share of what it was given is not held by enough workers.
LEAST_SHARE = 0.5


@dataclass(frozen=True)
class WindowInputs:
    """All that the window's verdict depends on, beside the policy.

    Attributes:
        version: The version that was switched to.
        own: Rows since the switch that it answered.
        others: Rows since the switch that another version answered, or none.
        days: Event time since the switch, in days.
    """

    version: str
    own: int
    others: int
    days: float


def decide_window(inputs: WindowInputs, policy: RolloutPolicy) -> Verdict:
    """Say whether the switch stands, once the window's time is over.

    Workers that cannot load a version go on with the plan before, so callers notice nothing, until the last of these
    workers is started anew and has nothing to answer with. ROLL_BACK if less than half of what was asked since the
    switch was answered by the new version. PROMOTE otherwise, also where nobody asked anything: nothing speaks against
    it. HOLD before. Whether it is any good is not asked: a blue-green rollout leaves that to the gate and to people.
    """
    total = inputs.own + inputs.others
    share = inputs.own / total if total else 1.0
    over = inputs.days >= policy.rollback_days
    text = f"{inputs.own} of {total} rows since the switch were answered by version {inputs.version}"
    bad = over and share < LEAST_SHARE
    check = Check(
        "answers",
        False if bad else (True if over else None),
        f"{text}: too few workers can load it, or it fails." if bad else f"{text}.",
        round(share, 6),
        LEAST_SHARE,
    )
    time = Check(
        "time",
        True if over else None,
        f"{inputs.days:.1f} of {policy.rollback_days:g} days of the rollback window have passed.",
        inputs.days,
        policy.rollback_days,
    )
    outcome = "ROLL_BACK" if bad else ("PROMOTE" if over else "HOLD")
    first = check if over else time
    return Verdict(outcome, first.text, (first, *(c for c in (check, time) if c is not first)))
