"""The controller: reads plan and rollout, asks the pure state machine what follows, writes it in one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from trellis.adapters.leases import Lease
from trellis.adapters.plan_store import Change, PlanStore
from trellis.adapters.rollout_store import RolloutStore
from trellis.contract import RolloutPolicy
from trellis.decision import Verdict
from trellis.errors import ExpiredRolloutError, RolloutBusyError, RolloutError, StaleRevisionError
from trellis.rollout.asked import follows, plan_for
from trellis.rollout.document import Rollout
from trellis.rollout.plan import RolloutPlan, Variant, previous_champion
from trellis.rollout.release import Served, require_served
from trellis.rollout.state import adopt, begin, ended_by_hand, next_state, paused, promoted_by_hand, resumed


class RolloutController:
    """Moves the rollouts of a plan store; any number of processes may hold one.

    A plan that was changed past the controller is the truth: a rollout that it no longer shows is closed as superseded,
    and a canary that it shows is adopted.

    Args:
        url: SQLAlchemy URL of the plan store.
        lease_seconds: For how long a controller may act before another may take over.
        served: Tells by which definition a feature service is served: no version becomes the champion on features that
            are served no longer. None asks nothing.
    """

    def __init__(self, url: str, *, lease_seconds: float = 30.0, served: Served | None = None) -> None:
        self.plans = PlanStore(url)
        self.store = RolloutStore(url)
        self._seconds = lease_seconds
        self._served = served

    def start(
        self,
        model: str,
        candidates: Sequence[Variant],
        policy: RolloutPolicy,
        *,
        who: str,
        why: str,
        gate: str = "",
        supersede: bool = False,
    ) -> Rollout:
        """Begin a rollout in its first stage.

        Where one is going on, the newer candidate supersedes it only if ``supersede`` says so: the older one is closed
        and leaves the traffic, and what was found out about it decides nothing any more.

        Raises:
            RolloutError: The model has no champion yet.
            RolloutBusyError: A rollout is going on, and is not to be superseded; nothing was changed.
            InvalidPlanError: The candidates make no sense; nothing was changed.
            StaleRevisionError: Somebody changed the plan meanwhile.
            LeaseHeldError: Another controller is acting.
        """
        with self.store.lease(model, seconds=self._seconds) as lease:
            state, plan = self._read(model, policy, lease)
            if state is None or state.final:
                begin(plan, candidates, policy)  # refused before anything is written
            else:
                if not supersede:
                    versions = ", ".join(c.version for c in state.candidates)
                    raise RolloutBusyError(
                        f"A rollout of {model!r} (version {versions}, {state.stage}) is going on.",
                        where=state.id,
                        remedy="Abort or promote it first, or start with --supersede.",
                    )
                ended = ended_by_hand(state, "superseded", "")
                begin(plan_for(ended, plan, policy), candidates, policy)  # the same, against what will answer then
                newer = ", ".join(c.version for c in candidates)
                plan = self._write(state, ended, plan, policy, who, f"Superseded by version {newer}.", lease=lease)
                state = ended
            begun = begin(plan, candidates, policy, gate=gate)
            plan = replace(plan, unit=policy.unit)  # it stays for as long as the rollout, whose evidence counts by it
            self._write(state, begun, plan, policy, who, why, decision=gate, lease=lease)
            return begun

    def look(
        self,
        model: str,
        verdict: Verdict | None,
        policy: RolloutPolicy,
        now: str,
        *,
        who: str,
        decision: str = "",
        revision: int | None = None,
    ) -> tuple[RolloutPlan, str]:
        """Move a rollout as a verdict and the time say, by one transition at most.

        Args:
            model: Whose rollout.
            verdict: What was found out; None where the stage asks for no evidence, see ``next_state``.
            policy: The model's rollout policy.
            now: Event time of the look, RFC 3339.
            who: ``platform`` or an operator's name.
            decision: Id of the decision that holds the verdict.
            revision: Revision of the plan that the verdict is about; None to take whatever is there.

        Returns:
            The plan afterwards, and why it is so.

        Raises:
            RolloutError: The model has no plan.
            ClockError: ``now`` cannot be; nothing was changed.
            StaleRevisionError: Somebody changed plan or rollout meanwhile; the next look decides anew.
            LeaseHeldError: Another controller is acting.
        """
        with self.store.lease(model, seconds=self._seconds) as lease:
            state, plan = self._read(model, policy, lease)
            if revision is not None and plan.revision != revision:
                raise StaleRevisionError(
                    f"The verdict is about revision {revision} of the plan of {model!r}, which is at {plan.revision}.",
                    remedy="Look again.",
                )
            if state is None or state.final:
                return plan, "No rollout is going on."
            move = next_state(state, verdict, policy, now)
            if move.state is not state:
                plan = self._write(state, move.state, plan, policy, who, move.why, decision=decision, lease=lease)
            return plan, move.why

    def current(self, model: str, policy: RolloutPolicy) -> Rollout | None:
        """Return the newest rollout, after it has been squared with the plan; None where there never was one.

        Raises:
            RolloutError: The model has no plan.
        """
        with self.store.lease(model, seconds=self._seconds) as lease:
            return self._read(model, policy, lease)[0]

    def override(
        self,
        model: str,
        verb: Literal["promote", "pause", "resume", "abort"],
        policy: RolloutPolicy,
        *,
        who: str,
        why: str,
        version: str = "",
        now: str = "",
    ) -> RolloutPlan:
        """Do what an operator says; the reason is kept.

        An operator waits for no lease: a controller that is acting finds its numbers stale and gives up.

        Args:
            model: Whose rollout.
            verb: What to do.
            policy: The model's rollout policy.
            who: The operator.
            why: The reason, not empty.
            version: Which candidate to promote.
            now: Event time, RFC 3339; empty if it does not matter.

        Raises:
            RolloutError: No reason is given, there is no plan, or the state forbids the verb; nothing was changed.
            ExpiredRolloutError: No rollout is going on, or it is past its deadline.
            StaleRevisionError: Somebody else was faster.
        """
        _reason(why)
        state, plan = self._read(model, policy, None)
        if state is None or state.final:
            raise ExpiredRolloutError(
                f"No rollout of {model!r} is going on; there is nothing to {verb}.",
                remedy="Start one with: trellis rollout start.",
            )
        if verb == "promote":
            after = promoted_by_hand(state, version, now)
        elif verb == "pause":
            after = paused(state)
        elif verb == "resume":
            after = resumed(state, policy, now)
        else:
            after = ended_by_hand(state, "aborted", now)
        return self._write(state, after, plan, policy, who, why)

    def rollback(self, model: str, policy: RolloutPolicy, *, who: str, why: str, to: str = "") -> RolloutPlan:
        """Take a rollout back, or without one return to the champion before; one transaction.

        Args:
            model: Whose.
            policy: The model's rollout policy.
            who: The operator, or ``platform``.
            why: The reason, not empty.
            to: A version that was champion once, also one that was rolled back from; empty for the one before.

        Raises:
            RolloutError: No reason is given, there is no plan, or ``to`` is given while a rollout is going on.
            InvalidPlanError: There never was such a champion.
            FeatureVersionError: Its features are no longer served as it learned them; nothing was changed.
            StaleRevisionError: Somebody else was faster.
        """
        _reason(why)
        state, plan = self._read(model, policy, None)
        if state is not None and not state.final:
            if to:
                raise RolloutError(
                    f"A rollout of {model!r} is going on, so there is no going back to version {to} yet.",
                    where=state.id,
                    remedy="Roll it back first, without --to.",
                )
            return self._write(state, ended_by_hand(state, "rolled_back", ""), plan, policy, who, why)
        back = previous_champion([change.plan for change in self.plans.history(model)], to)
        self._require_features(plan, back)
        return self.plans.save(back, expected_revision=plan.revision, who=who, why=why)

    def close(self) -> None:
        """Give the connections back."""
        self.store.close()
        self.plans.close()

    def _read(self, model: str, policy: RolloutPolicy, lease: Lease | None) -> tuple[Rollout | None, RolloutPlan]:
        """Return rollout and plan, squared with each other."""
        state, plan = self.store.current(model), self.plans.current(model)
        if plan is None:
            raise RolloutError(f"{model!r} has no rollout plan.", remedy=f"Train it with: trellis flow train {model}")
        if state is not None and not state.final and not follows(state, plan, policy):
            by = self.plans.history(model)[-1]
            ended = ended_by_hand(state, "superseded", "")
            self.store.commit(
                state,
                ended,
                plan,
                expected_revision=plan.revision,
                who="platform",
                why=f"{by.who!r} changed the plan at revision {plan.revision}: {by.why}",
                lease=lease,
            )
            state = ended
        if (state is None or state.final) and plan.canary is not None:
            gate = gate_of(self.plans.history(model))
            found = adopt(plan, policy, gate=gate)
            why = f"Adopted from revision {plan.revision} of the plan."
            self.store.commit(
                state, found, plan, expected_revision=plan.revision, who="platform", why=why, decision=gate, lease=lease
            )
            state = found
        return state, plan

    def _write(
        self,
        before: Rollout | None,
        after: Rollout,
        plan: RolloutPlan,
        policy: RolloutPolicy,
        who: str,
        why: str,
        *,
        decision: str = "",
        lease: Lease | None = None,
    ) -> RolloutPlan:
        moved = before is None or _place(before) != _place(after)
        asked = plan_for(after, plan, policy) if moved else plan
        self._require_features(plan, asked)
        return self.store.commit(
            before,
            after,
            asked,
            expected_revision=plan.revision,
            who=who,
            why=why,
            decision=decision,
            lease=lease,
        )

    def _require_features(self, before: RolloutPlan, after: RolloutPlan) -> None:
        """Refuse a champion on features that are gone; the same features as now make nothing worse."""
        old, new = before.champion.release, after.champion.release
        same = (
            old is not None
            and new is not None
            and (old.feature_service, old.features)
            == (
                new.feature_service,
                new.features,
            )
        )
        if self._served is not None and not same:
            require_served(after.champion.version, new, self._served)


def gate_of(history: Sequence[Change]) -> str:
    """Return the id of the gate's decision that let the newest plan's canary in; empty if the plans do not tell."""
    if not history or history[-1].plan.canary is None:
        return ""
    version, why = history[-1].plan.canary.version, ""
    for change in reversed(history):
        now = change.plan.canary
        if now is None or now.version != version:
            break
        why = change.why.partition(":")[0]
    return why if why.startswith("gate-") else ""


def _place(state: Rollout) -> Rollout:
    """Return what of a state decides its plan."""
    return replace(state, number=0, paused=False, started_at="", entered_at="", moved_at="")


def _reason(why: str) -> None:
    if not why.strip():
        raise RolloutError("An override needs a reason.", remedy='Give one with --why "…"; it is kept.')
