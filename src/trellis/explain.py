"""Taking a decision again from its evidence, and telling it to a person."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from trellis.contract import DriftPolicy, GatePolicy, RetrainPolicy, RolloutPolicy
from trellis.decision import Decision, Verdict, decision_of, dumps
from trellis.drift import DriftInputs
from trellis.drift import decide as decide_drift
from trellis.errors import RegistryError
from trellis.gates import GateInputs
from trellis.gates import decide as decide_gate
from trellis.loop import RetrainInputs, VerifyInputs, decide_retrain, decide_verify
from trellis.rollout.bandit import BanditInputs, decide_bandit
from trellis.rollout.compare import AbInputs, decide_ab
from trellis.rollout.shadowing import ShadowInputs, decide_shadow
from trellis.rollout.verdict import CanaryInputs
from trellis.rollout.verdict import decide as decide_canary
from trellis.rollout.window import WindowInputs, decide_window


@dataclass(frozen=True)
class Kind:
    """A kind of decision: the types of its evidence and the pure function that decides."""

    inputs: TypeAdapter[Any]
    policy: TypeAdapter[Any]
    decide: Callable[[Any, Any], Verdict]


KINDS: Mapping[str, Kind] = {
    "gate": Kind(TypeAdapter(GateInputs), TypeAdapter(GatePolicy), decide_gate),
    "canary": Kind(TypeAdapter(CanaryInputs), TypeAdapter(RolloutPolicy), decide_canary),
    "window": Kind(TypeAdapter(WindowInputs), TypeAdapter(RolloutPolicy), decide_window),
    "shadow": Kind(TypeAdapter(ShadowInputs), TypeAdapter(RolloutPolicy), decide_shadow),
    "ab": Kind(TypeAdapter(AbInputs), TypeAdapter(RolloutPolicy), decide_ab),
    "bandit": Kind(TypeAdapter(BanditInputs), TypeAdapter(RolloutPolicy), decide_bandit),
    "drift": Kind(TypeAdapter(DriftInputs), TypeAdapter(DriftPolicy), decide_drift),
    "retrain": Kind(TypeAdapter(RetrainInputs), TypeAdapter(RetrainPolicy), decide_retrain),
    "verify": Kind(TypeAdapter(VerifyInputs), TypeAdapter(RetrainPolicy), decide_verify),
}


def replay(decision: Decision) -> Verdict:
    """Take a decision again from nothing but its evidence.

    Raises:
        RegistryError: The kind is unknown to this version of the platform, or the evidence is not what it decides on.
    """
    kind = KINDS.get(decision.kind)
    if kind is None:
        raise RegistryError(
            f"Decisions of kind {decision.kind!r} cannot be replayed.", remedy=f"Known kinds: {', '.join(KINDS)}."
        )
    try:
        inputs = kind.inputs.validate_json(dumps(decision.inputs["inputs"]))
        policy = kind.policy.validate_json(dumps(decision.inputs["policy"]))
    except (KeyError, ValueError) as error:
        raise RegistryError(
            f"The evidence of {decision.id!r} cannot be read: {' '.join(str(error).split())[:200]}.",
            remedy="It was changed, or recorded by another version of the platform.",
        ) from error
    return kind.decide(inputs, policy)


def intact(decision: Decision) -> bool:
    """Return whether a decision's id still is the digest of its content; what was changed to fit shows here."""
    evidence = decision.inputs
    again = decision_of(
        decision.kind,
        model=decision.model,
        subject=decision.subject,
        at=decision.at,
        inputs=evidence.get("inputs"),
        policy=evidence.get("policy"),
        verdict=decision.verdict,
        who=decision.who,
    )
    return again.id == decision.id


def same(one: Verdict, other: Verdict) -> bool:
    """Return whether two verdicts agree to the last digit."""
    return dumps(one) == dumps(other)
