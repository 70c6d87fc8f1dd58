"""The rollout plan: one small document that says which version answers which share of a model's traffic."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Literal

from trellis.errors import InvalidPlanError
from trellis.rollout.release import Release

Role = Literal["champion", "canary", "standby"]

_TWO_64 = float(2**64)
_BELOW_ONE = math.nextafter(1.0, 0.0)
_INTERVALS = 2  # so many canaries can take an end of the unit interval each


@dataclass(frozen=True)
class Variant:
    """A version that answers a share of the traffic.

    Attributes:
        version: The registry's version.
        role: ``champion``, ``canary``, or ``standby`` for one that is kept loaded and warm without traffic.
        weight: Share of units, in [0, 1].
        location: Directory of the sealed artifact, so that serving needs no registry.
        digest: Digest of that artifact, checked at load.
        release: What it was released with; None in plans older than releases.
    """

    version: str
    role: Role
    weight: float
    location: str
    digest: str
    release: Release | None = None


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
        variants: One champion, and any canaries and standbys; their weights sum to 1, a standby's is 0.
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
        if any(v.weight for v in self.variants if v.role == "standby"):
            raise InvalidPlanError(
                f"A standby of {self.model!r} has a weight.", remedy="Give it 0, or make it a canary or the champion."
            )
        if any(not 0 < s.sample_rate <= 1 for s in self.shadows):
            raise InvalidPlanError(f"A shadow of {self.model!r} needs a sample rate in (0, 1].")

    @cached_property
    def champion(self) -> Variant:
        """The version that answers whatever no canary takes."""
        return next(v for v in self.variants if v.role == "champion")

    @property
    def canary(self) -> Variant | None:
        """The version on trial, if there is one; the first where there are several."""
        return next((v for v in self.variants if v.role == "canary"), None)

    @cached_property
    def canaries(self) -> tuple[Variant, ...]:
        """The versions on trial, in their order."""
        return tuple(v for v in self.variants if v.role == "canary")

    def assign(self, unit: str) -> Variant:
        """Return the variant of a unit: the same one in every process, for as long as the shares stay.

        The first canary takes the low end of the unit interval, the second the high end and the champion what is
        between, so that a share which grows takes units from the champion only and every other unit stays. No rule
        that looks at the shares alone can do so for three canaries or more. These are drawn by weighted rendezvous
        hashing (Schindelhauer & Schomaker 2005, "Weighted distributed hash tables", SPAA): each variant draws
        ``-ln(u) / weight`` and the smallest wins. There, an arm that grows at the champion's cost loses no unit, and
        few units change between the others.
        """
        canaries = self.canaries
        if len(canaries) > _INTERVALS:
            return min((v for v in self.variants if v.weight > 0), key=lambda v: self._draw(v, unit))
        position = unit_position(self.salt, unit)
        if canaries and position < canaries[0].weight:
            return canaries[0]
        if len(canaries) == _INTERVALS and position >= 1 - canaries[1].weight:
            return canaries[1]
        return self.champion

    def _draw(self, variant: Variant, unit: str) -> float:
        position = unit_position(f"{self.salt}/{variant.version}", unit)
        return -math.log1p(-min(position, _BELOW_ONE)) / variant.weight


def unit_position(salt: str, unit: str) -> float:
    """Map a unit to [0, 1) by a keyed hash (BLAKE2b, RFC 7693), uniformly and independently for every salt."""
    digest = hashlib.blake2b(unit.encode(), key=_key(salt), digest_size=8).digest()
    return int.from_bytes(digest, "big") / _TWO_64


@lru_cache(256)
def _key(salt: str) -> bytes:
    return hashlib.blake2b(salt.encode(), digest_size=32).digest()


def first_plan(model: str, champion: Variant, *, salt: str, unit: str | None = None) -> RolloutPlan:
    """Return the plan in which one version answers everything."""
    return RolloutPlan(model, 0, salt, (replace(champion, role="champion", weight=1.0),), unit=unit)


def with_canary(plan: RolloutPlan, canary: Variant, share: float) -> RolloutPlan:
    """Return the plan with ``canary`` on trial at ``share``; a canary already there is replaced.

    Raises:
        InvalidPlanError: The canary is the champion, or the share is out of range.
    """
    return with_canaries(plan, [(canary, share)])


def with_canaries(plan: RolloutPlan, arms: Sequence[tuple[Variant, float]]) -> RolloutPlan:
    """Return the plan with these versions on trial, each at its share; all others but the champion leave.

    Raises:
        InvalidPlanError: One is the champion or named twice, or the shares are out of range.
    """
    rest = 1 - sum(share for _, share in arms)
    champion = replace(plan.champion, weight=0.0 if abs(rest) < 1e-12 else rest)
    canaries = (replace(arm, role="canary", weight=share) for arm, share in arms)
    return replace(plan, variants=(champion, *canaries))


def with_standby(plan: RolloutPlan, standby: Variant) -> RolloutPlan:
    """Return the plan in which the champion answers everything and another version is kept warm beside it."""
    champion = replace(plan.champion, weight=1.0)
    return replace(plan, variants=(champion, replace(standby, role="standby", weight=0.0)))


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


def previous_champion(history: Sequence[RolloutPlan], to: str = "") -> RolloutPlan:
    """Return the plan in which an earlier champion answers everything again.

    Without ``to`` it is the one that the current champion took over from. What was rolled back is gone from this line,
    so that going back twice goes back two champions, and never forward to one that was found bad.

    Args:
        history: Every plan of the model, oldest first.
        to: The version, any that was champion once; empty for the one before.

    Raises:
        InvalidPlanError: There is no such champion.
    """
    current, line = history[-1], line_of_champions(history)
    known = {plan.champion.version: plan for plan in history if plan.champion.version != current.champion.version}
    if not known:
        raise InvalidPlanError(
            f"{current.model!r} never had another champion than version {current.champion.version}.",
            remedy="Train and promote another version first.",
        )
    found = known.get(to) if to else (line[-2] if len(line) > 1 else None)
    if found is None:
        what = f"version {to}" if to else f"a version before {current.champion.version}"
        raise InvalidPlanError(
            f"{current.model!r} cannot go back to {what}: it was never the champion, or is, or was rolled back.",
            remedy=f"Name one of {', '.join(sorted(known))} with --to.",
        )
    return replace(current, variants=(replace(found.champion, weight=1.0),), shadows=())


def line_of_champions(history: Sequence[RolloutPlan]) -> list[RolloutPlan]:
    """Return the current champion and those before it, each of which the next took over from, the oldest first.

    What was rolled back is no part of it.

    Args:
        history: Every plan of the model, oldest first.

    Returns:
        For each of these versions the last plan of its time as champion.
    """
    line, before, held = list[RolloutPlan](), history[0], ""
    for plan in history:
        version, old = plan.champion.version, before.champion.version
        at = next((i for i, p in enumerate(line) if p.champion.version == version), len(line))
        tried = {v.version for v in before.variants if v.role != "champion"} | {s.version for s in before.shadows}
        standby = next((v.version for v in plan.variants if v.role == "standby"), "")
        if at < len(line) - 1 and (standby == old or version in tried - {held}):
            line = [*line[:at], *line[at + 1 :], plan]  # tried anew and found good: it took over from the last one
        else:
            line[at:] = [plan]
        if version != old or not standby:
            held = standby if standby == old else ""  # taking it back ends a blue-green rollout in its window
        before = plan
    return line
