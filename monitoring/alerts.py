"""Alerts as files: one per episode, opened once, followed while it lasts, closed when it is over."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trellis.adapters.files import write_atomically
from trellis.alerts import SEVERITIES
from trellis.drift import Diagnosis, Window

logger = logging.getLogger(__name__)
# The outcomes that this follows; the loop's alerts lie in the same directory and are closed by the loop.
DIAGNOSED = frozenset({"DRIFT", "UPSTREAM_FAULT"})


def follow_up(directory: Path, model: str, window: Window, found: Diagnosis, decision: str) -> Path | None:
    """Open, continue or close a model's alerts of ``DIAGNOSED`` after a look; a window looked at again changes nothing.

    A fault's episode is its views; a drift's is the model's. A look without enough rows says nothing. During a fault a
    drift episode stays open: the look cannot tell.

    Returns:
        File of the alert that this look belongs to; None where there is no alarm.
    """
    if found.outcome == "INSUFFICIENT":
        return None
    mine = None
    for path, alert in list(_open_alerts(directory, model)):
        if window.end < alert["last_window"]:
            continue  # a look at the past tells nothing about what is going on now
        same = alert["outcome"] == found.outcome and (
            found.outcome == "DRIFT" or bool(set(alert["views"]) & set(found.views))
        )
        if same:
            mine = path
            if window.end > alert["last_window"]:
                views = sorted({*alert["views"], *found.views})
                now = {**_finding(found, decision), "views": views, "since": alert["since"]}
                now["severity"] = max(alert["severity"], found.severity, key=SEVERITIES.index)
                _write(path, {**alert, **now, "last_window": window.end, "looks": alert["looks"] + 1})
        elif not (alert["outcome"] == "DRIFT" and found.outcome == "UPSTREAM_FAULT"):
            _write(path, {**alert, "status": "closed", "closed_at": window.end})
    if found.outcome == "STABLE":
        return None
    if mine is not None:
        return mine
    key = f"{model}|{found.outcome}|{','.join(found.views)}|{window.end}"
    name = f"{model}-{found.outcome.lower()}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    path = directory / f"{name}.json"
    if path.exists():  # this very look has been taken before, and its episode is over
        return path
    alert = {
        **_finding(found, decision),
        "id": name,
        "status": "open",
        "severity": found.severity,
        "model": model,
        "outcome": found.outcome,
        "opened_at": window.end,
        "last_window": window.end,
        "looks": 1,
    }
    _write(path, alert)
    return path


def _finding(found: Diagnosis, decision: str) -> dict[str, Any]:
    return {
        "kind": found.kind,
        "cause": found.cause,
        "views": list(found.views),
        "columns": [f.column for f in found.faults] or [s.name for s in found.shifts if s.level],
        "since": found.since,
        "action": found.action,
        "reason": found.reason,
        "decision": decision,
    }


def _open_alerts(directory: Path, model: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    for path in sorted(directory.glob(f"{model}-*.json")):
        try:
            alert = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            logger.warning("alert file %s cannot be read; left alone", path)
            continue
        if alert.get("model") == model and alert.get("status") == "open" and alert.get("outcome") in DIAGNOSED:
            yield path, alert


def _write(path: Path, alert: dict[str, Any]) -> None:
    write_atomically(path, json.dumps(alert, indent=2, sort_keys=True) + "\n")
