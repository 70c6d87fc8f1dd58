"""The rollout plan: one small document that says which version answers which share of a model's traffic."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from trellis.errors import InvalidPlanError

Role = Literal["champion", "canary"]

_TWO_64 = float(2**64)


@dataclass(frozen=True)
class Variant:
    """A version that answers a share of the traffic.

    Attributes:
        version: The registry's version.
        role: ``champion`` or ``canary``.
        weight: Share of units, in [0, 1].
        location: Directory of the sealed artifact, so that serving needs no registry.
        digest: Digest of that artifact, checked at load.
    """

    version: str
    role: Role
    weight: float
    location: str
    digest: str


@dataclass(frozen=True)
class Shadow:
    """A version that scores a sample of requests and answers none.

    Attributes:
        version, location, digest: As for a variant.
        sample_rate: Share of requests it also scores, in (0, 1].
    """

    version: str
    sample_rate: float
    location: str
    digest: str


@dataclass(frozen=True)
class RolloutPlan:
    """Who answers whom, at one revision.

    Attributes:
        model: The model's name.
        revision: Grows by one with every change; 0 has never been stored.
        salt: Key of the assignment; another salt draws other units.
        variants: One champion, and any canaries; their weights sum to 1.
        shadows: Versions that score without answering.
        unit: Request field whose value is assigned; None assigns every prediction by its id.
    """

    model: str
    revision: int
    salt: str
    variants: tuple[Variant, ...]
    shadows: tuple[Shadow, ...] = ()
    unit: str | None = None

    def __post_init__(self) -> None:
        """Refuse weights that do not sum to one, a missing champion and a version named twice."""
        champions = [v for v in self.variants if v.role == "champion"]
        if len(champions) != 1:
            raise InvalidPlanError(f"A plan for {self.model!r} needs one champion, not {len(champions)}.")
        total = sum(v.weight for v in self.variants)
        if abs(total - 1) > 1e-9 or any(not 0 <= v.weight <= 1 for v in self.variants):
            raise InvalidPlanError(
                f"The weights of {self.model!r} are {[v.weight for v in self.variants]} and sum to {total:g}.",
                remedy="Give shares in [0, 1] that sum to 1.",
            )
        versions = [v.version for v in self.variants]
        if len(set(versions)) != len(versions):
            raise InvalidPlanError(f"A plan for {self.model!r} names a version twice: {versions}.")
        if any(not 0 < s.sample_rate <= 1 for s in self.shadows):
            raise InvalidPlanError(f"A shadow of {self.model!r} needs a sample rate in (0, 1].")

    @property
    def champion(self) -> Variant:
        """The version that answers whatever no canary takes."""
        return next(v for v in self.variants if v.role == "champion")

    @property
    def canary(self) -> Variant | None:
        """The version on trial, if there is one."""
        return next((v for v in self.variants if v.role == "canary"), None)

    def assign(self, unit: str) -> Variant:
        """Return the variant of a unit: the same one in every process, for as long as the shares stay.

        Canaries take the low end of the unit interval and the champion the rest, so growing a canary's share only adds
        units to it.
        """
        position = unit_position(self.salt, unit)
        edge = 0.0
        for variant in self.variants:
            if variant.role == "canary":
                edge += variant.weight
                if position < edge:
                    return variant
        return self.champion


def unit_position(salt: str, unit: str) -> float:
    """Map a unit to [0, 1) by a keyed hash (BLAKE2b, RFC 7693), uniformly and independently for every salt."""
    key = hashlib.blake2b(salt.encode(), digest_size=32).digest()
    digest = hashlib.blake2b(unit.encode(), key=key, digest_size=8).digest()
    return int.from_bytes(digest, "big") / _TWO_64


def first_plan(model: str, champion: Variant, *, salt: str, unit: str | None = None) -> RolloutPlan:
    """Return the plan in which one version answers everything."""
    return RolloutPlan(model, 0, salt, (replace(champion, role="champion", weight=1.0),), unit=unit)


def with_canary(plan: RolloutPlan, canary: Variant, share: float) -> RolloutPlan:
    """Return the plan with ``canary`` on trial at ``share``; a canary already there is replaced.

    Raises:
        InvalidPlanError: The canary is the champion, or the share is out of range.
    """
    champion = replace(plan.champion, weight=1 - share)
    return replace(plan, variants=(champion, replace(canary, role="canary", weight=share)))


def promoted(plan: RolloutPlan) -> RolloutPlan:
    """Return the plan in which the canary has become the champion.

    Raises:
        InvalidPlanError: There is no canary.
    """
    if plan.canary is None:
        raise InvalidPlanError(f"The plan of {plan.model!r} has no canary to promote.", remedy="Start a rollout first.")
    return replace(plan, variants=(replace(plan.canary, role="champion", weight=1.0),))


def without_canary(plan: RolloutPlan) -> RolloutPlan:
    """Return the plan in which the champion answers everything again."""
    return replace(plan, variants=(replace(plan.champion, weight=1.0),))


def previous_champion(history: Sequence[RolloutPlan]) -> RolloutPlan:
    """Return the plan in which the champion before the current one answers everything again.

    Args:
        history: Every plan of the model, oldest first.

    Raises:
        InvalidPlanError: There never was another champion.
    """
    current = history[-1]
    for plan in reversed(history):
        if plan.champion.version != current.champion.version:
            return replace(current, variants=(replace(plan.champion, weight=1.0),), shadows=())
    raise InvalidPlanError(
        f"{current.model!r} never had another champion than version {current.champion.version}.",
        remedy="Train and promote another version first.",
    )
