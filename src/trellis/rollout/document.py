"""A rollout as a small document: where it stands, and what its history says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from trellis.contract import Strategy
from trellis.rollout.plan import Variant

Stage = Literal["shadow", "warm", "trial", "window", "champion", "rolled_back", "aborted", "superseded"]
FINAL: frozenset[str] = frozenset({"champion", "rolled_back", "aborted", "superseded"})


@dataclass(frozen=True)
class Rollout:
    """Where one rollout stands.

    Attributes:
        id: Unique name, ``<model>-<versions>-<base revision>``.
        model: The model.
        strategy: How the candidates take over, see ``RolloutPolicy``.
        champion: Who answered when it began, and will again if it fails.
        candidates: The versions on trial, in their order.
        salt: Key of the assignment while the rollout lasts.
        stage: See the module's picture.
        step: Index into the policy's steps (canary).
        weights: Shares of the candidates (bandit); empty before the first.
        paused: Nothing moves by itself, and the split stays as it is.
        winner: The version that took over; empty while open.
        gate: Id of the gate's decision that let the candidate in; empty if unknown.
        number: Transitions so far; grows by one with each, the store compares and sets it.
        started_at: Event time of the first look, RFC 3339; empty before it.
        entered_at: Event time at which the stage was entered; empty before the first look.
        moved_at: Event time of the last move that a look made; empty where none did.
    """

    id: str
    model: str
    strategy: Strategy
    champion: Variant
    candidates: tuple[Variant, ...]
    salt: str
    stage: Stage
    step: int = 0
    weights: tuple[float, ...] = ()
    paused: bool = False
    winner: str = ""
    gate: str = ""
    number: int = 0
    started_at: str = ""
    entered_at: str = ""
    moved_at: str = ""

    @property
    def final(self) -> bool:
        """Whether it is over."""
        return self.stage in FINAL

    @property
    def newcomer(self) -> Variant:
        """The candidate that won, or the first of them."""
        return next((c for c in self.candidates if c.version == self.winner), self.candidates[0])


@dataclass(frozen=True)
class Move:
    """What follows, and why in one sentence; the state is the same object where nothing does."""

    state: Rollout
    why: str


@dataclass(frozen=True)
class Transition:
    """One entry of a rollout's history.

    Attributes:
        state: The rollout after it.
        at: Wall clock at which it was written, RFC 3339 in UTC.
        who: ``platform`` or an operator's name.
        why: The reason in one sentence.
        decision: Id of the decision that it follows; empty for an operator's word.
        revision: Revision of the plan that was written with it, or that was current.
    """

    state: Rollout
    at: str
    who: str
    why: str
    decision: str
    revision: int
