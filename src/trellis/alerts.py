"""Alerts: who is told what, once, in groups, unless silenced; pure.

An episode is an ``Alert`` that opens, lasts and closes. What a channel has been told of it is a ``Delivery``. The two
are compared, level against level: whatever was missed, because a channel was down or a process was killed, is still due
at the next comparison, and what was told is not told again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

SEVERITIES = ("info", "warning", "critical")
# What an alert may be of, and its kinds within that; a silence that names neither would hold nothing back.
KINDS: dict[str, tuple[str, ...]] = {
    "UPSTREAM_FAULT": (
        "unit", "time_zone", "recode", "missing", "nulls", "invalid", "constant", "stale", "jump",
    ),
    "DRIFT": ("gradual", "sudden", "concept", "label", "scores", "joint"),
    "DATA_QUALITY": (
        "missing_column", "unexpected_column", "type_changed", "infinite", "all_null", "nulls", "constant",
        "out_of_range", "new_category", "duplicates", "outliers", "stale", "clock_skew",
    ),
    "PERFORMANCE_ASSUMPTION": ("concept_drift", "extrapolates", "selected_labels", "labels_cover_part"),
    "SKEW": ("skew",),
    "RETRAINING_FAILED": ("retraining_failed",),
    "RETRAINING_REGRESSED": ("retraining_regressed",),
    "BREAKER_OPEN": ("breaker_open",),
}  # fmt: skip
# The commands that explain what rests on no decision; the loop's own explains its alerts.
_EXPLAINED_BY = {
    "DATA_QUALITY": "trellis watch",
    "PERFORMANCE_ASSUMPTION": "trellis performance",
    "SKEW": "trellis skew",
}
FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 30.0, 3_600.0


@dataclass(frozen=True)
class Alert:
    """An episode that a person should know of.

    Attributes:
        id: Unique name.
        model: Whose.
        severity: One of ``SEVERITIES``.
        status: ``open`` or ``closed``.
        outcome: The family it belongs to, in capitals: ``UPSTREAM_FAULT``, ``DRIFT``, ``BREAKER_OPEN``, …
        kind: What it is within the family, for example ``unit``.
        reason: What, in one sentence with its numbers.
        since: Event time since when, RFC 3339.
        opened_at: Event time at which it was noticed.
        closed_at: Event time at which it was over; empty before.
        action: What to do.
        decision: Id of the decision that is its evidence; empty without one.
        columns: Columns concerned.
    """

    id: str
    model: str
    severity: str
    status: str
    outcome: str
    kind: str
    reason: str
    since: str
    opened_at: str
    closed_at: str = ""
    action: str = ""
    decision: str = ""
    columns: tuple[str, ...] = ()

    @property
    def explained_by(self) -> str:
        """The command that explains it."""
        if self.decision:
            return f"trellis explain {self.decision}"
        return f"{_EXPLAINED_BY.get(self.outcome, 'trellis loop explain')} {self.model}"

    @property
    def runbook(self) -> str:
        """Where to read what to do."""
        return f"docs/runbooks.md#{self.outcome.lower().replace('_', '-')}"


@dataclass(frozen=True)
class Channel:
    """One way to tell people.

    Attributes:
        name: Its name in the configuration.
        kind: ``log``, ``webhook``, ``slack``, ``email`` or ``alertmanager``.
        severities: Which alerts it is told.
        models: Whose; empty for every model's.
        repeat_hours: An alert that is still open is told again after so long; 0 for never.
        options: The kind's own settings; secrets are resolved when they are used.
    """

    name: str
    kind: Literal["log", "webhook", "slack", "email", "alertmanager"]
    severities: tuple[str, ...] = ("warning", "critical")
    models: tuple[str, ...] = ()
    repeat_hours: float = 24.0
    options: Mapping[str, object] = field(default_factory=dict)

    def wants(self, alert: Alert) -> bool:
        """Return whether an alert goes this way."""
        return alert.severity in self.severities and (not self.models or alert.model in self.models)


@dataclass(frozen=True)
class Silence:
    """A person's word that some alerts need not be told for a while.

    Attributes:
        id: Unique name.
        model: Whose; empty for every model's.
        kind: Which; empty for every kind.
        until: Wall clock at which it ends, Unix seconds.
        who, why: Kept.
    """

    id: str
    model: str
    kind: str
    until: float
    who: str
    why: str

    def covers(self, alert: Alert, now: float) -> bool:
        """Return whether it holds an alert back now."""
        return now < self.until and self.model in ("", alert.model) and self.kind in ("", alert.kind, alert.outcome)


@dataclass(frozen=True)
class Delivery:
    """What a channel has been told of an alert.

    Attributes:
        alert, channel: Which.
        told: ``open warning`` or ``closed``, as last told; empty before.
        told_at: Wall clock of that, Unix seconds.
        attempts: Failed attempts since.
        next_at: Wall clock before which it is not tried again.
        error: Why the last attempt failed; empty where it did not.
    """

    alert: str
    channel: str
    told: str = ""
    told_at: float = 0.0
    attempts: int = 0
    next_at: float = 0.0
    error: str = ""


@dataclass(frozen=True)
class Message:
    """What is due to one channel: alerts of one model in one status, together.

    Attributes:
        channel: Where to.
        model: Whose.
        status: ``open`` or ``closed``.
        alerts: Worst first.
        deliveries: What was told before, parallel to ``alerts``.
    """

    channel: Channel
    model: str
    status: str
    alerts: tuple[Alert, ...]
    deliveries: tuple[Delivery, ...]

    @property
    def key(self) -> str:
        """The same for the same message: a receiver that gets it twice, because of a kill, can tell."""
        parts = [self.channel.name, self.status, *(f"{a.id} {a.severity}" for a in self.alerts)]
        told = [f"{d.told_at}" for d in self.deliveries]
        return hashlib.sha256("\n".join(parts + told).encode()).hexdigest()[:24]


def state_of(alert: Alert) -> str:
    """Return what a channel that has heard everything was told last."""
    return "closed" if alert.status == "closed" else f"open {alert.severity}"


def first_seen(alerts: Iterable[Alert], deliveries: Iterable[Delivery], channels: Sequence[Channel]) -> list[Delivery]:
    """Return the rows that are missing: one per open alert and channel that wants it.

    Only what is open makes a row, so a new channel is not told of what is long over, and what opens and closes while a
    channel is down is still told.
    """
    known = {(d.alert, d.channel) for d in deliveries}
    return [
        Delivery(alert.id, channel.name)
        for alert in alerts
        for channel in channels
        if alert.status == "open" and channel.wants(alert) and (alert.id, channel.name) not in known
    ]


def due(
    alerts: Iterable[Alert],
    deliveries: Iterable[Delivery],
    channels: Sequence[Channel],
    silences: Sequence[Silence],
    now: float,
) -> list[Message]:
    """Return what has to be told now, grouped by channel, model and status.

    Args:
        alerts: Every alert.
        deliveries: What was told.
        channels: The configuration; what was told to others is left alone.
        silences: Silences, ended ones too.
        now: Wall clock, Unix seconds.
    """
    by_id, by_name = {a.id: a for a in alerts}, {c.name: c for c in channels}
    groups: dict[tuple[str, str, str], list[tuple[Alert, Delivery]]] = {}
    for delivery in deliveries:
        alert, channel = by_id.get(delivery.alert), by_name.get(delivery.channel)
        if alert is None or channel is None or now < delivery.next_at:
            continue
        again = channel.repeat_hours > 0 and now - delivery.told_at >= channel.repeat_hours * 3_600
        if delivery.told == state_of(alert) and not (alert.status == "open" and again):
            continue
        if any(s.covers(alert, now) for s in silences):
            continue
        groups.setdefault((channel.name, alert.model, alert.status), []).append((alert, delivery))
    messages = []
    for (name, model, status), found in sorted(groups.items()):
        worst = sorted(found, key=lambda pair: (-SEVERITIES.index(pair[0].severity), pair[0].id))
        messages.append(Message(by_name[name], model, status, tuple(a for a, _ in worst), tuple(d for _, d in worst)))
    return messages


def hushed(
    alerts: Iterable[Alert], deliveries: Iterable[Delivery], silences: Sequence[Silence], now: float
) -> list[Delivery]:
    """Return the rows of alerts that opened and closed within a silence: nobody needs to hear that they are over."""
    by_id = {a.id: a for a in alerts}
    return [
        replace(d, told="closed", told_at=now)
        for d in deliveries
        if not d.told
        and (alert := by_id.get(d.alert)) is not None
        and alert.status == "closed"
        and any(s.covers(alert, now) for s in silences)
    ]


def delivered(message: Message, now: float) -> list[Delivery]:
    """Return the rows after a message was taken."""
    pairs = zip(message.alerts, message.deliveries, strict=True)
    return [Delivery(d.alert, d.channel, state_of(a), now) for a, d in pairs]


def refused(message: Message, error: str, now: float) -> list[Delivery]:
    """Return the rows after a channel did not take a message: tried again, each time after twice as long."""
    return [
        replace(
            d,
            attempts=d.attempts + 1,
            next_at=now + min(LAST_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2 ** min(d.attempts, 20)),
            error=error,
        )
        for d in message.deliveries
    ]
