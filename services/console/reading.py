"""What the pages show, read from the stores and the home; nothing here reads a prediction log or runs a plug-in."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trellis.adapters.database import engine
from trellis.adapters.decision_store import DecisionStore, Headline
from trellis.adapters.look_store import Look, LookStore
from trellis.adapters.loop_store import LoopStore
from trellis.adapters.plan_store import Change, PlanStore
from trellis.adapters.rollout_store import RolloutStore
from trellis.decision import Decision, Verdict
from trellis.errors import RegistryError
from trellis.loop.state import Loop
from trellis.rollout.document import Rollout, Transition
from trellis.rollout.plan import RolloutPlan

logger = logging.getLogger(__name__)

LOOKS, DECISIONS, CHANGES = 26, 40, 8
_MOST_KEPT = 2_000


@dataclass(frozen=True)
class Told:
    """A decision as it is told: without its evidence, which may be long."""

    id: str
    kind: str
    subject: str
    at: str
    who: str
    verdict: Verdict
    policy: Mapping[str, Any]


@dataclass(frozen=True)
class Alert:
    """An alert's episode.

    Attributes:
        id, severity, status: Its name, how bad it is, ``open`` or how it ended.
        since: From when on it is so; opened_at: when it was noticed; both event time, RFC 3339.
        reason: What is wrong, with its numbers.
        action: What to do.
        decision: The decision that explains it; empty where there is none.
    """

    id: str
    severity: str
    status: str
    since: str
    opened_at: str
    reason: str
    action: str
    decision: str


@dataclass(frozen=True)
class ModelState:
    """All that is shown of a model; what does not exist yet is None or empty."""

    model: str
    read_at: str
    plan: RolloutPlan | None
    rollout: Rollout | None
    changes: tuple[Change, ...] = ()
    transitions: tuple[Transition, ...] = ()
    latest: Mapping[str, Told] = field(default_factory=dict)
    headlines: tuple[Headline, ...] = ()
    looks: tuple[Look, ...] = ()
    alerts: tuple[Alert, ...] = ()
    loop: Loop | None = None

    @property
    def look(self) -> Look | None:
        """The newest look."""
        return self.looks[-1] if self.looks else None

    @property
    def open_alerts(self) -> list[Alert]:
        """The alerts that last, worst first."""
        order = {"critical": 0, "warning": 1}
        return sorted((a for a in self.alerts if a.status == "open"), key=lambda a: order.get(a.severity, 2))

    @property
    def last(self) -> Told | None:
        """The newest decision."""
        return self.latest[self.headlines[0].kind] if self.headlines else None


class Reading:
    """Reads the state of models.

    Args:
        home: Trellis's home.
        url: SQLAlchemy URL of plans, rollouts and decisions.
    """

    def __init__(self, home: Path, url: str) -> None:
        self._home = home
        self._plans = PlanStore(url)
        self._rollouts = RolloutStore(url)
        self._loops = LoopStore(url)
        self._decisions = DecisionStore(engine(url))
        self._looks = LookStore(home)
        # Decisions never change, so one that was read is known for good.
        self._told: dict[str, Told] = {}

    def models(self) -> list[str]:
        """Return every model that has a plan or was looked at, sorted."""
        return sorted({*self._plans.models(), *self._looks.models()})

    def state(self, model: str, *, looks: int = LOOKS) -> ModelState | None:
        """Return a model's state; None where nobody knows the model."""
        if model not in self.models():
            return None
        headlines = self._decisions.headlines(model, limit=DECISIONS)
        newest = {h.kind: h for h in reversed(headlines)}
        return ModelState(
            model=model,
            read_at=datetime.now(UTC).isoformat(timespec="seconds"),
            plan=self._plans.current(model),
            rollout=self._rollouts.current(model),
            changes=tuple(self._plans.history(model, last=CHANGES)),
            transitions=tuple(self._rollouts.history(model, last=CHANGES)),
            latest={kind: self._tell(h.id) for kind, h in newest.items()},
            headlines=headlines,
            looks=tuple(self._looks.latest(model, looks)),
            alerts=tuple(_alerts(self._home / "alerts", model)),
            loop=self._loops.current(model),
        )

    def decision(self, decision_id: str) -> Decision | None:
        """Return a decision with its evidence; None where there is none of exactly this id."""
        try:
            found = self._decisions.get(decision_id)
        except RegistryError:
            return None
        return found if found.id == decision_id else None

    def _tell(self, decision_id: str) -> Told:
        if decision_id not in self._told:
            if len(self._told) >= _MOST_KEPT:
                self._told.clear()
            d = self._decisions.get(decision_id)
            self._told[decision_id] = Told(
                d.id, d.kind, d.subject, d.at, d.who, d.verdict, d.inputs.get("policy") or {}
            )
        return self._told[decision_id]


def _alerts(directory: Path, model: str) -> list[Alert]:
    """Read a model's alerts, newest first; a file that cannot be read is told and left out."""
    found = []
    for path in directory.glob(f"{model}-*.json"):
        try:
            body = json.loads(path.read_text(encoding="utf-8"))
            if body["model"] != model:
                continue
            opened = str(body["opened_at"])
            since = str(body.get("since") or opened)
            found.append(
                Alert(
                    str(body["id"]),
                    str(body["severity"]),
                    str(body["status"]),
                    since,
                    opened,
                    str(body["reason"]),
                    str(body["action"]),
                    str(body.get("decision", "")),
                )
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("alert file %s cannot be read and is left out: %s", path.name, error)
    return sorted(found, key=lambda a: a.opened_at, reverse=True)
