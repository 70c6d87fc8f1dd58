"""Alerts as files, one per episode: what stands in the directory is what is going on."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from trellis.adapters.files import write_atomically
from trellis.alerts import SEVERITIES, Alert

logger = logging.getLogger(__name__)


def read_alerts(directory: Path) -> list[Alert]:
    """Return every alert, open or over; a file that cannot be read is told and left out."""
    found = []
    for path in sorted(directory.glob("*.json")):
        try:
            found.append(_alert(json.loads(path.read_text(encoding="utf-8"))))
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("alert file %s cannot be read and is left out: %s", path.name, error)
    return found


def raise_alert(
    directory: Path, *, model: str, outcome: str, key: str, severity: str, reason: str, action: str, at: str,
    decision: str = "", kind: str = "", columns: Sequence[str] = (), about: str = "",
) -> Path:  # fmt: skip
    """Open an episode, once: the same key of the same model and outcome is the same episode.

    Args:
        directory: Where alerts are.
        model: Whose.
        outcome: What it is, in capitals, for example ``BREAKER_OPEN``.
        key: What makes it this episode and no other.
        severity: One of ``SEVERITIES``.
        reason: What, in one sentence.
        action: What to do.
        at: Event time, RFC 3339.
        decision: Id of the decision that is its evidence.
        kind: What it is within the outcome; the outcome itself if not given.
        columns: Columns concerned.
        about: What it speaks of, for those who follow it while it lasts; not shown.

    Raises:
        StorageError: The disk refused.
    """
    path = alert_path(directory, model, outcome, key)
    if path.exists():
        return path
    body = {
        "id": path.stem, "model": model, "outcome": outcome, "kind": kind or outcome.lower(), "severity": severity,
        "status": "open", "reason": reason, "action": action, "since": at, "opened_at": at, "decision": decision,
        "views": [], "columns": list(columns), "about": about, "last_window": at, "looks": 1,
    }  # fmt: skip
    write_atomically(path, json.dumps(body, indent=2, sort_keys=True) + "\n")
    return path


def alert_path(directory: Path, model: str, outcome: str, key: str) -> Path:
    """Return the file of an episode, whether it is there or not."""
    digest = hashlib.sha256(f"{model}|{outcome}|{key}".encode()).hexdigest()[:12]
    return directory / f"{model}-{outcome.lower()}-{digest}.json"


def close_alerts(
    directory: Path, *, model: str, outcomes: Collection[str], at: str, but: Collection[Path] = ()
) -> list[Path]:
    """Close the open episodes of some outcomes, all ``but`` some; return those that were closed.

    Raises:
        StorageError: The disk refused.
    """
    closed = []
    for path in sorted(directory.glob(f"{model}-*.json")):
        if path in but:
            continue
        try:
            body: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue  # told where alerts are read
        if body.get("model") == model and body.get("outcome") in outcomes and body.get("status") == "open":
            write_atomically(
                path, json.dumps({**body, "status": "closed", "closed_at": at}, indent=2, sort_keys=True) + "\n"
            )
            closed.append(path)
    return closed


def _alert(body: dict[str, Any]) -> Alert:
    severity = str(body["severity"])
    return Alert(
        id=str(body["id"]),
        model=str(body["model"]),
        severity=severity if severity in SEVERITIES else "warning",
        status=str(body["status"]),
        outcome=str(body["outcome"]),
        kind=str(body["kind"]),
        reason=str(body["reason"]),
        since=str(body.get("since") or body["opened_at"]),
        opened_at=str(body["opened_at"]),
        closed_at=str(body.get("closed_at", "")),
        action=str(body.get("action", "")),
        decision=str(body.get("decision", "")),
        columns=tuple(str(c) for c in body.get("columns", ())),
    )
